#pragma once
/// Adapters merged into the weights they adapt, and out again bit for bit:
///   W' = W + Σ_a w_a·s_a·B_a·A_a      (gains, biases and trained copies likewise: docs/METHODS.md)
/// The old weights are kept (moved where owned, referred to where mapped), since (W+d)−d is not W. Into a packed base that can
/// be quantised again an update is merged as W' = quantised(W + …); what that lost is told. merged_layer gives the same weight
/// unquantised.

#include <span>
#include <utility>
#include <vector>

#include "peft/adapted_linear.hpp"
#include "peft/low_rank_merge.hpp"

PEFT_BEGIN_NAMESPACE

/// What merge_adapter replaced. Give it to unmerge_adapter, or drop it to keep the merged weights (merge_and_unload).
template <Scalar T>
struct MergedAdapters {
  struct Site {
    AdaptedLinear<T>* linear;
    AnyMergeUndo undo;
  };
  std::vector<Site> sites;

  /// What quantising the new weights lost of them, over all sites whose base is quantised.
  QuantizationError error() const noexcept {
    QuantizationError total;
    for (const Site& site : sites) {
      if (site.undo.error()) total += *site.undo.error();
    }
    return total;
  }
};

/// Brings every weight back as it was before merge_adapter.
template <Scalar T>
void unmerge_adapter(MergedAdapters<T>& merged) {
  for (auto& site : merged.sites) {
    site.linear->base().restore(std::move(site.undo));
    site.linear->set_merged(false);
  }
  merged.sites.clear();
}

/// Merges the selection into the base weights of `sites`; until unmerge_adapter their forward is the base's alone, as
/// in PEFT. All or nothing: where one site throws (ConfigError: not mergeable, or merged already; NumericError: a
/// weight would not be finite), all are as before. No other thread may use the sites meanwhile.
template <Scalar T>
[[nodiscard]] MergedAdapters<T> merge_adapter(std::span<AdaptedLinear<T>* const> sites, const Selection<T>& selection) {
  MergedAdapters<T> merged;
  merged.sites.reserve(sites.size());
  try {
    for (AdaptedLinear<T>* site : sites) {
      if (!site->is_adapted(selection)) continue;
      if (site->is_merged()) {
        fail<ConfigError>("merge_adapter: {}: adapters are merged into its weight already; unmerge first",
                          site->name());
      }
      try {
        const detail::OwnedChange<T> change = site->merge_change(selection);
        merged.sites.push_back(
            {site, change.only_terms() ? site->base().merge(change.terms) : site->base().rewrite(change.view())});
      } catch (const NumericError& error) {
        fail<NumericError>("merge_adapter: {}: {}", site->name(), error.what());
      } catch (const ConfigError& error) {
        fail<ConfigError>("merge_adapter: {}: {}", site->name(), error.what());
      }
      site->set_merged(true);
    }
  } catch (...) {
    unmerge_adapter(merged);
    throw;
  }
  return merged;
}

/// A merged copy of one site's layer; the site stays as it is.
template <Scalar T>
struct MergedLayer {
  Matrix<Accumulator<T>> weight;  ///< [out, in]
  Buffer<Accumulator<T>> bias;    ///< [out], or empty
};

/// Throws ConfigError where the site's base shows no weight, NumericError where an element would not be finite; the text
/// names the site.
template <Scalar T>
MergedLayer<T> merged_layer(const AdaptedLinear<T>& site, const Selection<T>& selection,
                            ExecutorRef executor = default_executor()) {
  try {
    const detail::OwnedChange<T> change = site.merge_change(selection, executor);
    MergedLayer<T> result{site.base().changed_weight(change.view(), executor), {}};
    if (change.bias.empty()) {
      result.bias = site.base().read_bias();
    } else {
      result.bias = change.bias.clone();
    }
    return result;
  } catch (const NumericError& error) {
    fail<NumericError>("merged_layer: {}: {}", site.name(), error.what());
  } catch (const ConfigError& error) {
    fail<ConfigError>("merged_layer: {}: {}", site.name(), error.what());
  }
}

/// A merged copy of one site's weight in float [out, in]; the site stays as it is. Throws ConfigError where its base is
/// no PanelSource or an update changes the bias too (see merged_layer), NumericError where an element would not be finite;
/// the text names the site.
template <Scalar T>
Matrix<float> merged_weight(const AdaptedLinear<T>& site, const Selection<T>& selection,
                            ExecutorRef executor = default_executor())
  requires(!std::same_as<T, double>)
{
  try {
    const detail::OwnedChange<T> change = site.merge_change(selection, executor);
    if (change.only_terms()) return site.base().merged_weight(change.terms, executor);
    if (!change.bias.empty()) {
      fail<ConfigError>("the selection changes its bias, which a weight alone does not hold; expected merged_layer to be used");
    }
    return site.base().changed_weight(change.view(), executor);
  } catch (const NumericError& error) {
    fail<NumericError>("merged_weight: {}: {}", site.name(), error.what());
  } catch (const ConfigError& error) {
    fail<ConfigError>("merged_weight: {}: {}", site.name(), error.what());
  }
}

PEFT_END_NAMESPACE
