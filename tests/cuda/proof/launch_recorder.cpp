// A stand-in for the CUDA runtime that launches nothing: it knows the kernels' names as the compiler registers them, answers
// questions about the device as one of the asked compute capability would, and prints every launch. Linked to one unit of the proof:
//   UNIT_launches SM  ->  lines "route LABEL" and "launch KERNEL GRID THREADS SHARED"
#include "launches.hpp"

#include <cuda_runtime_api.h>

#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>

namespace {

int capability = 0;
std::string current_label;

/// Host stub -> the kernel's name. A function's static: registration runs before main, in any order.
std::map<const void*, std::string>& kernels() {
  static std::map<const void*, std::string> names;
  return names;
}

/// What each kernel was allowed beyond 48 KiB.
std::map<const void*, int>& allowed() {
  static std::map<const void*, int> bytes;
  return bytes;
}

/// The largest dynamic shared memory of a block, bytes ("Technical Specifications per Compute Capability").
int shared_per_block() {
  switch (capability) {
    case 75: return 64 * 1024;
    case 80: return 163 * 1024;
    case 90:
    case 100:
    case 103: return 227 * 1024;
    default: return 99 * 1024;
  }
}

cudaError_t record(const void* function, dim3 grid, dim3 block, std::size_t shared) {
  const auto found = kernels().find(function);
  if (found == kernels().end()) {
    std::printf("failed %s: a launch of an unregistered kernel\n", current_label.c_str());
    std::exit(1);
  }
  const auto most = allowed().find(function);
  const std::size_t limit = most == allowed().end() ? 48 * 1024 : static_cast<std::size_t>(most->second);
  const unsigned threads = block.x * block.y * block.z;
  if (shared > limit || threads == 0 || threads > 1024 || grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.y > 65535 ||
      grid.z > 65535 || grid.x > 2147483647u) {
    std::printf("failed %s: %s with grid %u,%u,%u of %u threads, %zu bytes of shared memory where %zu are allowed\n",
                current_label.c_str(), found->second.c_str(), grid.x, grid.y, grid.z, threads, shared, limit);
    std::exit(1);
  }
  std::printf("launch %s %u,%u,%u %u %zu\n", found->second.c_str(), grid.x, grid.y, grid.z, threads, shared);
  return cudaSuccess;
}

}  // namespace

namespace peft_proof {

int sm() { return capability; }

void route(const char* label) {
  current_label = label;
  std::printf("route %s\n", label);
}

void expect_success(cudaError_t status) {
  if (status != cudaSuccess) {
    std::printf("failed %s: the launcher returned cudaError_t %d\n", current_label.c_str(), static_cast<int>(status));
    std::exit(1);
  }
}

}  // namespace peft_proof

extern "C" {

void** __cudaRegisterFatBinary(void*) {
  static void* handle = nullptr;
  return &handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
void __cudaRegisterFunction(void**, const char* host, char*, const char* name, int, uint3*, uint3*, dim3*, dim3*, int*) {
  kernels()[host] = name;
}
void __cudaRegisterVar(void**, char*, char*, const char*, int, std::size_t, int, int) {}
cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* function) {
  *kernel = reinterpret_cast<cudaKernel_t>(const_cast<void*>(function));
  return cudaSuccess;
}
cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void**, std::size_t shared, cudaStream_t) {
  return record(reinterpret_cast<const void*>(kernel), grid, block, shared);
}
unsigned __cudaPushCallConfiguration(dim3, dim3, std::size_t, cudaStream_t) { return 1; }
cudaError_t __cudaPopCallConfiguration(dim3*, dim3*, std::size_t*, void*) { return cudaErrorInvalidConfiguration; }

cudaError_t CUDARTAPI cudaLaunchKernel(const void* function, dim3 grid, dim3 block, void**, std::size_t shared, cudaStream_t) {
  return record(function, grid, block, shared);
}

cudaError_t CUDARTAPI cudaFuncSetAttribute(const void* function, cudaFuncAttribute attribute, int value) {
  if (attribute == cudaFuncAttributeMaxDynamicSharedMemorySize) {
    if (value > shared_per_block()) {
      std::printf("failed %s: asks for %d bytes of shared memory; sm_%d has %d\n", current_label.c_str(), value, capability,
                  shared_per_block());
      return cudaErrorInvalidValue;
    }
    allowed()[function] = value;
  }
  return cudaSuccess;
}

cudaError_t CUDARTAPI cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

cudaError_t CUDARTAPI cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor: *value = capability / 10; return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor: *value = capability % 10; return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = shared_per_block(); return cudaSuccess;
    case cudaDevAttrMultiProcessorCount: *value = 108; return cudaSuccess;  // an A100's: some cut their grid by it
    default: std::printf("failed %s: asks for the device attribute %d\n", current_label.c_str(), static_cast<int>(attribute));
  }
  return cudaErrorInvalidValue;
}

cudaError_t CUDARTAPI cudaGetLastError() { return cudaSuccess; }
cudaError_t CUDARTAPI cudaPeekAtLastError() { return cudaSuccess; }
cudaError_t CUDARTAPI cudaMemsetAsync(void*, int, std::size_t, cudaStream_t) { return cudaSuccess; }
}

int main(int count, char** arguments) {
  if (count != 2) {
    std::fprintf(stderr, "usage: %s SM, e.g. 90\n", arguments[0]);
    return 2;
  }
  capability = std::atoi(arguments[1]);
  launches();
  return 0;
}
