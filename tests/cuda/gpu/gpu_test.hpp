#pragma once
/// What the tests on a GPU share: registration, checks that count, numbers made on the device, and products in float that serve
/// as the reference for large shapes. No framework, so that one program says plainly whether it ran.

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "peft/core/buffer.hpp"
#include "peft/cuda/cuda.hpp"

namespace gpu_test {

using namespace peft;

#ifdef PEFT_CUDA_EMULATOR
/// Slow: only shapes of a few blocks.
inline constexpr bool kIsEmulated = true;
#else
inline constexpr bool kIsEmulated = false;
#endif

/// A test and what it found.
struct Test {
  const char* name;
  void (*run)();
};
inline std::vector<Test>& tests() {
  static std::vector<Test> all;
  return all;
}
struct Registration {
  Registration(const char* name, void (*run)()) { tests().push_back({name, run}); }
};

struct Counts {
  Index checks = 0, failures = 0;
};
inline Counts& counts() {
  static Counts all;
  return all;
}
template <class... Args>
void check_that(bool holds, fmt::format_string<Args...> text, Args&&... args) {
  ++counts().checks;
  if (holds) return;
  ++counts().failures;
  if (counts().failures <= 50) std::printf("  FAILED: %s\n", fmt::format(text, std::forward<Args>(args)...).c_str());
}

/// What a call that is refused says.
template <class Call>
std::string text_of(Call&& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.what();
  }
  return "nothing was thrown";
}
inline void check_text(const std::string& text, std::string_view part) {
  check_that(text.find(part) != std::string::npos, "the text is \"{}\"; expected \"{}\" in it", text, part);
}

#define PEFT_GPU_TEST(name)                                              \
  static void name();                                                    \
  static const ::gpu_test::Registration name##_registration(#name, name); \
  static void name()

/// The context of all tests, on a stream of its own.
inline cuda::Context& context() {
  static cuda::Stream stream;
  static cuda::Context one(stream);
  return one;
}

/// Half of a unit in the last place, relative.
template <class T>
constexpr double unit_roundoff() {
  return std::is_same_v<T, float> ? 0x1p-24 : std::is_same_v<T, f16> ? 0x1p-11 : 0x1p-8;
}
template <class T>
std::string_view type_name() {
  return name_of(dtype_of<T>());
}

// -- numbers ---------------------------------------------------------------------------------------------------------------
/// A hash of (seed, i) as a number within ±1.
PEFT_HOST_DEVICE float hashed(std::uint32_t seed, std::uint64_t i) {
  std::uint64_t z = (i + 1) * 0x9E3779B97F4A7C15ull + seed * 0xD1B54A32D192ED03ull;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
  return static_cast<float>(static_cast<std::int32_t>(z >> 32)) * 0x1p-31f;
}
template <class T>
struct FillArgs {
  T* data;
  Index rows, cols, stride;
  std::uint32_t seed;
  float size;
};
template <class T>
PEFT_KERNEL PEFT_KERNEL_BOUNDS(256, 1) void fill_kernel(FillArgs<T> args) {
  const Index i = static_cast<Index>(cuda::kernels::block_x()) * 256 + cuda::kernels::thread_index();
  if (i >= args.rows * args.cols) return;
  cuda::kernels::store(args.data + i / args.cols * args.stride + i % args.cols,
                       cuda::kernels::from_float<T>(args.size * hashed(args.seed, static_cast<std::uint64_t>(i))));
}
/// Uniform within ±size.
template <class T>
void fill(cuda::DeviceMatrixView<T> view, std::uint32_t seed, float size) {
  if (view.empty()) return;
  const FillArgs<T> args{view.data, view.rows, view.cols, view.stride, seed, size};
  const int blocks = static_cast<int>((view.rows * view.cols + 255) / 256);
  cuda::check(cuda::kernels::launch<fill_kernel<T>>(cuda::kernels::Grid{blocks, 1, 1}, 256, 0, context().stream(), args),
              "filling a matrix");
}
template <class T>
cuda::DeviceMatrix<T> random_matrix(Index rows, Index cols, std::uint32_t seed, float size, Index spare = 0) {
  cuda::DeviceMatrix<T> result(rows, cols, spare);
  result.fill_zero(context().stream());
  fill(result.view(), seed, size);
  return result;
}

/// The same numbers in float.
template <class T>
cuda::DeviceMatrix<float> widened(cuda::DeviceMatrixView<T> view) {
  cuda::DeviceMatrix<float> result(view.rows, view.cols);
  if (!view.empty()) {
    cuda::detail::launch_convert(cuda::DeviceMatrixView<const std::remove_const_t<T>>(view), 1.0f, result.view(), context());
  }
  return result;
}
/// On the host, row after row.
template <class T>
std::vector<float> host_copy(cuda::DeviceMatrixView<T> view) {
  std::vector<float> result(static_cast<std::size_t>(view.rows * view.cols));
  cuda::download(cuda::DeviceMatrixView<const std::remove_const_t<T>>(view),
                 MatrixView<float>(result.data(), view.rows, view.cols), context().stream());
  return result;
}

/// c = alpha·op(a)·op(b) + beta·c by cuBLASLt in float, without TF32.
inline void reference_product(cuda::Transpose ta, const cuda::DeviceMatrix<float>& a, cuda::Transpose tb,
                              const cuda::DeviceMatrix<float>& b, float alpha, float beta, cuda::DeviceMatrix<float>& c) {
  context().matmul()(ta, a.view(), tb, b.view(), alpha, beta, static_cast<const float*>(nullptr), c.view(), context().stream());
}

/// What cuda::Lora is uploaded from: A within ±kASize, B within ±kBSize.
struct Factors {
  static constexpr float kASize = 0.05f, kBSize = 0.1f;
  Matrix<float> a_, b_;
  double scale = 1;
  float p = 0;
  Factors(Index in, Index out, Index r, double scaling, float dropout, std::uint32_t seed)
      : a_(r, in), b_(out, r), scale(scaling), p(dropout) {
    for (Index i = 0; i < a_.size(); ++i) a_.data()[i] = kASize * hashed(seed, static_cast<std::uint64_t>(i));
    for (Index i = 0; i < b_.size(); ++i) b_.data()[i] = kBSize * hashed(seed + 1, static_cast<std::uint64_t>(i));
  }
  Index in_features() const { return a_.cols(); }
  Index out_features() const { return b_.rows(); }
  Index r() const { return a_.rows(); }
  double scaling() const { return scale; }
  float dropout() const { return p; }
  MatrixView<const float> a_view() const { return a_.view(); }
  MatrixView<const float> b_view() const { return b_.view(); }
  Matrix<float>& a() { return a_; }
  Matrix<float>& b() { return b_; }
};

// -- comparison ------------------------------------------------------------------------------------------------------------
/// |got − want| ≤ relative·|want| + absolute for every element; says where it is worst.
inline void check_close(std::string_view what, const std::vector<float>& got, const std::vector<float>& want, Index cols,
                        double relative, double absolute) {
  double worst = 0;
  std::size_t at = 0;
  bool finite = true;
  for (std::size_t i = 0; i < want.size(); ++i) {
    if (!is_finite(got[i])) {
      finite = false;
      at = i;
      break;
    }
    const double error =
        std::fabs(double{got[i]} - double{want[i]}) / (relative * std::fabs(double{want[i]}) + absolute + 1e-300);
    if (error > worst) worst = error, at = i;
  }
  const auto row = cols > 0 ? static_cast<Index>(at) / cols : 0, column = cols > 0 ? static_cast<Index>(at) % cols : 0;
  check_that(got.size() == want.size() && finite && worst <= 1.0,
             "{}: at [{}, {}] {} instead of {}: {:.2f} times the tolerance", what, row, column, got.empty() ? 0.0f : got[at],
             want.empty() ? 0.0f : want[at], worst);
}

/// What a sum of k products of numbers within ±a and ±b (uniform) may err by, where it is added up in float in any order: the
/// norms' product times eps; tensor cores cut what they align, which drifts, hence the factor. `rounded`: operands that were
/// rounded once more on the way (decoded weights), each by u.
inline double sum_tolerance(Index k, double a, double b, double rounded_u = 0.0) {
  const double norms = static_cast<double>(k) * a * b / 3.0;
  return 32.0 * 0x1p-24 * norms + 8.0 * rounded_u * norms / std::sqrt(static_cast<double>(k > 0 ? k : 1)) + 1e-30;
}

inline bool has_memory_for(Index bytes) {
  std::size_t free = 0, total = 0;
  cuda::check(cudaMemGetInfo(&free, &total), "asking for free memory");
  return static_cast<double>(bytes) < 0.8 * static_cast<double>(free);
}

/// [out, in] of the linears of Llama 2's 7B, 13B and 70B.
struct Shape {
  const char* name;
  Index out, in;
};
inline const std::vector<Shape>& model_shapes() {
  static const std::vector<Shape> shapes = {{"7B q", 4096, 4096},    {"7B gate", 11008, 4096},  {"7B down", 4096, 11008},
                                            {"13B q", 5120, 5120},   {"13B gate", 13824, 5120}, {"13B down", 5120, 13824},
                                            {"70B k", 1024, 8192},   {"70B q", 8192, 8192},     {"70B gate", 28672, 8192},
                                            {"70B down", 8192, 28672}};
  return shapes;
}

}  // namespace gpu_test
