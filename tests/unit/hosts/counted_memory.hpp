#pragma once
/// Bytes of the library's buffers (memory aligned by operator new), as counted_memory.cpp counts them.

#include <cstddef>

namespace peft_test {

struct CountedMemory {
  static std::size_t live() noexcept;
  /// The most since the last call of restart().
  static std::size_t peak() noexcept;
  static void restart() noexcept;
};

}  // namespace peft_test
