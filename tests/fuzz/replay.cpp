// replay FOLDER...: runs a fuzz target on every file of a corpus, on every beginning of it and with every byte changed,
// where a file is too long for that at places spread over it. For compilers without libFuzzer, and the same every time.
#include <algorithm>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "fuzz/input.hpp"

namespace {

std::size_t runs = 0;

void run(const std::string& bytes) {
  // A copy without spare room: reading past its end is seen by a sanitizer.
  const std::vector<std::uint8_t> exact(bytes.begin(), bytes.end());
  LLVMFuzzerTestOneInput(exact.data(), exact.size());
  ++runs;
}

void replay(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  const std::string bytes{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  run(bytes);
  constexpr std::size_t kPlaces = 600;
  const std::size_t step = std::max<std::size_t>(1, bytes.size() / kPlaces);
  for (std::size_t i = 0; i < bytes.size(); i += step) {
    run(bytes.substr(0, i));
    for (const int change : {0x01, 0x80, 0xFF}) {
      std::string changed = bytes;
      changed[i] = static_cast<char>(changed[i] ^ change);
      run(changed);
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  for (int i = 1; i < argc; ++i) {
    std::vector<std::filesystem::path> files;
    for (const auto& entry : std::filesystem::directory_iterator(argv[i])) files.push_back(entry.path());
    std::sort(files.begin(), files.end());
    for (const std::filesystem::path& file : files) {
      try {
        replay(file);
      } catch (const std::exception& error) {
        std::fprintf(stderr, "%s, run %zu: %s\n", file.c_str(), runs, error.what());
        return 1;
      }
    }
  }
  std::printf("%zu inputs\n", runs);
  return runs > 0 ? 0 : 1;
}
