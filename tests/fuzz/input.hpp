#pragma once
/// What every fuzz target shares: the input as a file, and which exceptions are an answer.

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <vector>

#include "peft/error.hpp"
#include "peft/io/tensor_ref.hpp"

/// libFuzzer's entry point; replay.cpp calls it too.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace fuzz {

/// The input as a regular file in memory.
class InputFile {
 public:
  InputFile(const std::uint8_t* data, std::size_t size) : file_(::memfd_create("input", MFD_CLOEXEC)) {
    if (file_ < 0 || ::write(file_, data, size) != static_cast<ssize_t>(size)) std::abort();
  }
  InputFile(const InputFile&) = delete;
  InputFile& operator=(const InputFile&) = delete;
  ~InputFile() { ::close(file_); }
  int descriptor() const noexcept { return file_; }
  std::filesystem::path path() const { return "/proc/self/fd/" + std::to_string(file_); }

 private:
  int file_;
};

/// Whether `body` got through. The library's errors are its answer to bad input; any other exception is a finding.
template <class Body>
bool attempt(Body&& body) {
  try {
    body();
    return true;
  } catch (const peft::Error& error) {
    if (std::string(error.what()).empty()) std::abort();
    return false;
  }
}

/// Reads every value, so that a wrong size would be seen.
inline void read_values(const peft::TensorRef& tensor) {
  std::vector<float> values(static_cast<std::size_t>(tensor.elements()));
  attempt([&] { tensor.read_f32(values.data()); });
}

}  // namespace fuzz
