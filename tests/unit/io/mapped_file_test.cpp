#include "peft/io/mapped_file.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <vector>

#include "scratch.hpp"
#include "support/catch.hpp"

using io_test::ScratchFolder;
using io_test::write_file;
using peft::MappedFile;

TEST_CASE("released pages leave memory, their neighbours stay, and all bytes can be read again") {
  const ScratchFolder folder;
  const auto page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
  std::string content(16 * page + 100, '\0');
  for (std::size_t i = 0; i < content.size(); ++i) content[i] = static_cast<char>(i % 251);
  write_file(folder / "file", content);
  const auto file = MappedFile::open(folder / "file");
  const std::span<const std::byte> bytes = file->bytes();
  REQUIRE(bytes.size() == content.size());
  // Pages of this mapping that are this process's, by /proc/self/smaps.
  const auto resident = [&] {
    std::ifstream maps("/proc/self/smaps");
    for (std::string line; std::getline(maps, line);) {
      if (line.find((folder / "file").string()) == std::string::npos) continue;
      while (std::getline(maps, line) && line.rfind("Rss:", 0) != 0) {
      }
      return std::stoul(line.substr(4)) * 1024 / page;
    }
    return 0ul;
  };
  const auto read = [&] { return io_test::text_of(bytes) == content; };
  CHECK(read());
  if (resident() != 17) {
    WARN("this system does not tell which pages are resident: only the bytes are checked");
  } else {
    file->release(bytes.subspan(page + 1, 4 * page));  // pages 2 to 4 are whole within it
    CHECK(resident() == 14);
    file->release(bytes.subspan(8 * page));  // with the last, cut one
    CHECK(resident() == 5);
    file->release(bytes.subspan(10, 20));
    file->release({});
    CHECK(resident() == 5);
  }
  CHECK(read());
  file->release(bytes);
  CHECK(read());
}
