#pragma once
/// Adapters from configurations: for every site that a configuration means, the method's value, started.
///   make_adapter<T>(name, config, sites, seed)      LoraConfig, Ia3Config, VeraConfig, LohaConfig, LokrConfig,
///                                                   AdaLoraConfig, LnTuningConfig, FullConfig
/// A module's start depends on the seed and the module's name only.

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "peft/adalora.hpp"
#include "peft/adalora_config.hpp"
#include "peft/adapter_sites.hpp"
#include "peft/dora.hpp"
#include "peft/full_config.hpp"
#include "peft/ia3.hpp"
#include "peft/ia3_config.hpp"
#include "peft/ln_tuning_config.hpp"
#include "peft/loha.hpp"
#include "peft/loha_config.hpp"
#include "peft/lokr.hpp"
#include "peft/lokr_config.hpp"
#include "peft/lora.hpp"
#include "peft/target_modules.hpp"
#include "peft/tied_embedding.hpp"
#include "peft/trained_bias.hpp"
#include "peft/trained_linear.hpp"
#include "peft/vera.hpp"
#include "peft/vera_config.hpp"

PEFT_BEGIN_NAMESPACE
namespace detail {

/// Puts the parts of one adapter together. Fresh: they are started; else they are to be read from a file, and nothing is
/// asked of the base but its sizes and biases.
template <Scalar T>
class AdapterMaker {
 public:
  using A = Accumulator<T>;
  using Pointer = std::shared_ptr<NamedAdapter<T>>;

  AdapterMaker(std::string name, AnyConfig config, const AdapterSites<T>& sites, UnmatchedTargets unmatched, bool fresh,
               std::uint64_t seed)
      : adapter_(std::make_shared<NamedAdapter<T>>(std::move(name), std::move(config))),
        sites_(sites),
        unmatched_(unmatched),
        fresh_(fresh),
        seed_(seed) {}

  Pointer make(const LoraConfig& config) {
    for (const TargetMatch& match : matches(config, "LoraConfig", true)) {
      if (match.module >= sites_.linears.size()) {
        add_embedding(*sites_.embeddings[match.module - sites_.linears.size()], config, match);
        continue;
      }
      const AdaptedLinear<T>& site = *sites_.linears[match.module];
      Lora<T> lora(site.in_features(), site.out_features(), match.r, match.scaling, config.lora_dropout);
      if (config.lora_bias) lora.add_bias();
      if (fresh_ && needs_seed_only(config)) lora.reset(config, seed_, site.module().hash());
      if (!config.use_dora) {
        adapter_->add(site.module(), std::move(lora));
        continue;
      }
      Dora<T> dora(std::move(lora));
      if (fresh_) dora.reset_magnitude(site.base());
      adapter_->add(site.module(), std::move(dora));
    }
    add_saved(config.modules_to_save, "LoraConfig");
    add_biases(config.bias);
    for (const auto& [name, tokens] : config.trainable_token_indices) add_tokens(name, tokens);
    return adapter_;
  }

  Pointer make(const Ia3Config& config) {
    const SelectorMatcher feedforward("Ia3Config: feedforward_modules", config.feedforward_modules);
    for_matches(config, [&](const AdaptedLinear<T>& site, const TargetMatch&) {
      const bool is_feedforward = feedforward.match(site.name()) != SelectorMatcher::Match::kNo;
      Ia3<T>& own = adapter_->add(site.module(), Ia3<T>(site.in_features(), site.out_features(), is_feedforward));
      if (!fresh_ || config.init_ia3_weights) return;
      Philox random(seed_, site.module().hash());
      for (A& value : own.l().value().flat()) value = random.normal();
    });
    add_saved(config.modules_to_save, Ia3Config::kName);
    return adapter_;
  }

  Pointer make(const VeraConfig& config) {
    const std::vector<TargetMatch> found = matches(config.targets(), VeraConfig::kName, false);
    Index in = 0, out = 0;
    for (const TargetMatch& match : found) {
      in = std::max(in, sites_.linears[match.module]->in_features());
      out = std::max(out, sites_.linears[match.module]->out_features());
    }
    auto projection = std::make_shared<VeraProjection<A>>(
        VeraProjection<A>::random(config.r, in, out, static_cast<std::uint64_t>(config.projection_prng_key)));
    adapter_->add(ModuleId(""), VeraProjectionPart<A>{projection});
    for (const TargetMatch& match : found) {
      const AdaptedLinear<T>& site = *sites_.linears[match.module];
      Vera<T>& own = adapter_->add(site.module(), Vera<T>(site.in_features(), site.out_features(), projection,
                                                          config.d_initial, config.vera_dropout));
      if (!fresh_ || config.init_weights) continue;
      Philox random(seed_, site.module().hash());
      std::fill(own.lambda_b().value().flat().begin(), own.lambda_b().value().flat().end(), A(1));
      for (A& value : own.lambda_d().value().flat()) value = random.normal();
    }
    add_saved(config.modules_to_save, VeraConfig::kName);
    add_biases(config.bias == "vera_only" ? "lora_only" : config.bias);
    return adapter_;
  }

  Pointer make(const LohaConfig& config) {
    for_matches(config, [&](const AdaptedLinear<T>& site, const TargetMatch& match) {
      Loha<T>& own = adapter_->add(site.module(), Loha<T>(site.in_features(), site.out_features(), match.r, match.scaling));
      if (fresh_) own.reset(seed_, site.module().hash(), !config.init_weights);
    });
    add_saved(config.modules_to_save, LohaConfig::kName);
    return adapter_;
  }

  Pointer make(const LokrConfig& config) {
    const bool* plain = std::get_if<bool>(&config.init_weights);
    const LokrStart start = plain == nullptr ? LokrStart::kLycoris : (*plain ? LokrStart::kDefault : LokrStart::kRandom);
    for_matches(config, [&](const AdaptedLinear<T>& site, const TargetMatch& match) {
      Lokr<T>& own = adapter_->add(site.module(), Lokr<T>(site.in_features(), site.out_features(), match.r, match.scaling,
                                                          config.decompose_both, config.decompose_factor));
      if (fresh_) own.reset(seed_, site.module().hash(), start);
    });
    add_saved(config.modules_to_save, LokrConfig::kName);
    return adapter_;
  }

  Pointer make(const AdaLoraConfig& config) {
    for_matches(config, [&](const AdaptedLinear<T>& site, const TargetMatch&) {
      Index r = config.init_r;
      for (const auto& [key, kept] : config.rank_pattern) {
        if (!fresh_ && key == site.name() + ".lora_E") r = std::count(kept.begin(), kept.end(), true);
      }
      AdaLora<T>& own = adapter_->add(site.module(), AdaLora<T>(site.in_features(), site.out_features(), r,
                                                                config.lora_alpha, config.lora_dropout, config.init_r));
      if (fresh_) own.reset(seed_, site.module().hash());
    });
    add_saved(config.modules_to_save, AdaLoraConfig::kName);
    add_biases(config.bias);
    return adapter_;
  }

  Pointer make(const LnTuningConfig& config) {
    std::vector<std::string> names;
    for (const AdaptedNorm<T>* norm : sites_.norms) names.push_back(norm->name());
    const LoraConfig targets = config.targets();
    const auto found = under_name(LnTuningConfig::kName, [&] { return match_target_modules(targets, names, unmatched_); });
    for (const TargetMatch& match : found) {
      const AdaptedNorm<T>& norm = *sites_.norms[match.module];
      adapter_->add(norm.module(), TrainedNorm<T>(norm.weight(), norm.bias(), "ln_tuning_layers."));
    }
    add_saved(config.modules_to_save, LnTuningConfig::kName);
    return adapter_;
  }

  Pointer make(const FullConfig& config) {
    add_saved(config.modules_to_save, FullConfig::kName);
    add_saved(config.target_modules, FullConfig::kName, "target_modules");
    if (!config.target_modules.empty()) return adapter_;
    for (const AdaptedLinear<T>* site : sites_.linears) {
      if (is_saved(*site)) continue;
      if (!config.bias_only) {
        if (site != sites_.tied_head) adapter_->add(site->module(), whole_linear(*site));
      } else if (Buffer<A> bias = site->base().read_bias(); !bias.empty()) {
        adapter_->add(site->module(), TrainedBias<T>(site->in_features(), std::move(bias)));
      }
    }
    for (const AdaptedNorm<T>* norm : sites_.norms) {
      if ((config.bias_only && norm->bias().empty()) || is_saved(*norm)) continue;
      adapter_->add(norm->module(), TrainedNorm<T>(config.bias_only ? VectorView<const A>() : norm->weight(), norm->bias()));
    }
    for (const AdaptedEmbedding<T>* site : sites_.embeddings) {
      if (config.bias_only || is_saved(*site)) continue;
      const TrainedEmbedding<T>& own = adapter_->add(site->module(), TrainedEmbedding<T>(table_of(*site)));
      const AdaptedLinear<T>* head = sites_.tied_head;
      if (head == nullptr || site != sites_.embeddings.front()) continue;
      adapter_->add(head->module(), TiedEmbedding<T>(head->in_features(), head->out_features(), own.shared()));
    }
    if (adapter_->module_count() == 0) fail<ConfigError>("FullConfig: the model has no parameter of that kind at its sites");
    return adapter_;
  }

  /// A frozen part for a table that a file carries along (`key`: "weight" or "base_layer.weight").
  void add_frozen_table(const AdaptedEmbedding<T>& site, Index rows, Index cols, const std::string& key) {
    if (adapter_->template find<TrainedEmbedding<T>>(site.module()) != nullptr) return;
    adapter_->add(site.module(), TrainedEmbedding<T>(Matrix<A>::zeros(rows, cols), false, key));
  }
  const Pointer& adapter() const noexcept { return adapter_; }

 private:
  static bool needs_seed_only(const LoraConfig& config) {
    const auto* kind = std::get_if<std::string>(&config.init_lora_weights);
    return kind == nullptr || *kind == "gaussian";
  }
  std::vector<TargetMatch> matches(const LoraConfig& targets, std::string_view who, bool with_embeddings) {
    std::vector<std::string> names;
    for (const AdaptedLinear<T>* site : sites_.linears) names.push_back(site->name());
    if (with_embeddings && !targets.target_modules.is_all_linear()) {
      for (const AdaptedEmbedding<T>* site : sites_.embeddings) names.push_back(site->name());
    }
    std::vector<TargetMatch> found =
        under_name(who, [&] { return match_target_modules(targets, names, unmatched_); });
    for (const TargetMatch& match : found) {
      if (match.module < sites_.linears.size()) adapted_.push_back(sites_.linears[match.module]);
    }
    return found;
  }
  template <class Config, class Add>
  void for_matches(const Config& config, Add&& add) {
    for (const TargetMatch& match : matches(config.targets(), Config::kName, false)) {
      add(*sites_.linears[match.module], match);
    }
  }
  void add_embedding(const AdaptedEmbedding<T>& site, const LoraConfig& config, const TargetMatch& match) {
    if (config.use_dora || config.lora_bias) {
      fail<ConfigError>("LoraConfig: {} is set, and target_modules means the embedding {}; expected linear layers only",
                        config.use_dora ? "use_dora" : "lora_bias", site.name());
    }
    LoraEmbedding<T>& own =
        adapter_->add(site.module(), LoraEmbedding<T>(site.vocabulary(), site.width(), match.r, match.scaling));
    if (fresh_) own.reset(seed_, site.module().hash());
  }
  // Whether modules_to_save has taken a module already.
  bool is_saved(const AdaptedLinear<T>& site) const {
    return adapter_->template find<TrainedLinear<T>>(site.module()) != nullptr;
  }
  bool is_saved(const AdaptedNorm<T>& site) const {
    return adapter_->template find<TrainedNorm<T>>(site.module()) != nullptr;
  }
  bool is_saved(const AdaptedEmbedding<T>& site) const {
    return adapter_->template find<TrainedEmbedding<T>>(site.module()) != nullptr;
  }
  /// bias: "none", "lora_only" (of adapted layers) or "all" (of every site), but for modules_to_save, whose copies have it.
  void add_biases(const std::string& mode) {
    if (mode == "none") return;
    for (const AdaptedLinear<T>* site : sites_.linears) {
      const bool is_adapted = std::find(adapted_.begin(), adapted_.end(), site) != adapted_.end();
      if ((!is_adapted && mode != "all") || is_saved(*site)) continue;
      Buffer<A> bias = site->base().read_bias();
      if (bias.empty()) continue;
      adapter_->add(site->module(),
                    TrainedBias<T>(site->in_features(), std::move(bias), is_adapted ? "base_layer.bias" : "bias"));
    }
    if (mode != "all") return;
    for (const AdaptedNorm<T>* norm : sites_.norms) {
      if (!norm->bias().empty() && !is_saved(*norm)) adapter_->add(norm->module(), TrainedNorm<T>({}, norm->bias()));
    }
  }
  /// modules_to_save: every site whose name ends in an entry, as in PEFT.
  void add_saved(const std::vector<std::string>& entries, std::string_view who, std::string_view field = "modules_to_save") {
    for (const std::string& entry : entries) {
      bool any = false;
      const auto wanted = [&](const std::string& name) {
        const bool fits = name.ends_with(entry);
        any = any || fits;
        return fits;
      };
      for (const AdaptedLinear<T>* site : sites_.linears) {
        if (!wanted(site->name())) continue;
        if (std::find(adapted_.begin(), adapted_.end(), site) != adapted_.end()) {
          fail<ConfigError>("{}: module {} is in target_modules and in modules_to_save (\"{}\"); expected one of them", who,
                            site->name(), entry);
        }
        if (!is_saved(*site)) adapter_->add(site->module(), whole_linear(*site));
      }
      for (const AdaptedNorm<T>* norm : sites_.norms) {
        if (!wanted(norm->name()) || is_saved(*norm)) continue;
        adapter_->add(norm->module(), TrainedNorm<T>(norm->weight(), norm->bias()));
      }
      for (const AdaptedEmbedding<T>* site : sites_.embeddings) {
        if (!wanted(site->name()) || is_saved(*site)) continue;
        adapter_->add(site->module(), TrainedEmbedding<T>(table_of(*site)));
      }
      // Of a file the keys decide: Python writes "classifier" and "score" for a model that has one of them.
      if (!any && unmatched_ == UnmatchedTargets::kRefuse) {
        fail<ConfigError>("{}: {} names \"{}\", which is none of the {} linear layers, {} norms and {} embeddings that the "
                          "host lets adapters attach to",
                          who, field, entry, sites_.linears.size(), sites_.norms.size(), sites_.embeddings.size());
      }
    }
  }
  void add_tokens(const std::string& name, const std::vector<Index>& tokens) {
    for (const AdaptedEmbedding<T>* site : sites_.embeddings) {
      // An empty name: the input embedding, which comes first.
      if (!name.empty() && !SelectorMatcher::entry_fits(name, site->name())) continue;
      Matrix<A> rows(static_cast<Index>(tokens.size()), site->width());
      for (std::size_t i = 0; i < tokens.size(); ++i) {
        if (tokens[i] >= site->vocabulary()) {
          fail<ConfigError>("LoraConfig: trainable_token_indices holds {}, and {} has {} rows; expected ids within it", tokens[i],
                            site->name(), site->vocabulary());
        }
        site->table().read_row(tokens[i], rows.row(static_cast<Index>(i)));
      }
      TrainableTokens<T>& own = adapter_->add(site->module(), TrainableTokens<T>(tokens, std::move(rows)));
      if (sites_.tied_head != nullptr && site == sites_.embeddings.front()) {
        adapter_->add(sites_.tied_head->module(), TiedTokenRows<T>(sites_.tied_head->out_features(), own.shared()));
      }
      return;
    }
    fail<ConfigError>("LoraConfig: trainable_token_indices is of {}, which is none of the {} embeddings that the host lets "
                      "adapters attach to",
                      name.empty() ? "the input embedding" : "\"" + name + "\"", sites_.embeddings.size());
  }
  TrainedLinear<T> whole_linear(const AdaptedLinear<T>& site) const {
    if (fresh_) return TrainedLinear<T>::copy_of(site.base());
    Buffer<A> bias = site.base().read_bias();
    return TrainedLinear<T>(Matrix<A>::zeros(site.out_features(), site.in_features()), std::move(bias));
  }
  static Matrix<A> table_of(const AdaptedEmbedding<T>& site) {
    Matrix<A> table(site.vocabulary(), site.width());
    for (Index i = 0; i < table.rows(); ++i) site.table().read_row(i, table.row(i));
    return table;
  }

  Pointer adapter_;
  AdapterSites<T> sites_;
  UnmatchedTargets unmatched_;
  bool fresh_;
  std::uint64_t seed_;
  std::vector<const AdaptedLinear<T>*> adapted_;
};

}  // namespace detail

/// Throws ConfigError where nothing matches (see match_target_modules), where a field asks for what the sites do not have.
/// Where init_lora_weights needs more than a seed (PiSSA, OLoRA, orthogonal, EVA), A and B stay zero: see
/// lora_initialization.hpp.
template <Scalar T, class Config>
std::shared_ptr<NamedAdapter<T>> make_adapter(std::string name, const Config& config,
                                              const std::type_identity_t<AdapterSites<T>>& sites, std::uint64_t seed,
                                              UnmatchedTargets unmatched = UnmatchedTargets::kRefuse) {
  config.validate();
  return detail::AdapterMaker<T>(std::move(name), config, sites, unmatched, true, seed).make(config);
}

PEFT_END_NAMESPACE
