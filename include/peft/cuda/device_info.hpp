#pragma once
/// What a GPU is, as choices between routes need it.

#include <cuda_runtime_api.h>

#include <string>

#include "peft/core/scalar.hpp"
#include "peft/cuda/check.hpp"

PEFT_BEGIN_NAMESPACE
namespace cuda {

struct DeviceInfo {
  int index = 0;
  std::string name{};
  int sm = 0;                   ///< 10·major + minor: 90 for an H100
  int multiprocessors = 0;
  Index l2_bytes = 0;
  Index memory_bytes = 0;
  Index shared_bytes = 0;       ///< that a block may ask for
  bool concurrent_managed = false;  ///< host and device may touch managed memory at once, and prefetch moves it

  bool has_bf16_mma() const noexcept { return sm >= 80; }
};

/// GPUs that can be used; 0 where there is none or no driver. Never throws.
inline int device_count() noexcept {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) {
    static_cast<void>(cudaGetLastError());
    return 0;
  }
  return count;
}

/// Why device_count() is 0: "cudaErrorNoDevice (no CUDA-capable device is detected)"; empty where it is not.
inline std::string no_device_reason() {
  int count = 0;
  const cudaError_t code = cudaGetDeviceCount(&count);
  if (code == cudaSuccess) return count > 0 ? "" : "the driver shows no GPU";
  static_cast<void>(cudaGetLastError());
  return fmt::format("{} ({})", cudaGetErrorName(code), cudaGetErrorString(code));
}

namespace detail {
inline int current_index() {
  int index = 0;
  check(cudaGetDevice(&index), "current_device: asking which");
  return index;
}
inline int attribute_of(int device, cudaDeviceAttr which) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, which, device), "current_device: attribute {} of device {}", static_cast<int>(which),
        device);
  return value;
}
inline int sm_of(int device) {
  return 10 * attribute_of(device, cudaDevAttrComputeCapabilityMajor) + attribute_of(device, cudaDevAttrComputeCapabilityMinor);
}
}  // namespace detail

/// DeviceInfo::sm of the calling thread's current device, without the rest, which takes longer. Throws CudaError.
inline int current_sm() { return detail::sm_of(detail::current_index()); }

/// Of the calling thread's current device. Throws CudaError.
inline DeviceInfo current_device() {
  DeviceInfo info;
  info.index = detail::current_index();
  const auto attribute = [&info](cudaDeviceAttr which) { return detail::attribute_of(info.index, which); };
  info.sm = detail::sm_of(info.index);
  info.multiprocessors = attribute(cudaDevAttrMultiProcessorCount);
  info.l2_bytes = attribute(cudaDevAttrL2CacheSize);
  info.shared_bytes = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  info.concurrent_managed = attribute(cudaDevAttrConcurrentManagedAccess) != 0;
  cudaDeviceProp properties;
  check(cudaGetDeviceProperties(&properties, info.index), "current_device: properties of device {}", info.index);
  info.name = properties.name;
  info.memory_bytes = static_cast<Index>(properties.totalGlobalMem);
  return info;
}

}  // namespace cuda
PEFT_END_NAMESPACE
