#pragma once
/// A warp's tile of a product without tensor cores: acc [kM, kN] += A [kM, kPanel] · B [kPanel, kN] from shared memory
/// (tile_layout.cuh) by fused multiply-adds in float. T = float; also bf16 where the processor has no mma for it
/// (sm_75).
///
/// Lanes lie 8 x 4 over the tile; a lane holds kM/8 rows and kN/4 columns. Of an operand along k it reads four k of
/// each of its rows and columns; its rows are then 8 apart, so that eight lanes read eight rows beside one another. Of one
/// across k it reads runs of up to four rows (columns) of each k, eight lanes beside one another. Lanes that share their
/// columns read the same words of B.

#include "peft/cuda/kernels/tile_layout.cuh"

PEFT_BEGIN_NAMESPACE
namespace cuda {
namespace kernels {

template <class T, int kM, int kN, Order kA, Order kB>
struct FmaTile {
  static_assert(kM % 16 == 0 && kN % 16 == 0);
  using value_type = T;
  static constexpr int kRows = kM / 8;
  static constexpr int kColumns = kN / 4;
  static constexpr int kRowRun = kA == Order::kAlongK ? 1 : kRows < 4 ? kRows : 4;
  static constexpr int kRun = 4;
  static constexpr int kStep = 4;  // k at once
  float sums[kRows][kColumns];

  PEFT_DEVICE void clear() {
    PEFT_UNROLL
    for (auto& row : sums) {
      PEFT_UNROLL
      for (float& sum : row) sum = 0.0f;
    }
  }

  /// Place of this lane's i-th row and j-th column within the warp's tile.
  static PEFT_DEVICE int row_of(int i) { return i / kRowRun * (8 * kRowRun) + lane_index() % 8 * kRowRun + i % kRowRun; }
  static PEFT_DEVICE int column_of(int j) {
    return j / kRun * (4 * kRun) + lane_index() / 8 * kRun + j % kRun;
  }

  /// As MmaTile's.
  template <class F>
  PEFT_DEVICE void for_each(F&& f) {
    PEFT_UNROLL
    for (int i = 0; i < kRows; ++i) {
      PEFT_UNROLL
      for (int j = 0; j < kColumns; ++j) f(row_of(i), column_of(j), sums[i][j]);
    }
  }

  template <class Bits>
  PEFT_DEVICE void mask_rows(float scale, Bits&& bits) {
    static_assert(kN <= 32);
    PEFT_UNROLL
    for (int i = 0; i < kRows; ++i) {
      const std::uint32_t kept = bits(row_of(i));
      PEFT_UNROLL
      for (int j = 0; j < kColumns; ++j) sums[i][j] *= (kept >> column_of(j)) & 1u ? scale : 0.0f;
    }
  }

  template <class F>
  PEFT_DEVICE void for_each_run(F&& f) const {
    PEFT_UNROLL
    for (int i = 0; i < kRows; ++i) {
      PEFT_UNROLL
      for (int j = 0; j < kColumns; j += kRun) {
        f(row_of(i), column_of(j), Vec<float, 4>{{sums[i][j], sums[i][j + 1], sums[i][j + 2], sums[i][j + 3]}});
      }
    }
  }

  template <class F>
  PEFT_DEVICE void for_each_run4(F&& f) const {
    for_each_run(f);
  }

  /// As MmaTile's.
  template <int kDepth = kPanel<T>>
  PEFT_DEVICE void multiply(const SharedMemory& memory, int a, int m0, int a_k0, int b, int n0, int b_k0) {
    const Shared<T> a_tile = memory.template at<T>(a);
    const Shared<T> b_tile = memory.template at<T>(b);
    for (int k = 0; k < kDepth; k += kStep) {
      float af[kRows][kStep];
      PEFT_UNROLL
      for (int i = 0; i < kRows; i += kRowRun) read<kA, kRowRun>(a_tile, m0 + row_of(i), a_k0 + k, &af[i]);
      PEFT_UNROLL
      for (int j = 0; j < kColumns; j += kRun) {
        float bf[kRun][kStep];
        read<kB, kRun>(b_tile, n0 + column_of(j), b_k0 + k, bf);
        PEFT_UNROLL
        for (int q = 0; q < kRun; ++q) {
          PEFT_UNROLL
          for (int i = 0; i < kRows; ++i) {
            PEFT_UNROLL
            for (int s = 0; s < kStep; ++s) sums[i][j + q] = fma(af[i][s], bf[q][s], sums[i][j + q]);
          }
        }
      }
    }
  }

 private:
  /// values[o][s] = operand (outer + o, k + s).
  template <Order kOrder, int kOuter>
  static PEFT_DEVICE void read(const Shared<T>& tile, int outer, int k, float (*values)[kStep]) {
    if constexpr (kOrder == Order::kAlongK) {
      PEFT_UNROLL
      for (int o = 0; o < kOuter; ++o) {
        const Vec<T, kStep> run = tile.template load_vec<kStep>(tile_position<T, kOrder>(outer + o, k));
        PEFT_UNROLL
        for (int s = 0; s < kStep; ++s) values[o][s] = to_float(run.v[s]);
      }
    } else {
      PEFT_UNROLL
      for (int s = 0; s < kStep; ++s) {
        const Vec<T, kOuter> run = tile.template load_vec<kOuter>(tile_position<T, kOrder>(outer, k + s));
        PEFT_UNROLL
        for (int o = 0; o < kOuter; ++o) values[o][s] = to_float(run.v[o]);
      }
    }
  }
};

}  // namespace kernels
}  // namespace cuda
PEFT_END_NAMESPACE
