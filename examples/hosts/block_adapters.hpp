#pragma once
/// The bottleneck adapters of a host. Where a branch (attention, the feed-forward) meets its residual r, what stands at the
/// site makes of the branch's output h what goes on: an adapter, or several composed (Stack, Average, BatchSplit, Fuse, …);
/// without any that is norm(h + r). As in AdapterHub's models: the norm is the block's own in a BERT; a Llama has none at that
/// place, its norms stand before the branches.

#include <algorithm>
#include <concepts>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "hosts/names.hpp"
#include "peft/adapter_composition.hpp"
#include "peft/adapter_fusion_set.hpp"
#include "peft/adapter_set.hpp"
#include "peft/ops/add.hpp"
#include "peft/ops/block_norm.hpp"

namespace peft_examples {

/// Where a host lets bottleneck adapters stand.
struct BlockSites {
  std::string host;  ///< for messages: "Llama"
  peft::AdapterLayout layout;
  std::string layout_text;  ///< for messages: "AdapterLayout::kLlama"
  Index layers, hidden_size;
  /// Paths of the sites are layer_path + number + one of the others; dropout masks go by them.
  std::string layer_path, attention_path, output_path;
};

/// Norm: the block's, a peft::ops::BlockNorm; peft::ops::NoNorm where it has none.
template <Scalar T, class Norm>
class BlockAdapters {
 public:
  using Site = peft::AdapterSite;
  using Set = std::shared_ptr<peft::AdapterSet<T>>;
  using Fusion = std::shared_ptr<peft::AdapterFusionSet<T>>;
  using Composition = peft::AdapterComposition<T>;

  /// What a site keeps for backward. h: the branch's output, or h + r where the site has no adapter.
  struct Saved {
    Matrix<T> h;
    typename peft::Adapter<T>::Saved adapter;
    typename Composition::Saved composition;
  };

  explicit BlockAdapters(BlockSites sites) : place_(std::move(sites)) {}

  /// One set of adapters; nullptr: none. Throws ShapeError for adapters of another model, ConfigError for those of another
  /// architecture.
  void set(Set set) {
    if (set) check(*set);
    compositions_.clear();
    sets_.clear();
    fusion_.reset();
    if (set) sets_.push_back(std::move(set));
  }
  /// Several, composed as `setup` says by their names; a Fuse by the layers of `fusion`, which alone are then trained. Throws
  /// as set, and ConfigError where AdapterComposition does.
  void set(const peft::AdapterSetup& setup, std::vector<Set> sets, Fusion fusion = nullptr) {
    setup.validate();
    for (const Set& set : sets) check(*set);
    if (fusion != nullptr && (fusion->hidden_size() != place_.hidden_size || fusion->layout() != place_.layout)) {
      peft::fail<peft::ShapeError>("{}: the AdapterFusion \"{}\" is for {} units of another model; expected {} of a {}",
                                   place_.host, fusion->name(), fusion->hidden_size(), place_.hidden_size, place_.host);
    }
    for (const std::string& name : setup.names()) {
      if (std::none_of(sets.begin(), sets.end(), [&](const Set& set) { return set->name() == name; })) {
        peft::fail<peft::ConfigError>("{}: {} names the adapter \"{}\", which is none of the {} given", place_.host,
                                      setup.text(), name, sets.size());
      }
    }
    std::vector<std::optional<Composition>> compositions;
    for (Index layer = 0; layer < place_.layers; ++layer) {
      for (const Site site : {Site::kAttention, Site::kOutput}) {
        typename Composition::NamedAdapters here;
        for (const Set& set : sets) {
          if (auto* adapter = set->find(layer, site)) here.emplace_back(set->name(), adapter);
        }
        typename Composition::NamedFusions fusions;
        if (auto* own = fusion != nullptr ? fusion->find(layer, site) : nullptr) fusions.emplace_back(fusion->name(), own);
        compositions.emplace_back();
        if (!here.empty()) compositions.back().emplace(setup, std::move(here), std::move(fusions));
      }
    }
    compositions_ = std::move(compositions);
    sets_ = std::move(sets);
    fusion_ = std::move(fusion);
  }
  const std::vector<Set>& sets() const noexcept { return sets_; }
  bool has(Index layer, Site site) const noexcept {
    return composition(layer, site) != nullptr || single(layer, site) != nullptr;
  }
  /// Whether join with what it left in `saved` gives the same again.
  bool can_join_again(Index layer, Site site) const noexcept { return single(layer, site) != nullptr; }
  /// Layers have adapters from this one on; the number of layers where there are none.
  Index lowest() const noexcept {
    Index layer = 0;
    while (layer < place_.layers && !has(layer, Site::kAttention) && !has(layer, Site::kOutput)) ++layer;
    return layer;
  }
  template <class Visitor>
  void for_each_parameter(Visitor& visit) {
    if (fusion_ != nullptr) return fusion_->for_each_parameter(visit);
    for (const Set& set : sets_) set->for_each_parameter(visit);
  }

  /// What follows is about rows of sequences that begin at these offsets, behind which `rows` more stand by themselves.
  void start(std::span<const Index> offsets, Index rows = 0) {
    if (compositions_.empty()) return;
    offsets_.assign(offsets.begin(), offsets.end());
    if (rows > 0) offsets_.push_back(offsets_.back() + rows);
  }
  /// The same for counts[i] rows of sequence i.
  void start_counts(std::span<const Index> counts) {
    if (compositions_.empty()) return;
    offsets_.assign(1, 0);
    for (const Index count : counts) offsets_.push_back(offsets_.back() + count);
  }
  /// The same for one row of each of so many sequences.
  void start_single(Index sequences) {
    if (compositions_.empty()) return;
    offsets_.clear();
    for (Index i = 0; i <= sequences; ++i) offsets_.push_back(i);
  }

  /// Where a branch's output h is to be written: y's own memory where nothing of it is needed later.
  MatrixView<T> branch(Index layer, Site site, Saved& saved, Matrix<T>& y) const {
    if (kPlain && !has(layer, site)) return y;
    saved.h.resize_discard(y.rows(), y.cols());
    return saved.h;
  }
  /// y = what goes on, of h in branch()'s memory and r. Training: `context` with the step's dropout; inference: nullptr.
  void join(Index layer, Site site, MatrixView<const T> r, const Norm& norm, Saved& saved, Matrix<T>& y,
            const peft::TrainContext<T>* context, ExecutorRef executor) {
    const MatrixView<const T> h = std::as_const(saved.h).view();
    const bool training = context != nullptr && context->dropout;
    if (const Composition* several = composition(layer, site)) {
      const peft::DropoutKey key = training ? key_of(layer, site, *context) : peft::DropoutKey{};
      several->forward(h, r, norm, offsets_, y, saved.composition, training ? &key : nullptr, executor);
    } else if (const peft::Adapter<T>* adapter = single(layer, site)) {
      peft::DropoutMask dropout;
      if (training && adapter->dropout() > 0.0f) dropout = key_of(layer, site, *context);
      adapter->forward(h, r, norm, y, saved.adapter, dropout, executor, &work_);
    } else if constexpr (kPlain) {
      peft::ops::add<T>(r, y, executor);
    } else {
      peft::ops::add<T>(r, saved.h, executor);
      norm.forward(std::as_const(saved.h).view(), y, executor);
    }
  }
  /// d holds the gradient of y and receives that of r; that of h is returned. Without `wanted`, nothing below is trained,
  /// and neither is of use.
  MatrixView<const T> backward(Index layer, Site site, MatrixView<const T> r, const Norm& norm, const Saved& saved,
                               Matrix<T>& d, bool wanted, ExecutorRef executor) {
    const MatrixView<const T> dy = std::as_const(d).view(), h = std::as_const(saved.h).view();
    if (!has(layer, site)) {
      if constexpr (!kPlain) norm.backward(dy, h, Accumulate::kOverwrite, d, executor);
      return dy;
    }
    d_branch_.resize_discard(d.rows(), d.cols());
    if (const Composition* several = composition(layer, site)) {
      d_residual_.resize_discard(d.rows(), d.cols());
      several->backward(dy, h, r, norm, offsets_, saved.composition, d_branch_, d_residual_, executor);
      std::swap(d, d_residual_);
    } else {
      const MatrixView<T> dh = wanted ? d_branch_.view() : MatrixView<T>(), dr = wanted ? d.view() : MatrixView<T>();
      single(layer, site)->backward(dy, h, r, norm, saved.adapter, dh, dr, executor, &work_);
    }
    return std::as_const(d_branch_).view();
  }

 private:
  static constexpr bool kPlain = std::same_as<Norm, peft::ops::NoNorm>;

  void check(const peft::AdapterSet<T>& set) const {
    if (set.layout() != place_.layout) {
      peft::fail<peft::ConfigError>("{}: adapter \"{}\" is laid out for another architecture; expected {}", place_.host,
                                    set.name(), place_.layout_text);
    }
    if (set.layers() != place_.layers || set.hidden_size() != place_.hidden_size) {
      peft::fail<peft::ShapeError>("{}: adapter \"{}\" is for {} layers of {} units; expected {} of {}", place_.host,
                                   set.name(), set.layers(), set.hidden_size(), place_.layers, place_.hidden_size);
    }
  }
  const Composition* composition(Index layer, Site site) const noexcept {
    if (compositions_.empty()) return nullptr;
    const auto& here = compositions_[2 * static_cast<std::size_t>(layer) + (site == Site::kOutput ? 1 : 0)];
    return here ? &*here : nullptr;
  }
  peft::Adapter<T>* single(Index layer, Site site) const noexcept {
    return compositions_.empty() && !sets_.empty() ? sets_.front()->find(layer, site) : nullptr;
  }
  /// Masks go by the site's path, as an adapted module's do by its name.
  peft::DropoutKey key_of(Index layer, Site site, const peft::TrainContext<T>& context) const {
    const peft::ModuleId module(place_.layer_path + std::to_string(layer) +
                                (site == Site::kAttention ? place_.attention_path : place_.output_path));
    const auto folded = static_cast<std::uint32_t>(module.hash() ^ (module.hash() >> 32));
    return {context.seed, context.step, folded, context.first_row};
  }

  BlockSites place_;
  std::vector<Set> sets_;
  Fusion fusion_;
  std::vector<std::optional<Composition>> compositions_;  // per layer: after attention, after the feed-forward
  std::vector<Index> offsets_;                            // of the sequences, for compositions that share rows out
  Matrix<T> d_branch_, d_residual_;
  typename peft::Adapter<T>::Workspace work_;
};

}  // namespace peft_examples
