#pragma once
/// Dense products by cuBLASLt: the base layers' way where no kernel of ours is better, and the reference.
///   C [m,n] = α·op(A)·op(B) + β·C (+ bias over columns); rows anywhere, sums in float
/// A row-major matrix is its transpose to cuBLASLt, so it is asked for Cᵀ = op(B)ᵀ·op(A)ᵀ: a bias over our columns is its
/// epilogue's over rows. What its heuristic chooses is kept per MatmulKey; ways of splitting K that add in no fixed order are
/// not asked for, so that bits repeat. Nothing waits or allocates: products can be captured in graphs.

#include <cublasLt.h>

#include <unordered_map>
#include <utility>

#include "peft/cuda/buffer.hpp"
#include "peft/cuda/check_shape.hpp"
#include "peft/cuda/matmul_key.hpp"

PEFT_BEGIN_NAMESPACE
namespace cuda {

/// Throws CudaError where `code` is one of cuBLAS'.
inline void check(cublasStatus_t code, std::string_view what) {
  if (code == CUBLAS_STATUS_SUCCESS) return;
  fail<CudaError>("{}: {} ({}); expected CUBLAS_STATUS_SUCCESS", what, cublasLtGetStatusName(code),
                  cublasLtGetStatusString(code));
}

/// How the numbers between are rounded.
struct MatmulConfig {
  /// Bytes that a product may use beside its operands; 32 MiB is what NVIDIA advises for sm_90 and later.
  Index workspace_bytes = Index{32} << 20;
  /// Whether products of float may round operands to 11 bits (TF32), several times faster from sm_80 on.
  bool allow_tf32 = false;
};

/// One stream and one thread at a time: the workspace is used by every product. Movable.
class Matmul {
 public:
  /// Throws CudaError.
  explicit Matmul(MatmulConfig config = {}) : config_(config), workspace_(config.workspace_bytes) {
    check(cublasLtCreate(&handle_), "Matmul: cuBLASLt's handle");
  }
  Matmul(Matmul&& other) noexcept
      : config_(other.config_),
        handle_(std::exchange(other.handle_, nullptr)),
        workspace_(std::move(other.workspace_)),
        plans_(std::move(other.plans_)) {}
  Matmul& operator=(Matmul&&) = delete;
  Matmul(const Matmul&) = delete;
  Matmul& operator=(const Matmul&) = delete;
  ~Matmul() {
    if (handle_ != nullptr) static_cast<void>(cublasLtDestroy(handle_));
  }

  const MatmulConfig& config() const noexcept { return config_; }
  /// Choices kept so far.
  Index plan_count() const noexcept { return static_cast<Index>(plans_.size()); }

  /// c = alpha·op(a)·op(b) + beta·c (+ bias [n]). C: T or float. Throws ShapeError, CudaError.
  template <Scalar T, Scalar C>
    requires(std::is_same_v<C, T> || std::is_same_v<C, float>)
  void operator()(Transpose transpose_a, DeviceMatrixView<const T> a, Transpose transpose_b, DeviceMatrixView<const T> b,
                  float alpha, float beta, const T* bias, DeviceMatrixView<C> c, cudaStream_t stream) {
    const MatmulKey key = key_of(transpose_a, a, transpose_b, b, beta, bias, c);
    if (c.empty()) return;
    if (key.k == 0) fail<ShapeError>("Matmul: [{}, 0] times [0, {}]; expected an inner size from 1", key.m, key.n);
    const Plan& plan = plan_of(key);
    cublasLtMatmulDescOpaque_t description = plan.description;
    if (bias != nullptr) {
      check(cublasLtMatmulDescSetAttribute(&description, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias, sizeof(bias)),
            "Matmul: the bias");
    }
    auto layout_a = plan.a, layout_b = plan.b, layout_c = plan.c;
    const cublasStatus_t code =
        cublasLtMatmul(handle_, &description, &alpha, b.data, &layout_b, a.data, &layout_a, &beta, c.data, &layout_c, c.data,
                       &layout_c, &plan.algorithm, workspace_.data(), plan.workspace_bytes, stream);
    if (code != CUBLAS_STATUS_SUCCESS) check(code, fmt::format("Matmul: {}", text_of(key)));
  }

  /// The key of a product. Throws ShapeError where sizes do not fit.
  template <Scalar T, Scalar C>
  static MatmulKey key_of(Transpose transpose_a, DeviceMatrixView<const T> a, Transpose transpose_b,
                          DeviceMatrixView<const T> b, float beta, const T* bias, DeviceMatrixView<C> c) {
    MatmulKey key;
    key.m = transpose_a == Transpose::kYes ? a.cols : a.rows;
    key.k = transpose_a == Transpose::kYes ? a.rows : a.cols;
    key.n = transpose_b == Transpose::kYes ? b.rows : b.cols;
    const Index inner = transpose_b == Transpose::kYes ? b.cols : b.rows;
    if (inner != key.k) {
      fail<ShapeError>("Matmul: [{}, {}]{} times [{}, {}]{}; expected inner sizes that are equal, got {} and {}", a.rows,
                       a.cols, mark(transpose_a), b.rows, b.cols, mark(transpose_b), key.k, inner);
    }
    detail::check_shape("Matmul", "the result", c, key.m, key.n);
    detail::check_shape("Matmul", "the left operand", a, a.rows, a.cols);
    detail::check_shape("Matmul", "the right operand", b, b.rows, b.cols);
    key.lda = row_length(a), key.ldb = row_length(b), key.ldc = row_length(c);
    key.transpose_a = transpose_a, key.transpose_b = transpose_b;
    key.type = dtype_of<T>(), key.c_type = dtype_of<C>();
    key.has_bias = bias != nullptr;
    key.adds = beta != 0.0f;
    key.align_a = row_alignment(a), key.align_b = row_alignment(b), key.align_c = row_alignment(c);
    return key;
  }

  /// "[8, 4096] f16 times [4096, 4096]ᵀ with bias", for messages.
  static std::string text_of(const MatmulKey& key) {
    return fmt::format("{} [{}, {}]{} times [{}, {}]{} to {}{}{}", name_of(key.type), key.m, key.k,
                       key.transpose_a == Transpose::kYes ? " (stored across)" : "", key.k, key.n,
                       key.transpose_b == Transpose::kYes ? " (stored across)" : "", name_of(key.c_type),
                       key.has_bias ? " with bias" : "", key.adds ? ", added" : "");
  }

 private:
  struct Plan {
    cublasLtMatmulDescOpaque_t description;
    cublasLtMatrixLayoutOpaque_t a, b, c;
    cublasLtMatmulAlgo_t algorithm;
    std::size_t workspace_bytes;
  };

  static std::string_view mark(Transpose transpose) noexcept { return transpose == Transpose::kYes ? "ᵀ" : ""; }

  /// A single row may be given with any stride; cuBLASLt wants one that holds it.
  template <class T>
  static Index row_length(DeviceMatrixView<T> view) noexcept {
    return view.stride < view.cols ? view.cols : view.stride;
  }

  static cudaDataType_t data_type(DType type) noexcept {
    switch (type) {
      case DType::kF16:
        return CUDA_R_16F;
      case DType::kBF16:
        return CUDA_R_16BF;
      case DType::kF64:
        return CUDA_R_64F;
      default:
        return CUDA_R_32F;
    }
  }

  const Plan& plan_of(const MatmulKey& key) {
    if (const auto found = plans_.find(key); found != plans_.end()) return found->second;
    return plans_.emplace(key, make_plan(key)).first->second;
  }

  Plan make_plan(const MatmulKey& key) const {
    Plan plan{};
    const cublasComputeType_t compute =
        key.type == DType::kF32 && config_.allow_tf32 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F;
    check(cublasLtMatmulDescInit(&plan.description, compute, CUDA_R_32F), "Matmul: a description");
    const auto set = [&plan](cublasLtMatmulDescAttributes_t which, const auto& value) {
      check(cublasLtMatmulDescSetAttribute(&plan.description, which, &value, sizeof(value)),
            "Matmul: a description's attribute");
    };
    const auto operation = [](Transpose t) { return t == Transpose::kYes ? CUBLAS_OP_T : CUBLAS_OP_N; };
    set(CUBLASLT_MATMUL_DESC_TRANSA, operation(key.transpose_b));
    set(CUBLASLT_MATMUL_DESC_TRANSB, operation(key.transpose_a));
    if (key.has_bias) {
      const cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_BIAS;
      set(CUBLASLT_MATMUL_DESC_EPILOGUE, epilogue);
      set(CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, data_type(key.type));
    }
    const auto layout = [](cublasLtMatrixLayoutOpaque_t& result, DType type, Index rows, Index cols, Index ld) {
      check(cublasLtMatrixLayoutInit(&result, data_type(type), static_cast<std::uint64_t>(cols),
                                     static_cast<std::uint64_t>(rows), ld),
            "Matmul: a layout");
    };
    const bool across_a = key.transpose_a == Transpose::kYes, across_b = key.transpose_b == Transpose::kYes;
    layout(plan.a, key.type, across_a ? key.k : key.m, across_a ? key.m : key.k, key.lda);
    layout(plan.b, key.type, across_b ? key.n : key.k, across_b ? key.k : key.n, key.ldb);
    layout(plan.c, key.c_type, key.m, key.n, key.ldc);

    cublasLtMatmulPreferenceOpaque_t preference;
    check(cublasLtMatmulPreferenceInit(&preference), "Matmul: a preference");
    const auto prefer = [&preference](cublasLtMatmulPreferenceAttributes_t which, const auto& value) {
      check(cublasLtMatmulPreferenceSetAttribute(&preference, which, &value, sizeof(value)),
            "Matmul: a preference's attribute");
    };
    prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, static_cast<std::uint64_t>(workspace_.size()));
    prefer(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
           static_cast<std::uint32_t>(CUBLASLT_REDUCTION_SCHEME_NONE | CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE |
                                      CUBLASLT_REDUCTION_SCHEME_OUTPUT_TYPE));
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, std::uint32_t{key.align_b});
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, std::uint32_t{key.align_a});
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, std::uint32_t{key.align_c});
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, std::uint32_t{key.align_c});

    cublasLtMatmulHeuristicResult_t result{};
    int found = 0;
    const cublasStatus_t code = cublasLtMatmulAlgoGetHeuristic(handle_, &plan.description, &plan.b, &plan.a, &plan.c, &plan.c,
                                                               &preference, 1, &result, &found);
    if (code != CUBLAS_STATUS_SUCCESS || found == 0) {
      fail<CudaError>("Matmul: cuBLASLt has no kernel for {} with rows at multiples of {}, {} and {} bytes ({}); expected one; "
                      "rows at multiples of 16 bytes (DeviceMatrix) have most",
                      text_of(key), key.align_a, key.align_b, key.align_c, cublasLtGetStatusName(code));
    }
    plan.algorithm = result.algo;
    plan.workspace_bytes = result.workspaceSize;
    return plan;
  }

  MatmulConfig config_;
  cublasLtHandle_t handle_ = nullptr;
  DeviceBuffer<std::byte> workspace_;
  std::unordered_map<MatmulKey, Plan, MatmulKeyHash> plans_;
};

}  // namespace cuda
PEFT_END_NAMESPACE
