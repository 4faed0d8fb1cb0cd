#pragma once
/// Owners of aligned memory: Buffer<T> (a run of elements) and Matrix<T> (a row-major matrix). 64-byte aligned, so that
/// a cache line or an AVX-512 register never straddles the start; movable, not copyable by accident (use clone()).

#include <cstring>
#include <new>
#include <type_traits>
#include <utility>

#include "peft/core/view.hpp"

PEFT_BEGIN_NAMESPACE

inline constexpr std::size_t kAlignment = 64;

/// Owns `size()` trivially copyable elements.
template <class T>
class Buffer {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  Buffer() noexcept = default;
  /// `count` elements, not initialised.
  explicit Buffer(Index count) : size_(count), capacity_(count), data_(allocate(count)) {}
  Buffer(Buffer&& other) noexcept
      : size_(std::exchange(other.size_, 0)),
        capacity_(std::exchange(other.capacity_, 0)),
        data_(std::exchange(other.data_, nullptr)) {}
  Buffer& operator=(Buffer&& other) noexcept {
    if (this != &other) {
      release();
      size_ = std::exchange(other.size_, 0);
      capacity_ = std::exchange(other.capacity_, 0);
      data_ = std::exchange(other.data_, nullptr);
    }
    return *this;
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { release(); }

  /// A buffer of `count` zeroed elements.
  static Buffer zeros(Index count) {
    Buffer result(count);
    result.fill_zero();
    return result;
  }

  /// Makes room for `count` elements and sets the size. Content is lost where the buffer has to grow; memory is kept
  /// where it shrinks, so that a buffer reused every step stops allocating.
  void resize_discard(Index count) {
    if (count > capacity_) {
      Buffer fresh(count);
      *this = std::move(fresh);
    }
    size_ = count;
  }

  void fill_zero() noexcept {
    if (size_ > 0) std::memset(static_cast<void*>(data_), 0, static_cast<std::size_t>(size_) * sizeof(T));
  }

  Buffer clone() const {
    Buffer result(size_);
    if (size_ > 0) std::memcpy(result.data_, data_, static_cast<std::size_t>(size_) * sizeof(T));
    return result;
  }

  T* data() noexcept { return data_; }
  const T* data() const noexcept { return data_; }
  Index size() const noexcept { return size_; }
  Index capacity() const noexcept { return capacity_; }
  bool empty() const noexcept { return size_ == 0; }
  T& operator[](Index i) noexcept { return data_[i]; }
  const T& operator[](Index i) const noexcept { return data_[i]; }
  T* begin() noexcept { return data_; }
  T* end() noexcept { return data_ + size_; }
  const T* begin() const noexcept { return data_; }
  const T* end() const noexcept { return data_ + size_; }
  VectorView<T> view() noexcept { return {data_, size_}; }
  VectorView<const T> view() const noexcept { return {data_, size_}; }

 private:
  static T* allocate(Index count) {
    if (count <= 0) return nullptr;
    if (static_cast<std::size_t>(count) > static_cast<std::size_t>(-1) / 2 / sizeof(T)) throw std::bad_alloc();
    return static_cast<T*>(
        ::operator new(static_cast<std::size_t>(count) * sizeof(T), std::align_val_t{kAlignment}));
  }
  void release() noexcept {
    if (data_ != nullptr) ::operator delete(static_cast<void*>(data_), std::align_val_t{kAlignment});
    data_ = nullptr;
  }

  Index size_ = 0;
  Index capacity_ = 0;
  T* data_ = nullptr;
};

/// Owns a contiguous row-major matrix (stride = cols).
template <class T>
class Matrix {
 public:
  Matrix() noexcept = default;
  /// Not initialised.
  Matrix(Index rows, Index cols) : rows_(rows), cols_(cols), buffer_(rows * cols) {}
  Matrix(Matrix&& other) noexcept
      : rows_(std::exchange(other.rows_, 0)),
        cols_(std::exchange(other.cols_, 0)),
        buffer_(std::move(other.buffer_)) {}
  Matrix& operator=(Matrix&& other) noexcept {
    rows_ = std::exchange(other.rows_, 0);
    cols_ = std::exchange(other.cols_, 0);
    buffer_ = std::move(other.buffer_);
    return *this;
  }

  static Matrix zeros(Index rows, Index cols) {
    Matrix result(rows, cols);
    result.fill_zero();
    return result;
  }

  /// Sets the shape; content is undefined afterwards; memory is reused where it suffices.
  void resize_discard(Index rows, Index cols) {
    buffer_.resize_discard(rows * cols);
    rows_ = rows;
    cols_ = cols;
  }
  void fill_zero() noexcept { buffer_.fill_zero(); }
  Matrix clone() const {
    Matrix result(rows_, cols_);
    result.buffer_ = buffer_.clone();
    return result;
  }

  T* data() noexcept { return buffer_.data(); }
  const T* data() const noexcept { return buffer_.data(); }
  Index rows() const noexcept { return rows_; }
  Index cols() const noexcept { return cols_; }
  Index size() const noexcept { return rows_ * cols_; }
  bool empty() const noexcept { return size() == 0; }
  T& operator()(Index i, Index j) noexcept { return buffer_[i * cols_ + j]; }
  const T& operator()(Index i, Index j) const noexcept { return buffer_[i * cols_ + j]; }
  T* row(Index i) noexcept { return buffer_.data() + i * cols_; }
  const T* row(Index i) const noexcept { return buffer_.data() + i * cols_; }
  MatrixView<T> view() noexcept { return {buffer_.data(), rows_, cols_}; }
  MatrixView<const T> view() const noexcept { return {buffer_.data(), rows_, cols_}; }
  VectorView<T> flat() noexcept { return {buffer_.data(), size()}; }
  VectorView<const T> flat() const noexcept { return {buffer_.data(), size()}; }
  operator MatrixView<T>() noexcept { return view(); }
  operator MatrixView<const T>() const noexcept { return view(); }

 private:
  Index rows_ = 0;
  Index cols_ = 0;
  Buffer<T> buffer_;
};

PEFT_END_NAMESPACE
