#pragma once
/// A point in a stream's work: others wait for it, and two of them tell the time between.

#include <cuda_runtime_api.h>

#include <utility>

#include "peft/cuda/check.hpp"

PEFT_BEGIN_NAMESPACE
namespace cuda {

/// Movable.
class Event {
 public:
  enum class Timing : bool { kOff, kOn };

  /// Throws CudaError.
  explicit Event(Timing timing = Timing::kOff) {
    check(cudaEventCreateWithFlags(&event_, timing == Timing::kOn ? cudaEventDefault : cudaEventDisableTiming),
          "Event: creating one");
  }
  Event(Event&& other) noexcept : event_(std::exchange(other.event_, nullptr)) {}
  Event& operator=(Event&& other) noexcept {
    std::swap(event_, other.event_);
    return *this;
  }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  ~Event() {
    if (event_ != nullptr) static_cast<void>(cudaEventDestroy(event_));
  }

  operator cudaEvent_t() const noexcept { return event_; }  // NOLINT(google-explicit-constructor)
  /// Stands behind what `stream` was given so far. Throws CudaError.
  void record(cudaStream_t stream) { check(cudaEventRecord(event_, stream), "Event: recording"); }
  /// What `stream` is given from now on waits for it. Throws CudaError.
  void make_wait(cudaStream_t stream) const { check(cudaStreamWaitEvent(stream, event_, 0), "Event: a stream's waiting"); }
  /// Throws CudaError.
  void synchronize() const { check(cudaEventSynchronize(event_), "Event: waiting"); }
  /// Milliseconds from `start` to this; both recorded, and timed. Throws CudaError.
  float milliseconds_since(const Event& start) const {
    float result = 0;
    check(cudaEventElapsedTime(&result, start.event_, event_), "Event: the time between two");
    return result;
  }

 private:
  cudaEvent_t event_ = nullptr;
};

}  // namespace cuda
PEFT_END_NAMESPACE
