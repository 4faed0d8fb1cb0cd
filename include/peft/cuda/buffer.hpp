#pragma once
/// Owners of memory that a GPU can reach: DeviceBuffer (its own), PinnedBuffer (the host's, page-locked: copies run beside
/// kernels), ManagedBuffer (pages move to whoever touches them; more than the GPU has is allowed). Movable, not copyable.

#include <cuda_runtime_api.h>

#include <string_view>
#include <type_traits>
#include <utility>

#include "peft/core/view.hpp"
#include "peft/cuda/check.hpp"
#include "peft/cuda/device_view.hpp"

PEFT_BEGIN_NAMESPACE
namespace cuda {

/// The GPU's memory, which the host cannot read.
struct DeviceMemory {
  static constexpr std::string_view kName = "DeviceBuffer";
  static constexpr bool kOnHost = false;
  static cudaError_t allocate(void** pointer, std::size_t bytes) noexcept { return cudaMalloc(pointer, bytes); }
  static void free(void* pointer) noexcept { static_cast<void>(cudaFree(pointer)); }
};

/// The host's memory, page-locked.
struct PinnedMemory {
  static constexpr std::string_view kName = "PinnedBuffer";
  static constexpr bool kOnHost = true;
  static cudaError_t allocate(void** pointer, std::size_t bytes) noexcept { return cudaMallocHost(pointer, bytes); }
  static void free(void* pointer) noexcept { static_cast<void>(cudaFreeHost(pointer)); }
};

/// Memory of both, page by page where it was touched last.
struct ManagedMemory {
  static constexpr std::string_view kName = "ManagedBuffer";
  static constexpr bool kOnHost = true;
  static cudaError_t allocate(void** pointer, std::size_t bytes) noexcept {
    return cudaMallocManaged(pointer, bytes, cudaMemAttachGlobal);
  }
  static void free(void* pointer) noexcept { static_cast<void>(cudaFree(pointer)); }
};

/// Owns `size()` trivially copyable elements in Memory, aligned to 256 bytes. An empty one asks the driver for nothing.
template <class T, class Memory>
class BasicBuffer {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  BasicBuffer() noexcept = default;
  /// `count` elements, not initialised. Throws ShapeError for a count below 0, CudaError.
  explicit BasicBuffer(Index count) {
    if (count < 0) fail<ShapeError>("{}: {} elements; expected a count from 0", Memory::kName, count);
    Index bytes = 0;
    if (__builtin_mul_overflow(count, static_cast<Index>(sizeof(T)), &bytes)) {
      fail<ShapeError>("{}: {} elements of {} bytes; expected a size that can be addressed", Memory::kName, count, sizeof(T));
    }
    if (bytes == 0) return;
    void* pointer = nullptr;
    check(Memory::allocate(&pointer, static_cast<std::size_t>(bytes)), "{}: {} bytes", Memory::kName, bytes);
    data_ = static_cast<T*>(pointer);
    size_ = capacity_ = count;
  }
  BasicBuffer(BasicBuffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)),
        size_(std::exchange(other.size_, 0)),
        capacity_(std::exchange(other.capacity_, 0)) {}
  BasicBuffer& operator=(BasicBuffer&& other) noexcept {
    if (this != &other) {
      release();
      data_ = std::exchange(other.data_, nullptr);
      size_ = std::exchange(other.size_, 0);
      capacity_ = std::exchange(other.capacity_, 0);
    }
    return *this;
  }
  BasicBuffer(const BasicBuffer&) = delete;
  BasicBuffer& operator=(const BasicBuffer&) = delete;
  ~BasicBuffer() { release(); }

  /// Room for `count` elements, and that size. Content is lost and memory taken anew where it has to grow (not while a graph
  /// is captured, whose nodes keep addresses); kept where it shrinks. Throws CudaError.
  void resize_discard(Index count) {
    if (count > capacity_) {
      release();
      *this = BasicBuffer(count);
    }
    size_ = count;
  }

  T* data() noexcept { return data_; }
  const T* data() const noexcept { return data_; }
  Index size() const noexcept { return size_; }
  Index capacity() const noexcept { return capacity_; }
  Index byte_size() const noexcept { return size_ * static_cast<Index>(sizeof(T)); }
  bool empty() const noexcept { return size_ == 0; }
  /// As the device sees it.
  DeviceVectorView<T> device_view() noexcept { return {data_, size_}; }
  DeviceVectorView<const T> device_view() const noexcept { return {data_, size_}; }
  /// As the host sees it.
  VectorView<T> view() noexcept
    requires(Memory::kOnHost)
  {
    return {data_, size_};
  }
  VectorView<const T> view() const noexcept
    requires(Memory::kOnHost)
  {
    return {data_, size_};
  }

  /// All bytes 0, in the order of `stream`. Throws CudaError.
  void fill_zero(cudaStream_t stream) {
    if (empty()) return;
    check(cudaMemsetAsync(data_, 0, static_cast<std::size_t>(byte_size()), stream), "{}: zeroing {} bytes", Memory::kName,
          byte_size());
  }

 private:
  void release() noexcept {
    if (data_ != nullptr) Memory::free(data_);
    data_ = nullptr;
    size_ = capacity_ = 0;
  }

  T* data_ = nullptr;
  Index size_ = 0;
  Index capacity_ = 0;
};

template <class T>
using DeviceBuffer = BasicBuffer<T, DeviceMemory>;
template <class T>
using PinnedBuffer = BasicBuffer<T, PinnedMemory>;
template <class T>
using ManagedBuffer = BasicBuffer<T, ManagedMemory>;

}  // namespace cuda
PEFT_END_NAMESPACE
