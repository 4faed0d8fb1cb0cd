// A kernel's launcher and the host's side, from the installed package. Without a GPU the error must be one that names what failed.
#include <peft/cuda/device_info.hpp>
#include <peft/cuda/kernels/convert.cuh>
#include <peft/cuda/stream.hpp>
#include <peft/error.hpp>

#include <cstdio>

int main() {
  if (peft::cuda::device_count() == 0) {
    try {
      const peft::cuda::Stream stream;
    } catch (const peft::CudaError& error) {
      std::printf("no GPU: %s\n", error.what());
      return 0;
    }
    return 1;
  }
  const peft::cuda::Stream stream;
  const peft::cuda::kernels::ConvertArgs<peft::f16, float> nothing{nullptr, 0, nullptr, 0, 0, 0};
  return peft::cuda::kernels::convert(nothing, stream) == cudaSuccess ? 0 : 1;
}
