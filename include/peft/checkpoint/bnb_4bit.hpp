#pragma once
/// A weight in four bits as bitsandbytes 0.50.2 puts it into safetensors. A weight named P is
///   P                                 U8 [⌈n/2⌉, 1], the codes
///   P.absmax                          F32 [m]; U8 [m] where quantised twice
///   P.quant_map                       F32 [16], the codes' values
///   P.nested_absmax                   F32 [⌈m/256⌉]
///   P.nested_quant_map                F32 [256]
///   P.quant_state.bitsandbytes__nf4   (or __fp4) U8, JSON in UTF-8: {"quant_type": "nf4", "blocksize": 64, "dtype":
///       "float32", "shape": [24, 128], "nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.087…}
/// with n elements and m = ⌈n/blocksize⌉ blocks. The JSON is checked against the tensors.

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "peft/io/json.hpp"
#include "peft/io/safetensors.hpp"
#include "peft/nf4_tensor.hpp"

PEFT_BEGIN_NAMESPACE
namespace detail {

inline constexpr std::string_view kBnbState = ".quant_state.bitsandbytes__";

/// Reads the parts of one weight. Everything it throws is a FormatError that names weight and file.
class Bnb4BitReader {
 public:
  Bnb4BitReader(const SafetensorsFile& file, std::string_view name, FourBitCode code)
      : file_(file), name_(name), code_(code), codes_(file.tensor(name)), where_("4-bit " + codes_.where()) {}

  FourBitStorage read() {
    const Json state = read_state();
    FourBitStorage storage;
    const std::string type = text(state, "quant_type");
    if (type != name_of(code_)) {
      fail<FormatError>("{}: quant_type is {} in a state named …bitsandbytes__{}", where_, quote_text(type), name_of(code_));
    }
    storage.block_size = whole(state, "blocksize");
    if (!kernels::is_four_bit_block(storage.block_size)) {
      fail<FormatError>("{}: blocksize is {}; expected a power of two from {} to {}", where_, storage.block_size,
                        kernels::kSmallestFourBitBlock, kernels::kLargestFourBitBlock);
    }
    storage.dtype = read_dtype(text(state, "dtype"));
    read_shape(state, storage);
    const Index n = element_product(storage.shape);
    const Index blocks = n / storage.block_size + (n % storage.block_size != 0 ? 1 : 0);
    if (codes_.type != StoredType::kU8) {
      fail<FormatError>("{}: its codes are {}; expected U8", where_, name_of(codes_.type));
    }
    check_count("codes", codes_, n / 2 + n % 2, storage);
    storage.codes = {reinterpret_cast<const std::uint8_t*>(codes_.bytes.data()), codes_.elements()};
    storage.keep_alive = codes_.file;
    check_values();
    const TensorRef& absmax = part("absmax");
    check_count("absmax", absmax, blocks, storage);
    if (absmax.type == StoredType::kU8) {
      read_nested(state, absmax, blocks, storage);
    } else {
      refuse_nested(state);
      storage.absmax = floats(absmax, storage);
    }
    return storage;
  }

 private:
  const TensorRef& part(std::string_view suffix) const {
    const std::string full = name_ + "." + std::string(suffix);
    const TensorRef* found = file_.find(full);
    if (found != nullptr) return *found;
    fail<FormatError>("{}: there is no tensor {}{}", where_, quote_text(full),
                      suffix.starts_with("nested") ? "; absmax is U8, so that the nested state is needed" : "");
  }

  Json read_state() const {
    const TensorRef& tensor = part(std::string(kBnbState.substr(1)) + std::string(name_of(code_)));
    if (tensor.type != StoredType::kU8) {
      fail<FormatError>("{}: its quant_state is {}; expected U8, the bytes of a JSON text", where_, name_of(tensor.type));
    }
    const std::string_view json(reinterpret_cast<const char*>(tensor.bytes.data()), tensor.bytes.size());
    Json state = parse_json(json, where_ + ", quant_state", 3);
    if (!state.is_object()) fail<FormatError>("{}: quant_state is {}; expected an object", where_, kind_of(state));
    constexpr std::string_view kKnown[] = {"quant_type", "blocksize", "dtype", "shape", "nested_blocksize", "nested_dtype",
                                           "nested_offset"};
    for (const auto& [key, value] : state.items()) {
      if (std::find(std::begin(kKnown), std::end(kKnown), key) != std::end(kKnown)) continue;
      fail<FormatError>("{}: quant_state has a member {}, which bitsandbytes 0.50.2 does not write", where_,
                        quote_text(key));
    }
    return state;
  }

  const Json& member(const Json& state, const char* key) const {
    const auto found = state.find(key);
    if (found == state.end()) fail<FormatError>("{}: quant_state has no \"{}\"", where_, key);
    return *found;
  }
  std::string text(const Json& state, const char* key) const {
    const Json& value = member(state, key);
    if (!value.is_string()) fail<FormatError>("{}: {} is {}; expected a text", where_, key, kind_of(value));
    return value.get<std::string>();
  }
  Index whole(const Json& state, const char* key) const { return whole_number(member(state, key), key); }
  Index whole_number(const Json& value, std::string_view what) const {
    if (value.is_number_unsigned()) {
      const auto number = value.get<std::uint64_t>();
      if (number <= static_cast<std::uint64_t>(std::numeric_limits<Index>::max())) return static_cast<Index>(number);
    }
    fail<FormatError>("{}: {} is {}; expected a whole number from 0 below 2^63", where_, what,
                      value.is_number() ? value.dump() : std::string(kind_of(value)));
  }
  DType read_dtype(const std::string& name) const {
    if (name == "float32") return DType::kF32;
    if (name == "bfloat16") return DType::kBF16;
    if (name == "float16") return DType::kF16;
    fail<FormatError>("{}: dtype is {}; expected \"float32\", \"bfloat16\" or \"float16\"", where_, quote_text(name));
  }
  void read_shape(const Json& state, FourBitStorage& storage) const {
    const Json& shape = member(state, "shape");
    if (!shape.is_array()) fail<FormatError>("{}: shape is {}; expected a list of sizes", where_, kind_of(shape));
    for (const Json& size : shape) storage.shape.push_back(whole_number(size, "a size in shape"));
    if (element_product(storage.shape) < 0) {
      fail<FormatError>("{}: shape {} cannot be addressed", where_, shape_text(storage.shape));
    }
  }
  void check_count(std::string_view what, const TensorRef& tensor, Index expected, const FourBitStorage& storage) const {
    if (tensor.elements() == expected) return;
    fail<FormatError>("{}: {} {}; expected {} for the shape {} that quant_state gives, in blocks of {}", where_,
                      tensor.elements(), what, expected, shape_text(storage.shape), storage.block_size);
  }
  /// The values that the file gives its codes must be those of its type.
  void check_values() const {
    const TensorRef& map = part("quant_map");
    if (map.type != StoredType::kF32 || map.elements() != 16) {
      fail<FormatError>("{}: quant_map is {} {}; expected F32 [16]", where_, name_of(map.type), map.shape_text());
    }
    float value[16];
    std::memcpy(value, map.bytes.data(), sizeof(value));
    for (int i = 0; i < 16; ++i) {
      const float want = kernels::table_of(code_).value[i];
      if (value[i] == want) continue;
      fail<FormatError>("{}: quant_map gives code {} the value {}; {}'s is {}", where_, i, value[i], name_of(code_), want);
    }
  }
  void read_nested(const Json& state, const TensorRef& absmax, Index blocks, FourBitStorage& storage) const {
    const TensorRef& nested_absmax = part("nested_absmax");
    const TensorRef& nested_map = part("nested_quant_map");
    if (const Index size = whole(state, "nested_blocksize"); size != kernels::kNestedBlock) {
      fail<FormatError>("{}: nested_blocksize is {}; expected {}", where_, size, kernels::kNestedBlock);
    }
    if (const std::string type = text(state, "nested_dtype"); type != "float32") {
      fail<FormatError>("{}: nested_dtype is {}; expected \"float32\"", where_, quote_text(type));
    }
    const Json& offset = member(state, "nested_offset");
    if (!offset.is_number() || !is_finite(static_cast<float>(offset.get<double>()))) {
      fail<FormatError>("{}: nested_offset is {}; expected a finite number", where_,
                        offset.is_number() ? offset.dump() : std::string(kind_of(offset)));
    }
    storage.nested_offset = static_cast<float>(offset.get<double>());
    check_count("values in nested_quant_map", nested_map, 256, storage);
    check_count("values in nested_absmax", nested_absmax,
                (blocks + kernels::kNestedBlock - 1) / kernels::kNestedBlock, storage);
    storage.nested_codes = {reinterpret_cast<const std::uint8_t*>(absmax.bytes.data()), absmax.elements()};
    storage.nested_map = floats(nested_map, storage);
    storage.nested_absmax = floats(nested_absmax, storage);
  }
  void refuse_nested(const Json& state) const {
    if (state.find("nested_offset") == state.end() && file_.find(name_ + ".nested_absmax") == nullptr) return;
    fail<FormatError>("{}: absmax is F32 although there is a nested state; expected U8", where_);
  }
  /// In place where they are aligned, else a copy that lives as long as the storage.
  VectorView<const float> floats(const TensorRef& tensor, FourBitStorage& storage) const {
    if (tensor.type != StoredType::kF32) {
      fail<FormatError>("{}: {} is {}; expected F32", where_, quote_text(tensor.name), name_of(tensor.type));
    }
    VectorView<const float> values;
    if (tensor.has_view<float>()) {
      values = {reinterpret_cast<const float*>(tensor.bytes.data()), tensor.elements()};
    } else {
      auto copy = std::make_shared<std::pair<std::shared_ptr<const void>, Buffer<float>>>(std::move(storage.keep_alive),
                                                                                          Buffer<float>(tensor.elements()));
      std::memcpy(copy->second.data(), tensor.bytes.data(), tensor.bytes.size());
      values = std::as_const(copy->second).view();
      storage.keep_alive = std::move(copy);
    }
    for (Index i = 0; i < values.size; ++i) {
      if (!is_finite(values[i])) {
        fail<FormatError>("{}: element {} of {} is {}; expected finite numbers", where_, i, quote_text(tensor.name),
                          values[i]);
      }
    }
    return values;
  }

  const SafetensorsFile& file_;
  std::string name_;
  FourBitCode code_;
  const TensorRef& codes_;
  std::string where_;
};

/// A double as Python writes it: the shortest text that is this number, never without a point or an exponent.
inline std::string python_float(double value) {
  std::string text = fmt::format("{}", value);
  if (text.find_first_of(".en") == std::string::npos) text += ".0";
  return text;
}

}  // namespace detail

/// The type of the 4-bit weight `name`, or none where the file holds no 4-bit weight of that name. Throws FormatError where
/// it has states of both types.
inline std::optional<FourBitCode> bnb_4bit_code(const SafetensorsFile& file, std::string_view name) {
  const std::string state = std::string(name) + std::string(detail::kBnbState);
  const bool nf4 = file.find(state + "nf4") != nullptr, fp4 = file.find(state + "fp4") != nullptr;
  if (nf4 && fp4) {
    fail<FormatError>("4-bit {}: it has a state of nf4 and one of fp4; expected one", file.tensor(name).where());
  }
  if (nf4) return FourBitCode::kNf4;
  if (fp4) return FourBitCode::kFp4;
  return std::nullopt;
}

/// The 4-bit weight `name` ("….q_proj.weight"), its bytes left in the mapped file. Throws FormatError: no such tensor, not of
/// that type, a part missing, sizes that contradict each other or the JSON, numbers that are not finite.
template <FourBitCode kCode = FourBitCode::kNf4>
FourBitTensor<kCode> read_bnb_4bit(const SafetensorsFile& file, std::string_view name) {
  const TensorRef& codes = file.tensor(name);
  const std::optional<FourBitCode> code = bnb_4bit_code(file, name);
  if (code != kCode) {
    fail<FormatError>("4-bit {}: it is {}; expected {}", codes.where(),
                      code ? std::string(name_of(*code)) : "not quantised by bitsandbytes (it has no quant_state)",
                      name_of(kCode));
  }
  return FourBitTensor<kCode>(detail::Bnb4BitReader(file, name, kCode).read(), "4-bit " + codes.where());
}

/// A weight in four bits of either type.
using AnyFourBitTensor = std::variant<Nf4Tensor, Fp4Tensor>;

/// The same where the file says which type the weight is of; none where it holds no 4-bit weight of that name. Throws
/// FormatError.
inline std::optional<AnyFourBitTensor> find_bnb_4bit(const SafetensorsFile& file, std::string_view name) {
  const std::optional<FourBitCode> code = bnb_4bit_code(file, name);
  if (!code) return std::nullopt;
  if (*code == FourBitCode::kNf4) return read_bnb_4bit<FourBitCode::kNf4>(file, name);
  return read_bnb_4bit<FourBitCode::kFp4>(file, name);
}

/// The weight that a tensor of this name is a part of, by the name's ending; none for other names and for the codes themselves.
inline std::optional<std::string_view> bnb_4bit_owner(std::string_view name) noexcept {
  for (const std::string_view ending : {".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map",
                                        ".quant_state.bitsandbytes__nf4", ".quant_state.bitsandbytes__fp4"}) {
    if (name.ends_with(ending)) return name.substr(0, name.size() - ending.size());
  }
  return std::nullopt;
}

/// The tensors of one 4-bit weight for write_safetensors. They refer to this object, which stays where it is.
template <FourBitCode kCode = FourBitCode::kNf4>
class Bnb4BitTensors {
 public:
  /// `name` is the weight's: "….q_proj.weight".
  Bnb4BitTensors(const std::string& name, FourBitTensor<kCode> tensor)
      : tensor_(std::move(tensor)), state_(state_text(tensor_.storage())) {
    const FourBitStorage& s = tensor_.storage();
    add(name, StoredType::kU8, {s.codes.size, 1}, s.codes.data);
    if (tensor_.is_double_quantized()) {
      add(name + ".absmax", StoredType::kU8, {s.nested_codes.size}, s.nested_codes.data);
      add(name + ".nested_absmax", StoredType::kF32, {s.nested_absmax.size}, s.nested_absmax.data);
      add(name + ".nested_quant_map", StoredType::kF32, {s.nested_map.size}, s.nested_map.data);
    } else {
      add(name + ".absmax", StoredType::kF32, {s.absmax.size}, s.absmax.data);
    }
    add(name + ".quant_map", StoredType::kF32, {16}, kernels::table_of(kCode).value);
    add(name + std::string(detail::kBnbState) + std::string(name_of(kCode)), StoredType::kU8,
        {static_cast<Index>(state_.size())}, state_.data());
  }
  Bnb4BitTensors(const Bnb4BitTensors&) = delete;
  Bnb4BitTensors& operator=(const Bnb4BitTensors&) = delete;

  const std::vector<TensorRef>& tensors() const noexcept { return tensors_; }

 private:
  static std::string state_text(const FourBitStorage& s) {
    const std::string_view dtype = s.dtype == DType::kF32 ? "float32" : s.dtype == DType::kBF16 ? "bfloat16" : "float16";
    std::string text = fmt::format(R"({{"quant_type": "{}", "blocksize": {}, "dtype": "{}", "shape": {})", name_of(kCode),
                                   s.block_size, dtype, detail::shape_text(s.shape));
    if (!s.nested_map.empty()) {
      text += fmt::format(R"(, "nested_blocksize": {}, "nested_dtype": "float32", "nested_offset": {})",
                          kernels::kNestedBlock, detail::python_float(static_cast<double>(s.nested_offset)));
    }
    return text + "}";
  }
  void add(std::string name, StoredType type, std::vector<Index> shape, const void* data) {
    const auto size = static_cast<std::size_t>(*detail::byte_count(type, *detail::element_count(shape)));
    tensors_.push_back({std::move(name), type, std::move(shape), {static_cast<const std::byte*>(data), size}, nullptr});
  }

  FourBitTensor<kCode> tensor_;
  std::string state_;
  std::vector<TensorRef> tensors_;
};

PEFT_END_NAMESPACE
