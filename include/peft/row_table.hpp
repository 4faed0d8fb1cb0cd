#pragma once
/// A matrix that is read a row at a time, as embeddings are, whatever it is stored as: the activations' own type in memory, or
/// another type, or a GGUF's blocks or rows in int8, which are decoded when they are read.

#include <concepts>
#include <memory>
#include <utility>

#include "peft/core/buffer.hpp"
#include "peft/gguf_tensor.hpp"
#include "peft/int8_tensor.hpp"

PEFT_BEGIN_NAMESPACE

/// T: the activation type. Immutable; a copy shares the bytes. Threads may read it at once.
template <Scalar T>
class RowTable {
  using A = Accumulator<T>;

 public:
  /// An empty one, [0, 0].
  RowTable() = default;
  /// A table in memory that `keep_alive` owns.
  RowTable(MatrixView<const T> view, std::shared_ptr<const void> keep_alive)
      : view_(view), keep_alive_(std::move(keep_alive)), rows_(view.rows), cols_(view.cols), address_(view.data),
        byte_size_(size_of(view)) {}
  RowTable(std::shared_ptr<const Matrix<T>> matrix)  // NOLINT(google-explicit-constructor): a table is one
      : RowTable(matrix->view(), matrix) {}
  /// The same in another type.
  template <Scalar W>
    requires(!std::same_as<W, T> && !std::same_as<W, double> && !std::same_as<T, double>)
  RowTable(MatrixView<const W> view, std::shared_ptr<const void> keep_alive)
      : rows_(view.rows), cols_(view.cols), address_(view.data), byte_size_(size_of(view)) {
    source_ = std::make_shared<Dense<W>>(view, std::move(keep_alive));
  }
  explicit RowTable(GgufTensor blocks)
    requires(!std::same_as<T, double>)
      : rows_(blocks.rows()), cols_(blocks.cols()), address_(blocks.bytes().data), byte_size_(blocks.byte_size()) {
    source_ = std::make_shared<Packed<GgufTensor>>(std::move(blocks));
  }

  explicit RowTable(Int8Tensor tensor)
    requires(!std::same_as<T, double>)
      : rows_(tensor.rows()), cols_(tensor.cols()), address_(tensor.codes().data), byte_size_(tensor.byte_size()) {
    source_ = std::make_shared<Packed<Int8Tensor>>(std::move(tensor));
  }

  Index rows() const noexcept { return rows_; }
  Index cols() const noexcept { return cols_; }
  /// Where it is stored: who shares it, as a tied head does, has the same.
  const void* address() const noexcept { return address_; }
  /// From there on, as it is stored.
  Index byte_size() const noexcept { return byte_size_; }
  bool is_in_memory() const noexcept { return source_ == nullptr; }
  /// In memory: the table; else an empty view.
  MatrixView<const T> view() const noexcept { return view_; }
  /// out = row i, cols() numbers, unrounded. The row is the caller's to check.
  void read_row(Index i, A* out) const noexcept {
    if (source_ == nullptr) {
      for (Index j = 0; j < cols_; ++j) out[j] = static_cast<A>(view_(i, j));
    } else if constexpr (!std::same_as<T, double>) {
      source_->read(i, out);
    }
  }

 private:
  struct Source {
    virtual ~Source() = default;
    virtual void read(Index i, float* out) const noexcept = 0;
  };
  template <class W>
  struct Dense final : Source {
    Dense(MatrixView<const W> given, std::shared_ptr<const void> owner) : view(given), keep_alive(std::move(owner)) {}
    void read(Index i, float* out) const noexcept override {
      kernels::table().widen(view.cols, view.row(i), dtype_of<W>(), out);
    }
    MatrixView<const W> view;
    std::shared_ptr<const void> keep_alive;
  };
  template <class Tensor>
  struct Packed final : Source {
    explicit Packed(Tensor given) : tensor(std::move(given)) {}
    void read(Index i, float* out) const noexcept override { tensor.decode(kernels::table(), i, 0, tensor.cols(), out); }
    Tensor tensor;
  };

  template <class W>
  static Index size_of(MatrixView<const W> view) noexcept {
    return view.rows > 0 ? ((view.rows - 1) * view.stride + view.cols) * static_cast<Index>(sizeof(W)) : 0;
  }

  MatrixView<const T> view_{};
  std::shared_ptr<const void> keep_alive_;
  std::shared_ptr<const Source> source_;
  Index rows_ = 0, cols_ = 0;
  const void* address_ = nullptr;
  Index byte_size_ = 0;
};

PEFT_END_NAMESPACE
