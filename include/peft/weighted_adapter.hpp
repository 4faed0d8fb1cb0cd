#pragma once
/// A new LoRA made of others, by PEFT's eleven ways (add_weighted_adapter):
///   linear            A = Σ sign·√|w·s|·A_i,  B = Σ √|w·s|·B_i (cross terms appear; ranks must be equal)
///   cat               A = [w·s·A_i], B = [B_i]: exact, rank Σr
///   svd               ΔW = Σ w·s·B_i·A_i, cut to rank r by its singular values
///   ties…, dare…, magnitude_prune…     the factors (or, _svd, the ΔWs) thinned out first:
///     magnitude: the largest share `density` of numbers stays; ties: also only numbers of the majority's sign count, as
///     their mean; dare: a random share stays, divided by it
/// Yadav et al., "TIES-Merging", 2023; Yu et al., "Language Models are Super Mario", 2024 (DARE).

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <numeric>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "peft/adapter_registry.hpp"
#include "peft/core/linalg.hpp"

PEFT_BEGIN_NAMESPACE

/// How to combine; names and defaults are PEFT's.
struct CombinationOptions {
  std::string combination_type = "svd";
  std::optional<Index> svd_rank{};    ///< of the _svd kinds; the largest rank where not set
  std::optional<double> svd_clamp{};  ///< a quantile to which factors are cut, 0 to 1
  std::optional<double> density{};    ///< share of numbers that stay; needed by ties, dare and magnitude_prune
  std::string majority_sign_method = "total";  ///< or "frequency"
  std::uint64_t seed = 0;                      ///< of dare's draws
  /// dare's draws instead of the seed's: called per tensor with its size, gives 1 where a number stays (tests).
  std::vector<std::vector<std::uint8_t>> masks{};
};

namespace detail {

/// One way of combining tensors of one shape.
class TensorMix {
 public:
  TensorMix(const CombinationOptions& options, std::string_view kind) : options_(options), kind_(kind) {}

  /// Σ of the thinned tensors by weight, as the kind says.
  Matrix<double> operator()(std::vector<Matrix<double>> tensors, const std::vector<double>& weights) {
    const Index n = tensors.front().size();
    if (kind_ == "ties" || kind_ == "magnitude_prune") {
      for (Matrix<double>& tensor : tensors) keep_largest(tensor);
    } else if (kind_.starts_with("dare")) {
      for (Matrix<double>& tensor : tensors) keep_some(tensor);
    }
    Matrix<double> result = Matrix<double>::zeros(tensors.front().rows(), tensors.front().cols());
    const bool by_sign = kind_ == "ties" || kind_ == "dare_ties";
    for (Index i = 0; i < n; ++i) {
      double total = 0;
      for (const Matrix<double>& tensor : tensors) {
        const double value = tensor.data()[i];
        total += options_.majority_sign_method == "total" ? value : sign(value);
      }
      const double majority = total >= 0 ? 1.0 : -1.0;
      double sum = 0, count = 0;
      for (std::size_t t = 0; t < tensors.size(); ++t) {
        const double value = tensors[t].data()[i];
        if (by_sign && sign(value) != majority) continue;
        sum = rounded(sum + rounded(weights[t] * value));
        count += 1;
      }
      result.data()[i] = by_sign ? quotient(sum, std::max(count, 1.0)) : sum;
    }
    return result;
  }

 private:
  static double sign(double value) noexcept { return value > 0 ? 1.0 : (value < 0 ? -1.0 : 0.0); }
  void keep_largest(Matrix<double>& tensor) const {
    const auto keep = static_cast<std::size_t>(*options_.density * static_cast<double>(tensor.size()));
    if (*options_.density >= 1.0) return;
    std::vector<Index> order(static_cast<std::size_t>(tensor.size()));
    std::iota(order.begin(), order.end(), Index{0});
    std::stable_sort(order.begin(), order.end(), [&tensor](Index x, Index y) {
      return std::abs(tensor.data()[x]) > std::abs(tensor.data()[y]);
    });
    for (std::size_t i = keep; i < order.size(); ++i) tensor.data()[order[i]] = 0.0;
  }
  void keep_some(Matrix<double>& tensor) {
    if (*options_.density >= 1.0) return;
    const std::size_t number = drawn_++;
    Philox random(options_.seed, number);
    const bool given = number < options_.masks.size();
    for (Index i = 0; i < tensor.size(); ++i) {
      const bool stays = given ? options_.masks[number][static_cast<std::size_t>(i)] != 0 : random.uniform_double() < *options_.density;
      tensor.data()[i] = stays ? quotient(tensor.data()[i], *options_.density) : 0.0;
    }
  }

  const CombinationOptions& options_;
  std::string kind_;
  std::size_t drawn_ = 0;
};

/// Values beyond the quantile of all of both matrices are cut to it, as torch.quantile interpolates it.
inline void clamp_to_quantile(Matrix<double>& u, Matrix<double>& vt, double q) {
  std::vector<double> all(u.flat().begin(), u.flat().end());
  all.insert(all.end(), vt.flat().begin(), vt.flat().end());
  std::sort(all.begin(), all.end());
  const double place = rounded(q * static_cast<double>(all.size() - 1));
  const auto low = static_cast<std::size_t>(place);
  const std::size_t high = std::min(low + 1, all.size() - 1);
  const double limit = all[low] + rounded((place - static_cast<double>(low)) * rounded(all[high] - all[low]));
  for (Matrix<double>* matrix : {&u, &vt}) {
    for (double& value : matrix->flat()) value = std::min(std::max(value, -limit), limit);
  }
}

/// A module's name as a regular expression of itself.
inline std::string literal_pattern(const std::string& name) {
  std::string result;
  for (const char c : name) {
    if (c == '.') result += '\\';
    result += c;
  }
  return result;
}

}  // namespace detail

/// Makes the adapter `name` of `adapters` (LoRAs of this registry, each with its weight; negative ones subtract) and keeps
/// it in the registry; it is not active before set_adapter. A module that only some of them adapt is made of those. Its
/// scale is 1: what scales the others is in its factors. Throws ConfigError for an unknown adapter or kind, adapters that
/// are no plain LoRA, ranks that differ where the kind wants them equal, a density that is missing or outside [0, 1].
template <Scalar T>
std::shared_ptr<NamedAdapter<T>> add_weighted_adapter(AdapterRegistry<T>& registry,
                                                      const std::vector<std::pair<std::string, double>>& adapters,
                                                      std::string name, const CombinationOptions& options = {}) {
  using A = Accumulator<T>;
  constexpr std::string_view kSvd = "_svd";
  static constexpr std::string_view kKinds[] = {"linear", "cat", "svd", "ties", "ties_svd", "dare_linear", "dare_ties",
                                                "dare_linear_svd", "dare_ties_svd", "magnitude_prune",
                                                "magnitude_prune_svd"};
  const std::string& type = options.combination_type;
  if (std::find(std::begin(kKinds), std::end(kKinds), type) == std::end(kKinds)) {
    fail<ConfigError>("add_weighted_adapter: combination_type is \"{}\"; expected linear, cat, svd, ties, ties_svd, dare_linear, "
                      "dare_ties, dare_linear_svd, dare_ties_svd, magnitude_prune or magnitude_prune_svd",
                      type);
  }
  if (adapters.empty()) fail<ConfigError>("add_weighted_adapter: no adapters are given");
  const bool by_product = type == "svd" || type.ends_with(kSvd);
  const std::string kind = type == "svd" ? "linear" : type.substr(0, type.size() - (type.ends_with(kSvd) ? kSvd.size() : 0));
  const bool thins = kind != "linear" && kind != "cat";
  if (thins && (!options.density || !is_finite(*options.density) || *options.density < 0.0 || *options.density > 1.0)) {
    fail<ConfigError>("add_weighted_adapter: density is {}; expected 0 to 1 with combination_type \"{}\"",
                      options.density ? fmt::format("{}", *options.density) : "not set", type);
  }
  if (options.svd_clamp && !(*options.svd_clamp >= 0.0 && *options.svd_clamp <= 1.0)) {
    fail<ConfigError>("add_weighted_adapter: svd_clamp is {}; expected a quantile from 0 to 1", *options.svd_clamp);
  }
  if (options.majority_sign_method != "total" && options.majority_sign_method != "frequency") {
    fail<ConfigError>("add_weighted_adapter: majority_sign_method is \"{}\"; expected \"total\" or \"frequency\"",
                      options.majority_sign_method);
  }
  std::vector<std::shared_ptr<NamedAdapter<T>>> given;
  Index largest = 0, sum = 0, first_rank = 0;
  std::vector<std::string> modules;  // in the order of the first adapter that has each
  for (const auto& named : adapters) {
    const std::string& from = named.first;
    if (!is_finite(named.second)) {
      fail<ConfigError>("add_weighted_adapter: the weight of \"{}\" is {}; expected a finite number", from, named.second);
    }
    given.push_back(registry.adapter(from));
    const LoraConfig& config = given.back()->config();
    given.back()->for_each_part([&](const std::string& module, AnyPart<T>& part) {
      if (part.template get_if<Lora<T>>() == nullptr || config.lora_bias) {
        fail<ConfigError>("add_weighted_adapter: adapter \"{}\" has another part than a plain LoRA on {}; expected LoRA alone",
                          from, module);
      }
      if (std::find(modules.begin(), modules.end(), module) == modules.end()) modules.push_back(module);
    });
    largest = std::max(largest, config.r);
    sum += config.r;
    if (given.size() == 1) first_rank = config.r;
  }
  Index rank = by_product ? options.svd_rank.value_or(largest) : (type == "cat" ? sum : first_rank);
  if (rank < 1) fail<ConfigError>("add_weighted_adapter: svd_rank is {}; expected at least 1", rank);
  LoraConfig config = given.front()->config();
  config.r = rank;
  config.lora_alpha = static_cast<double>(rank);
  config.use_rslora = false;
  config.rank_pattern.clear();
  config.alpha_pattern.clear();
  config.layers_to_transform.clear();
  config.layers_pattern.clear();
  config.exclude_modules = {};
  config.init_lora_weights = true;
  config.target_modules = modules;
  auto result = std::make_shared<NamedAdapter<T>>(std::move(name), LoraConfig());
  detail::TensorMix mix(options, kind);
  for (const std::string& module : modules) {
    std::vector<const Lora<T>*> loras;
    std::vector<double> weights;
    const ModuleId id(module);
    for (std::size_t i = 0; i < given.size(); ++i) {
      if (const Lora<T>* lora = std::as_const(*given[i]).find(id)) {
        loras.push_back(lora);
        weights.push_back(adapters[i].second);
      }
    }
    Index own_rank = rank;
    if (type == "cat") {
      own_rank = 0;
      for (const Lora<T>* lora : loras) own_rank += lora->r();
    } else if (!by_product) {
      own_rank = loras.front()->r();
      for (const Lora<T>* lora : loras) {
        if (lora->r() != own_rank) {
          fail<ConfigError>("add_weighted_adapter: ranks {} and {} on {}; combination_type \"{}\" needs equal ranks (cat and the "
                            "_svd kinds do not)",
                            own_rank, lora->r(), module, type);
        }
      }
    }
    const Index in = loras.front()->in_features(), out = loras.front()->out_features();
    Lora<T> made(in, out, own_rank, 1.0, config.lora_dropout);
    if (own_rank != rank) config.rank_pattern.emplace_back(detail::literal_pattern(module), own_rank);
    if (own_rank != rank) config.alpha_pattern.emplace_back(detail::literal_pattern(module), static_cast<double>(own_rank));
    if (type == "cat") {
      Index first = 0;
      for (std::size_t i = 0; i < loras.size(); ++i) {
        const auto scale = static_cast<A>(weights[i] * loras[i]->scaling());
        for (Index q = 0; q < loras[i]->r(); ++q) {
          for (Index k = 0; k < in; ++k) made.a()(first + q, k) = loras[i]->a()(q, k) * scale;
          for (Index j = 0; j < out; ++j) made.b()(j, first + q) = loras[i]->b()(j, q);
        }
        first += loras[i]->r();
      }
    } else if (by_product) {
      std::vector<Matrix<double>> deltas;
      for (const Lora<T>* lora : loras) {
        Matrix<double> delta = Matrix<double>::zeros(out, in);
        for (Index j = 0; j < out; ++j) {
          for (Index q = 0; q < lora->r(); ++q) {
            const double factor = lora->scaling() * static_cast<double>(lora->b()(j, q));
            for (Index k = 0; k < in; ++k) delta(j, k) += rounded(factor * static_cast<double>(lora->a()(q, k)));
          }
        }
        deltas.push_back(std::move(delta));
      }
      const Matrix<double> delta = mix(std::move(deltas), weights);
      linalg::Svd parts = linalg::svd(delta.view(), own_rank);
      for (Index q = 0; q < parts.s.size(); ++q) {
        for (Index j = 0; j < out; ++j) parts.u(j, q) *= parts.s[q];
      }
      if (options.svd_clamp) detail::clamp_to_quantile(parts.u, parts.vt, *options.svd_clamp);
      for (Index q = 0; q < parts.s.size(); ++q) {
        for (Index k = 0; k < in; ++k) made.a()(q, k) = static_cast<A>(parts.vt(q, k));
        for (Index j = 0; j < out; ++j) made.b()(j, q) = static_cast<A>(parts.u(j, q));
      }
    } else {
      std::vector<Matrix<double>> as, bs;
      std::vector<double> weights_a, weights_b;
      for (std::size_t i = 0; i < loras.size(); ++i) {
        const double scaled = weights[i] * loras[i]->scaling(), part = root(std::abs(scaled));
        weights_a.push_back(scaled >= 0 ? part : -part);
        weights_b.push_back(part);
        as.emplace_back(own_rank, in);
        bs.emplace_back(out, own_rank);
        for (Index n = 0; n < as.back().size(); ++n) as.back().data()[n] = static_cast<double>(loras[i]->a().data()[n]);
        for (Index n = 0; n < bs.back().size(); ++n) bs.back().data()[n] = static_cast<double>(loras[i]->b().data()[n]);
      }
      const Matrix<double> a = mix(std::move(as), weights_a), b = mix(std::move(bs), weights_b);
      for (Index n = 0; n < a.size(); ++n) made.a().data()[n] = static_cast<A>(a.data()[n]);
      for (Index n = 0; n < b.size(); ++n) made.b().data()[n] = static_cast<A>(b.data()[n]);
    }
    result->add(id, std::move(made));
  }
  result->set_config(std::move(config));
  return registry.add_adapter(std::move(result));
}

PEFT_END_NAMESPACE
