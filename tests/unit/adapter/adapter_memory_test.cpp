// What an adapter allocates when its caller keeps its memory: nothing, from the second call on.
#include <cstdlib>
#include <new>

#include "peft/adapter.hpp"
#include "support/catch.hpp"

namespace {
std::size_t allocations = 0;
}

// Not inlined, or g++ takes free() for the wrong partner of what it sees of the other.
[[gnu::noinline]] void* operator new(std::size_t size) {
  ++allocations;
  if (void* memory = std::malloc(size > 0 ? size : 1)) return memory;
  throw std::bad_alloc();
}
[[gnu::noinline]] void* operator new(std::size_t size, std::align_val_t alignment) {
  ++allocations;
  const auto step = static_cast<std::size_t>(alignment);
  if (void* memory = std::aligned_alloc(step, (size + step - 1) / step * step)) return memory;
  throw std::bad_alloc();
}
// std::stable_sort and Catch ask for memory this way; a sanitizer refuses one pair of which only half is replaced.
[[gnu::noinline]] void* operator new(std::size_t size, const std::nothrow_t&) noexcept {
  ++allocations;
  return std::malloc(size > 0 ? size : 1);
}
[[gnu::noinline]] void* operator new(std::size_t size, std::align_val_t alignment, const std::nothrow_t&) noexcept {
  ++allocations;
  const auto step = static_cast<std::size_t>(alignment);
  return std::aligned_alloc(step, (size + step - 1) / step * step);
}
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::size_t, std::align_val_t) noexcept { std::free(memory); }

using namespace peft;

TEMPLATE_TEST_CASE("an adapter in decoding allocates nothing", "", float, bf16) {
  using T = TestType;
  for (const char* name : {"seq_bn", "double_seq_bn", "par_bn", "scaled_par_bn"}) {
    const Adapter<T> adapter(64, AdapterConfig::named(name));
    Matrix<T> h = Matrix<T>::zeros(1, 64), r = Matrix<T>::zeros(1, 64), y(1, 64);
    typename Adapter<T>::Saved saved;
    typename Adapter<T>::Workspace work;
    const auto run = [&] {
      adapter.forward(h.view(), r.view(), ops::NoNorm(), y.view(), saved, {}, default_executor(), &work);
    };
    run();
    const std::size_t before = allocations;
    run();
    INFO(name);
    CHECK(allocations - before == 0);
  }
  const std::size_t before = allocations;
  Matrix<T> seen(4, 4);
  CHECK(allocations > before);
}
