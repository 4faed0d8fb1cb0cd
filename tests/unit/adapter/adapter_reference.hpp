#pragma once
/// AdapterHub's adapter layer written out in double, row by row, and what its tests share. Parameters are read through
/// the one visitor.

#include <cmath>
#include <map>
#include <string>
#include <vector>

#include "peft/adapter.hpp"
#include "support/catch.hpp"
#include "support/sanitized.hpp"

namespace adapter_test {

using namespace peft;
using Vector = std::vector<double>;

enum class NormKind { kNone, kLayer, kRms };

/// A block's frozen norm with a weight (and bias) of its own.
struct TestNorm {
  NormKind kind;
  std::vector<double> weight, bias;
  float eps = 1e-5f;

  TestNorm(NormKind which, Index size, std::uint64_t seed) : kind(which) {
    Philox random(seed);
    for (Index j = 0; j < size; ++j) {
      // Floats, so that float tests have the same ones.
      weight.push_back(static_cast<double>(1.0f + 0.2f * random.uniform(-1, 1)));
      bias.push_back(static_cast<double>(0.3f * random.uniform(-1, 1)));
    }
  }
  Vector operator()(const Vector& x) const {
    const auto n = static_cast<double>(x.size());
    double mean = 0, squares = 0;
    if (kind == NormKind::kLayer) {
      for (double v : x) mean += v / n;
    }
    for (double v : x) squares += (v - mean) * (v - mean) / n;
    const double root = 1.0 / std::sqrt(squares + static_cast<double>(eps));
    Vector y(x.size());
    for (std::size_t j = 0; j < x.size(); ++j) {
      y[j] = (x[j] - mean) * root * weight[j] + (kind == NormKind::kLayer ? bias[j] : 0.0);
    }
    return y;
  }
  /// Calls use(norm) with the library's view of it over memory of T's accumulator.
  template <class T, class Use>
  void with(Use&& use) const {
    using A = Accumulator<T>;
    Buffer<A> w(static_cast<Index>(weight.size())), b(static_cast<Index>(bias.size()));
    for (std::size_t j = 0; j < weight.size(); ++j) {
      w[static_cast<Index>(j)] = static_cast<A>(weight[j]);
      b[static_cast<Index>(j)] = static_cast<A>(bias[j]);
    }
    if (kind == NormKind::kNone) {
      use(ops::NoNorm());
    } else if (kind == NormKind::kLayer) {
      use(ops::LayerNormView<T>{std::as_const(w).view(), std::as_const(b).view(), eps});
    } else {
      use(ops::RmsNormView<T>{std::as_const(w).view(), eps});
    }
  }
};

/// The parameters by name, row-major.
template <class T>
std::map<std::string, Vector> parameters(Adapter<T>& adapter) {
  std::map<std::string, Vector> result;
  adapter.for_each_parameter([&](const ParameterInfo& info, auto value, auto) {
    Vector& into = result[std::string(info.name)];
    for (auto v : value) into.push_back(static_cast<double>(v));
  });
  return result;
}

/// Sets every parameter to rounded-to-float random numbers, so that double and float adapters are alike.
template <class T>
void randomise(Adapter<T>& adapter, std::uint64_t seed) {
  Philox random(seed);
  adapter.for_each_parameter([&](const ParameterInfo& info, auto value, auto) {
    const bool norm = info.name.find("norm") != std::string_view::npos && info.name.ends_with("weight");
    for (auto& v : value) {
      const float draw = random.normal();
      v = norm || info.name == "scaling" ? 1.0f + 0.2f * draw
          : info.rows > 1                ? draw / std::sqrt(static_cast<float>(info.cols))
                                         : 0.3f * draw;
    }
  });
}

inline Vector layer_norm(const Vector& x, const Vector& weight, const Vector& bias) {
  TestNorm norm(NormKind::kLayer, 0, 0);
  norm.weight = weight;
  norm.bias = bias;
  return norm(x);
}

inline Vector sum(const Vector& a, const Vector& b) {
  Vector y(a);
  for (std::size_t j = 0; j < y.size(); ++j) y[j] += b[j];
  return y;
}

/// What adapters' layer gives for one row; `keep` has the dropout's factor per unit.
inline Vector site_output(const AdapterConfig& config, const std::map<std::string, Vector>& p, const Vector& h,
                          const Vector& r, const TestNorm& norm, const Vector& keep) {
  const bool normed = norm.kind != NormKind::kNone;
  Vector x = h, residual = h;
  if (config.is_parallel) {
    x = r;
  } else if (config.original_ln_before) {
    x = sum(h, r);
    if (config.is_post_add()) residual = x;
    if (normed) x = norm(x);
    if (!config.is_post_add() && !std::get<bool>(config.residual_before_ln)) residual = x;
  }
  Vector inner = x;
  if (config.ln_before) inner = layer_norm(x, p.at("adapter_norm_before.weight"), p.at("adapter_norm_before.bias"));
  const std::string down = config.ln_before ? "adapter_down.1." : "adapter_down.0.";
  const Vector &d = p.at(down + "weight"), &e = p.at(down + "bias"), &up = p.at("adapter_up.weight");
  Vector active(e.size()), u(p.at("adapter_up.bias"));
  for (std::size_t q = 0; q < e.size(); ++q) {
    double s = e[q];
    for (std::size_t j = 0; j < inner.size(); ++j) s += d[q * inner.size() + j] * inner[j];
    active[q] = ops::activation_value(*activation_named(config.non_linearity), s);
  }
  for (std::size_t j = 0; j < u.size(); ++j) {
    for (std::size_t q = 0; q < e.size(); ++q) u[j] += up[j * e.size() + q] * active[q];
    double scaling = 0;
    if (const double* factor = std::get_if<double>(&config.scaling)) {
      scaling = *factor;
    } else {
      const Vector& trained = p.at("scaling");
      scaling = trained.size() == 1 ? trained[0] : trained[j];
    }
    u[j] *= scaling * keep[j];
  }
  const auto after = [&](const Vector& v) {
    return config.ln_after ? layer_norm(v, p.at("adapter_norm_after.weight"), p.at("adapter_norm_after.bias")) : v;
  };
  Vector o;
  if (config.is_parallel) {
    o = sum(after(u), h);
  } else if (config.adapter_residual_before_ln) {
    o = after(sum(u, residual));
  } else {
    o = sum(after(u), residual);
  }
  if (!config.original_ln_after) return o;
  o = sum(o, r);
  return normed ? norm(o) : o;
}

/// Every combination of the fields that change the equations, with `visit(config, norm kind)`; of those, every kEvery-th.
template <class Visit>
void for_each_configuration(Visit&& visit) {
  const std::variant<bool, std::string> residuals[] = {true, false, "post_add"};
  const std::variant<double, std::string> scalings[] = {1.0, -1.7, "learned", "channel"};
  Index count = 0;
  for (unsigned bits = 0; bits < 64; ++bits) {
    for (const auto& residual : residuals) {
      for (const auto& scaling : scalings) {
        AdapterConfig config;
        config.is_parallel = (bits & 1) != 0;
        config.original_ln_before = (bits & 2) != 0;
        config.original_ln_after = (bits & 4) != 0;
        config.ln_before = (bits & 8) != 0;
        config.ln_after = (bits & 16) != 0;
        config.adapter_residual_before_ln = (bits & 32) != 0;
        config.residual_before_ln = residual;
        config.scaling = scaling;
        config.non_linearity = "tanh";
        config.reduction_factor = 2;
        if (config.is_post_add() && !config.original_ln_before && !config.is_parallel) continue;
        for (NormKind kind : {NormKind::kNone, NormKind::kLayer, NormKind::kRms}) {
          if (count++ % peft_test::kEvery == 0) visit(config, kind);
        }
      }
    }
  }
}

inline std::string described(const AdapterConfig& c) {
  return fmt::format("parallel {} ln_before(original) {} ln_after(original) {} ln_before {} ln_after {} a-before-ln {} "
                     "residual {} scaling {}",
                     c.is_parallel, c.original_ln_before, c.original_ln_after, c.ln_before, c.ln_after,
                     c.adapter_residual_before_ln,
                     c.is_post_add() ? "post_add" : std::get<bool>(c.residual_before_ln) ? "true" : "false",
                     c.is_scaling_trained() ? std::get<std::string>(c.scaling)
                                            : fmt::format("{}", std::get<double>(c.scaling)));
}

template <class T>
Matrix<T> random(Index rows, Index cols, std::uint64_t seed) {
  Philox rng(seed);
  Matrix<T> x(rows, cols);
  for (T& value : x.flat()) value = static_cast<T>(rng.normal());
  return x;
}

template <class T>
Vector row_of(const Matrix<T>& x, Index i) {
  Vector row;
  for (Index j = 0; j < x.cols(); ++j) row.push_back(static_cast<double>(static_cast<Accumulator<T>>(x(i, j))));
  return row;
}

/// Factors of a mask, per row.
inline std::vector<Vector> factors(const DropoutMask& dropout, Index rows, Index cols, float p) {
  Buffer<std::uint8_t> scratch;
  const kernels::MaskBits mask = dropout.bits(rows, cols, p, scratch, ExecutorRef());
  std::vector<Vector> result(static_cast<std::size_t>(rows));
  for (Index i = 0; i < rows; ++i) {
    for (Index j = 0; j < cols; ++j) {
      result[static_cast<std::size_t>(i)].push_back(static_cast<double>(detail::mask_factor(mask, i, j)));
    }
  }
  return result;
}

/// Largest |a − b| in units of the largest |b|, which counts as `least` at least (1 where both are 0).
template <class T>
double relative_distance(const Matrix<T>& a, const Matrix<double>& b, double least = 0) {
  double largest = least, worst = 0;
  for (Index i = 0; i < b.size(); ++i) {
    const double value = static_cast<double>(static_cast<Accumulator<T>>(a.flat()[i]));
    if (!(std::fabs(value) < 1e30)) return 1e30;  // NaN too
    largest = std::max(largest, std::fabs(b.flat()[i]));
    worst = std::max(worst, std::fabs(value - b.flat()[i]));
  }
  return largest > 0 ? worst / largest : worst;
}

}  // namespace adapter_test
