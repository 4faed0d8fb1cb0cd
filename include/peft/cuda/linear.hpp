#pragma once
/// How a linear layer on the GPU plugs in: LinearLike and its refinements with device views, and a Context where the CPU's
/// take an executor. All work goes to the context's stream and is not waited for.

#include <concepts>
#include <span>

#include "peft/cuda/context.hpp"
#include "peft/cuda/device_view.hpp"
#include "peft/cuda/mask_bits.hpp"

PEFT_BEGIN_NAMESPACE
namespace cuda {

/// One adapter's low-rank update for a run of rows: y[first_row + i] += scale · S[i] · Bᵀ.
template <class T>
struct DeviceLowRankTerm {
  Index first_row = 0;
  Index rows = 0;
  DeviceMatrixView<const T> s{};  ///< [rows, r]
  DeviceMatrixView<const T> b{};  ///< [out, r]
  float scale = 1;
};

/// dx += mask ∘ (dS·A).
template <class T>
struct DeviceInputGradTerm {
  DeviceMatrixView<const T> ds{};  ///< [rows, r]
  DeviceMatrixView<const T> a{};   ///< [r, in]
  DeviceMaskBits mask{};
};

/// y = x·Wᵀ (+ bias); x [tokens, in], y [tokens, out] overwritten, apart from x.
template <class L, class T = typename L::value_type>
concept DeviceLinearLike = requires(const L& l, DeviceMatrixView<const T> x, DeviceMatrixView<T> y, Context& context) {
  { l.in_features() } -> std::convertible_to<Index>;
  { l.out_features() } -> std::convertible_to<Index>;
  l.forward(x, y, context);
};

/// y = x·Wᵀ (+ bias) + Σ terms, in the layer's own kernels.
template <class L, class T = typename L::value_type>
concept DeviceFusedLowRank = DeviceLinearLike<L, T> && requires(const L& l, DeviceMatrixView<const T> x,
                                                               std::span<const DeviceLowRankTerm<T>> terms,
                                                               DeviceMatrixView<T> y, Context& context) {
  l.forward_low_rank(x, terms, y, context);
};

/// The same with another bias ([out], or empty: none) in the place of the layer's own, which may be asked for: an adapter's
/// bias is added to it, and no product knows of two.
template <class L, class T = typename L::value_type>
concept DeviceOtherBias = DeviceFusedLowRank<L, T> && requires(const L& l, DeviceMatrixView<const T> x,
                                                              std::span<const DeviceLowRankTerm<T>> terms,
                                                              DeviceVectorView<const T> bias, DeviceMatrixView<T> y,
                                                              Context& context) {
  { l.bias() } -> std::convertible_to<DeviceVectorView<const T>>;
  l.forward_low_rank(x, terms, bias, y, context);
};

/// dx = dy·W.
template <class L, class T = typename L::value_type>
concept DeviceBackwardLinear = requires(const L& l, DeviceMatrixView<const T> dy, DeviceMatrixView<T> dx, Context& context) {
  l.backward_input(dy, dx, context);
};

/// dx = dy·W + Σ terms, in the layer's own kernels.
template <class L, class T = typename L::value_type>
concept DeviceFusedInputGrad = requires(const L& l, DeviceMatrixView<const T> dy, std::span<const DeviceInputGradTerm<T>> terms,
                                        DeviceMatrixView<T> dx, Context& context) {
  l.backward_low_rank(dy, terms, dx, context);
};

/// The layer's W has spare columns in which s·B of one adapter stands: y = [x | S]·[W | s·B]ᵀ (+ bias).
template <class L, class T = typename L::value_type>
concept DeviceSpareColumns =
    DeviceLinearLike<L, T> && requires(L& l, const L& c, DeviceMatrixView<const T> x, DeviceMatrixView<T> y, Context& context) {
      { c.spare_columns() } -> std::convertible_to<Index>;
      { l.low_rank_columns(Index{}) } -> std::convertible_to<DeviceMatrixView<T>>;
      l.set_columns_tag(c.columns_tag());
      c.forward_widened(x, Index{}, y, context);
    };

/// Bytes of scratch that the layer's passes over up to `rows` rows take; layers that take none need not say so.
template <class L>
Index scratch_bytes_of(const L& layer, Index rows) {
  if constexpr (requires { layer.scratch_bytes(rows); }) {
    return layer.scratch_bytes(rows);
  } else {
    return 0;
  }
}

}  // namespace cuda
PEFT_END_NAMESPACE
