#pragma once
/// A warp's tile of a product on tensor cores: acc [kM, kN] += A [kM, kPanel] · B [kPanel, kN] from shared memory
/// (tile_layout.cuh), T = f16 | bf16, sums in float. mma m16n8k16; fragments come by ldmatrix, transposed on the way
/// where the operand lies across k.

#include "peft/cuda/kernels/tile_layout.cuh"

PEFT_BEGIN_NAMESPACE
namespace cuda {
namespace kernels {

template <class T, int kM, int kN, Order kA, Order kB>
struct MmaTile {
  static_assert(kM % 16 == 0 && kN % 16 == 0);
  using value_type = T;
  float sums[kM / 16][kN / 8][4];

  PEFT_DEVICE void clear() {
    PEFT_UNROLL
    for (auto& row : sums) {
      PEFT_UNROLL
      for (auto& tile : row) {
        PEFT_UNROLL
        for (float& sum : tile) sum = 0.0f;
      }
    }
  }

  /// Calls f(row, column, sum) for each of this lane's sums, places within the warp's tile.
  template <class F>
  PEFT_DEVICE void for_each(F&& f) {
    const int row = lane_index() / 4;
    const int column = lane_index() % 4 * 2;
    PEFT_UNROLL
    for (int i = 0; i < kM / 16; ++i) {
      PEFT_UNROLL
      for (int j = 0; j < kN / 8; ++j) {
        PEFT_UNROLL
        for (int e = 0; e < 4; ++e) f(i * 16 + row + e / 2 * 8, j * 8 + column + e % 2, sums[i][j][e]);
      }
    }
  }

  /// Multiplies by `scale` where bit (column) of bits(row) is 1, else by zero.
  template <class Bits>
  PEFT_DEVICE void mask_rows(float scale, Bits&& bits) {
    static_assert(kN <= 32);
    const int column = lane_index() % 4 * 2;
    PEFT_UNROLL
    for (int i = 0; i < kM / 8; ++i) {
      const std::uint32_t kept = bits(i * 8 + lane_index() / 4) >> column;
      PEFT_UNROLL
      for (int j = 0; j < kN / 8; ++j) {
        PEFT_UNROLL
        for (int e = 0; e < 2; ++e) sums[i / 2][j][i % 2 * 2 + e] *= (kept >> (j * 8 + e)) & 1u ? scale : 0.0f;
      }
    }
  }

  /// Calls f(row, column, run) for runs of columns beside one another: a Vec<float, kRun>, column a multiple of kRun.
  static constexpr int kRun = 2;
  template <class F>
  PEFT_DEVICE void for_each_run(F&& f) const {
    const int row = lane_index() / 4;
    const int column = lane_index() % 4 * 2;
    PEFT_UNROLL
    for (int i = 0; i < kM / 16; ++i) {
      PEFT_UNROLL
      for (int j = 0; j < kN / 8; ++j) {
        PEFT_UNROLL
        for (int e = 0; e < 4; e += 2) {
          f(i * 16 + row + e * 4, j * 8 + column, Vec<float, 2>{{sums[i][j][e], sums[i][j][e + 1]}});
        }
      }
    }
  }

  /// The same with runs of four: two lanes swap halves, so that stores to global memory fill sectors. All lanes of the warp
  /// call this together.
  template <class F>
  PEFT_DEVICE void for_each_run4(F&& f) const {
    const int row = lane_index() / 4;
    const bool is_odd = lane_index() % 2 != 0;  // keeps the right one of two tiles beside one another
    const int column = (is_odd ? 8 : 0) + lane_index() % 4 / 2 * 4;
    PEFT_UNROLL
    for (int i = 0; i < kM / 16; ++i) {
      PEFT_UNROLL
      for (int j = 0; j < kN / 8; j += 2) {
        PEFT_UNROLL
        for (int e = 0; e < 4; e += 2) {
          // Values, not references, which would be a choice of addresses and put the sums into memory.
          const float left0 = sums[i][j][e], left1 = sums[i][j][e + 1];
          const float right0 = sums[i][j + 1][e], right1 = sums[i][j + 1][e + 1];
          const float given0 = shuffle_xor(~0u, is_odd ? +left0 : +right0, 1);
          const float given1 = shuffle_xor(~0u, is_odd ? +left1 : +right1, 1);
          const Vec<float, 4> run{{is_odd ? +given0 : +left0, is_odd ? +given1 : +left1, is_odd ? +right0 : +given0,
                                   is_odd ? +right1 : +given1}};
          f(i * 16 + row + e * 4, j * 8 + column, run);
        }
      }
    }
  }

  /// Adds the product of A's rows from `m0` and k from `a_k0`, B's columns from `n0` and k from `b_k0`, of tiles at
  /// bytes `a` and `b`; kDepth of k.
  template <int kDepth = kPanel<T>>
  PEFT_DEVICE void multiply(const SharedMemory& memory, int a, int m0, int a_k0, int b, int n0, int b_k0) {
    const Shared<std::uint16_t> a_tile = memory.template at<std::uint16_t>(a);
    const Shared<std::uint16_t> b_tile = memory.template at<std::uint16_t>(b);
    // Lane i gives the address of row i%8 of 8x8 matrix i/8. A's four are (m, k) = (0,0) (8,0) (0,8) (8,8), B's
    // (n, k) = (0,0) (0,8) (8,0) (8,8): two mma's worth.
    const int low = lane_index() % 8;
    const int first = lane_index() / 8 % 2 * 8;
    const int second = lane_index() / 16 * 8;
    PEFT_UNROLL
    for (int k = 0; k < kDepth; k += 16) {
      std::uint32_t af[kM / 16][4];
      std::uint32_t bf[kN / 16][4];
      PEFT_UNROLL
      for (int i = 0; i < kM / 16; ++i) {
        if constexpr (kA == Order::kAlongK) {
          ldmatrix_x4(af[i], a_tile + tile_position<T, kA>(m0 + i * 16 + first + low, a_k0 + k + second));
        } else {
          ldmatrix_x4_trans(af[i], a_tile + tile_position<T, kA>(m0 + i * 16 + first, a_k0 + k + second + low));
        }
      }
      PEFT_UNROLL
      for (int j = 0; j < kN / 16; ++j) {
        if constexpr (kB == Order::kAlongK) {
          ldmatrix_x4(bf[j], b_tile + tile_position<T, kB>(n0 + j * 16 + second + low, b_k0 + k + first));
        } else {
          ldmatrix_x4_trans(bf[j], b_tile + tile_position<T, kB>(n0 + j * 16 + second, b_k0 + k + first + low));
        }
      }
      PEFT_UNROLL
      for (int i = 0; i < kM / 16; ++i) {
        PEFT_UNROLL
        for (int j = 0; j < kN / 8; ++j) {
          const std::uint32_t pair[2] = {bf[j / 2][j % 2 * 2], bf[j / 2][j % 2 * 2 + 1]};
          mma_16816<T>(sums[i][j], af[i], pair);
        }
      }
    }
  }
};

}  // namespace kernels
}  // namespace cuda
PEFT_END_NAMESPACE
