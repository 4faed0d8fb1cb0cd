// The fused bottleneck, forward and backward, against double; and the column sums and conversions beside it.

#include "peft/cuda/kernels/bottleneck.cuh"

#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "peft/cuda/kernels/convert.cuh"
#include "peft/ops/activation.hpp"
#include "support/catch.hpp"

namespace {

namespace device = peft::cuda::kernels;
using peft::Activation;
using peft::bf16;
using peft::f16;
using peft::Index;
using peft_emulator::Buffer;

template <class T>
double widened(T value) {
  return static_cast<double>(static_cast<float>(value));
}
template <class T>
constexpr double unit() {
  return sizeof(T) == 4 ? 0x1p-24 : std::is_same_v<T, f16> ? 0x1p-11 : 0x1p-8;
}

/// A matrix in the emulator's memory, its rows `ld` apart.
template <class T>
struct Device {
  Index rows, cols, ld;
  Buffer<T> memory;

  Device(Index rows_, Index cols_, Index pad, unsigned seed, float deviation, const char* name)
      : rows(rows_), cols(cols_), ld(cols_ + pad), memory(rows_ * ld, name) {
    std::mt19937 random(seed);
    std::normal_distribution<float> draw(0.0f, deviation);
    for (T& value : memory) value = static_cast<T>(draw(random));
  }
  T* data() { return memory.data(); }
  double at(Index i, Index j) const { return widened(memory[i * ld + j]); }
};

struct Case {
  Index m, d, b;
  Index pad = 0;  ///< of strides: with one that is no multiple of 8 nothing is aligned
  int shared_limit = 0;
  int sm = 80;
  Activation activation = Activation::kGelu;
  bool residual = true;
  bool trained = false;  ///< with a dropout mask, and a factor of c in device memory that has a gradient
};

/// All of a bottleneck's tensors, and what they come to in double.
template <class T>
struct Problem {
  Case shape;
  Device<T> x, down, up, residual, s, y, dy, dx;
  Device<float> e, g, d_down, d_up, de, dg;
  Buffer<unsigned char> workspace;
  Buffer<std::uint8_t> mask;
  Buffer<float> factor, d_factor;
  float scale = 0.75f;

  explicit Problem(const Case& c)
      : shape(c), x(c.m, c.d, c.pad, 1, 1.0f, "x"), down(c.b, c.d, c.pad, 2, 1.0f / std::sqrt(static_cast<float>(c.d)), "down"),
        up(c.d, c.b, c.pad, 3, 1.0f / std::sqrt(static_cast<float>(c.b)), "up"), residual(c.m, c.d, c.pad, 4, 1.0f, "residual"),
        s(c.m, c.b, c.pad, 5, 1.0f, "s"), y(c.m, c.d, c.pad, 6, 1.0f, "y"), dy(c.m, c.d, c.pad, 7, 1.0f, "dy"),
        dx(c.m, c.d, c.pad, 8, 1.0f, "dx"), e(1, c.b, 0, 9, 0.3f, "down_bias"), g(1, c.d, 0, 10, 0.3f, "up_bias"),
        d_down(c.b, c.d, 0, 11, 1.0f, "d_down"), d_up(c.d, c.b, 0, 12, 1.0f, "d_up"), de(1, c.b, 0, 13, 1.0f, "de"),
        dg(1, c.d, 0, 14, 1.0f, "dg"),
        workspace(std::max(device::bottleneck_forward_workspace<T>(c.m, c.d, c.b, c.shared_limit, c.sm),
                           device::bottleneck_backward_workspace<T>(c.m, c.d, c.b, c.shared_limit, c.sm, c.trained, c.trained)),
                  "workspace"),
        mask(c.m * mask_stride(), "mask"), factor(1, c.trained ? 1.25f : 1.0f, "factor"), d_factor(1, 0.5f, "d_factor") {
    std::mt19937 random(15);
    for (std::uint8_t& byte : mask) byte = static_cast<std::uint8_t>(c.trained ? random() : 255);
  }

  static constexpr float kKept = 1.5f;
  Index mask_stride() const { return (shape.d + 7) / 8 + 1; }
  double c_value() const { return double{scale} * double{factor[0]}; }
  /// m.
  double kept(Index i, Index j) const {
    if (!shape.trained) return 1.0;
    return (mask[i * mask_stride() + j / 8] >> (j % 8) & 1) != 0 ? double{kKept} : 0.0;
  }
  /// d̂, which is rounded to T.
  double masked_dy(Index i, Index j) const { return widened(static_cast<T>(static_cast<float>(dy.at(i, j) * kept(i, j)))); }

  device::BottleneckForwardArgs<T> forward() {
    return {x.data(), x.ld, down.data(), down.ld, e.data(), up.data(), up.ld, g.data(),
            shape.residual ? residual.data() : nullptr, residual.ld, scale, shape.activation, s.data(), s.ld, y.data(), y.ld,
            shape.m, shape.d, shape.b, workspace.data(), shape.shared_limit, shape.sm,
            shape.trained ? factor.data() : nullptr, shape.trained ? mask.data() : nullptr, mask_stride(), kKept};
  }
  device::BottleneckBackwardArgs<T> backward() {
    return {dy.data(), dy.ld, x.data(), x.ld, down.data(), down.ld, up.data(), up.ld,
            shape.residual ? residual.data() : nullptr, residual.ld, scale, shape.activation, s.data(), s.ld, dx.data(), dx.ld,
            d_down.data(), de.data(), d_up.data(), dg.data(), shape.m, shape.d, shape.b, workspace.data(), shape.shared_limit,
            shape.sm, shape.trained ? factor.data() : nullptr, shape.trained ? mask.data() : nullptr, mask_stride(), kKept,
            g.data(), shape.trained ? d_factor.data() : nullptr};
  }

  /// The norms of the factors times the units of rounding: a sum of k products in float, of factors of which one was rounded
  /// to T on the way.
  void check_forward() {
    const Case& c = shape;
    std::vector<double> hidden(static_cast<std::size_t>(c.b));
    for (Index i = 0; i < c.m; ++i) {
      double x_norm = 0, hidden_norm = 0, s_error_norm = 0;
      for (Index k = 0; k < c.d; ++k) x_norm += x.at(i, k) * x.at(i, k);
      for (Index q = 0; q < c.b; ++q) {
        double sum = widened(e.memory[q]), norm = 0;
        for (Index k = 0; k < c.d; ++k) {
          sum += x.at(i, k) * down.at(q, k);
          norm += down.at(q, k) * down.at(q, k);
        }
        const double error = (std::sqrt(x_norm * norm) + 1) * (static_cast<double>(c.d) / 16 + 4) * 0x1p-24;
        INFO("S(" << i << ", " << q << ")");
        REQUIRE(std::abs(s.at(i, q) - sum) <= error + std::abs(sum) * unit<T>());
        const double f = peft::ops::activation_value(c.activation, sum);
        hidden[static_cast<std::size_t>(q)] = f;
        hidden_norm += f * f;
        // f is of S as it was rounded; slopes are below 1.13.
        const double one = 1.2 * (error + std::abs(sum) * unit<T>()) + std::abs(f) * (unit<T>() + 8 * 0x1p-24);
        s_error_norm += one * one;
      }
      for (Index j = 0; j < c.d; ++j) {
        double sum = widened(g.memory[j]), norm = 0;
        for (Index q = 0; q < c.b; ++q) {
          sum += hidden[static_cast<std::size_t>(q)] * up.at(j, q);
          norm += up.at(j, q) * up.at(j, q);
        }
        const double wanted = kept(i, j) * c_value() * sum + (c.residual ? residual.at(i, j) : 0.0);
        const double error = std::sqrt(norm * s_error_norm) +
                             std::sqrt(norm * hidden_norm) * (static_cast<double>(c.b) / 16 + 8) * 0x1p-24 + 8 * 0x1p-24;
        if (std::abs(y.at(i, j) - wanted) > (c.trained ? 2 : 1) * error + std::abs(wanted) * unit<T>()) {
          CAPTURE(i, j, y.at(i, j), wanted, error);
          REQUIRE(false);
        }
      }
    }
  }

  void check_backward() {
    const Case& c = shape;
    const auto index = [&](Index i, Index q) { return static_cast<std::size_t>(i * c.b + q); };
    std::vector<double> ds(static_cast<std::size_t>(c.m * c.b)), active(ds), ds_error(ds);
    double factor_sum = 0, factor_error = 0;
    for (Index i = 0; i < c.m; ++i) {
      double dy_norm = 0;
      for (Index k = 0; k < c.d; ++k) dy_norm += masked_dy(i, k) * masked_dy(i, k);
      for (Index q = 0; q < c.b; ++q) {
        double sum = 0, norm = 0;
        for (Index k = 0; k < c.d; ++k) {
          sum += masked_dy(i, k) * up.at(k, q);
          norm += up.at(k, q) * up.at(k, q);
        }
        const double slope = peft::ops::activation_slope(c.activation, s.at(i, q));
        ds[index(i, q)] = c_value() * sum * slope;
        ds_error[index(i, q)] = std::sqrt(dy_norm * norm) * (static_cast<double>(c.d) / 16 + 12) * 0x1p-24 +
                                std::abs(ds[index(i, q)]) * 2 * unit<T>();
        const double f = peft::ops::activation_value(c.activation, s.at(i, q));
        active[index(i, q)] = c_value() * f;
        factor_sum += sum * f;
        factor_error += std::abs(f) * (std::sqrt(dy_norm * norm) * (static_cast<double>(c.d) / 16 + 12) * 0x1p-24 +
                                       std::abs(sum) * 1.01 * unit<T>()) + std::abs(sum * f) * 64 * 0x1p-24;
      }
    }
    const auto near = [](double got, double wanted, double error) {
      if (std::abs(got - wanted) > error) {
        CAPTURE(got, wanted, error);
        REQUIRE(false);
      }
    };
    for (Index i = 0; i < c.m; ++i) {
      for (Index j = 0; j < c.d; ++j) {
        double sum = c.residual ? residual.at(i, j) : 0.0, error = 4 * 0x1p-24, size = 0;
        for (Index q = 0; q < c.b; ++q) {
          sum += ds[index(i, q)] * down.at(q, j);
          error += ds_error[index(i, q)] * std::abs(down.at(q, j));
          size += std::abs(ds[index(i, q)] * down.at(q, j));
        }
        INFO("dx(" << i << ", " << j << ")");
        near(dx.at(i, j), sum, error + size * 8 * 0x1p-24 + std::abs(sum) * unit<T>());
      }
    }
    const double m_units = (static_cast<double>(c.m) / 8 + 8) * 0x1p-24;
    for (Index q = 0; q < c.b; ++q) {
      double column = 0, column_error = 0x1p-21;
      for (Index i = 0; i < c.m; ++i) {
        column += ds[index(i, q)];
        column_error += ds_error[index(i, q)] + std::abs(ds[index(i, q)]) * m_units;
      }
      INFO("de(" << q << ")");
      near(de.at(0, q) - before_de[static_cast<std::size_t>(q)], column, column_error);
      for (Index j = 0; j < c.d; ++j) {
        double sum = 0, error = 0x1p-21;
        double up_sum = 0, up_error = 0x1p-21;
        for (Index i = 0; i < c.m; ++i) {
          sum += ds[index(i, q)] * x.at(i, j);
          error += ds_error[index(i, q)] * std::abs(x.at(i, j)) + std::abs(ds[index(i, q)] * x.at(i, j)) * m_units;
          up_sum += masked_dy(i, j) * active[index(i, q)];
          up_error += std::abs(masked_dy(i, j) * active[index(i, q)]) * (unit<T>() + 8 * 0x1p-24 + m_units);
        }
        INFO("dD, dU: unit " << q << ", " << j);
        near(d_down.at(q, j) - before_down[static_cast<std::size_t>(q * c.d + j)], sum, error + std::abs(sum) * 0x1p-23);
        near(d_up.at(j, q) - before_up[static_cast<std::size_t>(j * c.b + q)], up_sum, up_error + std::abs(up_sum) * 0x1p-23);
      }
    }
    for (Index j = 0; j < c.d; ++j) {
      double sum = 0, size = 0;
      for (Index i = 0; i < c.m; ++i) {
        sum += c_value() * masked_dy(i, j);
        size += c_value() * std::abs(masked_dy(i, j));
        factor_sum += masked_dy(i, j) * g.at(0, j);
        factor_error += std::abs(masked_dy(i, j) * g.at(0, j)) * m_units;
      }
      INFO("dg(" << j << ")");
      near(dg.at(0, j) - before_dg[static_cast<std::size_t>(j)], sum, size * m_units + 0x1p-21);
    }
    if (!c.trained) return;
    INFO("dc");
    near(d_factor[0] - 0.5, scale * factor_sum, scale * factor_error + std::abs(factor_sum) * 0x1p-22);
  }

  void keep_gradients() {
    before_down = d_down.memory.to_vector();
    before_up = d_up.memory.to_vector();
    before_de = de.memory.to_vector();
    before_dg = dg.memory.to_vector();
  }
  std::vector<float> before_down, before_up, before_de, before_dg;
};

template <class T>
void run(const Case& shape) {
  INFO("m " << shape.m << ", d " << shape.d << ", b " << shape.b << ", pad " << shape.pad << ", sm_" << shape.sm << ", "
            << name_of(shape.activation));
  Problem<T> problem(shape);
  REQUIRE(device::bottleneck_forward(problem.forward(), nullptr) == cudaSuccess);
  problem.check_forward();
  problem.keep_gradients();
  REQUIRE(device::bottleneck_backward(problem.backward(), nullptr) == cudaSuccess);
  problem.check_backward();
}

template <class T>
void run_cut(const Case& shape, const device::detail::BottleneckCut& cut) {
  INFO("m " << shape.m << ", d " << shape.d << ", b " << shape.b << " in slices of " << cut.width);
  Problem<T> problem(shape);
  Buffer<unsigned char> workspace(device::bottleneck_backward_workspace<T>(shape.m, shape.d, shape.b, 0, shape.sm) +
                                  cut.slices * shape.m * shape.d * 4, "workspace");
  auto forward = problem.forward();
  auto backward = problem.backward();
  forward.workspace = backward.workspace = workspace.data();
  REQUIRE(device::detail::bottleneck_forward(forward, cut, shape.sm, nullptr) == cudaSuccess);
  problem.check_forward();
  problem.keep_gradients();
  REQUIRE(device::detail::bottleneck_backward(backward, cut, shape.sm, nullptr) == cudaSuccess);
  problem.check_backward();
}

peft_emulator::Options random_schedule(std::uint64_t seed) {
  peft_emulator::Options options;
  options.seed = seed;
  options.random_schedule = true;
  return options;
}

}  // namespace

TEST_CASE("The bottleneck on tensor cores, aligned", "[cuda][bottleneck]") {
  const peft_emulator::WithOptions with(random_schedule(1));
  run<f16>({.m = 70, .d = 136, .b = 16});
  run<bf16>({.m = 3, .d = 64, .b = 48});
  REQUIRE_CLEAN();
}

TEST_CASE("The bottleneck with tails that nothing divides", "[cuda][bottleneck]") {
  const peft_emulator::WithOptions with(random_schedule(2));
  run<bf16>({.m = 65, .d = 67, .b = 5, .pad = 2, .activation = Activation::kSilu});
  run<float>({.m = 5, .d = 35, .b = 33, .pad = 1, .activation = Activation::kTanh, .residual = false});
  REQUIRE_CLEAN();
}

TEST_CASE("The bottleneck in float and as sm_75 runs it", "[cuda][bottleneck]") {
  const peft_emulator::WithOptions with(random_schedule(3));
  run<float>({.m = 66, .d = 72, .b = 24, .activation = Activation::kRelu});
  run<f16>({.m = 9, .d = 80, .b = 40, .sm = 75, .activation = Activation::kLeakyRelu});
  run<bf16>({.m = 9, .d = 72, .b = 24, .sm = 75, .activation = Activation::kGeluTanh, .residual = false});
  REQUIRE_CLEAN();
}

TEST_CASE("The bottleneck with a dropout mask, and a factor that is trained", "[cuda][bottleneck]") {
  const peft_emulator::WithOptions with(random_schedule(6));
  run<f16>({.m = 70, .d = 72, .b = 16, .trained = true});                                   // one slice, two blocks of rows
  run<bf16>({.m = 3, .d = 44, .b = 40, .pad = 3, .activation = Activation::kSilu, .trained = true});  // slices, nothing aligned
  run<float>({.m = 5, .d = 40, .b = 20, .activation = Activation::kTanh, .residual = false, .trained = true});
  run<f16>({.m = 4, .d = 72, .b = 16, .sm = 75, .activation = Activation::kTanh, .trained = true});
  REQUIRE_CLEAN();
}

TEST_CASE("Tiles of 128 columns, and a bottleneck wider than shared memory", "[cuda][bottleneck]") {
  // 64 row blocks would be needed for one slice; so the cut is asked for instead.
  const auto cut = device::detail::bottleneck_cut<f16>(4096, 256, 0, 80);
  REQUIRE((cut.columns == 128 && cut.slices == 1 && cut.width == 256));
  const auto wide = device::detail::bottleneck_cut<f16>(4096, 2048, 0, 80);
  REQUIRE((wide.columns == 128 && wide.slices == 6 && wide.width == 384));
  const auto few = device::detail::bottleneck_cut<f16>(1, 256, 0, 80);
  REQUIRE((few.columns == 64 && few.slices == 16 && few.width == 16));
  REQUIRE(device::detail::bottleneck_cut<f16>(4096, 256, 40 * 1024, 80).slices == 0);
  REQUIRE(device::detail::bottleneck_cut<float>(4096, 256, 0, 75).width == 128);

  // On few rows these cuts would not be chosen.
  const peft_emulator::WithOptions with(random_schedule(4));
  run_cut<f16>({.m = 2, .d = 72, .b = 136}, {136, 1, 128});
  run_cut<bf16>({.m = 17, .d = 136, .b = 144, .activation = Activation::kSilu}, {144, 1, 128});
  run_cut<f16>({.m = 3, .d = 72, .b = 88, .sm = 75}, {80, 2, 64});
  run_cut<float>({.m = 3, .d = 70, .b = 70}, {80, 1, 64});
  REQUIRE_CLEAN();
}

TEST_CASE("The bottleneck's main loops have no bank conflicts and its rows move in whole sectors", "[cuda][bottleneck]") {
  Problem<f16> problem({.m = 64, .d = 256, .b = 16});
  auto args = problem.forward();
  args.s = nullptr;
  REQUIRE(device::bottleneck_forward(args, nullptr) == cudaSuccess);
  const auto& report = peft_emulator::last_report();
  INFO(report.counts_text());
  std::int64_t conflicts = 0;
  for (const auto& line : report.lines) {
    conflicts += line.conflicts;
  }
  REQUIRE(conflicts == 0);
  // x, r and y once, D and U once; of the biases what 8 rows of a warp share (a sector for 2 columns of e, 4 of g).
  const double bytes = 2.0 * (3 * 64 * 256 + 2 * 16 * 256) + 4.0 * (256 + 64 * 4) * 64 / 8;
  REQUIRE(static_cast<double>(report.global_sectors) * 32 <= 1.05 * bytes);
  REQUIRE_CLEAN();
}

TEST_CASE("The bottleneck's backward has no bank conflicts, and its rows move in whole sectors", "[cuda][bottleneck]") {
  Problem<f16> problem({.m = 64, .d = 256, .b = 16});
  REQUIRE(device::bottleneck_forward(problem.forward(), nullptr) == cudaSuccess);
  peft_emulator::take_report();
  auto args = problem.backward();
  args.d_down = args.d_down_bias = args.d_up = args.d_up_bias = nullptr;
  REQUIRE(device::bottleneck_backward(args, nullptr) == cudaSuccess);
  const auto fused = peft_emulator::take_report();
  INFO(fused.counts_text());
  CHECK(fused.bank_conflicts == 0);
  // dy, r' and dx; U and D; S, dS and c·f(S): once each.
  CHECK(32 * fused.global_sectors == 2 * (3 * 64 * 256 + 2 * 16 * 256 + 3 * 64 * 16));
  REQUIRE(device::bottleneck_backward(problem.backward(), nullptr) == cudaSuccess);
  CHECK(peft_emulator::take_report().bank_conflicts == 0);
}

TEST_CASE("The bottleneck's bits do not depend on the schedule, and y may be the residual", "[cuda][bottleneck]") {
  std::vector<float> first, gradient;
  for (const std::uint64_t seed : {1u, 7u}) {
    const peft_emulator::WithOptions with(random_schedule(seed));
    Problem<float> problem({.m = 20, .d = 40, .b = 20});
    auto args = problem.forward();
    std::copy(problem.residual.memory.begin(), problem.residual.memory.end(), problem.y.memory.begin());
    args.residual = args.y;
    REQUIRE(device::bottleneck_forward(args, nullptr) == cudaSuccess);
    problem.check_forward();
    REQUIRE(device::bottleneck_backward(problem.backward(), nullptr) == cudaSuccess);
    const auto now = problem.y.memory.to_vector(), now_gradient = problem.d_down.memory.to_vector();
    if (seed == 1) {
      first = now;
      gradient = now_gradient;
    }
    REQUIRE(std::memcmp(now.data(), first.data(), now.size() * sizeof(float)) == 0);
    REQUIRE(std::memcmp(now_gradient.data(), gradient.data(), gradient.size() * sizeof(float)) == 0);
  }
  REQUIRE_CLEAN();
}

TEST_CASE("Activations of the device and their slopes", "[cuda][bottleneck]") {
  for (const Activation kind : {Activation::kRelu, Activation::kGelu, Activation::kGeluTanh, Activation::kSilu, Activation::kTanh,
                                Activation::kLeakyRelu}) {
    for (float x = -12.0f; x <= 12.0f; x += 0.0625f) {
      INFO(name_of(kind) << " of " << x);
      const double f = peft::ops::activation_value(kind, x), slope = peft::ops::activation_slope(kind, x);
      // Exponents of up to 88 have been rounded four times: 352 units of the exponential.
      device::with_activation(kind, [&](auto one) {
        constexpr Activation kKind = decltype(one)::value;
        REQUIRE(std::abs(device::activate<kKind>(x) - f) <= std::abs(f) * 360 * 0x1p-24 + 1e-37);
        float beside;
        const double got = device::activation_slope<kKind>(x, beside);
        REQUIRE(std::abs(got - slope) <= (std::abs(slope) + std::abs(x) * 0x1p-5) * 360 * 0x1p-24);
        REQUIRE(beside == device::activate<kKind>(x));
      });
    }
  }
  float f;
  REQUIRE(device::activate<Activation::kSilu>(-200.0f) <= 0.0f);
  REQUIRE(device::activation_slope<Activation::kSilu>(-200.0f, f) == Approx(0.0f).margin(1e-30));
  REQUIRE(device::activation_slope<Activation::kRelu>(0.0f, f) == 0.0f);
  REQUIRE(device::activation_slope<Activation::kLeakyRelu>(0.0f, f) == 0.01f);
}

TEST_CASE("Column sums and conversions move each element once", "[cuda][bottleneck]") {
  const Index m = 256, n = 512;
  Device<bf16> a(m, n, 0, 3, 1.0f, "a");
  Buffer<float> out(n, 1.0f, "out");
  Buffer<unsigned char> workspace(device::column_sum_workspace<bf16>(m, n), "workspace");
  peft_emulator::take_report();
  const auto sum = [&](float* memory) {
    REQUIRE(device::column_sum(device::ColumnSumArgs<bf16>{a.data(), n, m, n, 1.0f, out.data(), memory}, nullptr) == cudaSuccess);
    const auto report = peft_emulator::take_report();
    INFO(report.counts_text());
    CHECK(report.bank_conflicts == 0);
    return 32 * report.global_sectors;
  };
  CHECK(sum(nullptr) == 2 * m * n + 8 * n);
  // Rows in two parts: sums in float, there and back.
  CHECK(sum(reinterpret_cast<float*>(workspace.data())) == 2 * m * n + 8 * n + 2 * 8 * n);

  Buffer<float> wide(4096, 1.0f, "wide");
  Buffer<f16> narrow(4096, f16(1.0f), "narrow");
  REQUIRE(device::convert(device::ConvertArgs<f16, float>{wide.data(), 1024, narrow.data(), 1024, 4, 1024}, nullptr) == cudaSuccess);
  CHECK(32 * peft_emulator::take_report().global_sectors == 6 * 4096);
  REQUIRE(device::convert(device::ConvertArgs<float, f16>{narrow.data(), 1024, wide.data(), 1024, 4, 1024}, nullptr) == cudaSuccess);
  CHECK(32 * peft_emulator::take_report().global_sectors == 6 * 4096);
}

TEST_CASE("Column sums and conversions", "[cuda][bottleneck]") {
  const peft_emulator::WithOptions with(random_schedule(5));
  for (const Index n : {1, 40, 300}) {
    const Index m = 270;
    Device<bf16> a(m, n, n == 300 ? 1 : 0, 3, 1.0f, "a");
    Buffer<float> out(n, 1.0f, "out");
    Buffer<unsigned char> workspace(device::column_sum_workspace<bf16>(m, n), "workspace");
    REQUIRE(workspace.size() > 0);
    for (float* const memory : {static_cast<float*>(nullptr), reinterpret_cast<float*>(workspace.data())}) {
      for (float& value : out) value = 1.0f;
      REQUIRE(device::column_sum(device::ColumnSumArgs<bf16>{a.data(), a.ld, m, n, 0.5f, out.data(), memory}, nullptr) ==
              cudaSuccess);
      for (Index j = 0; j < n; ++j) {
        double sum = 0, size = 0;
        for (Index i = 0; i < m; ++i) {
          sum += a.at(i, j);
          size += std::abs(a.at(i, j));
        }
        REQUIRE(std::abs(out[j] - (1.0 + 0.5 * sum)) <= (size * (static_cast<double>(m) / 8 + 16) + 2) * 0x1p-24);
      }
    }
  }
  for (const Index cols : {8, 7}) {
    Device<float> from(5, cols, cols == 8 ? 4 : 2, 6, 1.0f, "from");
    Buffer<f16> to(5 * (cols + 4), "to");
    REQUIRE(device::convert(device::ConvertArgs<f16, float>{from.data(), from.ld, to.data(), cols + 4, 5, cols, 0.3f}, nullptr) ==
            cudaSuccess);
    for (Index i = 0; i < 5; ++i) {
      for (Index j = 0; j < cols; ++j) REQUIRE(to[i * (cols + 4) + j].bits == f16(0.3f * from.memory[i * from.ld + j]).bits);
      if (i < 4) REQUIRE(to[i * (cols + 4) + cols].bits == 0xFFFF);
    }
  }
  REQUIRE_CLEAN();
}
