#pragma once
/// The norm of all gradients and the factor that clips it, as train/clip.hpp has them, both left on the device:
///   norm = √Σ g²,   factor = min(1, max_norm / (norm + 1e-6))
/// `optimizer.set_clip(norm.factor())` makes AdamW multiply by it, with no way back over the host.

#include <cstdint>
#include <utility>
#include <vector>

#include "peft/cuda/buffer.hpp"
#include "peft/cuda/context.hpp"
#include "peft/cuda/kernels/reduce.cuh"
#include "peft/parameter.hpp"

PEFT_BEGIN_NAMESPACE
namespace cuda {

/// Movable; factor() stays where it is.
class GradientNorm {
 public:
  /// Throws CudaError.
  GradientNorm() : result_(2) {}

  /// The gradients that `model.for_each_parameter` shows (as cuda::Lora's does): once, and again where they moved. Throws
  /// CudaError.
  template <class Model>
  void prepare(Model& model, Context& context) {
    buffers_.clear();
    chunks_.clear();
    model.for_each_parameter([&](const ParameterInfo&, const auto&, DeviceVectorView<float> grad) {
      const auto number = static_cast<std::int32_t>(buffers_.size());
      buffers_.push_back({grad.data, grad.size});
      for (Index c = 0; c < kernels::tensor_chunks(grad.size); ++c) chunks_.push_back({number, static_cast<std::int32_t>(c)});
    });
    copy_in(buffers_, device_buffers_, context);
    copy_in(chunks_, device_chunks_, context);
    sums_.resize_discard(static_cast<Index>(chunks_.size()));
  }

  /// Norm and factor of the gradients as they are now; max_norm 0: the factor is 1. Can be captured in a graph. Throws
  /// ConfigError, CudaError.
  void launch(float max_norm, Context& context) {
    if (!is_finite(max_norm) || max_norm < 0.0f) {
      fail<ConfigError>("cuda::GradientNorm: max_norm is {}; expected a number from 0", max_norm);
    }
    kernels::SquaredNormArgs args{};
    args.buffers = device_buffers_.data();
    args.chunks = device_chunks_.data();
    args.chunk_count = static_cast<int>(chunks_.size());
    args.workspace = sums_.data();
    args.max_norm = max_norm;
    args.result = result_.data();
    check(kernels::squared_norm(args, context.stream()), "squared_norm kernel: {} gradients", buffers_.size());
  }

  /// On the device; valid after launch().
  const float* factor() const noexcept { return result_.data() + 1; }
  /// On the host. Waits. Throws CudaError.
  float norm(Context& context) const {
    float result = 0;
    check(cudaMemcpyAsync(&result, result_.data(), sizeof(result), cudaMemcpyDeviceToHost, context.stream()),
          "cuda::GradientNorm: reading the norm");
    context.synchronize();
    return result;
  }

 private:
  /// The source is staged before the call returns, so it may change afterwards.
  template <class T>
  static void copy_in(const std::vector<T>& from, DeviceBuffer<T>& to, Context& context) {
    if (static_cast<Index>(from.size()) > to.capacity()) context.synchronize();  // who still reads the old memory is done
    to.resize_discard(static_cast<Index>(from.size()));
    if (from.empty()) return;
    check(cudaMemcpyAsync(to.data(), from.data(), from.size() * sizeof(T), cudaMemcpyHostToDevice, context.stream()),
          "cuda::GradientNorm: copying {} bytes", from.size() * sizeof(T));
  }

  std::vector<kernels::SquaredNormBuffer> buffers_;
  std::vector<kernels::TensorChunk> chunks_;
  DeviceBuffer<kernels::SquaredNormBuffer> device_buffers_;
  DeviceBuffer<kernels::TensorChunk> device_chunks_;
  DeviceBuffer<double> sums_;
  DeviceBuffer<float> result_;
};

}  // namespace cuda
PEFT_END_NAMESPACE
