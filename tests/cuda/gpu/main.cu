// Correctness of peft::cuda on a GPU: runs by itself where one is; where none is it says so and ends with 77 (skipped).
//   test_cuda_gpu [part of a test's name]
// One translation unit: the tests instantiate the same kernels.
#include "adamw_gpu_test.cuh"
#include "adapters_gpu_test.cuh"
#include "bottleneck_gpu_test.cuh"
#include "four_bit_gpu_test.cuh"
#include "gpu_test.hpp"
#include "linear_gpu_test.cuh"
#include "loss_gpu_test.cuh"

int main(int argc, char** argv) {
  using namespace gpu_test;
  if (cuda::device_count() == 0) {
    std::printf("test_cuda_gpu: SKIPPED, nothing was tested: there is no GPU here: %s\n", cuda::no_device_reason().c_str());
    return 77;
  }
  try {
    const cuda::DeviceInfo& device = context().device();
    std::printf("test_cuda_gpu on %s (sm_%d, %d multiprocessors, %lld MiB)\n", device.name.c_str(), device.sm,
                device.multiprocessors, static_cast<long long>(device.memory_bytes >> 20));
  } catch (const Error& error) {
    std::printf("test_cuda_gpu: there is a GPU, and it cannot be used: %s\n", error.what());
    return 1;
  }
  const std::string_view wanted = argc > 1 ? argv[1] : "";
  int ran = 0;
  for (const Test& test : tests()) {
    if (std::string_view(test.name).find(wanted) == std::string_view::npos) continue;
    ++ran;
    const Counts before = counts();
    std::printf("%s\n", test.name);
    std::fflush(stdout);
    try {
      test.run();
      context().synchronize();
    } catch (const std::exception& error) {
      check_that(false, "{} threw: {}", test.name, error.what());
#ifdef PEFT_CUDA_EMULATOR
      std::printf("%s\n", peft_emulator::take_report().text().c_str());
#endif
      // After an error of a kernel the process' context is lost.
      if (cudaDeviceSynchronize() != cudaSuccess) {
        std::printf("test_cuda_gpu: the GPU is lost after %s\n", test.name);
        return 1;
      }
    }
    std::printf("  %lld checks, %lld failed\n", static_cast<long long>(counts().checks - before.checks),
                static_cast<long long>(counts().failures - before.failures));
  }
  std::printf("test_cuda_gpu: %d tests, %lld checks, %lld failed\n", ran, static_cast<long long>(counts().checks),
              static_cast<long long>(counts().failures));
  return ran == 0 || counts().failures > 0 ? 1 : 0;
}
