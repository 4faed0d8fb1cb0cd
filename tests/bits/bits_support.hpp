#pragma once
/// Inputs, hashes and the run over several thread counts of bits_probe.

#include <bit>
#include <cstdint>
#include <cstdio>
#include <cstring>

#include "peft/core/buffer.hpp"
#include "peft/core/thread_pool.hpp"

namespace bits_test {

using namespace peft;

inline bool& failed() {
  static bool value = false;
  return value;
}

/// FNV-1a over bytes.
class Hash {
 public:
  template <class T>
  void add(const T* data, std::size_t count) {
    const auto* bytes = reinterpret_cast<const unsigned char*>(data);
    for (std::size_t i = 0; i < count * sizeof(T); ++i) value_ = (value_ ^ bytes[i]) * 0x100000001B3ull;
  }
  template <class T>
  void add(const Matrix<T>& matrix) {
    add(matrix.data(), static_cast<std::size_t>(matrix.size()));
  }
  std::uint64_t value() const { return value_; }

 private:
  std::uint64_t value_ = 0xCBF29CE484222325ull;
};

/// The pattern as a number that no compiler has seen being made.
inline float from_bits(std::uint32_t pattern) {
  volatile std::uint32_t hidden = pattern;
  return std::bit_cast<float>(static_cast<std::uint32_t>(hidden));
}

inline bool is_nan_bits(float value) { return (std::bit_cast<std::uint32_t>(value) & 0x7FFFFFFFu) > 0x7F800000u; }

/// Numbers of [-size, size) with 24 bits, the same on every compiler: integers and one exact product.
template <class T>
Matrix<T> numbers(Index rows, Index cols, std::uint32_t seed, float size = 1.0f) {
  Matrix<T> result(rows, cols);
  std::uint32_t state = seed * 2654435761u + 12345u;
  for (T& value : result.flat()) {
    state = state * 1664525u + 1013904223u;
    value = static_cast<T>(static_cast<float>(static_cast<std::int32_t>(state) >> 8) * 0x1p-23f * size);
  }
  return result;
}

/// Prints the area's hash; all thread counts must give the same.
template <class Area>
void run(const char* name, Area&& area) {
  std::uint64_t first = 0;
  for (int threads = 1; threads <= 3; ++threads) {
    ThreadPool pool(threads);
    Hash hash;
    area(hash, ExecutorRef(pool));
    if (threads == 1) first = hash.value();
    if (hash.value() != first) {
      std::printf("%s: %d threads give %016llx, one gives %016llx\n", name, threads,
                  static_cast<unsigned long long>(hash.value()), static_cast<unsigned long long>(first));
      failed() = true;
    }
  }
  std::printf("%s %016llx\n", name, static_cast<unsigned long long>(first));
}

}  // namespace bits_test
