#pragma once
/// Owns a CUDA stream: work given to it runs in that order. Converts to cudaStream_t, which is what everything takes, so a
/// host's own streams serve as well.

#include <cuda_runtime_api.h>

#include <utility>

#include "peft/cuda/check.hpp"

PEFT_BEGIN_NAMESPACE
namespace cuda {

/// Does not wait for the default stream. Movable.
class Stream {
 public:
  /// Throws CudaError.
  Stream() { check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "Stream: creating one"); }
  Stream(Stream&& other) noexcept : stream_(std::exchange(other.stream_, nullptr)) {}
  Stream& operator=(Stream&& other) noexcept {
    std::swap(stream_, other.stream_);
    return *this;
  }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  ~Stream() {
    if (stream_ != nullptr) static_cast<void>(cudaStreamDestroy(stream_));
  }

  operator cudaStream_t() const noexcept { return stream_; }  // NOLINT(google-explicit-constructor)
  /// Waits until all of its work is done. Throws CudaError, also for what went wrong in that work.
  void synchronize() const { check(cudaStreamSynchronize(stream_), "Stream: waiting for its work"); }

 private:
  cudaStream_t stream_ = nullptr;
};

}  // namespace cuda
PEFT_END_NAMESPACE
