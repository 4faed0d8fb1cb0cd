#pragma once
/// x ← m∘x/(1−p), m_ij = 0 with probability p, else 1      x [tokens, n]
/// (Srivastava et al., "Dropout", JMLR 2014). The mask is made from its key and not kept: the same call on dy is the
/// backward pass.

#include "peft/core/parallel.hpp"
#include "peft/core/rng.hpp"
#include "peft/core/rounded.hpp"
#include "peft/kernels/dropout.hpp"
#include "peft/ops/rows.hpp"

PEFT_BEGIN_NAMESPACE
namespace ops {

/// In place; nothing happens where p is 0. Row i of x is row key.first_row + i of the mask. Throws ShapeError for a p that
/// is no probability below 1.
template <Scalar T>
void dropout(MatrixView<T> x, float p, const DropoutKey& key, ExecutorRef executor = default_executor()) {
  if (!(p >= 0.0f && p < 1.0f)) fail<ShapeError>("dropout: p is {}; expected a probability p with 0 <= p < 1", p);
  if (p == 0.0f || x.empty()) return;
  const Index n = x.cols;
  const auto factor = static_cast<float>(quotient(1.0, 1.0 - static_cast<double>(p)));
  const Index bit_floats = (n + 31) / 32;
  const kernels::KernelTable& t = kernels::table();
  parallel_for_ranges(executor, x.rows, detail::kRowGrain, [&](Index first, Index last) {
    float* memory = kernels::scratch(kernels::ScratchSlot::kRows, bit_floats + n);
    auto* const bits = reinterpret_cast<std::uint8_t*>(memory);
    for (Index i = first; i < last; ++i) {
      kernels::dropout_row(key, i, n, p, bits);
      if constexpr (std::same_as<T, double>) {
        (void)t;
        for (Index j = 0; j < n; ++j) x(i, j) *= (bits[j / 8] >> (j % 8) & 1) != 0 ? static_cast<double>(factor) : 0.0;
      } else {
        float* out = detail::float_target<T>(x.row(i), memory + bit_floats);
        detail::as_float<T>(t, x.row(i), n, out);
        t.apply_mask(n, bits, 0, n, factor, out);
        detail::store_row<T>(t, x.row(i), n, out);
      }
    }
  });
}

}  // namespace ops
PEFT_END_NAMESPACE
