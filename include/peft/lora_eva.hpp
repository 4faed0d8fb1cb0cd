#pragma once
/// EVA: A starts as the first right singular vectors of what a module's input is on real data, and ranks are shared out by
/// how much variance they explain. The vectors come from an incremental principal component analysis, a batch at a time:
///   rows of [S·V ; X − mean(X) ; √(n·m/(n+m))·(mean − mean(X))] decomposed anew, n rows seen before, m in the batch
/// Paischer et al., "One Initialization to Rule them All: Fine-tuning via Explained Variance Adaptation", 2024 (arXiv
/// 2410.07170); Ross et al., "Incremental Learning for Robust Visual Tracking", 2008.

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "peft/adapted_linear.hpp"
#include "peft/core/linalg.hpp"
#include "peft/named_adapter.hpp"
#include "peft/target_modules.hpp"

PEFT_BEGIN_NAMESPACE

/// The principal components of rows that come in batches.
class IncrementalPca {
 public:
  explicit IncrementalPca(Index components) : components_(components) {}

  /// Takes a batch [rows, n]; one with fewer rows than components is not taken. Returns whether it was. Throws ShapeError
  /// for another n than before.
  template <class T>
  bool add(MatrixView<const T> x) {
    if (x.rows < components_ || x.cols < components_) return false;
    if (seen_ > 0 && x.cols != mean_.size()) {
      fail<ShapeError>("IncrementalPca: a batch of [{}, {}]; expected {} columns as before", x.rows, x.cols, mean_.size());
    }
    const Index n = x.cols, m = x.rows, before = seen_ > 0 ? components_ : 0;
    Buffer<double> batch_mean = Buffer<double>::zeros(n), batch_squares = Buffer<double>::zeros(n);
    Matrix<double> rows(before + m + (seen_ > 0 ? 1 : 0), n);
    for (Index j = 0; j < n; ++j) {
      double sum = 0;
      for (Index i = 0; i < m; ++i) sum = rounded(sum + static_cast<double>(static_cast<Accumulator<T>>(x(i, j))));
      batch_mean[j] = quotient(sum, static_cast<double>(m));
      for (Index i = 0; i < m; ++i) {
        const double d = rounded(static_cast<double>(static_cast<Accumulator<T>>(x(i, j))) - batch_mean[j]);
        rows(before + i, j) = d;
        batch_squares[j] = rounded(batch_squares[j] + rounded(d * d));
      }
    }
    const auto seen = static_cast<double>(seen_), added = static_cast<double>(m), total = seen + added;
    if (seen_ == 0) {
      mean_ = batch_mean.clone();
      squares_ = batch_squares.clone();
    } else {
      const double factor = root(quotient(rounded(seen * added), total));
      for (Index j = 0; j < n; ++j) {
        for (Index q = 0; q < before; ++q) rows(q, j) = values_[q] * vectors_(q, j);
        const double d = rounded(mean_[j] - batch_mean[j]);
        rows(before + m, j) = factor * d;
        squares_[j] = rounded(rounded(squares_[j] + batch_squares[j]) + rounded(rounded(factor * d) * rounded(factor * d)));
        mean_[j] = quotient(rounded(rounded(seen * mean_[j]) + rounded(added * batch_mean[j])), total);
      }
    }
    seen_ += m;
    linalg::Svd parts = linalg::svd(rows.view(), components_);
    is_converged_ = Buffer<double>::zeros(components_);
    for (Index q = 0; q < components_; ++q) {
      // The sign is free: that of the largest number is made positive, so that components can be compared.
      Index largest = 0;
      for (Index j = 1; j < n; ++j) {
        if (std::abs(parts.vt(q, j)) > std::abs(parts.vt(q, largest))) largest = j;
      }
      double similarity = 0;
      for (Index j = 0; j < n; ++j) {
        if (before > 0) similarity = rounded(similarity + rounded(parts.vt(q, j) * vectors_(q, j)));
      }
      is_converged_[q] = std::abs(similarity);
    }
    values_ = std::move(parts.s);
    vectors_ = std::move(parts.vt);
    return true;
  }

  Index components() const noexcept { return components_; }
  Index rows_seen() const noexcept { return seen_; }
  /// [components, n], and their singular values.
  const Matrix<double>& vectors() const noexcept { return vectors_; }
  double value(Index q) const noexcept { return values_[q]; }
  /// |cosine| between component q and that of the batch before; 0 before the second batch.
  double similarity(Index q) const noexcept { return is_converged_.empty() ? 0.0 : is_converged_[q]; }
  /// The share of the variance that component q explains.
  double explained_ratio(Index q) const noexcept {
    double all = 0;
    for (const double squares : squares_) all = rounded(all + squares);
    return all > 0 ? quotient(rounded(values_[q] * values_[q]), all) : 0.0;
  }

 private:
  Index components_;
  Index seen_ = 0;
  Buffer<double> mean_, squares_, values_, is_converged_;
  Matrix<double> vectors_;
};

/// Collects what goes into the modules of one adapter, and starts it from that.
template <Scalar T>
class EvaCollector {
 public:
  using A = Accumulator<T>;

  /// Throws ConfigError unless the adapter is a LoRA with init_lora_weights = "eva".
  explicit EvaCollector(std::shared_ptr<NamedAdapter<T>> adapter) : adapter_(std::move(adapter)) {
    const LoraConfig& config = adapter_->config();
    const auto* kind = std::get_if<std::string>(&config.init_lora_weights);
    if (kind == nullptr || *kind != "eva" || config.use_dora) {
      fail<ConfigError>("EvaCollector: adapter \"{}\" does not have init_lora_weights = \"eva\" without use_dora", adapter_->name());
    }
    adapter_->for_each_module([&](const std::string& name, Lora<T>& lora) {
      const auto most = static_cast<Index>(std::nearbyint(static_cast<double>(lora.r()) * config.eva_config.rho));
      budget_ += lora.r();
      modules_.push_back({name, IncrementalPca(std::min(most, lora.in_features())), lora.r(), lora.r(), false});
      modules_.back().rank = modules_.back().pca.components();
    });
  }

  /// Whether a module still wants batches: all of them are offered while one does.
  bool wants(std::string_view module) const noexcept {
    const Module* own = find(module);
    return own != nullptr && !own->is_done;
  }
  /// Rows that went into `module` [rows, in_features]. Throws ConfigError for a module that the adapter has not.
  void add(std::string_view module, MatrixView<const T> x) {
    Module* own = const_cast<Module*>(find(module));
    if (own == nullptr) fail<ConfigError>("EvaCollector: module {} has no LoRA in adapter \"{}\"", module, adapter_->name());
    if (!own->is_done) own->pca.add(x);
  }
  /// After each pass over the modules: shares ranks out anew and looks what has converged. Returns whether all have.
  bool end_of_batch() {
    for (const Module& module : modules_) {
      if (module.pca.rows_seen() == 0) return false;
    }
    share_ranks();
    bool all = true;
    for (Module& module : modules_) {
      module.is_done = true;
      for (Index q = 0; q < module.rank; ++q) {
        if (module.pca.similarity(q) < adapter_->config().eva_config.tau) module.is_done = false;
      }
      all = all && module.is_done;
    }
    return all;
  }

  /// An adapter like the one given, with the ranks that were found: A is the components, B is zero. A module whose rank
  /// became 0 has no update. rank_pattern and, where adjust_scaling_factors says so, alpha_pattern say so. Throws
  /// ConfigError before the first batch.
  std::shared_ptr<NamedAdapter<T>> finish(const std::vector<AdaptedLinear<T>*>& sites) const {
    LoraConfig config = adapter_->config();
    const TargetMatcher matcher(config);
    auto result = std::make_shared<NamedAdapter<T>>(adapter_->name(), config);
    std::vector<std::pair<std::string, Index>> ranks;
    std::vector<std::pair<std::string, double>> alphas;
    for (const Module& module : modules_) {
      if (module.pca.rows_seen() == 0) {
        fail<ConfigError>("EvaCollector: module {} got no batch of at least {} rows", module.name, module.pca.components());
      }
      double alpha = matcher.alpha(module.name);
      if (config.eva_config.adjust_scaling_factors && module.rank != module.given) {
        alpha *= quotient(static_cast<double>(module.rank), static_cast<double>(module.given));
      }
      const std::string key = literal(module.name);
      if (module.rank != module.given && module.rank > 0) ranks.emplace_back(key, module.rank);
      if (alpha != matcher.alpha(module.name) && module.rank > 0) alphas.emplace_back(key, alpha);
      if (module.rank == 0) {
        config.exclude_modules = with_excluded(config.exclude_modules, module.name);
        continue;
      }
      for (const AdaptedLinear<T>* site : sites) {
        if (site->name() != module.name) continue;
        Lora<T> lora(site->in_features(), site->out_features(), module.rank,
                     lora_scaling(alpha, module.rank, config.use_rslora), config.lora_dropout);
        for (Index q = 0; q < module.rank; ++q) {
          const double shrink = config.eva_config.whiten ? root(module.pca.value(q)) : 1.0;
          for (Index k = 0; k < site->in_features(); ++k) {
            lora.a()(q, k) = static_cast<A>(module.pca.vectors()(q, k) / shrink);
          }
        }
        result->add(site->module(), std::move(lora));
      }
    }
    ranks.insert(ranks.end(), config.rank_pattern.begin(), config.rank_pattern.end());
    alphas.insert(alphas.end(), config.alpha_pattern.begin(), config.alpha_pattern.end());
    config.rank_pattern = std::move(ranks);
    config.alpha_pattern = std::move(alphas);
    result->set_config(std::move(config));
    return result;
  }

  /// Rows that a batch needs so that every module takes it.
  Index most_components() const noexcept {
    Index most = 0;
    for (const Module& module : modules_) most = std::max(most, module.pca.components());
    return most;
  }

  /// The rank of a module as it stands; −1 for one that the adapter has not.
  Index rank_of(std::string_view module) const noexcept {
    const Module* own = find(module);
    return own != nullptr ? own->rank : Index{-1};
  }

 private:
  struct Module {
    std::string name;
    IncrementalPca pca;
    Index given;  ///< the configuration's rank
    Index rank;   ///< what it has now
    bool is_done;
  };

  const Module* find(std::string_view name) const noexcept {
    for (const Module& module : modules_) {
      if (module.name == name) return &module;
    }
    return nullptr;
  }
  /// The budget Σr goes to the components that explain most, over all modules.
  void share_ranks() {
    struct Share {
      double ratio;
      Module* module;
    };
    std::vector<Share> shares;
    for (Module& module : modules_) {
      module.rank = 0;
      for (Index q = 0; q < module.pca.components(); ++q) shares.push_back({module.pca.explained_ratio(q), &module});
    }
    std::stable_sort(shares.begin(), shares.end(), [](const Share& x, const Share& y) { return x.ratio > y.ratio; });
    for (std::size_t i = 0; i < shares.size() && static_cast<Index>(i) < budget_; ++i) ++shares[i].module->rank;
  }
  /// The name as a regular expression of itself.
  static std::string literal(const std::string& name) {
    std::string result;
    for (const char c : name) {
      if (c == '.') result += '\\';
      result += c;
    }
    return result;
  }
  static ModuleSelector with_excluded(const ModuleSelector& selector, const std::string& name) {
    if (selector.is_pattern() && !selector.is_empty()) return selector.pattern() + "|" + literal(name);
    std::vector<std::string> names = selector.names();
    names.push_back(name);
    return names;
  }

  std::shared_ptr<NamedAdapter<T>> adapter_;
  std::vector<Module> modules_;
  Index budget_ = 0;
};

PEFT_END_NAMESPACE
