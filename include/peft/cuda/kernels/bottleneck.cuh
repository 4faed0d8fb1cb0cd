#pragma once
/// The inside of a bottleneck adapter in one kernel, and its backward in one:
///   S = x·Dᵀ + e,  y = r + m∘c·(f(S)·Uᵀ + g)      x, y, r [m,d], S [m,b]; D [b,d], e [b], U [d,b], g [d]
///   dS = c·(d̂·U)∘f'(S),  dx = r' + dS·D           d̂ = m∘dy; r': what else flows to x, or nothing
/// m is a dropout mask (none: 1), c a number or one in device memory, which has a gradient then:
///   dc += Σ f(S)∘(d̂·U) + Σ_j g_j·Σ_i d̂_ij
/// (peft/bottleneck.hpp has the gradients of the parameters, which are products over m: lora_factor_grad and column_sum
/// here, of what the kernel leaves of f(S) and dS.)
///
/// A thread block takes 64 rows and a slice of the bottleneck's columns:
///   1. hidden [64, slice] = f(x·Dᵀ + e): loop over k = d, in passes of kColumns columns; S is rounded to T into shared
///      memory as panels (tile_layout.cuh), and f of it, in place, is the next product's left operand;
///   2. y [64, d] = hidden·Uᵀ: loop over tiles of kColumns columns of y, k = slice; one stream of copies over all tiles.
/// S reaches global memory only where it is wanted for backward. Backward is the same two loops with dy for x, U for D
/// (across k), f'(S) for f, and D for U.
///
/// With one slice y is written at once. A bottleneck wider than shared memory, or few rows (a decoder's one row would
/// leave all processors but one idle) make several: each then writes its part of the sum in float, and a second kernel
/// adds the parts in order. Slices depend on the shape and on shared_limit, never on the device's load or size.
///
/// Bytes: x once a pass (passes = slice/kColumns), D and U once a row block (from L2), y once. At m = 4096, d = 4096,
/// b = 256 and 16 bits 64 blocks read 4 MB of weights each from L2: 17.2 GFLOP over 0.3 GB.

#include "peft/cuda/kernels/activation.cuh"
#include "peft/cuda/kernels/column_sums.cuh"
#include "peft/cuda/kernels/lora_factor_grad.cuh"
#include "peft/cuda/kernels/mask_rows.cuh"
#include "peft/cuda/kernels/reduce.cuh"
#include "peft/cuda/kernels/tile_product.cuh"

PEFT_BEGIN_NAMESPACE
namespace cuda {
namespace kernels {

/// Shared memory that a block may have at most: what every architecture from sm_80 on has. sm_75 has 64 KiB.
inline constexpr int kBottleneckShared = 99 * 1024;

template <class T>
struct BottleneckForwardArgs {
  const T* x;
  Index ldx;
  const T* down;  ///< D [b,d]
  Index ldd;
  const float* down_bias;  ///< e [b], or null
  const T* up;             ///< U [d,b]
  Index ldu;
  const float* up_bias;  ///< g [d], or null
  const T* residual;     ///< r [m,d], or null; may be y
  Index ldr;
  float scale;  ///< c
  Activation activation;
  T* s;  ///< S [m,b] for backward, or null
  Index lds;
  T* y;  ///< neither x nor s
  Index ldy;
  Index m, d, b;
  void* workspace = nullptr;  ///< bottleneck_forward_workspace bytes
  int shared_limit = 0;       ///< bytes of shared memory a block may have; 0: 99 KiB, on sm_75 64
  int sm = 0;                 ///< compute capability; 0: the current device's
  const float* scale_from = nullptr;     ///< one more factor of c, in device memory, or null
  const std::uint8_t* mask = nullptr;    ///< m: bit j%8 of byte j/8 of a row keeps column j; null: none
  Index mask_stride = 0;                 ///< bytes
  float mask_scale = 1.0f;               ///< of what is kept
};

/// Gradients of parameters are added to; null: not wanted, as dx.
template <class T>
struct BottleneckBackwardArgs {
  const T* dy;
  Index lddy;
  const T* x;
  Index ldx;
  const T* down;
  Index ldd;
  const T* up;
  Index ldu;
  const T* residual;  ///< r' [m,d], or null; may be dx, or dy
  Index ldr;
  float scale;
  Activation activation;
  const T* s;  ///< as forward left it
  Index lds;
  T* dx;  ///< neither dy nor x
  Index lddx;
  float* d_down;       ///< [b,d]
  float* d_down_bias;  ///< [b]
  float* d_up;         ///< [d,b]
  float* d_up_bias;    ///< [d]
  Index m, d, b;
  void* workspace = nullptr;  ///< bottleneck_backward_workspace bytes
  int shared_limit = 0;
  int sm = 0;
  const float* scale_from = nullptr;
  const std::uint8_t* mask = nullptr;
  Index mask_stride = 0;
  float mask_scale = 1.0f;
  const float* up_bias = nullptr;  ///< g, for d_scale, or null
  float* d_scale = nullptr;        ///< dc / scale: the gradient of *scale_from; added to
};

/// Both directions' kernel. "Outer": x's and y's d columns.
template <class T>
struct BottleneckTask {
  TileSource<T> in;     ///< x, or dy
  TileSource<T> first;  ///< D, or U; limited to a slice in the kernel
  TileSource<T> second; ///< U, or D
  const float* hidden_bias;
  const float* out_bias;
  const T* residual;
  Index ldr;
  float scale;
  Activation activation;
  T* s;  ///< forward: written where not null; backward: read
  Index lds;
  T* ds;      ///< backward [m,b]
  T* active;  ///< backward [m,b]: c·f(S)
  T* out;     ///< null: not wanted
  Index ldo;
  float* parts;  ///< [slices, m, d]; null: straight to out
  const float* scale_from;
  const std::uint8_t* mask;  ///< forward's
  Index mask_stride;
  float mask_scale;
  float* scale_sums;  ///< backward: Σ f(S)∘(d̂·U) of each block, or null
  int m, d, b, width;
  bool s_aligned, saved_aligned, residual_aligned, out_aligned, parts_aligned, out_bias_aligned;
};

template <class T, int kColumns_, bool kOld, bool kBackward>
struct BottleneckPlan {
  static constexpr int kRows = 64, kColumns = kColumns_;
  static constexpr int kWarpsM = 2, kWarpsN = 4, kThreads = 32 * kWarpsM * kWarpsN;
  static constexpr int kWarpM = kRows / kWarpsM, kWarpN = kColumns / kWarpsN;
  static constexpr Order kB = kBackward ? Order::kAcrossK : Order::kAlongK;
  static constexpr bool kMma = std::is_same_v<T, f16> || (std::is_same_v<T, bf16> && !kOld);
  using Tile = std::conditional_t<kMma, MmaTile<T, kWarpM, kWarpN, Order::kAlongK, kB>,
                                  FmaTile<T, kWarpM, kWarpN, Order::kAlongK, kB>>;
  static constexpr int kStages = !kOld && kColumns == 64 ? 3 : 2;
  static constexpr int kPanelBytes = kRows * 128;  ///< of the left operand, in a stage or as hidden columns
  static constexpr int kStageBytes = kPanelBytes + tile_bytes<T, kB>(kColumns);
  static constexpr int kHidden = kStages * kStageBytes;  ///< where the hidden panels begin

  static PEFT_DEVICE int warp_row() { return warp_index() / kWarpsN * kWarpM; }
  static PEFT_DEVICE int warp_column() { return warp_index() % kWarpsN * kWarpN; }
};

/// Calls f(row, column, four) for all sums of a warp's tile: a Vec<float, 4> of columns beside one another. On tensor
/// cores neighbouring lanes swap halves of two tiles: a row's four lanes then hold 16 columns beside one another.
template <class T, int kM, int kN, Order kA, Order kB, class F>
PEFT_DEVICE void for_each_four(const MmaTile<T, kM, kN, kA, kB>& tile, F&& f) {
  const int lane = lane_index() % 4;
  const bool odd = lane % 2 != 0;
  const int column = (odd ? 8 : 0) + lane / 2 * 4;
  PEFT_UNROLL
  for (int i = 0; i < kM / 16; ++i) {
    PEFT_UNROLL
    for (int j = 0; j < kN / 8; j += 2) {
      PEFT_UNROLL
      for (int e = 0; e < 4; e += 2) {
        const float left0 = tile.sums[i][j][e], left1 = tile.sums[i][j][e + 1];
        const float right0 = tile.sums[i][j + 1][e], right1 = tile.sums[i][j + 1][e + 1];
        const float got0 = shuffle_xor(~0u, odd ? left0 : right0, 1);
        const float got1 = shuffle_xor(~0u, odd ? left1 : right1, 1);
        const Vec<float, 4> four{{odd ? got0 : left0, odd ? got1 : left1, odd ? right0 : got0, odd ? right1 : got1}};
        f(i * 16 + lane_index() / 4 + e * 4, j * 8 + column, four);
      }
    }
  }
}
template <class T, int kM, int kN, Order kA, Order kB, class F>
PEFT_DEVICE void for_each_four(const FmaTile<T, kM, kN, kA, kB>& tile, F&& f) {
  static_assert(FmaTile<T, kM, kN, kA, kB>::kRun == 4);
  tile.for_each_run(f);
}

/// c.
template <class T>
PEFT_DEVICE float bottleneck_scale(const BottleneckTask<T>& task) {
  return task.scale_from == nullptr ? task.scale : task.scale * load_const(task.scale_from);
}
/// m∘four; `column` is a multiple of four.
template <class T>
PEFT_DEVICE void drop_four(const BottleneckTask<T>& task, int row, int column, Vec<float, 4>& four) {
  if (task.mask == nullptr || row >= task.m || column >= task.d) return;
  const std::uint32_t byte = load_const(task.mask + static_cast<Index>(row) * task.mask_stride + column / 8);
  const std::uint32_t bits = byte >> (column & 4);
  PEFT_UNROLL
  for (int e = 0; e < 4; ++e) four[e] = ((bits >> e) & 1u) != 0 ? four.v[e] * task.mask_scale : 0.0f;
}

/// Four neighbours of a matrix; zero outside of it.
template <class T>
PEFT_DEVICE Vec<float, 4> load_four(const T* from, Index ld, int rows, int columns, bool aligned, int row, int column) {
  Vec<float, 4> four{};
  if (row >= rows || column >= columns) return four;
  const T* const at = from + static_cast<Index>(row) * ld + column;
  if (aligned && column + 4 <= columns) {
    const Vec<T, 4> stored = load(reinterpret_cast<const Vec<T, 4>*>(at));
    PEFT_UNROLL
    for (int e = 0; e < 4; ++e) four[e] = to_float(stored.v[e]);
  } else {
    PEFT_UNROLL
    for (int e = 0; e < 4; ++e) {
      if (column + e < columns) four[e] = to_float(load(at + e));
    }
  }
  return four;
}
PEFT_DEVICE Vec<float, 4> load_bias(const float* bias, bool aligned, int columns, int column) {
  Vec<float, 4> four{};
  if (bias == nullptr) return four;
  if (aligned && column + 4 <= columns) return load_const(reinterpret_cast<const Vec<float, 4>*>(bias + column));
  PEFT_UNROLL
  for (int e = 0; e < 4; ++e) {
    if (column + e < columns) four[e] = load_const(bias + column + e);
  }
  return four;
}

/// Sixteen bytes of a matrix; zero outside of it.
template <class T>
PEFT_DEVICE Vec<T, kChunk<T>> load_chunk(const T* from, Index ld, int rows, int columns, bool aligned, int row, int column) {
  Vec<T, kChunk<T>> chunk{};
  if (row >= rows || column >= columns) return chunk;
  const T* const at = from + static_cast<Index>(row) * ld + column;
  if (aligned && column + kChunk<T> <= columns) return load_const(reinterpret_cast<const Vec<T, kChunk<T>>*>(at));
  PEFT_UNROLL
  for (int e = 0; e < kChunk<T>; ++e) {
    if (column + e < columns) chunk[e] = load_const(at + e);
  }
  return chunk;
}
template <class T>
PEFT_DEVICE void store_chunk(T* to, Index ld, int rows, int columns, bool aligned, int row, int column,
                             const Vec<T, kChunk<T>>& chunk) {
  if (row >= rows || column >= columns) return;
  T* const at = to + static_cast<Index>(row) * ld + column;
  if (aligned && column + kChunk<T> <= columns) {
    store(reinterpret_cast<Vec<T, kChunk<T>>*>(at), chunk);
    return;
  }
  PEFT_UNROLL
  for (int e = 0; e < kChunk<T>; ++e) {
    if (column + e < columns) store(at + e, chunk.v[e]);
  }
}
/// For these: whether rows begin at multiples of 16 bytes.
template <class T>
inline bool is_chunk_aligned(const T* data, Index ld) {
  return is_aligned_16(data) && ld % kChunk<T> == 0;
}

/// `tiles` products one behind the other, each over `steps` of k, in one stream of copies: start(tile, step, stage) begins
/// the copies of a step to byte `stage`; left(step, stage) says at which byte the left operand is; finish(tile) takes the
/// sums. The caller's threads have passed a barrier since shared memory was last read.
template <class Plan, class Start, class Left, class Finish>
PEFT_DEVICE void bottleneck_products(int tiles, int steps, Start&& start, Left&& left, Finish&& finish) {
  const SharedMemory memory = shared_memory();
  typename Plan::Tile sums;
  int next_tile = 0, next_step = 0, next_slot = 0;
  const auto start_next = [&] {
    if (next_tile < tiles) {
      start(next_tile, next_step, next_slot * Plan::kStageBytes);
      if (++next_step == steps) {
        next_step = 0;
        ++next_tile;
      }
      next_slot = next_slot + 1 == Plan::kStages ? 0 : next_slot + 1;
    }
    cp_async_commit();
  };
  PEFT_UNROLL
  for (int s = 0; s < Plan::kStages - 1; ++s) start_next();
  int slot = 0;
  for (int tile = 0; tile < tiles; ++tile) {
    sums.clear();
    for (int step = 0; step < steps; ++step) {
      cp_async_wait<Plan::kStages - 2>();
      sync_threads();  // this step is there for all, and all are done with the one before, whose slot is filled next
      start_next();
      const int stage = slot * Plan::kStageBytes;
      sums.multiply(memory, left(step, stage), Plan::warp_row(), 0, stage + Plan::kPanelBytes, Plan::warp_column(), 0);
      slot = slot + 1 == Plan::kStages ? 0 : slot + 1;
    }
    finish(sums, tile);
  }
}

/// The sums of a pass, forward with the bias, rounded to T, to the hidden panels.
template <class Plan, bool kBackward, class T>
PEFT_DEVICE void store_hidden(const BottleneckTask<T>& task, const typename Plan::Tile& sums, int local0, int hidden0) {
  constexpr int kRun = Plan::Tile::kRun;
  const Shared<T> panels = shared_memory().template at<T>(Plan::kHidden);
  sums.for_each_run([&](int row, int column, Vec<float, kRun> run) {
    const int local_row = Plan::warp_row() + row, local = local0 + Plan::warp_column() + column;
    Vec<T, kRun> narrow;
    PEFT_UNROLL
    for (int e = 0; e < kRun; ++e) {
      if constexpr (!kBackward) {
        if (task.hidden_bias != nullptr && hidden0 + local + e < task.b) run[e] += load_const(task.hidden_bias + hidden0 + local + e);
      }
      narrow[e] = from_float<T>(run[e]);
    }
    const int panel = local / kPanel<T> * (Plan::kPanelBytes / static_cast<int>(sizeof(T)));
    panels.template store_vec<kRun>(panel + panel_position<T>(local_row, local % kPanel<T>), narrow);
  });
}

/// The hidden panels of a pass become f of themselves, or in backward themselves times c·f'(S): 16 bytes a thread, a row's
/// lanes beside one another. What global memory keeps of them is written on the way; backward adds them times f(S) to `sum`.
template <class Plan, bool kBackward, Activation kKind, class T>
PEFT_DEVICE void activate_hidden(const BottleneckTask<T>& task, int local0, int row0, int hidden0, int hidden1, float scale,
                                 float& sum) {
  constexpr int kVec = kChunk<T>;
  constexpr int kChunks = Plan::kColumns / kVec;
  const Shared<T> panels = shared_memory().template at<T>(Plan::kHidden);
  for (int c = thread_index(); c < Plan::kRows * kChunks; c += Plan::kThreads) {
    const int row = c / kChunks, local = local0 + c % kChunks * kVec;
    const int panel = local / kPanel<T> * (Plan::kPanelBytes / static_cast<int>(sizeof(T)));
    const Shared<T> at = panels + (panel + panel_position<T>(row, local % kPanel<T>));
    Vec<T, kVec> values = at.template load_vec<kVec>(0);
    const int from_row = row0 + row, from = hidden0 + local;
    if constexpr (kBackward) {
      const Vec<T, kVec> s = load_chunk(task.s, task.lds, task.m, hidden1, task.s_aligned, from_row, from);
      Vec<T, kVec> active;
      PEFT_UNROLL
      for (int e = 0; e < kVec; ++e) {
        float f;
        const float slope = activation_slope<kKind>(to_float(s.v[e]), f);
        const float into = to_float(values.v[e]);
        sum = fma(into, f, sum);
        active[e] = from_float<T>(scale * f);
        values[e] = from_float<T>(scale * into * slope);
      }
      store_chunk(task.ds, static_cast<Index>(task.b), task.m, hidden1, task.saved_aligned, from_row, from, values);
      store_chunk(task.active, static_cast<Index>(task.b), task.m, hidden1, task.saved_aligned, from_row, from, active);
    } else {
      if (task.s != nullptr) store_chunk(task.s, task.lds, task.m, hidden1, task.s_aligned, from_row, from, values);
      PEFT_UNROLL
      for (int e = 0; e < kVec; ++e) values[e] = from_float<T>(activate<kKind>(to_float(values.v[e])));
    }
    at.store_vec(0, values);
  }
}

/// Grid: row blocks, slices. Budgets: 256 threads, 128 registers, so that two blocks fit a multiprocessor; shared memory
/// 48 KiB (sm_75: 32) and 8 KiB for every 128 bytes of a hidden row (64 columns of 16 bits, 32 of float).
template <class T, int kColumns, bool kOld, bool kBackward>
PEFT_KERNEL PEFT_KERNEL_BOUNDS(256, 2) void bottleneck_kernel(BottleneckTask<T> task) {
  if constexpr (kIsForThisDevice<kOld>) {
    using Plan = BottleneckPlan<T, kColumns, kOld, kBackward>;
    constexpr int kRows = Plan::kRows;
    const SharedMemory memory = shared_memory();
    const int row0 = block_x() * kRows;
    const int hidden0 = block_y() * task.width;
    const int hidden1 = min(task.b, hidden0 + task.width);  // columns from here on are zeros
    const int own = hidden1 - hidden0;
    const float scale = bottleneck_scale(task);
    float scale_sum = 0.0f;

    // 1. The hidden rows.
    TileSource<T> first = task.first, second = task.second;
    (kBackward ? first.columns : first.rows) = hidden1;
    (kBackward ? second.rows : second.columns) = hidden1;
    bottleneck_products<Plan>(
        ceil_div(own, kColumns), ceil_div(task.d, kPanel<T>),
        [&](int tile, int step, int stage) {
          detail::load_operand<T, Order::kAlongK, kRows, Plan::kThreads, false>(memory, stage, task.in, row0, step * kPanel<T>);
          detail::load_operand<T, Plan::kB, kColumns, Plan::kThreads, false>(memory, stage + Plan::kPanelBytes, first,
                                                                      hidden0 + tile * kColumns, step * kPanel<T>);
        },
        [](int, int stage) { return stage; },
        [&](const typename Plan::Tile& sums, int tile) {
          store_hidden<Plan, kBackward>(task, sums, tile * kColumns, hidden0);
          sync_threads();
          with_activation(task.activation, [&](auto kind) {
            activate_hidden<Plan, kBackward, decltype(kind)::value>(task, tile * kColumns, row0, hidden0, hidden1, scale, scale_sum);
          });
        });
    if constexpr (kBackward) {
      if (task.scale_sums != nullptr) {
        const Shared<float> of_warps = memory.template at<float>(0);  // no copy is under way
        scale_sum = warp_sum(scale_sum);
        sync_threads();
        if (lane_index() == 0) of_warps.store(warp_index(), scale_sum);
        sync_threads();
        if (thread_index() == 0) {
          float all = 0.0f;
          for (int w = 0; w < Plan::kThreads / 32; ++w) all += of_warps.load(w);
          store(task.scale_sums + block_y() * grid_x() + block_x(), all);
        }
      }
    }
    if (task.out == nullptr) return;
    sync_threads();

    // 2. Out of them.
    float* const part = task.parts == nullptr ? nullptr : task.parts + static_cast<Index>(block_y()) * task.m * task.d;
    bottleneck_products<Plan>(
        ceil_div(task.d, kColumns), ceil_div(own, kPanel<T>),
        [&](int tile, int step, int stage) {
          detail::load_operand<T, Plan::kB, kColumns, Plan::kThreads, false>(memory, stage + Plan::kPanelBytes, second,
                                                                      tile * kColumns, hidden0 + step * kPanel<T>);
        },
        [](int step, int) { return Plan::kHidden + step * Plan::kPanelBytes; },
        [&](const typename Plan::Tile& sums, int tile) {
          for_each_four(sums, [&](int row, int column, Vec<float, 4> four) {
            const int to_row = row0 + Plan::warp_row() + row, to = tile * kColumns + Plan::warp_column() + column;
            if (part != nullptr) {
              store_run(part, static_cast<Index>(task.d), task.m, task.d, task.parts_aligned, to_row, to, four);
              return;
            }
            if constexpr (!kBackward) {
              const Vec<float, 4> bias = load_bias(task.out_bias, task.out_bias_aligned, task.d, to);
              PEFT_UNROLL
              for (int e = 0; e < 4; ++e) four[e] = scale * (four.v[e] + bias.v[e]);
              drop_four(task, to_row, to, four);
            }
            if (task.residual != nullptr) {
              const Vec<float, 4> rest =
                  load_four(task.residual, task.ldr, task.m, task.d, task.residual_aligned, to_row, to);
              PEFT_UNROLL
              for (int e = 0; e < 4; ++e) four[e] += rest.v[e];
            }
            store_run(task.out, task.ldo, task.m, task.d, task.out_aligned, to_row, to, four);
          });
        });
  } else {
    end_with_error();
  }
}

/// out = r + m∘c·(Σ parts + g), parts upwards. Four columns a thread. Budget: 256 threads, 40 registers.
template <class T, bool kBackward>
PEFT_KERNEL PEFT_KERNEL_BOUNDS(256, 4) void bottleneck_total_kernel(BottleneckTask<T> task) {
  const int fours = ceil_div(task.d, 4);
  const Index element = static_cast<Index>(block_x()) * 256 + thread_index();
  if (element >= static_cast<Index>(task.m) * fours) return;
  const int row = static_cast<int>(element / fours), column = static_cast<int>(element % fours) * 4;
  const int slices = ceil_div(task.b, task.width);
  [[maybe_unused]] const float scale = bottleneck_scale(task);
  Vec<float, 4> sum{};
  for (int p = 0; p < slices; ++p) {
    const Vec<float, 4> part = load_four(task.parts + static_cast<Index>(p) * task.m * task.d, static_cast<Index>(task.d),
                                         task.m, task.d, task.parts_aligned, row, column);
    PEFT_UNROLL
    for (int e = 0; e < 4; ++e) sum[e] += part.v[e];
  }
  if constexpr (!kBackward) {
    const Vec<float, 4> bias = load_bias(task.out_bias, task.out_bias_aligned, task.d, column);
    PEFT_UNROLL
    for (int e = 0; e < 4; ++e) sum[e] = scale * (sum[e] + bias.v[e]);
    drop_four(task, row, column, sum);
  }
  if (task.residual != nullptr) {
    const Vec<float, 4> rest = load_four(task.residual, task.ldr, task.m, task.d, task.residual_aligned, row, column);
    PEFT_UNROLL
    for (int e = 0; e < 4; ++e) sum[e] += rest.v[e];
  }
  store_run(task.out, task.ldo, task.m, task.d, task.out_aligned, row, column, sum);
}

/// The gradient of c, and what g's lacks of it: dg += c·Σd̂, d_scale += scale·(Σ sums + g·Σd̂).
struct BottleneckScaleArgs {
  const float* column_sums;  ///< Σd̂ [d]
  const float* up_bias;      ///< g, or null
  float scale;
  const float* scale_from;
  const float* sums;
  int d, count;
  float* d_up_bias;  ///< or null
  float* d_scale;    ///< or null
};

/// One block, in a fixed order; sums in double. 64 bytes of shared memory, 48 registers.
PEFT_KERNEL PEFT_KERNEL_BOUNDS(256, 1) void bottleneck_scale_kernel(const BottleneckScaleArgs args) {
  const float scale = args.scale * load_const(args.scale_from);
  double sum = 0.0;
  for (int j = thread_index(); j < args.d; j += 256) {
    const float column = load_const(args.column_sums + j);
    if (args.up_bias != nullptr) sum += static_cast<double>(column) * static_cast<double>(load_const(args.up_bias + j));
    if (args.d_up_bias != nullptr) store(args.d_up_bias + j, fma(scale, column, load(args.d_up_bias + j)));
  }
  for (int i = thread_index(); i < args.count; i += 256) sum += static_cast<double>(load_const(args.sums + i));
  sum = block_sum_double(sum, shared_memory().at<double>(0));
  if (thread_index() != 0 || args.d_scale == nullptr) return;
  store(args.d_scale, load(args.d_scale) + static_cast<float>(static_cast<double>(args.scale) * sum));
}

namespace detail {

/// How a bottleneck is cut.
struct BottleneckCut {
  int width = 0;   ///< hidden columns of a slice
  int slices = 0;  ///< 0: shared memory is too small
  int columns = 64;
};

template <class T>
inline BottleneckCut bottleneck_cut(Index m, Index b, int shared_limit, int sm) {
  const bool is_old = sm < 80;
  const int limit = shared_limit > 0 ? shared_limit : is_old ? 64 * 1024 : kBottleneckShared;
  // Blocks for half the multiprocessors of a large device at least, in slices of 16 columns or more.
  constexpr int kBlocks = 64;
  const int row_blocks = blocks_of(m, 64);
  const int wanted = max(1, min(kBlocks / max(row_blocks, 1), blocks_of(b, 16)));
  BottleneckCut cut;
  cut.width = blocks_of(blocks_of(b, wanted), 16) * 16;
  cut.columns = sizeof(T) == 2 && !is_old && cut.width > 64 ? 128 : 64;
  const int stages = is_old ? 2 * 16384 : 3 * 16384;  // 2 of 24 KiB with 128 columns
  const int room = (limit - stages) / (64 * 128) * kPanel<T> / cut.columns * cut.columns;
  if (room < cut.columns) return cut;
  cut.width = min(cut.width, room);
  cut.slices = blocks_of(b, cut.width);
  return cut;
}

template <class T>
inline Index bottleneck_parts_bytes(const BottleneckCut& cut, Index m, Index d) {
  return cut.slices > 1 ? cut.slices * m * d * static_cast<Index>(sizeof(float)) : 0;
}

template <class T, int kColumns, bool kOld, bool kBackward>
inline cudaError_t launch_bottleneck(const BottleneckTask<T>& task, const BottleneckCut& cut, cudaStream_t stream) {
  using Plan = BottleneckPlan<T, kColumns, kOld, kBackward>;
  const int panels = blocks_of(cut.width, kColumns) * kColumns / kPanel<T>;
  const Grid grid{blocks_of(task.m, Plan::kRows), cut.slices, 1};
  const cudaError_t error = launch<bottleneck_kernel<T, kColumns, kOld, kBackward>>(
      grid, Plan::kThreads, Plan::kHidden + panels * Plan::kPanelBytes, stream, task);
  if (error != cudaSuccess || task.parts == nullptr) return error;
  const Index fours = static_cast<Index>(task.m) * blocks_of(task.d, 4);
  if (fours > INT_MAX) return cudaErrorInvalidValue;
  return launch<bottleneck_total_kernel<T, kBackward>>(Grid{blocks_of(fours, 256), 1, 1}, 256, 0, stream, task);
}

template <class T, bool kBackward>
inline cudaError_t launch_bottleneck(const BottleneckTask<T>& task, const BottleneckCut& cut, int sm, cudaStream_t stream) {
  if (sm < 80) return launch_bottleneck<T, 64, true, kBackward>(task, cut, stream);
  if constexpr (sizeof(T) == 2) {
    if (cut.columns == 128) return launch_bottleneck<T, 128, false, kBackward>(task, cut, stream);
  }
  return launch_bottleneck<T, 64, false, kBackward>(task, cut, stream);
}

inline Index round_up_256(Index bytes) { return (bytes + 255) / 256 * 256; }

}  // namespace detail

/// Bytes of workspace for bottleneck_forward.
template <class T>
inline Index bottleneck_forward_workspace(Index m, Index d, Index b, int shared_limit = 0, int sm = 0) {
  return detail::bottleneck_parts_bytes<T>(detail::bottleneck_cut<T>(m, b, shared_limit, device_architecture(sm)), m, d);
}

namespace detail {

/// Where backward's parts of the workspace begin, in bytes: dS and c·f(S) stand before them.
struct BottleneckPlaces {
  Index hidden;       ///< of one of these two
  Index masked;       ///< d̂
  Index scale_sums;   ///< Σ f(S)∘(d̂·U), one for each block
  Index column_sums;  ///< Σd̂
  Index sums;         ///< of what is cut
};
template <class T>
inline BottleneckPlaces bottleneck_places(Index m, Index d, Index b, const BottleneckCut& cut, bool has_mask, bool has_scale) {
  constexpr auto kSize = static_cast<Index>(sizeof(T));
  BottleneckPlaces places{};
  places.hidden = round_up_256(m * b * kSize);
  places.masked = 2 * places.hidden;
  places.scale_sums = places.masked + (has_mask ? round_up_256(m * d * kSize) : 0);
  places.column_sums = places.scale_sums + (has_scale ? round_up_256(blocks_of(m, 64) * Index{cut.slices} * 4) : 0);
  places.sums = places.column_sums + (has_scale ? round_up_256(d * 4) : 0);
  return places;
}

}  // namespace detail

/// Bytes of workspace for bottleneck_backward, with a mask, and with c in device memory.
template <class T>
inline Index bottleneck_backward_workspace(Index m, Index d, Index b, int shared_limit = 0, int sm = 0, bool has_mask = false,
                                           bool has_scale = false) {
  const Index sums[] = {bottleneck_forward_workspace<T>(m, d, b, shared_limit, sm), lora_factor_grad_workspace<T>(m, b, d),
                        lora_factor_grad_workspace<T>(m, d, b), column_sum_workspace<T>(m, d), column_sum_workspace<T>(m, b)};
  Index most = 0;
  for (const Index bytes : sums) most = max(most, bytes);
  const detail::BottleneckCut cut = detail::bottleneck_cut<T>(m, b, shared_limit, device_architecture(sm));
  return detail::bottleneck_places<T>(m, d, b, cut, has_mask, has_scale).sums + most;
}

namespace detail {

/// With a given cut.
template <class T>
cudaError_t bottleneck_forward(const BottleneckForwardArgs<T>& args, const BottleneckCut& cut, int sm, cudaStream_t stream) {
  BottleneckTask<T> task{};
  task.in = tile_source(args.x, args.ldx, args.m, args.d);
  task.first = tile_source(args.down, args.ldd, args.b, args.d);
  task.second = tile_source(args.up, args.ldu, args.d, args.b);
  task.hidden_bias = args.down_bias;
  task.out_bias = args.up_bias;
  task.residual = args.residual;
  task.ldr = args.ldr;
  task.scale = args.scale;
  task.activation = args.activation;
  task.scale_from = args.scale_from;
  task.mask = args.mask;
  task.mask_stride = args.mask_stride;
  task.mask_scale = args.mask_scale;
  task.s = args.s;
  task.lds = args.lds;
  task.out = args.y;
  task.ldo = args.ldy;
  task.parts = cut.slices > 1 ? static_cast<float*>(args.workspace) : nullptr;
  task.m = static_cast<int>(args.m);
  task.d = static_cast<int>(args.d);
  task.b = static_cast<int>(args.b);
  task.width = cut.width;
  task.s_aligned = is_chunk_aligned(args.s, args.lds);
  task.out_bias_aligned = is_aligned_16(args.up_bias);
  task.residual_aligned = is_store_aligned(args.residual, args.ldr);
  task.out_aligned = is_store_aligned(args.y, args.ldy);
  task.parts_aligned = is_store_aligned(task.parts, args.d);
  return launch_bottleneck<T, false>(task, cut, sm, stream);
}

/// With a given cut.
template <class T>
cudaError_t bottleneck_backward(const BottleneckBackwardArgs<T>& args, const BottleneckCut& cut, int sm, cudaStream_t stream) {
  const bool has_mask = args.mask != nullptr, has_scale = args.scale_from != nullptr;
  const BottleneckPlaces places = bottleneck_places<T>(args.m, args.d, args.b, cut, has_mask, has_scale);
  unsigned char* const memory = static_cast<unsigned char*>(args.workspace);
  float* const sums = reinterpret_cast<float*>(memory + places.sums);
  const T* dy = args.dy;
  Index lddy = args.lddy;
  if (has_mask) {
    T* const masked = reinterpret_cast<T*>(memory + places.masked);
    const MaskRowsArgs<T> drop{args.dy, args.lddy, masked, args.d, args.mask, args.mask_stride, args.mask_scale, args.m, args.d};
    const cudaError_t error = mask_rows(drop, stream);
    if (error != cudaSuccess) return error;
    dy = masked;
    lddy = args.d;
  }
  BottleneckTask<T> task{};
  task.in = tile_source(dy, lddy, args.m, args.d);
  task.scale_from = args.scale_from;
  task.scale_sums = has_scale ? reinterpret_cast<float*>(memory + places.scale_sums) : nullptr;
  task.first = tile_source(args.up, args.ldu, args.d, args.b);
  task.second = tile_source(args.down, args.ldd, args.b, args.d);
  task.residual = args.residual;
  task.ldr = args.ldr;
  task.scale = args.scale;
  task.activation = args.activation;
  task.s = const_cast<T*>(args.s);
  task.lds = args.lds;
  task.ds = reinterpret_cast<T*>(memory);
  task.active = reinterpret_cast<T*>(memory + places.hidden);
  task.out = args.dx;
  task.ldo = args.lddx;
  task.parts = cut.slices > 1 && args.dx != nullptr ? sums : nullptr;
  task.m = static_cast<int>(args.m);
  task.d = static_cast<int>(args.d);
  task.b = static_cast<int>(args.b);
  task.width = cut.width;
  task.s_aligned = is_chunk_aligned(args.s, args.lds);
  task.saved_aligned = is_chunk_aligned(task.ds, args.b);
  task.residual_aligned = is_store_aligned(args.residual, args.ldr);
  task.out_aligned = is_store_aligned(args.dx, args.lddx);
  task.parts_aligned = is_store_aligned(sums, args.d);
  cudaError_t error = launch_bottleneck<T, true>(task, cut, sm, stream);
  // dD = dSᵀ·x and dU = d̂ᵀ·(c·f(S)) have the form of lora_factor_grad.
  if (error == cudaSuccess && args.d_down != nullptr) {
    error = lora_factor_grad(LoraFactorGradArgs<T>{task.ds, args.b, args.x, args.ldx, nullptr, 0, 1.0f, args.d_down, args.d,
                                                   args.m, args.d, args.b, sums, sm},
                             stream);
  }
  if (error == cudaSuccess && args.d_up != nullptr) {
    error = lora_factor_grad(LoraFactorGradArgs<T>{dy, lddy, task.active, args.b, nullptr, 0, 1.0f, args.d_up,
                                                   args.b, args.m, args.b, args.d, sums, sm},
                             stream);
  }
  if (error == cudaSuccess && args.d_down_bias != nullptr) {
    error = column_sum(ColumnSumArgs<T>{task.ds, args.b, args.m, args.b, 1.0f, args.d_down_bias, sums}, stream);
  }
  if (error != cudaSuccess) return error;
  if (!has_scale) {
    if (args.d_up_bias == nullptr) return error;
    return column_sum(ColumnSumArgs<T>{dy, lddy, args.m, args.d, args.scale, args.d_up_bias, sums}, stream);
  }
  float* const column_sums = reinterpret_cast<float*>(memory + places.column_sums);
  error = column_sum(ColumnSumArgs<T>{dy, lddy, args.m, args.d, 1.0f, column_sums, sums, true}, stream);
  if (error != cudaSuccess) return error;
  const BottleneckScaleArgs scale{column_sums,
                                  args.up_bias,
                                  args.scale,
                                  args.scale_from,
                                  task.scale_sums,
                                  static_cast<int>(args.d),
                                  blocks_of(args.m, 64) * cut.slices,
                                  args.d_up_bias,
                                  args.d_scale};
  return launch<bottleneck_scale_kernel>(Grid{1, 1, 1}, 256, 64, stream, scale);
}

}  // namespace detail

template <class T>
cudaError_t bottleneck_forward(const BottleneckForwardArgs<T>& args, cudaStream_t stream) {
  if (!is_size(args.m) || !is_size(args.d) || !is_size(args.b) || args.b == 0) return cudaErrorInvalidValue;
  if (args.m == 0 || args.d == 0) return cudaSuccess;
  if (args.x == nullptr || args.down == nullptr || args.up == nullptr || args.y == nullptr) return cudaErrorInvalidValue;
  const int sm = device_architecture(args.sm);
  if (sm < 75) return cudaErrorInvalidValue;
  const detail::BottleneckCut cut = detail::bottleneck_cut<T>(args.m, args.b, args.shared_limit, sm);
  if (cut.slices == 0 || (cut.slices > 1 && args.workspace == nullptr)) return cudaErrorInvalidValue;
  return detail::bottleneck_forward(args, cut, sm, stream);
}

template <class T>
cudaError_t bottleneck_backward(const BottleneckBackwardArgs<T>& args, cudaStream_t stream) {
  if (!is_size(args.m) || !is_size(args.d) || !is_size(args.b) || args.b == 0) return cudaErrorInvalidValue;
  if (args.m == 0 || args.d == 0) return cudaSuccess;
  if (args.dy == nullptr || args.down == nullptr || args.up == nullptr || args.s == nullptr || args.workspace == nullptr ||
      (args.d_down != nullptr && args.x == nullptr) || (args.d_scale != nullptr && args.scale_from == nullptr)) {
    return cudaErrorInvalidValue;
  }
  const int sm = device_architecture(args.sm);
  if (sm < 75) return cudaErrorInvalidValue;
  const detail::BottleneckCut cut = detail::bottleneck_cut<T>(args.m, args.b, args.shared_limit, sm);
  if (cut.slices == 0) return cudaErrorInvalidValue;
  return detail::bottleneck_backward(args, cut, sm, stream);
}

}  // namespace kernels
}  // namespace cuda
PEFT_END_NAMESPACE
