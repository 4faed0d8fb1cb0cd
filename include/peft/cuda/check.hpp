#pragma once
/// CUDA's return codes as errors:
///   what was done: cudaErrorMemoryAllocation (out of memory); expected cudaSuccess; a hint

#include <cuda_runtime_api.h>

#include <string_view>

#include "peft/error.hpp"

PEFT_BEGIN_NAMESPACE
namespace cuda {
namespace detail {

/// What to do about an error, or nothing: begins with "; ".
constexpr std::string_view hint_of(cudaError_t code) noexcept {
  switch (code) {
    case cudaErrorNoDevice:
      return "; is there a GPU, and does CUDA_VISIBLE_DEVICES show it?";
    case cudaErrorInsufficientDriver:
      return "; the driver is older than the CUDA runtime, or there is none";
    case cudaErrorMemoryAllocation:
      return "; fewer rows at a time, a packed base or paged optimizer state need less memory";
    case cudaErrorNoKernelImageForDevice:
      return "; compile for this GPU too: nvcc -gencode arch=compute_XY,code=sm_XY";
    case cudaErrorStreamCaptureUnsupported:
    case cudaErrorStreamCaptureInvalidated:
      return "; nothing may be allocated or waited for while a graph is captured: call reserve() before";
    case cudaErrorIllegalAddress:
    case cudaErrorMisalignedAddress:
      return "; an earlier kernel did it: CUDA_LAUNCH_BLOCKING=1 or compute-sanitizer finds which";
    default:
      return "";
  }
}

}  // namespace detail

/// Throws CudaError where `code` is one. `what` says what was done, with names and sizes.
inline void check(cudaError_t code, std::string_view what) {
  if (code == cudaSuccess) return;
  // Else the next call, which did nothing wrong, would find the error again.
  static_cast<void>(cudaGetLastError());
  fail<CudaError>("{}: {} ({}); expected cudaSuccess{}", what, cudaGetErrorName(code), cudaGetErrorString(code),
                  detail::hint_of(code));
}

/// The same with a text that is formatted only where there is an error.
template <class... Args>
void check(cudaError_t code, peft::detail::FormatText<Args...> text, Args&&... args)
  requires(sizeof...(Args) > 0)
{
  if (code == cudaSuccess) return;
  check(code, std::string_view(fmt::vformat(text, fmt::make_format_args(args...))));
}

}  // namespace cuda
PEFT_END_NAMESPACE
