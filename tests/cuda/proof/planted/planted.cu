// Kernels that break the proof, one way each: what prove.py must see.
#include "launches.hpp"

namespace {

struct Args {
  const float* x;
  float* y;
  int n;
};

template <auto kKernel>
cudaError_t start(unsigned threads, unsigned shared) {
  Args args{peft_proof::address<const float>(), peft_proof::address<float>(), 1};
  void* pointers[] = {&args};
  if (shared > 48 * 1024) {
    const cudaError_t status = cudaFuncSetAttribute(reinterpret_cast<const void*>(kKernel),
                                                    cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared));
    if (status != cudaSuccess) return status;
  }
  return cudaLaunchKernel(reinterpret_cast<const void*>(kKernel), dim3(1), dim3(threads), pointers, shared, nullptr);
}

/// More values alive at once than the launch bounds leave registers for.
__global__ void __launch_bounds__(1024) spills(Args args) {
  float v[96];
#pragma unroll
  for (int i = 0; i < 96; ++i) v[i] = args.x[i * args.n];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 96; ++i) args.y[i * args.n] = v[95 - i] * v[(i * 7) % 96];
}

/// An array that is indexed by what is known only when it runs.
__global__ void local_array(Args args) {
  float v[512];
  for (int i = 0; i < 512; ++i) v[i] = args.x[i];
  args.y[threadIdx.x] = v[args.n & 511] + v[(args.n >> 9) & 511];
}

/// Four loads of 32 bits where the budget asks for one of 128.
__global__ void narrow(Args args) {
  float sum = 0;
  for (int i = 0; i < 4; ++i) sum += args.x[4 * threadIdx.x + static_cast<unsigned>(i)];
  args.y[threadIdx.x] = sum;
}

/// No tensor core where the budget asks for one.
__global__ void no_mma(Args args) { args.y[threadIdx.x] = args.x[threadIdx.x] * 3; }

/// More registers, and more shared memory, than its budget.
__global__ void fat(Args args) {
  extern __shared__ float memory[];
  float v[40];
#pragma unroll
  for (int i = 0; i < 40; ++i) v[i] = args.x[i * args.n];
  memory[threadIdx.x] = v[3];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 40; ++i) args.y[i * args.n] = v[39 - i] * memory[(threadIdx.x + 1) % 64];
}

/// Compiled, and taken by no launcher.
template <int N>
__global__ void forgotten(Args args) {
  args.y[threadIdx.x] = args.x[threadIdx.x] * N;
}
template __global__ void forgotten<2>(Args);

/// Not named in the budget.
__global__ void unknown(Args args) { args.y[threadIdx.x] = args.x[threadIdx.x]; }

/// Nothing is wrong with it.
__global__ void sound(Args args) { args.y[threadIdx.x] = args.x[threadIdx.x]; }

}  // namespace

void launches() {
  PROVE("spills", start<spills>(1024, 0));
  PROVE("local", start<local_array>(128, 0));
  PROVE("narrow", start<narrow>(128, 0));
  PROVE("no_mma", start<no_mma>(128, 0));
  PROVE("fat", start<fat>(64, 50000));
  PROVE("unknown", start<unknown>(128, 0));
  PROVE("wrong route", start<sound>(128, 0));
  PROVE("too much for sm_75", start<sound>(128, 64 * 1024 + 1));
}
