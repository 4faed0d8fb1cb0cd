// A shared object that holds the library, built with hidden and with default visibility.
#include "link/work.hpp"

#define PEFT_EXPORT extern "C" __attribute__((visibility("default")))

PEFT_EXPORT std::uint64_t plugin_work(std::uint64_t seed) { return work(seed); }

/// Throws the library's ShapeError across the boundary.
PEFT_EXPORT void plugin_fail() {
  const peft::DenseLinear<float> layer(peft::Matrix<float>::zeros(2, 3));
  peft::Matrix<float> x(1, 4), y(1, 2);
  layer.forward<float>(x.view(), y.view());
}
