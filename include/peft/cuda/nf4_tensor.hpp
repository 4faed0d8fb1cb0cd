#pragma once
/// A weight in four bits on the GPU: peft::FourBitTensor's bytes, permuted once for the kernels (kernels/four_bit_layout.cuh),
/// and given back as they were, bit for bit. Files are the CPU's: a FourBitStorage is what checkpoints read and write.

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
#include "peft/cuda/transfer.hpp"
#include "peft/error.hpp"
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
  FourBitTensor(const FourBitStorage& host, Context& context) : shape_(host.shape), dtype_(host.dtype) {
    packed_ = {};
    packed_.block_size = static_cast<int>(host.block_size);
    measure(host);
    const bool nested = host.absmax.empty() && !host.nested_map.empty();
    const peft::kernels::FourBitTable& table = peft::kernels::table_of(kCode);
    std::copy(std::begin(table.value), std::end(table.value), packed_.value);
    packed_.nested_offset = host.nested_offset;

    codes_ = DeviceBuffer<std::uint8_t>(kernels::four_bit_code_bytes(packed_.out, packed_.in));
    const Index scales = kernels::four_bit_scale_count(packed_.out, packed_.in, packed_.block_size);
    if (nested) {
      nested_codes_ = DeviceBuffer<std::uint8_t>(scales);
      nested_map_ = copy_of(host.nested_map, context, "the nested map");
      nested_absmax_ = copy_of(host.nested_absmax, context, "the nested maxima");
    } else {
      absmax_ = DeviceBuffer<float>(scales);
    }
    packed_.codes = codes_.data();
    packed_.absmax = absmax_.data();
    packed_.nested_codes = nested_codes_.data();
    packed_.nested_map = nested_map_.data();
    packed_.nested_absmax = nested_absmax_.data();
    if (codes_.empty()) return;

    DeviceBuffer<std::uint8_t> flat_codes = copy_of(host.codes, context, "the codes");
    DeviceBuffer<std::uint8_t> flat_nested = copy_of(host.nested_codes, context, "the nested codes");
    DeviceBuffer<float> flat_absmax = copy_of(host.absmax, context, "the maxima");
    kernels::FourBitPackArgs args = pack_args();
    args.flat_codes = flat_codes.data();
    args.flat_nested_codes = flat_nested.data();
    args.flat_absmax = flat_absmax.data();
    check(kernels::four_bit_pack(args, context.stream()), "four_bit_pack kernel: [{}, {}] in blocks of {}", packed_.out,
          packed_.in, packed_.block_size);
    context.synchronize();  // the flat copies go
  }
  template <HostFourBit H>
  FourBitTensor(const H& host, Context& context) : FourBitTensor(host.storage(), context) {
    static_assert(H::code() == kCode, "the host's tensor has the other code");
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
      fetch(nested_map_, bytes->nested_map, context, "the nested map");
      fetch(nested_absmax_, bytes->nested_absmax, context, "the nested maxima");
    }
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
  void measure(const FourBitStorage& host) {
    constexpr std::string_view kWho = "cuda::FourBitTensor";
    const Index block = host.block_size;
    if (block < 32 || block > 4096 || (block & (block - 1)) != 0) {
      fail<ConfigError>("{}: the block size is {}; expected a power of two from 32 to 4096", kWho, block);
    }
    Index rows = 1;
    bool fits = true;
    for (std::size_t i = 0; i + 1 < shape_.size(); ++i) {
      fits = fits && shape_[i] >= 0 && !__builtin_mul_overflow(rows, shape_[i], &rows);
    }
    const Index cols = shape_.empty() ? 1 : shape_.back();
    fits = fits && cols >= 0 && rows <= INT32_MAX && cols <= INT32_MAX && !__builtin_mul_overflow(rows, cols, &element_count_);
    if (!fits) fail<ShapeError>("{}: a weight of {} rows of {}; expected a matrix that can be addressed", kWho, rows, cols);
    packed_.out = rows;
    packed_.in = cols;
    const bool nested = host.absmax.empty() && !host.nested_map.empty();
    const Index blocks = block_count();
    const auto check_size = [&](std::string_view what, Index got, Index expected) {
      if (got == expected) return;
      fail<ShapeError>("{}: {} {}; expected {} for {} elements in blocks of {}", kWho, got, what, expected, element_count_,
                       block);
    };
    check_size("codes", host.codes.size, element_count_ / 2 + element_count_ % 2);
    check_size("absmax", host.absmax.size, nested ? 0 : blocks);
    check_size("nested codes", host.nested_codes.size, nested ? blocks : 0);
    check_size("nested map", host.nested_map.size, nested ? 256 : 0);
    check_size("nested absmax", host.nested_absmax.size, nested ? (blocks + 255) / 256 : 0);
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
