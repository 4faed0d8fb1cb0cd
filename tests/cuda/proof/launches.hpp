#pragma once
/// What a unit of the proof writes its launches with. Nothing runs: launch_recorder.cpp stands in for the CUDA runtime and writes
/// down which kernel each launcher takes, with what grid, threads and shared memory.

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

/// The unit's own: calls the library's launchers, each under a label.
void launches();

namespace peft_proof {

/// The compute capability that is asked for, e.g. 90.
int sm();

/// An address that a kernel would get: aligned as cudaMalloc's, `bytes` later. Never read.
template <class T>
T* address(std::size_t bytes = 0) {
  return reinterpret_cast<T*>(std::uintptr_t{0x700000000000u} + bytes);
}

/// Names the launches that follow, for the rows `route` of budget.txt. `status` of the launcher must be cudaSuccess.
void route(const char* label);
void expect_success(cudaError_t status);

}  // namespace peft_proof

/// PROVE("lora_forward f16, aligned", lora_forward(arguments, nullptr));
#define PROVE(label, ...) (peft_proof::route(label), peft_proof::expect_success(__VA_ARGS__))
