#pragma once
/// Which adapters are active, as an immutable snapshot: taken once per forward pass, it keeps its adapters alive
/// whatever happens to the registry meanwhile. Copying one copies a pointer.

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

  /// visit(Lora<T>&, double weight, std::size_t position) for every active adapter that adapts `module`.
  template <class Visitor>
  void for_each_on(const ModuleId& module, Visitor&& visit) const {
    if (active_ == nullptr) return;
    for (std::size_t i = 0; i < active_->size(); ++i) {
      const Active& entry = (*active_)[i];
      if (Lora<T>* lora = entry.adapter->find(module)) visit(*lora, entry.weight, i);
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
