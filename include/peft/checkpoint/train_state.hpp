#pragma once
/// The state of a training as one file, written in one step: named matrices, numbers and texts, what the run was begun
/// with, and the instruction set whose bits it has. A safetensors file: matrices under "group/name" ("exp_avg/…"), the
/// rest as JSON in its metadata. Everything comes back bit for bit.

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include "peft/core/view.hpp"
#include "peft/io/json.hpp"
#include "peft/io/safetensors.hpp"
#include "peft/io/safetensors_writer.hpp"

PEFT_BEGIN_NAMESPACE

/// A number or text of a state. Whole numbers keep their sign's type, so that a seed of 64 bits fits.
using StateScalar = std::variant<bool, std::int64_t, std::uint64_t, double, std::string>;

/// As read, the tensors view the mapped file; to be written, they view the caller's memory (see tensor_ref).
class TrainState {
 public:
  /// Grows where an older reader would misread a newer file.
  static constexpr int kVersion = 1;

  /// The file that it was read from, for messages; empty for one to be written.
  std::filesystem::path path;
  /// The instruction set that computed it: "avx512". Another one rounds in other places, so resuming there is not
  /// bit-exact: see isa_note().
  std::string isa;
  /// Settings and data of the run, in the caller's words: (name, value). See require_fingerprint().
  std::vector<std::pair<std::string, std::string>> fingerprint;
  /// Step, epoch, position, seed, best metric, loss scale… by name.
  std::map<std::string, StateScalar> scalars;
  /// Parameters, moments…, each named "group/name".
  std::vector<TensorRef> tensors;

  /// Called while it is written, where it is not empty, with pieces of tensors that are in the file.
  std::function<void(std::span<const std::byte>)> done;

  /// Adds a matrix over the caller's memory: of float, double or bytes.
  template <class A>
  void add(std::string_view group, std::string_view name, Index rows, Index cols, VectorView<const A> values) {
    if (rows * cols != values.size) {
      fail<ShapeError>("TrainState::add: {}/{} has {} values; expected {} for [{}, {}]", group, name, values.size,
                       rows * cols, rows, cols);
    }
    std::string key = fmt::format("{}/{}", group, name);
    if constexpr (std::same_as<A, std::uint8_t>) {
      const auto bytes = std::as_bytes(std::span(values.data, static_cast<std::size_t>(values.size)));
      tensors.push_back({std::move(key), StoredType::kU8, {rows, cols}, bytes, nullptr});
    } else {
      tensors.push_back(tensor_ref<A>(std::move(key), MatrixView<const A>(values.data, rows, cols)));
    }
  }

  /// The matrix, or nullptr.
  const TensorRef* find(std::string_view group, std::string_view name) const {
    const std::string key = fmt::format("{}/{}", group, name);
    const auto found = std::find_if(tensors.begin(), tensors.end(), [&](const TensorRef& t) { return t.name == key; });
    return found != tensors.end() ? &*found : nullptr;
  }
  /// The matrices of a group with their names in it, in the order of names.
  std::vector<std::pair<std::string, const TensorRef*>> group(std::string_view name) const {
    const std::string prefix = std::string(name) + "/";
    std::vector<std::pair<std::string, const TensorRef*>> result;
    for (const TensorRef& tensor : tensors) {
      if (tensor.name.starts_with(prefix)) result.emplace_back(tensor.name.substr(prefix.size()), &tensor);
    }
    std::sort(result.begin(), result.end());
    return result;
  }

  /// The scalar as T: bool, any integer type, double or std::string. Throws FormatError where it is missing, of another
  /// kind or does not fit.
  template <class T>
  T get(std::string_view name) const {
    const auto found = scalars.find(std::string(name));
    if (found == scalars.end()) fail<FormatError>("{}: it has no \"{}\"", where(), name);
    const StateScalar& value = found->second;
    if constexpr (std::is_integral_v<T> && !std::is_same_v<T, bool>) {
      if (const auto* number = std::get_if<std::int64_t>(&value); number != nullptr && std::in_range<T>(*number)) {
        return static_cast<T>(*number);
      }
      if (const auto* number = std::get_if<std::uint64_t>(&value); number != nullptr && std::in_range<T>(*number)) {
        return static_cast<T>(*number);
      }
    } else if (const auto* same = std::get_if<T>(&value)) {
      return *same;
    }
    fail<FormatError>("{}: \"{}\" is {}; expected another kind of value or range", where(), name, text_of(value));
  }
  /// The same; none where it is missing.
  template <class T>
  std::optional<T> find_scalar(std::string_view name) const {
    if (!scalars.contains(std::string(name))) return std::nullopt;
    return get<T>(name);
  }

  /// Throws ConfigError with the first name whose value differs from the run's that wants to go on, both values in the
  /// text; also where one of the two lacks a name.
  void require_fingerprint(const std::vector<std::pair<std::string, std::string>>& own) const {
    const auto value_in = [](const auto& list, const std::string& name) -> const std::string* {
      const auto found = std::find_if(list.begin(), list.end(), [&](const auto& entry) { return entry.first == name; });
      return found != list.end() ? &found->second : nullptr;
    };
    const auto refuse = [this](const std::string& name, const std::string* here, const std::string* saved) {
      fail<ConfigError>("resuming from {}: {} is {}, but the saved run has {}; go on with the settings and data that "
                        "it began with, or begin a new run",
                        where(), name, here != nullptr ? quote_text(*here) : "not set",
                        saved != nullptr ? quote_text(*saved) : "none");
    };
    // A setting that only one of them has says more than the values that follow from it.
    for (const auto& [name, value] : own) {
      if (value_in(fingerprint, name) == nullptr) refuse(name, &value, nullptr);
    }
    for (const auto& [name, value] : fingerprint) {
      if (value_in(own, name) == nullptr) refuse(name, nullptr, &value);
    }
    for (const auto& [name, value] : own) {
      const std::string* saved = value_in(fingerprint, name);
      if (*saved != value) refuse(name, &value, saved);
    }
  }

  /// What to tell where the run goes on with another instruction set than it was saved with; none where it is the same.
  std::optional<std::string> isa_note(std::string_view own) const {
    if (own == isa) return std::nullopt;
    return fmt::format("the saved run computed with {}, this one does with {}: it goes on, but not bit for bit as it "
                       "would have there",
                       isa, own);
  }

  /// For messages: "train state FILE".
  std::string where() const { return path.empty() ? "train state" : "train state " + path.string(); }

  static std::string text_of(const StateScalar& value) {
    return std::visit([](const auto& v) { return fmt::format("{}", v); }, value);
  }
};

namespace detail {

inline Json scalar_to_json(const std::string& name, const StateScalar& value, std::string_view where) {
  if (const auto* number = std::get_if<double>(&value); number != nullptr && !is_finite(*number)) {
    fail<NumericError>("{}: \"{}\" is {}; expected a finite number", where, name, *number);
  }
  if (const auto* text = std::get_if<std::string>(&value); text != nullptr && !is_utf8(*text)) {
    fail<FormatError>("{}: \"{}\" is {}; expected UTF-8", where, name, quote_text(*text));
  }
  return std::visit([](const auto& v) { return Json(v); }, value);
}

inline StateScalar scalar_from_json(const std::string& name, const Json& value, std::string_view where) {
  if (value.is_boolean()) return value.get<bool>();
  if (value.is_number_unsigned()) {
    const auto number = value.get<std::uint64_t>();
    // Written from a signed number where it fits one; std::in_range tells the reader either way.
    if (std::in_range<std::int64_t>(number)) return static_cast<std::int64_t>(number);
    return number;
  }
  if (value.is_number_integer()) return value.get<std::int64_t>();
  if (value.is_number_float()) return value.get<double>();
  if (value.is_string()) return value.get<std::string>();
  fail<FormatError>("{}: \"{}\" is {}; expected a number, a text, true or false", where, name, kind_of(value));
}

inline constexpr const char* kStateVersion = "peft.train_state.version";
inline constexpr const char* kStateIsa = "peft.train_state.isa";
inline constexpr const char* kStateFingerprint = "peft.train_state.fingerprint";
inline constexpr const char* kStateScalars = "peft.train_state.scalars";

/// Names are "group/name"; types are those that training computes in.
inline void check_state_tensor(const TensorRef& tensor, std::string_view where) {
  const std::size_t slash = tensor.name.find('/');
  if (slash == 0 || slash == std::string::npos || slash + 1 == tensor.name.size()) {
    fail<FormatError>("{}: a tensor is named {}; expected group/name", where, quote_text(tensor.name));
  }
  const bool known = tensor.type == StoredType::kF32 || tensor.type == StoredType::kF64 || tensor.type == StoredType::kU8;
  if (!known || tensor.shape.size() != 2) {
    fail<FormatError>("{}: tensor {} is {} {}; expected a matrix of F32, F64 or U8", where, quote_text(tensor.name),
                      name_of(tensor.type), tensor.shape_text());
  }
}

}  // namespace detail

/// Writes the state into an open file, say one of a set that belongs together (AtomicDirectory). Throws IoError;
/// FormatError, NumericError for what cannot be written, before anything is.
inline void write_train_state(FileWriter& file, const TrainState& state) {
  const std::string where = "saving the train state to " + file.shown().string();
  for (const TensorRef& tensor : state.tensors) detail::check_state_tensor(tensor, where);
  Json fingerprint = Json::array();
  for (const auto& [name, value] : state.fingerprint) {
    if (!is_utf8(name) || !is_utf8(value)) {
      fail<FormatError>("{}: the fingerprint's {} is {}; expected UTF-8", where, quote_text(name), quote_text(value));
    }
    fingerprint.push_back(Json::array({name, value}));
  }
  Json scalars = Json::object();
  for (const auto& [name, value] : state.scalars) {
    if (!is_utf8(name)) fail<FormatError>("{}: a scalar is named {}; expected UTF-8", where, quote_text(name));
    scalars[name] = detail::scalar_to_json(name, value, where);
  }
  write_safetensors(file, state.tensors,
                    {{detail::kStateVersion, std::to_string(TrainState::kVersion)},
                     {detail::kStateIsa, state.isa},
                     {detail::kStateFingerprint, fingerprint.dump()},
                     {detail::kStateScalars, scalars.dump()}},
                    state.done);
}

/// Writes a file in one step: a kill at any moment leaves the old state or the new one. Throws as above.
inline void save_train_state(const std::filesystem::path& path, const TrainState& state) {
  AtomicFile file(path);
  write_train_state(file.writer(), state);
  file.commit();
}

/// Reads and checks a state. Throws IoError, FormatError.
inline TrainState load_train_state(const std::filesystem::path& path) {
  const SafetensorsFile file = SafetensorsFile::open(path);
  const std::string where = "train state " + path.string();
  const auto entry = [&](const char* key) -> const std::string& {
    const auto found = file.metadata().find(key);
    if (found == file.metadata().end()) {
      fail<FormatError>("{}: its metadata has no {}; this is no train state", where, key);
    }
    return found->second;
  };
  if (const std::string& version = entry(detail::kStateVersion); version != std::to_string(TrainState::kVersion)) {
    fail<FormatError>("{}: its version is {}; expected {}; it was written by another version of this library", where,
                      quote_text(version), TrainState::kVersion);
  }
  TrainState state;
  state.path = path;
  state.isa = entry(detail::kStateIsa);
  const Json fingerprint = parse_json(entry(detail::kStateFingerprint), where + ", fingerprint", 3);
  const Json scalars = parse_json(entry(detail::kStateScalars), where + ", scalars", 2);
  if (!fingerprint.is_array() || !scalars.is_object()) {
    fail<FormatError>("{}: fingerprint is {} and scalars is {}; expected a list and an object", where,
                      kind_of(fingerprint), kind_of(scalars));
  }
  for (const Json& pair : fingerprint) {
    if (!pair.is_array() || pair.size() != 2 || !pair[0].is_string() || !pair[1].is_string()) {
      fail<FormatError>("{}: the fingerprint holds {}; expected pairs of texts", where, kind_of(pair));
    }
    state.fingerprint.emplace_back(pair[0].get<std::string>(), pair[1].get<std::string>());
  }
  for (const auto& [name, value] : scalars.items()) {
    state.scalars.emplace(name, detail::scalar_from_json(name, value, where));
  }
  for (const TensorRef& tensor : file.tensors()) {
    detail::check_state_tensor(tensor, where);
    state.tensors.push_back(tensor);
  }
  return state;
}

namespace detail {

/// Gives back the memory of a file's bytes, with the pages that they share with others.
inline void forget_pages(const MappedFile& file, std::span<const std::byte> bytes) noexcept {
  constexpr std::size_t kAround = std::size_t{64} << 10;  // what the system maps around a page that is touched
  const std::span<const std::byte> all = file.bytes();
  const std::size_t start = reinterpret_cast<std::uintptr_t>(bytes.data()) - reinterpret_cast<std::uintptr_t>(all.data());
  if (start >= all.size() || bytes.size() > all.size() - start) return;  // another's memory
  const std::size_t first = start > kAround ? start - kAround : 0;
  file.release(all.subspan(first, std::min(all.size() - first, start - first + bytes.size() + kAround)));
}

template <std::floating_point A>
void check_state_type(const TensorRef& tensor) {
  if (tensor.type == stored_type_of<A>()) return;
  fail<FormatError>("{}: it is stored as {}; expected {}, the type that this run computes in", tensor.where(),
                    name_of(tensor.type), name_of(stored_type_of<A>()));
}

template <std::floating_point A>
void check_state_numbers(const TensorRef& tensor, Index first, VectorView<const A> values) {
  for (Index i = 0; i < values.size; ++i) {
    if (is_finite(values[i])) continue;
    fail<NumericError>("{}: it holds {} at [{}, {}]; expected finite numbers", tensor.where(), values[i],
                       (first + i) / tensor.cols(), (first + i) % tensor.cols());
  }
}

}  // namespace detail

/// Copies a matrix of a state. Throws FormatError where it is stored in another type than A, ShapeError where its shape
/// is another, NumericError where a value is not finite.
template <std::floating_point A>
void copy_state(const TensorRef& tensor, Index rows, Index cols, VectorView<A> out) {
  detail::check_state_type<A>(tensor);
  if (tensor.rows() != rows || tensor.cols() != cols || out.size != tensor.elements()) {
    fail<ShapeError>("{}: its shape is {}; expected [{}, {}]", tensor.where(), tensor.shape_text(), rows, cols);
  }
  if (!tensor.bytes.empty()) std::memcpy(out.data, tensor.bytes.data(), tensor.bytes.size());
  detail::check_state_numbers(tensor, 0, VectorView<const A>(out));
}

/// A matrix of a state where it stands in the file, checked as copy_state checks it, but not kept in memory. Throws FormatError
/// also where it is not aligned.
template <std::floating_point A>
VectorView<const A> view_state(const TensorRef& tensor) {
  detail::check_state_type<A>(tensor);
  const VectorView<const A> all(tensor.view<A>().data, tensor.elements());
  constexpr Index kPiece = 65536;
  for (Index first = 0; first < all.size; first += kPiece) {
    const VectorView<const A> piece = all.slice(first, std::min(kPiece, all.size - first));
    detail::check_state_numbers(tensor, first, piece);
    if (tensor.file != nullptr) {
      detail::forget_pages(*tensor.file, std::as_bytes(std::span(piece.data, static_cast<std::size_t>(piece.size))));
    }
  }
  return all;
}

PEFT_END_NAMESPACE
