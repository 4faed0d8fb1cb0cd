#pragma once
/// The bottleneck adapters of a Llama host. Where a branch (attention, the feed-forward) meets its residual r, the adapter
/// of the site, if there is one, makes of the branch's output h what goes on; without one that is h + r. As in AdapterHub's
/// Llama there is no norm at that place: the norms stand before the branches.

#include <memory>
#include <string>
#include <utility>

#include "hosts/llama_config.hpp"
#include "hosts/names.hpp"
#include "peft/adapter_set.hpp"
#include "peft/ops/add.hpp"

namespace peft_examples {

template <Scalar T>
class LlamaAdapters {
 public:
  using Site = peft::AdapterSite;

  /// What a site with an adapter keeps for backward.
  struct Saved {
    Matrix<T> h;
    typename peft::Adapter<T>::Saved adapter;
  };

  /// nullptr: none. Throws ShapeError for adapters of another model, ConfigError for those of another architecture.
  void set(std::shared_ptr<peft::AdapterSet<T>> set, const LlamaConfig& config) {
    if (set && set->layout() != peft::AdapterLayout::kLlama) {
      peft::fail<peft::ConfigError>("Llama: adapter \"{}\" is laid out for another architecture; expected "
                                    "AdapterLayout::kLlama",
                                    set->name());
    }
    if (set && (set->layers() != config.num_hidden_layers || set->hidden_size() != config.hidden_size)) {
      peft::fail<peft::ShapeError>("Llama: adapter \"{}\" is for {} layers of {} units; expected {} of {}", set->name(),
                                   set->layers(), set->hidden_size(), config.num_hidden_layers, config.hidden_size);
    }
    set_ = std::move(set);
  }
  const std::shared_ptr<peft::AdapterSet<T>>& get() const noexcept { return set_; }
  bool has(Index layer, Site site) const noexcept { return set_ && set_->find(layer, site) != nullptr; }
  /// Layers have adapters from this one on; `layers` where there are none.
  Index lowest(Index layers) const noexcept {
    Index layer = 0;
    while (layer < layers && !has(layer, Site::kAttention) && !has(layer, Site::kOutput)) ++layer;
    return layer;
  }
  template <class Visitor>
  void for_each_parameter(Visitor& visit) {
    if (set_) set_->for_each_parameter(visit);
  }

  /// Where a branch's output h is to be written: y's own memory where the site has no adapter.
  MatrixView<T> branch(Index layer, Site site, Saved& saved, Matrix<T>& y) const {
    if (!has(layer, site)) return y;
    saved.h.resize_discard(y.rows(), y.cols());
    return saved.h;
  }
  /// y = what goes on, of h in branch()'s memory and r. Training: `context` with the step's dropout; inference: nullptr.
  void join(Index layer, Site site, MatrixView<const T> r, Saved& saved, Matrix<T>& y, const peft::TrainContext<T>* context,
            ExecutorRef executor) {
    const peft::Adapter<T>* adapter = set_ ? set_->find(layer, site) : nullptr;
    if (adapter == nullptr) {
      peft::ops::add<T>(r, y, executor);
      return;
    }
    peft::DropoutMask dropout;
    if (context != nullptr && context->dropout && adapter->dropout() > 0.0f) dropout = key_of(layer, site, *context);
    adapter->forward(std::as_const(saved.h).view(), r, peft::ops::NoNorm(), y, saved.adapter, dropout, executor, &work_);
  }
  /// d holds the gradient of y and receives that of r; that of h is returned. Without `wanted`, nothing below is trained,
  /// and both are left out.
  MatrixView<const T> backward(Index layer, Site site, MatrixView<const T> r, const Saved& saved, Matrix<T>& d, bool wanted,
                               ExecutorRef executor) {
    peft::Adapter<T>* adapter = set_ ? set_->find(layer, site) : nullptr;
    if (adapter == nullptr) return d.view();
    MatrixView<T> dh, dr;
    if (wanted) {
      d_branch_.resize_discard(d.rows(), d.cols());
      dh = d_branch_, dr = d;
    }
    adapter->backward(std::as_const(d).view(), std::as_const(saved.h).view(), r, peft::ops::NoNorm(), saved.adapter, dh, dr,
                      executor, &work_);
    return dh;
  }

 private:
  /// Masks go by the site's path, as an adapted module's do by its name.
  static peft::DropoutKey key_of(Index layer, Site site, const peft::TrainContext<T>& context) {
    const peft::ModuleId module("model.layers." + std::to_string(layer) +
                                (site == Site::kAttention ? ".attention_adapters" : ".output_adapters"));
    const auto folded = static_cast<std::uint32_t>(module.hash() ^ (module.hash() >> 32));
    return {context.seed, context.step, folded, context.first_row};
  }

  std::shared_ptr<peft::AdapterSet<T>> set_;
  Matrix<T> d_branch_;
  typename peft::Adapter<T>::Workspace work_;
};

}  // namespace peft_examples
