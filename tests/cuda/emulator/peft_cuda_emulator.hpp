#pragma once
/// Runs the CUDA kernels (include/peft/cuda/kernels) under an ordinary compiler, for tests without a GPU: defines the names
/// of device.cuh for the host, with PEFT_CUDA_EMULATOR defined and this folder on the include path.
///
///   peft_emulator::Buffer<float> x(1000, "x"), y(1000, "y");
///   REQUIRE(launch<my_kernel<float>>(Grid{8}, 128, shared_bytes, nullptr, args) == cudaSuccess);
///   REQUIRE_CLEAN();  // no finding in any launch so far
///
/// Blocks run one after the other; each thread of a block is a fiber that runs until it waits for others. Nothing runs at
/// the same time and nothing is left to chance: Options{seed, random_schedule} draw the order of blocks, warps and lanes.
///
/// Found, by kind and line of source (Report, Finding):
///   race           bytes of shared or global memory that two threads touch, one of them writing, with neither a barrier nor
///                  a sync_warp between, in whatever order they happened to run. In global memory, blocks of one launch are
///                  never ordered. Shuffles, ballots, mma and ldmatrix order no memory.
///   cp.async       bytes touched before the thread that copies them has waited. They hold 0xFF until then.
///   mask           a lane that calls a warp's function although the mask leaves it out; one that the mask names and that
///                  never comes; a shuffle that reads from a lane outside.
///   divergence     a barrier or a warp's function that threads meet at different lines; a barrier that some never reach.
///                  Stricter than the hardware: a thread that has left the kernel counts as one that never comes.
///   bounds         outside the registered buffers, or the launch's shared memory. A load gives zeros, a store is dropped.
///   alignment      an address that is no multiple of the size moved.
///   uninitialised  shared memory to which this block has stored nothing.
///   read-only      load_const and load_stream of what the same launch has written.
///   launch         more threads or shared memory than the device has.
///
/// Counted, by line and grouped by warp (LineCounts): bytes asked for, sectors of 32 bytes touched and needed, passes over
/// the banks of shared memory and how many of them are conflicts (4, 8 and 16 bytes: all, half, a quarter of the lanes each).
///
/// Exact: fragments of mma and ldmatrix, prmt, lop3, conversions and arithmetic of f16 and bf16. Not modelled: the order in
/// which a tensor core sums and what it truncates (here: exactly, then rounded); the last bits of exp, log, tanh and erf;
/// caches and time; threads that overtake each other between two meetings (the search for races stands in for that); lanes
/// that pass a line at different turns of a loop count as one instruction there; global memory that nothing was stored to.

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <type_traits>

#include "arithmetic.hpp"
#include "buffer.hpp"
#include "machine.hpp"
#include "options.hpp"
#include "peft/config.hpp"
#include "peft/core/scalar.hpp"
#include "peft/cuda/kernels/device_types.cuh"
#include "report.hpp"

#if !defined(__CUDA_RUNTIME_API_H__)
enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorLaunchFailure = 719,
  cudaErrorNotSupported = 801
};
struct CUstream_st;
using cudaStream_t = CUstream_st*;
#endif

/// Catch2: fails with the findings' text where any launch since the last REQUIRE_CLEAN found something.
#define REQUIRE_CLEAN()                                                        \
  do {                                                                         \
    const ::peft_emulator::Report peft_report = ::peft_emulator::take_report(); \
    INFO(peft_report.text());                                                  \
    REQUIRE(peft_report.clean());                                              \
  } while (false)

namespace peft_emulator {

inline Options options() { return the_machine.options; }
inline void set_options(const Options& options) { the_machine.options = options; }

/// Options for the time that this lives.
class WithOptions {
 public:
  explicit WithOptions(const Options& options) : before_(the_machine.options) { the_machine.options = options; }
  WithOptions(const WithOptions&) = delete;
  WithOptions& operator=(const WithOptions&) = delete;
  ~WithOptions() { the_machine.options = before_; }

 private:
  Options before_;
};

/// Of the last launch.
inline const Report& last_report() { return the_machine.last(); }
/// Of all launches since the last call.
inline Report take_report() {
  Report taken;
  std::swap(taken, the_machine.all());
  return taken;
}

namespace detail {

struct Exchange {
  std::uint32_t value;
  int source;  // lane; of a shuffle
  std::uint32_t result;
};

inline void exchange(Machine&, const Machine::Warp& warp, int, std::uint32_t mask) {
  for (std::uint32_t lanes = mask; lanes != 0; lanes &= lanes - 1) {
    auto* mine = static_cast<Exchange*>(warp.payload[static_cast<std::size_t>(__builtin_ctz(lanes))]);
    mine->result = (mask >> mine->source & 1u) != 0
                       ? static_cast<const Exchange*>(warp.payload[static_cast<std::size_t>(mine->source)])->value
                       : 0xFFFFFFFFu;
  }
}
inline void vote(Machine&, const Machine::Warp& warp, int, std::uint32_t mask) {
  std::uint32_t result = 0;
  for (std::uint32_t lanes = mask; lanes != 0; lanes &= lanes - 1) {
    const int lane = __builtin_ctz(lanes);
    if (static_cast<Exchange*>(warp.payload[static_cast<std::size_t>(lane)])->value != 0) result |= 1u << lane;
  }
  for (std::uint32_t lanes = mask; lanes != 0; lanes &= lanes - 1) {
    static_cast<Exchange*>(warp.payload[static_cast<std::size_t>(__builtin_ctz(lanes))])->result = result;
  }
}

inline std::uint32_t shuffled(const char* operation, std::uint32_t mask, std::uint32_t value, int source, Where where) {
  if ((mask >> source & 1u) == 0) the_machine.read_stranger(operation, mask, source, where);
  Exchange mine{value, source, value};
  the_machine.meet(operation, &exchange, mask, &mine, where);
  return mine.result;
}

struct MmaOperands {
  float* d;
  const std::uint32_t* a;
  const std::uint32_t* b;
};
template <class T, int kDepth>
inline void multiply(Machine&, const Machine::Warp& warp, int, std::uint32_t) {
  Mma<T, kDepth> mma;
  for (std::size_t lane = 0; lane < 32; ++lane) {
    const auto* operands = static_cast<const MmaOperands*>(warp.payload[lane]);
    mma.d[lane] = operands->d;
    mma.a[lane] = operands->a;
    mma.b[lane] = operands->b;
  }
  mma.run();
}

struct MatrixOperands {
  std::uint32_t* r;
  std::int64_t row;  // byte offset
  Where where;
};
template <int kCount, bool kTransposed>
inline void load_matrices(Machine& machine, const Machine::Warp& warp, int w, std::uint32_t) {
  for (int i = 0; i < kCount; ++i) {
    std::uint16_t matrix[8][8];
    for (int row = 0; row < 8; ++row) {
      const int lane = 8 * i + row;
      const auto* operands = static_cast<const MatrixOperands*>(warp.payload[static_cast<std::size_t>(lane)]);
      machine.memory.shared_load(machine.asker(32 * w + lane), operands->row, 16, matrix[row], operands->where);
    }
    for (int lane = 0; lane < 32; ++lane) {
      const int g = lane / 4;
      const int t = 2 * (lane % 4);
      const std::uint32_t low = kTransposed ? matrix[t][g] : matrix[g][t];
      const std::uint32_t high = kTransposed ? matrix[t + 1][g] : matrix[g][t + 1];
      static_cast<const MatrixOperands*>(warp.payload[static_cast<std::size_t>(lane)])->r[i] = low | (high << 16);
    }
  }
}

}  // namespace detail
}  // namespace peft_emulator

PEFT_BEGIN_NAMESPACE
namespace cuda {
namespace kernels {

using ::peft_emulator::Where;
using ::peft_emulator::the_machine;

// -- threads -----------------------------------------------------------------------------------------------------
inline int thread_index() { return the_machine.thread_index(); }
inline int block_threads() { return the_machine.threads(); }
inline int block_x() { return the_machine.block[0]; }
inline int block_y() { return the_machine.block[1]; }
inline int block_z() { return the_machine.block[2]; }
inline int grid_x() { return the_machine.grid[0]; }
inline int grid_y() { return the_machine.grid[1]; }
inline int grid_z() { return the_machine.grid[2]; }
inline int lane_index() { return thread_index() % 32; }
inline int warp_index() { return thread_index() / 32; }

// -- barriers and warps ------------------------------------------------------------------------------------------
inline void sync_threads(Where where = Where::here()) { the_machine.sync_threads(where); }
inline void sync_warp(std::uint32_t mask = ~0u, Where where = Where::here()) {
  the_machine.meet("sync_warp", nullptr, mask, nullptr, where, true);
}
template <class T>
inline T shuffle(std::uint32_t mask, T v, int source_lane, Where where = Where::here()) {
  return bit_cast<T>(
      ::peft_emulator::detail::shuffled("shuffle", mask, bit_cast<std::uint32_t>(v), source_lane & 31, where));
}
template <class T>
inline T shuffle_xor(std::uint32_t mask, T v, int lane_mask, Where where = Where::here()) {
  return bit_cast<T>(::peft_emulator::detail::shuffled("shuffle_xor", mask, bit_cast<std::uint32_t>(v),
                                                       (lane_index() ^ lane_mask) & 31, where));
}
template <class T>
inline T shuffle_down(std::uint32_t mask, T v, int delta, Where where = Where::here()) {
  const int source = lane_index() + delta > 31 ? lane_index() : lane_index() + delta;
  return bit_cast<T>(::peft_emulator::detail::shuffled("shuffle_down", mask, bit_cast<std::uint32_t>(v), source, where));
}
inline std::uint32_t ballot(std::uint32_t mask, bool predicate, Where where = Where::here()) {
  ::peft_emulator::detail::Exchange mine{predicate ? 1u : 0u, 0, 0};
  the_machine.meet("ballot", &::peft_emulator::detail::vote, mask, &mine, where);
  return mine.result;
}

// -- global memory -----------------------------------------------------------------------------------------------
template <class T>
inline T load(const T* p, Where where = Where::here()) {
  T v;
  the_machine.memory.global_load(the_machine.asker(), p, sizeof(T), &v, where, false);
  return v;
}
template <class T>
inline T load_const(const T* p, Where where = Where::here()) {
  T v;
  the_machine.memory.global_load(the_machine.asker(), p, sizeof(T), &v, where, true);
  return v;
}
template <class T>
inline T load_stream(const T* p, Where where = Where::here()) {
  T v;
  the_machine.memory.global_load(the_machine.asker(), p, sizeof(T), &v, where, true);
  return v;
}
template <class T>
inline void store(T* p, T v, Where where = Where::here()) {
  the_machine.memory.global_store(the_machine.asker(), p, sizeof(T), &v, where);
}
template <class T>
inline void store_stream(T* p, T v, Where where = Where::here()) {
  the_machine.memory.global_store(the_machine.asker(), p, sizeof(T), &v, where);
}

// -- shared memory -----------------------------------------------------------------------------------------------
template <class T>
struct Shared {
  std::int64_t offset;  // bytes

  T load(int i, Where where = Where::here()) const {
    T v;
    the_machine.memory.shared_load(the_machine.asker(), at(i), sizeof(T), &v, where);
    return v;
  }
  void store(int i, T v, Where where = Where::here()) const {
    the_machine.memory.shared_store(the_machine.asker(), at(i), sizeof(T), &v, where);
  }
  template <int N>
  Vec<T, N> load_vec(int i, Where where = Where::here()) const {
    Vec<T, N> v;
    the_machine.memory.shared_load(the_machine.asker(), at(i), sizeof(v), &v, where);
    return v;
  }
  template <int N>
  void store_vec(int i, Vec<T, N> v, Where where = Where::here()) const {
    the_machine.memory.shared_store(the_machine.asker(), at(i), sizeof(v), &v, where);
  }
  Shared operator+(int n) const { return {at(n)}; }
  template <class U>
  Shared<U> as() const {
    return {offset};
  }
  std::uint32_t address() const { return static_cast<std::uint32_t>(offset); }

  std::int64_t at(int i) const { return offset + static_cast<std::int64_t>(i) * static_cast<std::int64_t>(sizeof(T)); }
};
struct SharedMemory {
  template <class T>
  Shared<T> at(int byte_offset) const {
    return {byte_offset};
  }
};
inline SharedMemory shared_memory() { return {}; }

// -- cp.async ----------------------------------------------------------------------------------------------------
template <class T>
inline void cp_async_16(Shared<T> dst, const void* src, bool valid, Where where = Where::here()) {
  the_machine.memory.copy(the_machine.asker(), dst.offset, src, valid, where);
}
inline void cp_async_commit() { the_machine.memory.close_group(the_machine.asker()); }
template <int kPending>
inline void cp_async_wait() {
  the_machine.memory.wait(the_machine.asker(), kPending);
}

// -- matrices ----------------------------------------------------------------------------------------------------
inline void ldmatrix_x4(std::uint32_t (&r)[4], Shared<std::uint16_t> row, Where where = Where::here()) {
  ::peft_emulator::detail::MatrixOperands mine{r, row.offset, where};
  the_machine.meet("ldmatrix_x4", &::peft_emulator::detail::load_matrices<4, false>, ~0u, &mine, where);
}
inline void ldmatrix_x4_trans(std::uint32_t (&r)[4], Shared<std::uint16_t> row, Where where = Where::here()) {
  ::peft_emulator::detail::MatrixOperands mine{r, row.offset, where};
  the_machine.meet("ldmatrix_x4_trans", &::peft_emulator::detail::load_matrices<4, true>, ~0u, &mine, where);
}
inline void ldmatrix_x2(std::uint32_t (&r)[2], Shared<std::uint16_t> row, Where where = Where::here()) {
  ::peft_emulator::detail::MatrixOperands mine{r, row.offset, where};
  the_machine.meet("ldmatrix_x2", &::peft_emulator::detail::load_matrices<2, false>, ~0u, &mine, where);
}
inline void ldmatrix_x2_trans(std::uint32_t (&r)[2], Shared<std::uint16_t> row, Where where = Where::here()) {
  ::peft_emulator::detail::MatrixOperands mine{r, row.offset, where};
  the_machine.meet("ldmatrix_x2_trans", &::peft_emulator::detail::load_matrices<2, true>, ~0u, &mine, where);
}
template <class T>
inline void mma_16816(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2], Where where = Where::here()) {
  static_assert(std::is_same_v<T, f16> || std::is_same_v<T, bf16>);
  ::peft_emulator::detail::MmaOperands mine{d, a, b};
  the_machine.meet("mma_16816", &::peft_emulator::detail::multiply<T, 16>, ~0u, &mine, where);
}
inline void mma_1688_f16(float (&d)[4], const std::uint32_t (&a)[2], std::uint32_t b, Where where = Where::here()) {
  ::peft_emulator::detail::MmaOperands mine{d, a, &b};
  the_machine.meet("mma_1688", &::peft_emulator::detail::multiply<f16, 8>, ~0u, &mine, where);
}

// -- bits --------------------------------------------------------------------------------------------------------
template <std::uint32_t kTable>
inline std::uint32_t lop3(std::uint32_t a, std::uint32_t b, std::uint32_t c) {
  static_assert(kTable < 256);
  return ::peft_emulator::logic3(kTable, a, b, c);
}
inline std::uint32_t prmt(std::uint32_t a, std::uint32_t b, std::uint32_t selector) {
  return ::peft_emulator::permute_bytes(a, b, selector);
}

// -- numbers -----------------------------------------------------------------------------------------------------
inline float to_float(float x) { return x; }
inline float to_float(f16 x) { return static_cast<float>(x); }
inline float to_float(bf16 x) { return static_cast<float>(x); }
template <class T>
inline T from_float(float x) {
  if constexpr (std::is_same_v<T, float>) {
    return x;
  } else {
    return ::peft_emulator::rounded<T>(x);
  }
}
template <class T>
inline std::uint32_t pack2(float lo, float hi) {
  return static_cast<std::uint32_t>(from_float<T>(lo).bits) | (static_cast<std::uint32_t>(from_float<T>(hi).bits) << 16);
}
template <class T>
inline float low_float(std::uint32_t pair) {
  return to_float(::peft_emulator::from_bits<T>(pair));
}
template <class T>
inline float high_float(std::uint32_t pair) {
  return to_float(::peft_emulator::from_bits<T>(pair >> 16));
}
inline std::uint32_t hmul2(std::uint32_t a, std::uint32_t b) {
  return ::peft_emulator::pairwise_f16(a, b, [](float x, float y) { return x * y; });
}
inline std::uint32_t hadd2(std::uint32_t a, std::uint32_t b) {
  return ::peft_emulator::pairwise_f16(a, b, [](float x, float y) { return x + y; });
}
inline std::uint32_t hfma2(std::uint32_t a, std::uint32_t b, std::uint32_t c) { return ::peft_emulator::fused2<f16>(a, b, c); }
inline std::uint32_t bfma2(std::uint32_t a, std::uint32_t b, std::uint32_t c) { return ::peft_emulator::fused2<bf16>(a, b, c); }
inline std::uint32_t bmul2(std::uint32_t a, std::uint32_t b) { return bfma2(a, b, 0x80008000u); }
inline std::uint32_t badd2(std::uint32_t a, std::uint32_t b) { return bfma2(a, 0x3F803F80u, b); }

inline float fma(float a, float b, float c) { return std::fma(a, b, c); }
inline float exp_(float x) { return std::exp(x); }
inline float log_(float x) { return std::log(x); }
inline float tanh_(float x) { return std::tanh(x); }
inline float erf_(float x) { return std::erf(x); }
inline float sqrt_rn(float x) { return std::sqrt(x); }
inline float div_rn(float a, float b) { return a / b; }
inline float mul_rn(float a, float b) {
  float r = a * b;
  PEFT_OPAQUE_SCALAR(r);
  return r;
}
inline float add_rn(float a, float b) {
  float r = a + b;
  PEFT_OPAQUE_SCALAR(r);
  return r;
}
inline float sub_rn(float a, float b) {
  float r = a - b;
  PEFT_OPAQUE_SCALAR(r);
  return r;
}
inline float min(float a, float b) { return std::fmin(a, b); }
inline float max(float a, float b) { return std::fmax(a, b); }
inline float abs_(float x) { return std::fabs(x); }

inline float warp_sum(float v, Where where = Where::here()) {
  for (int step = 16; step > 0; step /= 2) v += shuffle_xor(~0u, v, step, where);
  return v;
}
inline float warp_max(float v, Where where = Where::here()) {
  for (int step = 16; step > 0; step /= 2) v = max(v, shuffle_xor(~0u, v, step, where));
  return v;
}

// -- launch ------------------------------------------------------------------------------------------------------
/// cudaErrorLaunchFailure where anything was found: the text is in last_report().
template <auto kKernel, class Args>
inline cudaError_t launch(Grid grid, int threads, int shared_bytes, cudaStream_t, const Args& args,
                          Where where = Where::here()) {
  static_assert(std::is_same_v<decltype(kKernel), void (*)(Args)>, "the kernel takes this struct, by value");
  static_assert(std::is_trivially_copyable_v<Args> && sizeof(Args) <= 4096);
  if (grid.x < 1 || grid.y < 1 || grid.z < 1 || threads < 1 || shared_bytes < 0) return cudaErrorInvalidValue;
  const auto body = [](const void* p) { kKernel(*static_cast<const Args*>(p)); };
  const bool clean = the_machine.run({grid.x, grid.y, grid.z}, threads, shared_bytes, body, &args, where);
  return clean ? cudaSuccess : cudaErrorLaunchFailure;
}

}  // namespace kernels
}  // namespace cuda
PEFT_END_NAMESPACE
