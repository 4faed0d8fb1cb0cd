#pragma once
/// Moves pages of managed memory ahead of their use. CUDA 13 takes a location and flags where CUDA 12 took a device's number.

#include <cuda_runtime_api.h>

#include "peft/cuda/check.hpp"
#include "peft/cuda/device_info.hpp"

PEFT_BEGIN_NAMESPACE
namespace cuda {

/// Where pages go.
enum class Residence : bool { kHost, kDevice };

namespace detail {
inline cudaError_t prefetch_pages(const void* data, std::size_t bytes, Residence to, int device, cudaStream_t stream) noexcept {
#if CUDART_VERSION >= 13000
  cudaMemLocation location{};
  location.type = to == Residence::kDevice ? cudaMemLocationTypeDevice : cudaMemLocationTypeHost;
  location.id = to == Residence::kDevice ? device : 0;
  return cudaMemPrefetchAsync(data, bytes, location, 0, stream);
#else
  return cudaMemPrefetchAsync(data, bytes, to == Residence::kDevice ? device : cudaCpuDeviceId, stream);
#endif
}
}  // namespace detail

/// Begins to move `bytes` from `data` on, in the order of `stream`. Nothing where the device has no page faults of its own
/// (Windows): all of managed memory moves with every launch there. Not while a graph is captured. Throws CudaError.
inline void prefetch(const void* data, Index bytes, Residence to, const DeviceInfo& device, cudaStream_t stream) {
  if (bytes <= 0 || !device.concurrent_managed) return;
  check(detail::prefetch_pages(data, static_cast<std::size_t>(bytes), to, device.index, stream),
        "cuda::prefetch: {} bytes of managed memory", bytes);
}

}  // namespace cuda
PEFT_END_NAMESPACE
