#pragma once
/// Which adapters work together, and how: AdapterHub's composition blocks as a tree of names.
///   AdapterSetup::stack({"a", "b"}), AdapterSetup::average({"a", "b"}, {1, 3}),
///   AdapterSetup::fuse({AdapterSetup::stack({"a", "b"}), "c"})
/// Pfeiffer et al., "AdapterFusion", 2021; Rücklé et al., "AdapterDrop", 2021 (parallel).

#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "peft/core/rounded.hpp"
#include "peft/core/scalar.hpp"
#include "peft/error.hpp"

PEFT_BEGIN_NAMESPACE

/// One adapter, or a block of setups.
class AdapterSetup {
 public:
  enum class Kind : std::uint8_t { kSingle, kStack, kFuse, kSplit, kParallel, kBatchSplit, kAverage };
  using List = std::vector<AdapterSetup>;

  AdapterSetup(std::string name) : name_(std::move(name)) {}  // NOLINT(google-explicit-constructor): a name is a setup
  AdapterSetup(const char* name) : name_(name) {}             // NOLINT(google-explicit-constructor)

  /// One behind the other.
  static AdapterSetup stack(List children) { return {Kind::kStack, std::move(children)}; }
  /// Mixed by an AdapterFusion layer; its name, where none is given, is the last adapters' names with commas.
  static AdapterSetup fuse(List children, std::string name = {}) {
    AdapterSetup setup(Kind::kFuse, std::move(children));
    if (name.empty()) {
      for (const AdapterSetup& child : setup.children_) name += (name.empty() ? "" : ",") + child.last();
    }
    setup.name_ = std::move(name);
    return setup;
  }
  /// The batch is there once per child: each works on its share.
  static AdapterSetup parallel(List children) { return {Kind::kParallel, std::move(children)}; }
  /// The first sizes[0] sequences of the batch go through the first child, and so on.
  static AdapterSetup batch_split(List children, std::vector<Index> sizes) {
    return {Kind::kBatchSplit, std::move(children), std::move(sizes)};
  }
  /// The first sizes[0] tokens of every sequence go through the first child, and so on.
  static AdapterSetup split(List children, std::vector<Index> sizes) {
    return {Kind::kSplit, std::move(children), std::move(sizes)};
  }
  /// The weighted mean of all; weights are divided by their sum unless told otherwise, and equal where none are given.
  /// (adapters 1.3.0 divides the weighted sum by the number of children once more, which makes its result that many times
  /// smaller than a mean. For its numbers give those weights and normalize_weights = false.)
  static AdapterSetup average(List children, std::vector<double> weights = {}, bool normalize_weights = true) {
    AdapterSetup setup(Kind::kAverage, std::move(children));
    if (weights.empty()) weights.assign(setup.children_.size(), 1.0);
    double sum = 0;
    for (const double weight : weights) sum = rounded(sum + weight);
    if (normalize_weights) {
      for (double& weight : weights) weight = quotient(weight, sum);
    }
    setup.weights_ = std::move(weights);
    return setup;
  }

  Kind kind() const noexcept { return kind_; }
  bool is_single() const noexcept { return kind_ == Kind::kSingle; }
  /// Whether each child has rows of its own.
  bool shares_rows() const noexcept {
    return kind_ == Kind::kSplit || kind_ == Kind::kBatchSplit || kind_ == Kind::kParallel;
  }
  /// The adapter's, or the AdapterFusion layer's.
  const std::string& name() const noexcept { return name_; }
  const List& children() const noexcept { return children_; }
  const std::vector<Index>& sizes() const noexcept { return sizes_; }
  const std::vector<double>& weights() const noexcept { return weights_; }

  /// Its first and last adapter.
  const std::string& first() const noexcept { return is_single() || children_.empty() ? name_ : children_.front().first(); }
  const std::string& last() const noexcept { return is_single() || children_.empty() ? name_ : children_.back().last(); }
  /// All adapters, each once, in the order of their first use.
  std::vector<std::string> names() const {
    std::vector<std::string> result;
    collect(result);
    return result;
  }
  /// "Stack[a, Average[b, c]]", as AdapterHub shows it.
  std::string text() const {
    if (is_single()) return name_;
    std::string result(name_of(kind_));
    result += "[";
    for (std::size_t i = 0; i < children_.size(); ++i) result += (i > 0 ? ", " : "") + children_[i].text();
    return result + "]";
  }

  /// Throws ConfigError for what AdapterHub does not nest either, blocks without children, numbers that do not fit.
  void validate() const { validate(0); }

 private:
  AdapterSetup(Kind kind, List children, std::vector<Index> sizes = {})
      : kind_(kind), children_(std::move(children)), sizes_(std::move(sizes)) {}

  static std::string_view name_of(Kind kind) noexcept {
    constexpr std::string_view kNames[] = {"an adapter", "Stack", "Fuse", "Split", "Parallel", "BatchSplit", "Average"};
    return kNames[static_cast<int>(kind)];
  }
  static bool may_hold(Kind parent, Kind child) noexcept {
    if (child == Kind::kSingle) return true;
    switch (parent) {
      case Kind::kStack:
        return child != Kind::kStack;
      case Kind::kFuse:
        return child == Kind::kStack;
      case Kind::kSplit:
      case Kind::kBatchSplit:
        return child != Kind::kFuse && child != Kind::kParallel;
      case Kind::kParallel:
        return child == Kind::kStack || child == Kind::kBatchSplit || child == Kind::kAverage;
      case Kind::kAverage:
        return child == Kind::kStack || child == Kind::kSplit || child == Kind::kBatchSplit;
      case Kind::kSingle:
        return false;
    }
    return false;
  }

  void validate(int level) const {
    if (is_single()) {
      if (name_.empty()) fail<ConfigError>("AdapterSetup: an adapter has no name");
      return;
    }
    if (level > 1 && kind_ != Kind::kStack) {
      fail<ConfigError>("AdapterSetup: {} stands within two other blocks; expected at most one, or a Stack", text());
    }
    if (children_.empty()) fail<ConfigError>("AdapterSetup: {} is empty", name_of(kind_));
    for (const AdapterSetup& child : children_) {
      if (!may_hold(kind_, child.kind_)) {
        fail<ConfigError>("AdapterSetup: {} cannot stand in {}", child.text(), text());
      }
      child.validate(level + 1);
    }
    if (kind_ == Kind::kBatchSplit || kind_ == Kind::kSplit) {
      if (sizes_.size() != children_.size() || std::any_of(sizes_.begin(), sizes_.end(), [](Index s) { return s < 1; })) {
        fail<ConfigError>("AdapterSetup: {} has {} sizes for {} children; expected one for each, at least 1", text(),
                          sizes_.size(), children_.size());
      }
    }
    if (kind_ == Kind::kAverage) {
      if (weights_.size() != children_.size() ||
          std::any_of(weights_.begin(), weights_.end(), [](double w) { return !is_finite(w); })) {
        fail<ConfigError>("AdapterSetup: {} has {} weights for {} children; expected a finite one for each", text(),
                          weights_.size(), children_.size());
      }
    }
  }
  void collect(std::vector<std::string>& into) const {
    if (is_single() && std::find(into.begin(), into.end(), name_) == into.end()) into.push_back(name_);
    for (const AdapterSetup& child : children_) child.collect(into);
  }

  Kind kind_ = Kind::kSingle;
  std::string name_;
  List children_;
  std::vector<Index> sizes_;
  std::vector<double> weights_;
};

PEFT_END_NAMESPACE
