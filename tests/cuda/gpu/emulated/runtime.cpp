// Stands in for CUDA's runtime and cuBLASLt where there is no GPU: a device's memory is the host's, registered with the
// kernels' emulator and filled with bytes of 0xFF; work is done when it is asked for; products are sums in double. What the
// real ones refuse (pitches, alignment, layouts that do not hold a matrix) is refused here. So the tests for a GPU run on the
// host's side of peft::cuda and its kernels, on small shapes. Graphs cannot be recorded.
#include <cublasLt.h>
#include <cuda_runtime_api.h>

#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>

#include "peft_cuda_emulator.hpp"

namespace {

using namespace peft;

struct Allocation {
  explicit Allocation(std::size_t size)
      : memory(std::aligned_alloc(256, (size + 255) / 256 * 256)), registration(memory, size, "cudaMalloc") {
    std::memset(memory, 0xFF, size);
  }
  Allocation(const Allocation&) = delete;
  Allocation& operator=(const Allocation&) = delete;
  ~Allocation() { std::free(memory); }
  void* memory;
  peft_emulator::Registration registration;
};
std::map<void*, std::unique_ptr<Allocation>>& allocations() {
  static std::map<void*, std::unique_ptr<Allocation>> all;
  return all;
}
cudaError_t allocate(void** pointer, std::size_t size) {
  auto one = std::make_unique<Allocation>(size);
  *pointer = one->memory;
  allocations()[*pointer] = std::move(one);
  return cudaSuccess;
}

/// Which architecture is emulated: PEFT_EMULATED_SM, or 80.
int emulated_sm() {
  const char* text = std::getenv("PEFT_EMULATED_SM");
  return text != nullptr ? std::atoi(text) : 80;
}

// What the opaque structs hold: descriptions by attribute, layouts as type, rows, columns, leading dimension.
template <class Opaque>
std::uint64_t& word(Opaque* opaque, int i) {
  return opaque->data[i];
}

double element(const void* data, std::uint64_t type, std::int64_t i) {
  switch (static_cast<cudaDataType_t>(type)) {
    case CUDA_R_16F:
      return static_cast<double>(static_cast<float>(static_cast<const f16*>(data)[i]));
    case CUDA_R_16BF:
      return static_cast<double>(static_cast<float>(static_cast<const bf16*>(data)[i]));
    default:
      return static_cast<double>(static_cast<const float*>(data)[i]);
  }
}
void set_element(void* data, std::uint64_t type, std::int64_t i, double value) {
  switch (static_cast<cudaDataType_t>(type)) {
    case CUDA_R_16F:
      static_cast<f16*>(data)[i] = f16(static_cast<float>(value));
      break;
    case CUDA_R_16BF:
      static_cast<bf16*>(data)[i] = bf16(static_cast<float>(value));
      break;
    default:
      static_cast<float*>(data)[i] = static_cast<float>(value);
  }
}

}  // namespace

extern "C" {

cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor:
      *value = emulated_sm() / 10;
      break;
    case cudaDevAttrComputeCapabilityMinor:
      *value = emulated_sm() % 10;
      break;
    case cudaDevAttrConcurrentManagedAccess:
      *value = 1;
      break;
    default:
      *value = 100000;
  }
  return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
  std::memset(properties, 0, sizeof(*properties));
  std::strcpy(properties->name, "the emulator");
  properties->totalGlobalMem = std::size_t{1} << 30;
  return cudaSuccess;
}
cudaError_t cudaMemGetInfo(std::size_t* free, std::size_t* total) {
  *free = *total = std::size_t{1} << 30;
  return cudaSuccess;
}
cudaError_t cudaMalloc(void** pointer, std::size_t size) { return allocate(pointer, size); }
cudaError_t cudaMallocHost(void** pointer, std::size_t size) { return allocate(pointer, size); }
cudaError_t cudaMallocManaged(void** pointer, std::size_t size, unsigned) { return allocate(pointer, size); }
cudaError_t cudaFree(void* pointer) {
  return pointer == nullptr || allocations().erase(pointer) == 1 ? cudaSuccess : cudaErrorInvalidValue;
}
cudaError_t cudaFreeHost(void* pointer) { return cudaFree(pointer); }
cudaError_t cudaMemsetAsync(void* pointer, int value, std::size_t size, cudaStream_t) {
  std::memset(pointer, value, size);
  return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t size, cudaMemcpyKind, cudaStream_t) {
  std::memcpy(to, from, size);
  return cudaSuccess;
}
cudaError_t cudaMemcpy2DAsync(void* to, std::size_t to_pitch, const void* from, std::size_t from_pitch, std::size_t width,
                              std::size_t height, cudaMemcpyKind, cudaStream_t) {
  if (width > to_pitch || width > from_pitch) return cudaErrorInvalidPitchValue;
  for (std::size_t i = 0; i < height; ++i) {
    std::memcpy(static_cast<char*>(to) + i * to_pitch, static_cast<const char*>(from) + i * from_pitch, width);
  }
  return cudaSuccess;
}
cudaError_t cudaMemPrefetchAsync(const void*, std::size_t, cudaMemLocation, unsigned, cudaStream_t) { return cudaSuccess; }
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  *stream = reinterpret_cast<cudaStream_t>(new int);
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  delete reinterpret_cast<int*>(stream);
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }
cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned) { return cudaSuccess; }
cudaError_t cudaStreamBeginCapture(cudaStream_t, cudaStreamCaptureMode) { return cudaErrorNotSupported; }
cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t*) { return cudaErrorNotSupported; }
cudaError_t cudaGraphInstantiate(cudaGraphExec_t*, cudaGraph_t, unsigned long long) { return cudaErrorNotSupported; }
cudaError_t cudaGraphLaunch(cudaGraphExec_t, cudaStream_t) { return cudaErrorNotSupported; }
cudaError_t cudaGraphDestroy(cudaGraph_t) { return cudaSuccess; }
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t) { return cudaSuccess; }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = reinterpret_cast<cudaEvent_t>(new int);
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete reinterpret_cast<int*>(event);
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) { return cudaSuccess; }
cudaError_t cudaEventSynchronize(cudaEvent_t) { return cudaSuccess; }
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t, cudaEvent_t) {
  *milliseconds = 0;
  return cudaSuccess;
}
cudaError_t cudaGetLastError() { return cudaSuccess; }
const char* cudaGetErrorName(cudaError_t code) {
  return code == cudaErrorLaunchFailure ? "cudaErrorLaunchFailure" : "an error";
}
const char* cudaGetErrorString(cudaError_t) { return "of the emulator"; }

cublasStatus_t cublasLtCreate(cublasLtHandle_t* handle) {
  *handle = reinterpret_cast<cublasLtHandle_t>(new int);
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle) {
  delete reinterpret_cast<int*>(handle);
  return CUBLAS_STATUS_SUCCESS;
}
const char* cublasLtGetStatusName(cublasStatus_t) { return "a status"; }
const char* cublasLtGetStatusString(cublasStatus_t) { return "of the emulator"; }
cublasStatus_t cublasLtMatmulDescInit_internal(cublasLtMatmulDesc_t description, std::size_t size, cublasComputeType_t,
                                               cudaDataType_t) {
  std::memset(static_cast<void*>(description), 0, size);
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t description, cublasLtMatmulDescAttributes_t which,
                                              const void* value, std::size_t size) {
  if (static_cast<int>(which) >= 32 || size > 8) return CUBLAS_STATUS_NOT_SUPPORTED;
  std::memcpy(&word(description, which), value, size);
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutInit_internal(cublasLtMatrixLayout_t layout, std::size_t, cudaDataType type,
                                                 std::uint64_t rows, std::uint64_t cols, std::int64_t ld) {
  if (ld < static_cast<std::int64_t>(rows)) return CUBLAS_STATUS_INVALID_VALUE;
  word(layout, 0) = static_cast<std::uint64_t>(type), word(layout, 1) = rows, word(layout, 2) = cols;
  word(layout, 3) = static_cast<std::uint64_t>(ld);
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceInit_internal(cublasLtMatmulPreference_t preference, std::size_t size) {
  std::memset(static_cast<void*>(preference), 0, size);
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t, cublasLtMatmulPreferenceAttributes_t,
                                                    const void*, std::size_t) {
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t, cublasLtMatmulDesc_t, cublasLtMatrixLayout_t,
                                              cublasLtMatrixLayout_t, cublasLtMatrixLayout_t, cublasLtMatrixLayout_t,
                                              cublasLtMatmulPreference_t, int, cublasLtMatmulHeuristicResult_t results[],
                                              int* count) {
  results[0].workspaceSize = 0;
  *count = 1;
  return CUBLAS_STATUS_SUCCESS;
}
/// D = α·op(A)·op(B) + β·C + bias over D's rows, everything by columns.
cublasStatus_t cublasLtMatmul(cublasLtHandle_t, cublasLtMatmulDesc_t description, const void* alpha, const void* a,
                              cublasLtMatrixLayout_t a_layout, const void* b, cublasLtMatrixLayout_t b_layout, const void* beta,
                              const void* c, cublasLtMatrixLayout_t, void* d, cublasLtMatrixLayout_t d_layout,
                              const cublasLtMatmulAlgo_t*, void*, std::size_t, cudaStream_t) {
  const bool across_a = word(description, CUBLASLT_MATMUL_DESC_TRANSA) == CUBLAS_OP_T;
  const bool across_b = word(description, CUBLASLT_MATMUL_DESC_TRANSB) == CUBLAS_OP_T;
  const auto size = [](cublasLtMatrixLayout_t layout, int i) { return static_cast<std::int64_t>(word(layout, i)); };
  const std::int64_t m = size(d_layout, 1), n = size(d_layout, 2), k = size(a_layout, across_a ? 1 : 2);
  if (size(a_layout, across_a ? 2 : 1) != m || size(b_layout, across_b ? 1 : 2) != n || size(b_layout, across_b ? 2 : 1) != k) {
    return CUBLAS_STATUS_INVALID_VALUE;
  }
  const bool has_bias = word(description, CUBLASLT_MATMUL_DESC_EPILOGUE) == CUBLASLT_EPILOGUE_BIAS;
  const auto* bias = reinterpret_cast<const void*>(word(description, CUBLASLT_MATMUL_DESC_BIAS_POINTER));
  const std::int64_t lda = size(a_layout, 3), ldb = size(b_layout, 3), ldd = size(d_layout, 3);
  const double by = static_cast<double>(*static_cast<const float*>(alpha)),
               keep = static_cast<double>(*static_cast<const float*>(beta));
  for (std::int64_t j = 0; j < n; ++j) {
    for (std::int64_t i = 0; i < m; ++i) {
      double sum = 0;
      for (std::int64_t q = 0; q < k; ++q) {
        sum += element(a, word(a_layout, 0), across_a ? i * lda + q : q * lda + i) *
               element(b, word(b_layout, 0), across_b ? q * ldb + j : j * ldb + q);
      }
      double value = by * sum;
      if (keep != 0.0) value += keep * element(c, word(d_layout, 0), j * ldd + i);
      if (has_bias) value += element(bias, word(description, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE), i);
      set_element(d, word(d_layout, 0), j * ldd + i, value);
    }
  }
  return CUBLAS_STATUS_SUCCESS;
}

}  // extern "C"
