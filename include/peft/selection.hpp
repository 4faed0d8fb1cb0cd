#pragma once
/// Which adapters are active, as an immutable snapshot: taken once per forward pass, it keeps its adapters alive
/// whatever happens to the registry meanwhile. Copying one copies a pointer.

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "peft/named_adapter.hpp"

PEFT_BEGIN_NAMESPACE

/// The active adapters with their weights; none: the base model alone.
template <Scalar T>
class Selection {
 public:
  /// One active adapter; its updates are multiplied by `weight`.
  struct Active {
    std::shared_ptr<NamedAdapter<T>> adapter;
    double weight = 1.0;
    /// 1 where the adapter acts on that row of the pass, else 0; nullptr: on all (activate_invoked).
    std::shared_ptr<const std::vector<std::uint8_t>> rows{};
  };

  /// No adapter.
  Selection() = default;
  explicit Selection(std::vector<Active> active)
      : active_(active.empty() ? nullptr : std::make_shared<const std::vector<Active>>(std::move(active))) {}

  bool is_empty() const noexcept { return active_ == nullptr; }
  const std::vector<Active>& active() const noexcept {
    static const std::vector<Active> none;
    return active_ != nullptr ? *active_ : none;
  }

  /// visit(detail::LinearUpdate<T>&, const Active&, std::size_t position) for every update of the linear layer `module`.
  template <class Visitor>
  void for_each_on(const ModuleId& module, Visitor&& visit) const {
    if (active_ == nullptr) return;
    for (std::size_t i = 0; i < active_->size(); ++i) {
      const Active& entry = (*active_)[i];
      entry.adapter->for_each_on(module, [&](AnyPart<T>& part) {
        if (detail::LinearUpdate<T>* update = part.update()) visit(*update, entry, i);
      });
    }
  }
  /// visit(U&, const Active&) for every part of type U on `module`: a norm, an embedding, a bottleneck, a prefix.
  template <class U, class Visitor>
  void for_each_part(const ModuleId& module, Visitor&& visit) const {
    if (active_ == nullptr) return;
    for (const Active& entry : *active_) {
      if (U* part = entry.adapter->template find<U>(module)) visit(*part, entry);
    }
  }

 private:
  std::shared_ptr<const std::vector<Active>> active_;
};

/// Makes a selection that of the calling thread while it lives: layers called without one use it. Scopes nest.
template <Scalar T>
class SelectionScope {
 public:
  explicit SelectionScope(Selection<T> selection) : selection_(std::move(selection)), outer_(top()) { top() = this; }
  SelectionScope(const SelectionScope&) = delete;
  SelectionScope& operator=(const SelectionScope&) = delete;
  ~SelectionScope() { top() = outer_; }

  /// The innermost scope's selection of this thread; empty outside of any.
  static Selection<T> current() { return top() != nullptr ? top()->selection_ : Selection<T>(); }

 private:
  static SelectionScope*& top() noexcept {
    static thread_local SelectionScope* scope = nullptr;
    return scope;
  }

  Selection<T> selection_;
  SelectionScope* outer_;
};

PEFT_END_NAMESPACE
