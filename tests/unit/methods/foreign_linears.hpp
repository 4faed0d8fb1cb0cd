#pragma once
/// Layers of invented hosts: each has one refinement of LinearLike and nothing else, in a storage of its own.

#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <vector>

#include "peft/core/buffer.hpp"
#include "peft/core/rng.hpp"
#include "peft/linear.hpp"

namespace foreign {

using peft::Index;
using peft::MatrixView;
using peft::VectorView;

/// f16 rows, `kGap` elements apart: a slice of a fused q/k/v matrix. PanelSource, any activation type.
struct StridedHalf {
  using value_type = float;
  static constexpr Index kGap = 3;
  Index in = 0, out = 0;
  std::vector<peft::f16> storage;
  std::vector<float> bias_values;

  StridedHalf(Index in_features, Index out_features, std::uint64_t seed) : in(in_features), out(out_features) {
    peft::Philox random(seed);
    storage.resize(static_cast<std::size_t>(out * (in + kGap)));
    for (auto& value : storage) value = peft::f16(random.normal());
    bias_values.resize(static_cast<std::size_t>(out));
    for (auto& value : bias_values) value = random.normal();
  }
  float weight(Index j, Index k) const {
    return static_cast<float>(storage[static_cast<std::size_t>(j * (in + kGap) + k)]);
  }
  Index in_features() const { return in; }
  Index out_features() const { return out; }
  template <class T>
  void forward(MatrixView<const T>, MatrixView<T>) const {
    throw std::logic_error("a panel source is multiplied by the library");
  }
  void fill_panel(Index n0, Index nc, Index k0, Index kc, float* panel, Index ld, peft::Order order) const {
    for (Index i = 0; i < kc; ++i) {
      for (Index j = 0; j < nc; ++j) {
        panel[i * ld + j] = order == peft::Order::kForward ? weight(n0 + j, k0 + i) : weight(k0 + i, n0 + j);
      }
    }
  }
  VectorView<const float> bias() const { return {bias_values.data(), out}; }
};

/// GPT-2's Conv1D: the weight is stored [in, out]. PanelSource.
struct Conv1D {
  using value_type = float;
  peft::Matrix<float> storage;  // [in, out]

  Conv1D(Index in_features, Index out_features, std::uint64_t seed) : storage(in_features, out_features) {
    peft::Philox random(seed);
    for (float& value : storage.flat()) value = random.normal();
  }
  float weight(Index j, Index k) const { return storage(k, j); }
  Index in_features() const { return storage.rows(); }
  Index out_features() const { return storage.cols(); }
  template <class T>
  void forward(MatrixView<const T>, MatrixView<T>) const {
    throw std::logic_error("a panel source is multiplied by the library");
  }
  void fill_panel(Index n0, Index nc, Index k0, Index kc, float* panel, Index ld, peft::Order order) const {
    for (Index i = 0; i < kc; ++i) {
      for (Index j = 0; j < nc; ++j) {
        panel[i * ld + j] = order == peft::Order::kForward ? storage(k0 + i, n0 + j) : storage(n0 + j, k0 + i);
      }
    }
  }
  VectorView<const float> bias() const { return {}; }
};

/// Two 4-bit codes in a byte, one step per row. PanelSource.
struct FourBit {
  using value_type = float;
  Index in = 0, out = 0;
  std::vector<std::uint8_t> codes;
  std::vector<float> steps;

  FourBit(Index in_features, Index out_features, std::uint64_t seed) : in(in_features), out(out_features) {
    peft::Philox random(seed);
    codes.resize(static_cast<std::size_t>(out * ((in + 1) / 2)));
    for (auto& byte : codes) byte = static_cast<std::uint8_t>(random.next_u32());
    steps.resize(static_cast<std::size_t>(out));
    for (auto& step : steps) step = 0.1f + random.uniform();
  }
  float weight(Index j, Index k) const {
    const std::uint8_t byte = codes[static_cast<std::size_t>(j * ((in + 1) / 2) + k / 2)];
    const int code = k % 2 == 0 ? byte >> 4 : byte & 15;
    return steps[static_cast<std::size_t>(j)] * static_cast<float>(code - 8);
  }
  Index in_features() const { return in; }
  Index out_features() const { return out; }
  template <class T>
  void forward(MatrixView<const T>, MatrixView<T>) const {
    throw std::logic_error("a panel source is multiplied by the library");
  }
  void fill_panel(Index n0, Index nc, Index k0, Index kc, float* panel, Index ld, peft::Order order) const {
    for (Index i = 0; i < kc; ++i) {
      for (Index j = 0; j < nc; ++j) {
        panel[i * ld + j] = order == peft::Order::kForward ? weight(n0 + j, k0 + i) : weight(k0 + i, n0 + j);
      }
    }
  }
  VectorView<const float> bias() const { return {}; }
};

/// The three members, and no more.
template <class A>
struct ForwardOnly {
  using value_type = A;
  peft::Matrix<A> w;  // [out, in]
  mutable int forward_calls = 0;

  ForwardOnly(Index in_features, Index out_features, std::uint64_t seed) : w(out_features, in_features) {
    peft::Philox random(seed);
    for (A& value : w.flat()) value = random.normal();
  }
  A weight(Index j, Index k) const { return w(j, k); }
  Index in_features() const { return w.cols(); }
  Index out_features() const { return w.rows(); }
  template <class T>
  void forward(MatrixView<const T> x, MatrixView<T> y) const {
    ++forward_calls;
    for (Index i = 0; i < y.rows; ++i) {
      for (Index j = 0; j < y.cols; ++j) {
        A sum = 0;
        for (Index k = 0; k < x.cols; ++k) sum += static_cast<A>(x(i, k)) * w(j, k);
        y(i, j) = static_cast<T>(sum);
      }
    }
  }
};

/// + forward on an executor, which it uses.
struct WithExecutor : ForwardOnly<float> {
  using ForwardOnly::ForwardOnly;
  mutable int executor_calls = 0;
  void forward(MatrixView<const float> x, MatrixView<float> y) const { ForwardOnly::forward(x, y); }
  void forward(MatrixView<const float> x, MatrixView<float> y, peft::ExecutorRef executor) const {
    ++executor_calls;
    peft::parallel_for(executor, y.rows, [&](Index i) {
      for (Index j = 0; j < y.cols; ++j) {
        float sum = 0;
        for (Index k = 0; k < x.cols; ++k) sum += x(i, k) * w(j, k);
        y(i, j) = sum;
      }
    });
  }
};

/// + dx = dy·W.
template <class A>
struct WithBackward : ForwardOnly<A> {
  using ForwardOnly<A>::ForwardOnly;
  mutable int backward_calls = 0;
  template <class T>
  void backward_input(MatrixView<const T> dy, MatrixView<T> dx) const {
    ++backward_calls;
    for (Index i = 0; i < dx.rows; ++i) {
      for (Index k = 0; k < dx.cols; ++k) {
        A sum = 0;
        for (Index j = 0; j < dy.cols; ++j) sum += static_cast<A>(dy(i, j)) * this->w(j, k);
        dx(i, k) = static_cast<T>(sum);
      }
    }
  }
};

/// + dx (+)= dy·W on an executor.
struct WithExecutorBackward : ForwardOnly<float> {
  using ForwardOnly::ForwardOnly;
  mutable int backward_calls = 0;
  void backward_input(MatrixView<const float> dy, MatrixView<float> dx, peft::Accumulate mode,
                      peft::ExecutorRef) const {
    ++backward_calls;
    for (Index i = 0; i < dx.rows; ++i) {
      for (Index k = 0; k < dx.cols; ++k) {
        float sum = mode == peft::Accumulate::kAdd ? dx(i, k) : 0.0f;
        for (Index j = 0; j < dy.cols; ++j) sum += dy(i, j) * w(j, k);
        dx(i, k) = sum;
      }
    }
  }
};

/// + low-rank terms of its own.
struct WithFusedTerms : WithBackward<float> {
  using WithBackward::WithBackward;
  mutable int fused_calls = 0;
  mutable std::size_t last_terms = 0;
  void forward_low_rank(MatrixView<const float> x, std::span<const peft::LowRankTerm> terms, MatrixView<float> y,
                        peft::ExecutorRef) const {
    ++fused_calls;
    last_terms = terms.size();
    this->forward(x, y);
    for (const auto& term : terms) {
      for (Index i = 0; i < term.rows; ++i) {
        for (Index j = 0; j < y.cols; ++j) {
          float sum = 0;
          for (Index q = 0; q < term.s.cols; ++q) sum += term.s(i, q) * term.b(j, q);
          y(term.first_row + i, j) += term.scale * sum;
        }
      }
    }
  }
};

/// + merge and restore, with an undo of its own kind.
struct WithMerge : ForwardOnly<float> {
  using ForwardOnly::ForwardOnly;
  struct Undo {
    std::vector<float> old;
  };
  Undo merge(std::span<const peft::MergeTerm> terms) {
    Undo undo{std::vector<float>(w.flat().begin(), w.flat().end())};
    for (const auto& term : terms) {
      for (Index j = 0; j < w.rows(); ++j) {
        for (Index k = 0; k < w.cols(); ++k) {
          for (Index q = 0; q < term.a.rows; ++q) w(j, k) += term.scale * term.b(j, q) * term.a(q, k);
        }
      }
    }
    return undo;
  }
  void restore(const Undo& undo) { std::copy(undo.old.begin(), undo.old.end(), w.data()); }
};

/// + dW += dyᵀ·x.
struct WithWeightGrad : ForwardOnly<float> {
  WithWeightGrad(Index in_features, Index out_features, std::uint64_t seed)
      : ForwardOnly(in_features, out_features, seed), grad(peft::Matrix<float>::zeros(out_features, in_features)) {}
  peft::Matrix<float> grad;
  void backward_weight(MatrixView<const float> dy, MatrixView<const float> x) {
    for (Index i = 0; i < dy.rows; ++i) {
      for (Index j = 0; j < dy.cols; ++j) {
        for (Index k = 0; k < x.cols; ++k) grad(j, k) += dy(i, j) * x(i, k);
      }
    }
  }
};

/// The weight of any of the above, [out, in].
template <class L>
peft::Matrix<double> weight_of(const L& layer) {
  peft::Matrix<double> result(layer.out_features(), layer.in_features());
  for (Index j = 0; j < result.rows(); ++j) {
    for (Index k = 0; k < result.cols(); ++k) result(j, k) = static_cast<double>(layer.weight(j, k));
  }
  return result;
}

}  // namespace foreign
