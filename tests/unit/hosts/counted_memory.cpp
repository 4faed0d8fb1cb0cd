// Replaces the operator new that buffers take their memory from, and its partners.
#include "unit/hosts/counted_memory.hpp"

#include <malloc.h>

#include <atomic>
#include <cstdlib>
#include <new>

namespace {

std::atomic<std::size_t> now{0}, most{0};

}  // namespace

[[gnu::noinline]] void* operator new(std::size_t size, std::align_val_t alignment) {
  const auto step = static_cast<std::size_t>(alignment);
  void* const memory = std::aligned_alloc(step, (size + step - 1) / step * step);
  if (memory == nullptr) throw std::bad_alloc();
  const std::size_t total = now += ::malloc_usable_size(memory);
  if (total > most) most = total;
  return memory;
}
[[gnu::noinline]] void operator delete(void* memory, std::align_val_t) noexcept {
  if (memory != nullptr) now -= ::malloc_usable_size(memory);
  std::free(memory);
}
[[gnu::noinline]] void operator delete(void* memory, std::size_t, std::align_val_t alignment) noexcept {
  operator delete(memory, alignment);
}

namespace peft_test {

std::size_t CountedMemory::live() noexcept { return now; }
std::size_t CountedMemory::peak() noexcept { return most; }
void CountedMemory::restart() noexcept { most = now.load(); }

}  // namespace peft_test
