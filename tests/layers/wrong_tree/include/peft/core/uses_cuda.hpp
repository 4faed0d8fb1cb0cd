#include "peft/cuda/kernels/host_like.cuh"
#include <cuda_runtime_api.h>
