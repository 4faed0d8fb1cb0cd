#pragma once
/// Products of a few rows (decoding) over a weight in a GGUF's blocks: they are read once for four rows, as four streams, and
/// decoded in registers.


#include "peft/kernels/arithmetic.hpp"
#include "peft/kernels/thin_packed.hpp"

PEFT_BEGIN_NAMESPACE
namespace kernels {
namespace detail {

/// Whether thin_blocks() can run `p`, and should.
inline bool is_thin_blocks(const GemmProblem& p) noexcept { return p.b.blocks != nullptr && is_thin_packed(p, kThinRows); }

/// Runs `p`, which is_thin_blocks(). Same bits for any number of threads.
inline void thin_blocks(const GemmProblem& p, const KernelTable& table, ExecutorRef executor) {
  const BlocksOperand& w = *p.b.blocks;
  const bool direct = p.a.type == DType::kF32;
  float* const s = scratch(ScratchSlot::kThin, p.m * total_rank(p) + (direct ? 0 : p.m * p.k));
  float* const widened = s + p.m * total_rank(p);
  scale_terms(p, s);
  for (Index i = 0; i < p.m && !direct; ++i) {
    table.widen(p.k, element(p.a.data, i * p.a.stride, p.a.type), p.a.type, widened + i * p.k);
  }
  const float* const x = direct ? static_cast<const float*>(p.a.data) : widened;
  const Index x_stride = direct ? p.a.stride : p.k;
  thin_packed(p, table, s, executor, [&](Index first, Index count, float* y) {
    for (Index i = 0; i < p.m; i += 4) {
      ThinBlocksCall call;
      call.m = smaller(4, p.m - i), call.n = count, call.k = p.k, call.format = w.format;
      call.x = x + i * x_stride, call.x_stride = x_stride;
      call.blocks = w.data + first * w.row_bytes, call.row_bytes = w.row_bytes;
      call.y = y + i * kWideColumns, call.y_stride = kWideColumns;
      table.thin_blocks(call);
    }
  });
}

}  // namespace detail
}  // namespace kernels
PEFT_END_NAMESPACE
