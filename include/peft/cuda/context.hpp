#pragma once
/// Where a layer's work goes: a stream, the products of cuBLASLt, and scratch memory that is reserved before, so that a
/// forward pass neither allocates nor waits and can be captured in a graph. The device's counterpart of ExecutorRef.

#include <algorithm>
#include <cstddef>
#include <string_view>

#include "peft/cuda/buffer.hpp"
#include "peft/cuda/device_info.hpp"
#include "peft/cuda/matmul.hpp"

PEFT_BEGIN_NAMESPACE
namespace cuda {

/// Of the thread's current device. One thread at a time; contexts of other streams run beside it.
class Context {
 public:
  /// Works on `stream`, which must outlive it. Throws CudaError.
  explicit Context(cudaStream_t stream, MatmulConfig config = {}) : stream_(stream), info_(current_device()), matmul_(config) {}
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;

  cudaStream_t stream() const noexcept { return stream_; }
  const DeviceInfo& device() const noexcept { return info_; }
  Matmul& matmul() noexcept { return matmul_; }

  /// Makes at least `bytes` of scratch available; layers say how much they need (scratch_bytes). Waits for the stream where it
  /// has to grow; graphs captured before are then void. Throws CudaError.
  void reserve(Index bytes) {
    if (bytes <= scratch_.size()) return;
    if (used_ != 0) fail<CudaError>("Context::reserve: {} bytes while scratch is in use; expected it before the work", bytes);
    check(cudaStreamSynchronize(stream_), "Context::reserve: waiting for the stream");
    scratch_.resize_discard(bytes);
  }
  Index reserved() const noexcept { return scratch_.size(); }
  void synchronize() const { check(cudaStreamSynchronize(stream_), "Context: waiting for its work"); }

  /// Scratch memory while it lives. Scopes nest; the stream's order makes the next one's reuse of the same bytes safe.
  class Scratch {
   public:
    explicit Scratch(Context& context) noexcept : context_(context), before_(context.used_) {}
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
    ~Scratch() { context_.used_ = before_; }

    /// `count` elements, not initialised, at a multiple of 256 bytes. `who` asks. Throws CudaError where less was reserved.
    template <class T>
    T* take(Index count, std::string_view who) {
      const Index bytes = padded(count * static_cast<Index>(sizeof(T)));
      if (bytes == 0) return nullptr;
      if (bytes > context_.scratch_.size() - context_.used_) {
        fail<CudaError>("{}: {} bytes of scratch beside {} in use; expected Context::reserve({}) or more before, got {}", who,
                        bytes, context_.used_, context_.used_ + bytes, context_.scratch_.size());
      }
      std::byte* result = context_.scratch_.data() + context_.used_;
      context_.used_ += bytes;
      return reinterpret_cast<T*>(result);
    }

   private:
    Context& context_;
    Index before_;
  };

  /// What take() uses for that many bytes.
  static constexpr Index padded(Index bytes) noexcept { return (bytes + 255) / 256 * 256; }

 private:
  cudaStream_t stream_;
  DeviceInfo info_;
  Matmul matmul_;
  DeviceBuffer<std::byte> scratch_;
  Index used_ = 0;
};

}  // namespace cuda
PEFT_END_NAMESPACE
