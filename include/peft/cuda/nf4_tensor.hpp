#pragma once
/// A weight in four bits on the GPU: peft::FourBitTensor's bytes, permuted once for the kernels (kernels/four_bit_layout.cuh),
/// and given back as they were, bit for bit; or quantised on the device, to the CPU's bytes. Files are the CPU's: a FourBitStorage
/// is what checkpoints read and write.

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "peft/cuda/buffer.hpp"
#include "peft/cuda/check_shape.hpp"
#include "peft/cuda/context.hpp"
#include "peft/cuda/kernels/four_bit_dequantize.cuh"
#include "peft/cuda/kernels/four_bit_layout.cuh"
#include "peft/cuda/kernels/four_bit_quantize.cuh"
#include "peft/cuda/transfer.hpp"
#include "peft/error.hpp"
#include "peft/four_bit_absmax.hpp"
#include "peft/four_bit_config.hpp"
#include "peft/four_bit_storage.hpp"
#include "peft/kernels/four_bit.hpp"

PEFT_BEGIN_NAMESPACE
namespace cuda {

/// What a cuda::FourBitTensor is uploaded from: peft::FourBitTensor.
template <class H>
concept HostFourBit = requires(const H& h) {
  { h.storage() } -> std::convertible_to<const FourBitStorage&>;
};

/// Immutable; movable.
template <FourBitCode kCode>
class FourBitTensor {
 public:
  static constexpr FourBitCode code() noexcept { return kCode; }

  /// A copy of the host's bytes. Throws ShapeError where their sizes do not fit the shape, ConfigError for a block size that
  /// does not exist, CudaError.
  FourBitTensor(const FourBitStorage& host, Context& context) : FourBitTensor(kName, host.shape, host.dtype, host.block_size) {
    check_sizes(host);
    const bool nested = host.absmax.empty() && !host.nested_map.empty();
    allocate(nested, host.nested_offset);
    if (nested) take_nested(host.nested_map, host.nested_absmax, context);
    if (codes_.empty()) return;
    const DeviceBuffer<std::uint8_t> flat_codes = copy_of(host.codes, context, "the codes");
    const DeviceBuffer<std::uint8_t> flat_nested = copy_of(host.nested_codes, context, "the nested codes");
    const DeviceBuffer<float> flat_absmax = copy_of(host.absmax, context, "the maxima");
    pack(flat_codes, flat_absmax, flat_nested, context);
  }
  template <HostFourBit H>
  FourBitTensor(const H& host, Context& context) : FourBitTensor(host.storage(), context) {
    static_assert(H::code() == kCode, "the host's tensor has the other code");
  }

  /// `weight` quantised on the device: the codes and maxima of peft::FourBitTensor::quantize, bit for bit. The maxima are
  /// checked, and quantised where `config` asks for it, on the host in between; so it waits. Throws ConfigError for a block size
  /// that does not exist, ShapeError, NumericError where an element is not finite, CudaError.
  template <Scalar T>
    requires(!std::is_same_v<T, double>)
  static FourBitTensor quantize(DeviceMatrixView<const T> weight, const FourBitConfig& config, Context& context) {
    constexpr std::string_view kWho = "cuda::FourBitTensor::quantize";
    FourBitTensor result(kWho, {weight.rows, weight.cols}, dtype_of<T>(), config.block_size);
    detail::check_shape(kWho, "the weight", weight, weight.rows, weight.cols);
    if (config.nested_offset && !is_finite(*config.nested_offset)) {
      fail<ConfigError>("{}: nested_offset is {}; expected a finite number", kWho, *config.nested_offset);
    }
    DeviceBuffer<std::uint8_t> flat_codes(result.element_count_ / 2 + result.element_count_ % 2);
    DeviceBuffer<float> flat_absmax(result.block_count());
    kernels::FourBitQuantizeArgs<T> args{};
    args.w = weight.data, args.ldw = weight.stride;
    args.rows = weight.rows, args.cols = weight.cols;
    args.block_size = result.packed_.block_size;
    const peft::kernels::FourBitTable& table = peft::kernels::table_of(kCode);
    std::copy(std::begin(table.threshold), std::end(table.threshold), args.threshold);
    std::copy(std::begin(table.code_of_rank), std::end(table.code_of_rank), args.code_of_rank);
    args.codes = flat_codes.data();
    args.absmax = flat_absmax.data();
    check(kernels::four_bit_quantize(args, context.stream()), "four_bit_quantize kernel: [{}, {}] in blocks of {}", weight.rows,
          weight.cols, config.block_size);
    peft::detail::FourBitBuffers host;
    host.absmax = Buffer<float>(flat_absmax.size());
    cuda::download(std::as_const(flat_absmax).device_view(), host.absmax.view(), context.stream(), "the maxima");
    check_finite(kWho, weight, std::as_const(host.absmax).view(), config.block_size, context);

    DeviceBuffer<std::uint8_t> flat_nested;
    FourBitStorage nested;
    if (config.double_quant) peft::detail::quantize_absmax(config, host, nested, default_executor());
    result.allocate(config.double_quant, nested.nested_offset);
    if (config.double_quant) {
      result.take_nested(std::as_const(host.nested_map).view(), std::as_const(host.nested_absmax).view(), context);
      flat_nested = copy_of(std::as_const(host.nested_codes).view(), context, "the nested codes");
      flat_absmax = {};
    }
    if (!result.codes_.empty()) result.pack(flat_codes, flat_absmax, flat_nested, context);
    return result;
  }
  template <Scalar T>
    requires(!std::is_same_v<T, double>)
  static FourBitTensor quantize(DeviceMatrixView<T> weight, const FourBitConfig& config, Context& context) {
    return quantize(DeviceMatrixView<const T>(weight), config, context);
  }

  /// What it was made from, in memory of its own: `peft::FourBitTensor<kCode>(tensor.download(context))`. Throws CudaError.
  FourBitStorage download(Context& context) const {
    struct Bytes {
      std::vector<std::uint8_t> codes, nested_codes;
      std::vector<float> absmax, nested_map, nested_absmax;
    };
    auto bytes = std::make_shared<Bytes>();
    const auto size = [](Index n) { return static_cast<std::size_t>(n); };
    bytes->codes.resize(size(element_count_ / 2 + element_count_ % 2));
    const Index blocks = block_count();
    if (is_double_quantized()) {
      bytes->nested_codes.resize(size(blocks));
      bytes->nested_map.resize(size(nested_map_.size()));
      bytes->nested_absmax.resize(size(nested_absmax_.size()));
    } else {
      bytes->absmax.resize(size(blocks));
    }
    if (!codes_.empty()) {
      DeviceBuffer<std::uint8_t> flat_codes(static_cast<Index>(bytes->codes.size()));
      DeviceBuffer<std::uint8_t> flat_nested(static_cast<Index>(bytes->nested_codes.size()));
      DeviceBuffer<float> flat_absmax(static_cast<Index>(bytes->absmax.size()));
      kernels::FourBitPackArgs args = pack_args();
      args.flat_codes = flat_codes.data();
      args.flat_nested_codes = flat_nested.data();
      args.flat_absmax = flat_absmax.data();
      check(kernels::four_bit_unpack(args, context.stream()), "four_bit_unpack kernel: [{}, {}] in blocks of {}", packed_.out,
            packed_.in, packed_.block_size);
      fetch(std::as_const(flat_codes), bytes->codes, context, "the codes");
      fetch(std::as_const(flat_nested), bytes->nested_codes, context, "the nested codes");
      fetch(std::as_const(flat_absmax), bytes->absmax, context, "the maxima");
    }
    fetch(nested_map_, bytes->nested_map, context, "the nested map");
    fetch(nested_absmax_, bytes->nested_absmax, context, "the nested maxima");
    FourBitStorage storage;
    storage.shape = shape_;
    storage.dtype = dtype_;
    storage.block_size = packed_.block_size;
    storage.nested_offset = packed_.nested_offset;
    const auto view = [](const auto& from) {
      return VectorView<const typename std::remove_cvref_t<decltype(from)>::value_type>(from.data(),
                                                                                        static_cast<Index>(from.size()));
    };
    storage.codes = view(bytes->codes);
    storage.absmax = view(bytes->absmax);
    storage.nested_codes = view(bytes->nested_codes);
    storage.nested_map = view(bytes->nested_map);
    storage.nested_absmax = view(bytes->nested_absmax);
    storage.keep_alive = std::move(bytes);
    return storage;
  }

  const std::vector<Index>& shape() const noexcept { return shape_; }
  /// Seen as a matrix: the last dimension is a row.
  Index rows() const noexcept { return packed_.out; }
  Index cols() const noexcept { return packed_.in; }
  Index size() const noexcept { return element_count_; }
  Index block_size() const noexcept { return packed_.block_size; }
  Index block_count() const noexcept { return (element_count_ + packed_.block_size - 1) / packed_.block_size; }
  bool is_double_quantized() const noexcept { return !nested_map_.empty(); }
  /// Bytes on the device.
  Index byte_size() const noexcept {
    return codes_.byte_size() + absmax_.byte_size() + nested_codes_.byte_size() + nested_map_.byte_size() +
           nested_absmax_.byte_size();
  }
  /// What the kernels take.
  const kernels::FourBitPacked& packed() const noexcept { return packed_; }

  /// out = rows [first, first + out.rows), value·absmax rounded once to T. Throws ShapeError, CudaError.
  template <Scalar T>
  void dequantize_rows(Index first, DeviceMatrixView<T> out, Context& context) const {
    if (first < 0 || first > rows() || out.rows > rows() - first) {
      fail<ShapeError>("cuda::FourBitTensor::dequantize_rows: rows {} to {}; expected rows within 0 to {}", first,
                       first + out.rows, rows());
    }
    detail::check_shape("cuda::FourBitTensor::dequantize_rows", "the result", out, out.rows, cols());
    if (out.empty()) return;
    kernels::FourBitPanelArgs<T> args{};
    args.w = packed_;
    args.first_row = first;
    args.rows = out.rows;
    args.out = out.data;
    args.ldo = out.stride;
    check(kernels::four_bit_dequantize_packed(args, context.stream()), "four_bit_dequantize kernel: rows {} to {} of [{}, {}]",
          first, first + out.rows, rows(), cols());
  }

 private:
  static constexpr std::string_view kName = "cuda::FourBitTensor";

  /// Of that shape, without memory. Throws ConfigError, ShapeError.
  FourBitTensor(std::string_view who, std::vector<Index> shape, DType dtype, Index block) : shape_(std::move(shape)), dtype_(dtype) {
    if (block < 32 || block > 4096 || (block & (block - 1)) != 0) {
      fail<ConfigError>("{}: the block size is {}; expected a power of two from 32 to 4096", who, block);
    }
    Index rows = 1;
    bool fits = true;
    for (std::size_t i = 0; i + 1 < shape_.size(); ++i) {
      fits = fits && shape_[i] >= 0 && !__builtin_mul_overflow(rows, shape_[i], &rows);
    }
    const Index cols = shape_.empty() ? 1 : shape_.back();
    fits = fits && cols >= 0 && rows <= INT32_MAX && cols <= INT32_MAX && !__builtin_mul_overflow(rows, cols, &element_count_);
    if (!fits) fail<ShapeError>("{}: a weight of {} rows of {}; expected a matrix that can be addressed", who, rows, cols);
    packed_ = {};
    packed_.block_size = static_cast<int>(block);
    packed_.out = rows;
    packed_.in = cols;
    const peft::kernels::FourBitTable& table = peft::kernels::table_of(kCode);
    std::copy(std::begin(table.value), std::end(table.value), packed_.value);
  }
  void check_sizes(const FourBitStorage& host) const {
    const bool nested = host.absmax.empty() && !host.nested_map.empty();
    const Index blocks = block_count();
    const auto check_size = [&](std::string_view what, Index got, Index expected) {
      if (got == expected) return;
      fail<ShapeError>("{}: {} {}; expected {} for {} elements in blocks of {}", kName, got, what, expected, element_count_,
                       packed_.block_size);
    };
    check_size("codes", host.codes.size, element_count_ / 2 + element_count_ % 2);
    check_size("absmax", host.absmax.size, nested ? 0 : blocks);
    check_size("nested codes", host.nested_codes.size, nested ? blocks : 0);
    check_size("nested map", host.nested_map.size, nested ? 256 : 0);
    check_size("nested absmax", host.nested_absmax.size, nested ? (blocks + 255) / 256 : 0);
  }
  /// Throws NumericError, naming the first element of `weight` that is not finite, where a block's maximum is a NaN.
  template <class T>
  static void check_finite(std::string_view who, DeviceMatrixView<const T> weight, VectorView<const float> absmax, Index block,
                           Context& context) {
    const float* const wrong = std::find_if(absmax.begin(), absmax.end(), [](float most) { return !is_finite(most); });
    if (wrong == absmax.end()) return;
    const Index n = weight.rows * weight.cols, first = (wrong - absmax.begin()) * block;
    for (Index i = first; i < std::min(first + block, n); ++i) {
      const Index row = i / weight.cols, column = i % weight.cols;
      float element = 0;
      cuda::download(weight.row_range(row, 1).column_range(column, 1), MatrixView<float>(&element, 1, 1), context.stream());
      if (is_finite(element)) continue;
      fail<NumericError>("{}: the element at row {}, column {} of [{}, {}] is {}; expected finite numbers", who, row, column,
                         weight.rows, weight.cols, element);
    }
  }

  /// Memory of the packed side.
  void allocate(bool nested, float nested_offset) {
    codes_ = DeviceBuffer<std::uint8_t>(kernels::four_bit_code_bytes(packed_.out, packed_.in));
    const Index scales = kernels::four_bit_scale_count(packed_.out, packed_.in, packed_.block_size);
    if (nested) {
      nested_codes_ = DeviceBuffer<std::uint8_t>(scales);
    } else {
      absmax_ = DeviceBuffer<float>(scales);
    }
    packed_.nested_offset = nested_offset;
    packed_.codes = codes_.data();
    packed_.absmax = absmax_.data();
    packed_.nested_codes = nested_codes_.data();
  }
  void take_nested(VectorView<const float> map, VectorView<const float> absmax, Context& context) {
    nested_map_ = copy_of(map, context, "the nested map");
    nested_absmax_ = copy_of(absmax, context, "the nested maxima");
    packed_.nested_map = nested_map_.data();
    packed_.nested_absmax = nested_absmax_.data();
  }
  /// From bitsandbytes' order; waits, so that the flat side may go.
  void pack(const DeviceBuffer<std::uint8_t>& flat_codes, const DeviceBuffer<float>& flat_absmax,
            const DeviceBuffer<std::uint8_t>& flat_nested, Context& context) {
    kernels::FourBitPackArgs args = pack_args();
    args.flat_codes = const_cast<std::uint8_t*>(flat_codes.data());
    args.flat_nested_codes = const_cast<std::uint8_t*>(flat_nested.data());
    args.flat_absmax = const_cast<float*>(flat_absmax.data());
    check(kernels::four_bit_pack(args, context.stream()), "four_bit_pack kernel: [{}, {}] in blocks of {}", packed_.out,
          packed_.in, packed_.block_size);
    context.synchronize();
  }

  /// With the packed side filled in.
  kernels::FourBitPackArgs pack_args() const noexcept {
    kernels::FourBitPackArgs args{};
    args.codes = const_cast<std::uint8_t*>(packed_.codes);
    args.absmax = const_cast<float*>(packed_.absmax);
    args.nested_codes = const_cast<std::uint8_t*>(packed_.nested_codes);
    args.out = packed_.out;
    args.in = packed_.in;
    args.block_size = packed_.block_size;
    args.zero_code = kCode == FourBitCode::kNf4 ? 7 : 0;
    return args;
  }

  template <class E>
  static DeviceBuffer<E> copy_of(VectorView<const E> from, Context& context, std::string_view what) {
    DeviceBuffer<E> result(from.size);
    cuda::upload(from, result.device_view(), context.stream(), what);
    return result;
  }
  template <class E>
  static void fetch(const DeviceBuffer<E>& from, std::vector<E>& to, Context& context, std::string_view what) {
    cuda::download(from.device_view(), VectorView<E>(to.data(), static_cast<Index>(to.size())), context.stream(), what);
  }

  std::vector<Index> shape_;
  DType dtype_;
  Index element_count_ = 0;
  kernels::FourBitPacked packed_;
  DeviceBuffer<std::uint8_t> codes_, nested_codes_;
  DeviceBuffer<float> absmax_, nested_map_, nested_absmax_;
};

using Nf4Tensor = FourBitTensor<FourBitCode::kNf4>;
using Fp4Tensor = FourBitTensor<FourBitCode::kFp4>;

}  // namespace cuda
PEFT_END_NAMESPACE
