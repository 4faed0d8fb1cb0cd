#pragma once
/// GGUF files, versions 2 and 3, read in place: "GGUF", version u32, number of tensors u64, number of metadata values
/// u64; the values (key, type u32, value); per tensor name, number of dimensions u32, dimensions u64 (innermost first),
/// type u32, offset u64; then, aligned to `general.alignment`, the data that the offsets count in. Texts are a u64 length
/// and UTF-8; all little-endian.

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <limits>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "peft/io/gguf_value.hpp"
#include "peft/io/mapped_file.hpp"
#include "peft/io/tensor_table.hpp"

PEFT_BEGIN_NAMESPACE

namespace detail {

/// Reads numbers and texts from front to back; FormatError where the file ends too early.
class GgufCursor {
 public:
  GgufCursor(std::span<const std::byte> bytes, std::string_view where) : bytes_(bytes), where_(where) {}

  std::size_t position() const noexcept { return position_; }
  std::size_t left() const noexcept { return bytes_.size() - position_; }
  std::string_view where() const noexcept { return where_; }

  std::span<const std::byte> take(std::uint64_t size, std::string_view what) {
    if (size > left()) {
      fail<FormatError>("{}: {} at byte {} needs {} bytes; {} are left; the file is cut off or lies about its sizes",
                        where_, what, position_, size, left());
    }
    const auto result = bytes_.subspan(position_, static_cast<std::size_t>(size));
    position_ += result.size();
    return result;
  }
  template <class T>
  T number(std::string_view what) {
    return load<T>(take(sizeof(T), what).data());
  }
  std::string_view text(std::string_view what) {
    const auto size = number<std::uint64_t>(what);
    const auto bytes = take(size, what);
    return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
  }
  GgufType type(std::string_view what) {
    const auto number_of_type = number<std::uint32_t>(what);
    if (number_of_type > static_cast<std::uint32_t>(GgufType::kFloat64)) {
      fail<FormatError>("{}: {} at byte {} is {}; expected a value type from 0 to 12", where_, what, position_ - 4,
                        number_of_type);
    }
    return static_cast<GgufType>(number_of_type);
  }
  /// A number of things that take at least `least` bytes each, so that nothing is ever reserved for a lie.
  std::uint64_t count(std::string_view what, std::uint64_t least) {
    const auto value = number<std::uint64_t>(what);
    if (value > left() / least) {
      fail<FormatError>("{}: the {} is {}; the {} bytes that are left hold at most {}", where_, what, value, left(),
                        left() / least);
    }
    return value;
  }

 private:
  std::span<const std::byte> bytes_;
  std::string_view where_;
  std::size_t position_ = 0;
};

}  // namespace detail

/// Metadata and tensors of one file. Everything is checked before open() returns.
class GgufFile {
 public:
  /// Throws IoError, FormatError.
  static GgufFile open(const std::filesystem::path& path) { return GgufFile(path); }

  std::uint32_t version() const noexcept { return version_; }
  std::size_t alignment() const noexcept { return alignment_; }

  /// In the order of the file.
  std::span<const TensorRef> tensors() const noexcept { return table_.tensors(); }
  /// The tensor of that name, or nullptr.
  const TensorRef* find(std::string_view name) const noexcept { return table_.find(name); }
  /// The tensor of that name. Throws FormatError where there is none.
  const TensorRef& tensor(std::string_view name) const {
    const TensorRef* found = find(name);
    if (found == nullptr) fail<FormatError>("{}: has no tensor {}", where_, quote_text(name));
    return *found;
  }

  /// In the order of the file.
  std::span<const GgufValue> metadata() const noexcept { return values_; }
  /// The value of that key, or nullptr.
  const GgufValue* find_value(std::string_view key) const noexcept {
    const auto place = std::lower_bound(by_key_.begin(), by_key_.end(), key,
                                        [this](std::size_t i, std::string_view k) { return values_[i].key < k; });
    return place != by_key_.end() && values_[*place].key == key ? &values_[*place] : nullptr;
  }
  bool has(std::string_view key) const noexcept { return find_value(key) != nullptr; }

  /// The value of a key as T: an integer type (any integer in the file whose value fits), float or double (either in the
  /// file), bool or std::string_view. Throws FormatError where it is missing or of another kind.
  template <class T>
  T get(std::string_view key) const {
    return convert<T>(value(key));
  }
  /// The same, or `otherwise` where the key is missing.
  template <class T>
  T get_or(std::string_view key, T otherwise) const {
    const GgufValue* found = find_value(key);
    return found != nullptr ? convert<T>(*found) : otherwise;
  }
  /// The numbers of an array whose elements are stored as T. Throws FormatError.
  template <class T>
    requires std::is_arithmetic_v<T>
  GgufArray<T> array(std::string_view key) const {
    return GgufArray<T>(array_value(key, gguf_type_of<T>()).bytes);
  }
  /// The texts of an array: any bytes, since a tokenizer's pieces may be parts of characters. Throws FormatError.
  std::vector<std::string_view> strings(std::string_view key) const {
    const GgufValue& found = array_value(key, GgufType::kString);
    std::vector<std::string_view> result;
    result.reserve(static_cast<std::size_t>(found.count));
    detail::GgufCursor cursor(found.bytes, where_);
    for (std::uint64_t i = 0; i < found.count; ++i) result.push_back(cursor.text(key));
    return result;
  }

 private:
  explicit GgufFile(const std::filesystem::path& path) : where_("GGUF file " + path.string()) {
    file_ = MappedFile::open(path);
    detail::GgufCursor cursor(file_->bytes(), where_);
    read_version(cursor);
    constexpr std::uint64_t kLeastTensor = 8 + 4 + 4 + 8;  // name, dimensions, type, offset
    constexpr std::uint64_t kLeastValue = 8 + 4 + 1;       // key, type, value
    const std::uint64_t tensor_count = cursor.count("number of tensors", kLeastTensor);
    const std::uint64_t value_count = cursor.count("number of metadata values", kLeastValue);
    values_.reserve(static_cast<std::size_t>(value_count));
    for (std::uint64_t i = 0; i < value_count; ++i) values_.push_back(read_value(cursor));
    index_values();
    alignment_ = read_alignment();
    if (const auto parts = get_or<std::uint64_t>("split.count", 1); parts > 1) {
      fail<FormatError>("{}: it is one of {} parts of a split model, which is not supported; join them first "
                        "(gguf-split --merge)",
                        where_, parts);
    }
    std::vector<Entry> entries;
    entries.reserve(static_cast<std::size_t>(tensor_count));
    for (std::uint64_t i = 0; i < tensor_count; ++i) entries.push_back(read_entry(cursor));
    place(entries, cursor.position());
  }

  /// A tensor and where the file says it stands in the data.
  struct Entry {
    TensorRef tensor;
    std::uint64_t offset;
    std::uint64_t size;
  };

  void read_version(detail::GgufCursor& cursor) {
    const auto magic = cursor.take(4, "the magic number");
    if (std::memcmp(magic.data(), "GGUF", 4) != 0) {
      fail<FormatError>("{}: begins with {}; expected \"GGUF\"; this is no GGUF file", where_,
                        quote_text({reinterpret_cast<const char*>(magic.data()), 4}));
    }
    version_ = cursor.number<std::uint32_t>("the version");
    if (version_ == 2 || version_ == 3) return;
    if (version_ != 0 && (version_ & 0xFFFFu) == 0) {
      fail<FormatError>("{}: it is big-endian, which is not supported; convert it to little-endian", where_);
    }
    fail<FormatError>("{}: its version is {}; expected 2 or 3; convert the model again with current tools", where_,
                      version_);
  }

  GgufValue read_value(detail::GgufCursor& cursor) const {
    const std::size_t start = cursor.position();
    GgufValue result;
    result.key = cursor.text("a metadata key");
    if (result.key.empty() || result.key.size() > 65535 || !is_utf8(result.key)) {
      fail<FormatError>("{}: the metadata key at byte {} is {}; expected 1 to 65535 bytes of UTF-8", where_, start,
                        quote_text(result.key));
    }
    result.type = cursor.type("a metadata value's type");
    if (result.type == GgufType::kArray) {
      read_array(cursor, result, 0);
    } else if (result.type == GgufType::kString) {
      const std::string_view text = cursor.text(result.key);
      if (!is_utf8(text)) {
        fail<FormatError>("{}: the value of {} is {}; expected UTF-8", where_, quote_text(result.key), quote_text(text));
      }
      result.bytes = std::as_bytes(std::span(text.data(), text.size()));
    } else {
      result.bytes = cursor.take(size_of(result.type), result.key);
      if (result.type == GgufType::kBool) check_bools(result.key, result.bytes);
    }
    return result;
  }

  /// Element type, count and bytes of an array; arrays within arrays are checked and passed over.
  void read_array(detail::GgufCursor& cursor, GgufValue& result, int depth) const {
    constexpr int kMostDepth = 8;
    if (depth >= kMostDepth) {
      fail<FormatError>("{}: the arrays of {} are nested more than {} deep", where_, quote_text(result.key), kMostDepth);
    }
    result.element = cursor.type("an array's element type");
    const std::size_t size = size_of(result.element);
    // A text takes at least its length; an array at least its element type and count.
    const std::uint64_t least = size > 0 ? size : (result.element == GgufType::kString ? 8 : 12);
    result.count = cursor.count("number of elements of " + quote_text(result.key), least);
    const std::size_t start = cursor.position();
    if (size > 0) {
      result.bytes = cursor.take(result.count * size, result.key);
      if (result.element == GgufType::kBool) check_bools(result.key, result.bytes);
      return;
    }
    for (std::uint64_t i = 0; i < result.count; ++i) {
      if (result.element == GgufType::kString) {
        cursor.text(result.key);
      } else {
        GgufValue inner;
        inner.key = result.key;
        read_array(cursor, inner, depth + 1);
      }
    }
    result.bytes = file_->bytes().subspan(start, cursor.position() - start);
  }

  void check_bools(std::string_view key, std::span<const std::byte> bytes) const {
    for (const std::byte value : bytes) {
      if (value > std::byte{1}) {
        fail<FormatError>("{}: {} holds the boolean {}; expected 0 or 1", where_, quote_text(key),
                          static_cast<unsigned>(value));
      }
    }
  }

  void index_values() {
    by_key_.resize(values_.size());
    for (std::size_t i = 0; i < by_key_.size(); ++i) by_key_[i] = i;
    std::sort(by_key_.begin(), by_key_.end(),
              [this](std::size_t a, std::size_t b) { return values_[a].key < values_[b].key; });
    for (std::size_t i = 1; i < by_key_.size(); ++i) {
      if (values_[by_key_[i - 1]].key == values_[by_key_[i]].key) {
        fail<FormatError>("{}: the metadata key {} stands twice", where_, quote_text(values_[by_key_[i]].key));
      }
    }
  }

  std::size_t read_alignment() const {
    const GgufValue* found = find_value("general.alignment");
    if (found == nullptr) return 32;
    if (found->type != GgufType::kUint32) {
      fail<FormatError>("{}: general.alignment is of type {}; expected UINT32", where_, name_of(found->type));
    }
    const auto value = detail::load<std::uint32_t>(found->bytes.data());
    if (!std::has_single_bit(value)) {
      fail<FormatError>("{}: general.alignment is {}; expected a power of two", where_, value);
    }
    return value;
  }

  Entry read_entry(detail::GgufCursor& cursor) const {
    const std::size_t start = cursor.position();
    const std::string_view name = cursor.text("a tensor's name");
    if (name.empty() || !is_utf8(name)) {
      fail<FormatError>("{}: the tensor name at byte {} is {}; expected UTF-8 of at least one byte", where_, start,
                        quote_text(name));
    }
    const std::string tensor = fmt::format("{}: tensor {}", where_, quote_text(name));
    const auto rank = cursor.number<std::uint32_t>("a tensor's number of dimensions");
    if (rank > 4) fail<FormatError>("{}: {} dimensions; expected at most 4", tensor, rank);
    Entry result{{std::string(name), StoredType::kF32, std::vector<Index>(rank), {}, file_}, 0, 0};
    for (std::uint32_t i = 0; i < rank; ++i) {
      const auto size = cursor.number<std::uint64_t>("a tensor's dimensions");
      if (size > static_cast<std::uint64_t>(std::numeric_limits<Index>::max())) {
        fail<FormatError>("{}: dimension {} is {}; expected less than 2^63", tensor, i, size);
      }
      result.tensor.shape[rank - 1 - i] = static_cast<Index>(size);
    }
    const auto number = cursor.number<std::uint32_t>("a tensor's type");
    const std::optional<StoredType> type = gguf_tensor_type(number);
    if (!type) {
      fail<FormatError>("{}: its type has the number {}, which is not known; its size cannot be told", tensor, number);
    }
    result.tensor.type = *type;
    result.offset = cursor.number<std::uint64_t>("a tensor's offset");
    const std::optional<Index> count = detail::element_count(result.tensor.shape);
    const std::optional<Index> size = count ? detail::byte_count(*type, *count) : std::nullopt;
    if (!size || result.tensor.cols() % info_of(*type).block_elements != 0) {
      fail<FormatError>("{}: shape {} of {} is no whole number of blocks of {} per row, or cannot be addressed", tensor,
                        result.tensor.shape_text(), name_of(*type), info_of(*type).block_elements);
    }
    result.size = static_cast<std::uint64_t>(*size);
    if (result.offset % alignment_ != 0) {
      fail<FormatError>("{}: its data begins at offset {}; expected a multiple of {}, the file's alignment", tensor,
                        result.offset, alignment_);
    }
    return result;
  }

  /// Points the tensors into the data, which begins at the next aligned byte.
  void place(std::vector<Entry>& entries, std::size_t end_of_header) {
    const std::span<const std::byte> bytes = file_->bytes();
    const std::size_t padding = (alignment_ - end_of_header % alignment_) % alignment_;
    const bool has_data = padding <= bytes.size() - end_of_header;
    const std::span<const std::byte> data =
        has_data ? bytes.subspan(end_of_header + padding) : std::span<const std::byte>();
    for (Entry& entry : entries) {
      if (entry.offset > data.size() || entry.size > data.size() - entry.offset) {
        fail<FormatError>("{}: tensor {} needs {} bytes from offset {} of the data, which has {}; the file is cut off",
                          where_, quote_text(entry.tensor.name), entry.size, entry.offset, data.size());
      }
      entry.tensor.bytes = data.subspan(static_cast<std::size_t>(entry.offset), static_cast<std::size_t>(entry.size));
    }
    std::vector<const Entry*> order;
    for (const Entry& entry : entries) {
      if (entry.size > 0) order.push_back(&entry);
    }
    std::sort(order.begin(), order.end(), [](const Entry* a, const Entry* b) { return a->offset < b->offset; });
    for (std::size_t i = 1; i < order.size(); ++i) {
      if (order[i]->offset < order[i - 1]->offset + order[i - 1]->size) {
        fail<FormatError>("{}: the data of tensors {} and {} overlap", where_, quote_text(order[i - 1]->tensor.name),
                          quote_text(order[i]->tensor.name));
      }
    }
    std::vector<TensorRef> tensors;
    tensors.reserve(entries.size());
    for (Entry& entry : entries) tensors.push_back(std::move(entry.tensor));
    table_ = TensorTable(std::move(tensors), where_);
  }

  const GgufValue& value(std::string_view key) const {
    const GgufValue* found = find_value(key);
    if (found == nullptr) fail<FormatError>("{}: its metadata has no {}", where_, quote_text(key));
    return *found;
  }
  const GgufValue& array_value(std::string_view key, GgufType element) const {
    const GgufValue& found = value(key);
    if (found.type != GgufType::kArray || found.element != element) {
      fail<FormatError>("{}: {} is {}; expected an array of {}", where_, quote_text(key), kind_of(found), name_of(element));
    }
    return found;
  }
  static std::string kind_of(const GgufValue& value) {
    if (value.type != GgufType::kArray) return std::string(name_of(value.type));
    return fmt::format("an array of {} {}", value.count, name_of(value.element));
  }

  template <class T>
  T convert(const GgufValue& value) const {
    const std::byte* bytes = value.bytes.data();
    if constexpr (std::is_same_v<T, std::string_view>) {
      if (value.type == GgufType::kString) return {reinterpret_cast<const char*>(bytes), value.bytes.size()};
      wrong_kind(value, "a text");
    } else if constexpr (std::is_same_v<T, bool>) {
      if (value.type == GgufType::kBool) return *bytes != std::byte{0};
      wrong_kind(value, "a boolean");
    } else if constexpr (std::is_floating_point_v<T>) {
      if (value.type == GgufType::kFloat32) return static_cast<T>(detail::load<float>(bytes));
      if (value.type == GgufType::kFloat64) return static_cast<T>(detail::load<double>(bytes));
      wrong_kind(value, "a floating-point number");
    } else {
      static_assert(std::is_integral_v<T>, "GgufFile::get: integers, float, double, bool, std::string_view");
      switch (value.type) {
        case GgufType::kUint8:
          return fit<T>(value, detail::load<std::uint8_t>(bytes));
        case GgufType::kInt8:
          return fit<T>(value, detail::load<std::int8_t>(bytes));
        case GgufType::kUint16:
          return fit<T>(value, detail::load<std::uint16_t>(bytes));
        case GgufType::kInt16:
          return fit<T>(value, detail::load<std::int16_t>(bytes));
        case GgufType::kUint32:
          return fit<T>(value, detail::load<std::uint32_t>(bytes));
        case GgufType::kInt32:
          return fit<T>(value, detail::load<std::int32_t>(bytes));
        case GgufType::kUint64:
          return fit<T>(value, detail::load<std::uint64_t>(bytes));
        case GgufType::kInt64:
          return fit<T>(value, detail::load<std::int64_t>(bytes));
        default:
          wrong_kind(value, "a whole number");
      }
    }
  }
  template <class T, class S>
  T fit(const GgufValue& value, S number) const {
    if (!std::in_range<T>(number)) {
      fail<FormatError>("{}: {} is {}; expected a number from {} to {}", where_, quote_text(value.key), number,
                        std::numeric_limits<T>::min(), std::numeric_limits<T>::max());
    }
    return static_cast<T>(number);
  }
  [[noreturn]] void wrong_kind(const GgufValue& value, std::string_view expected) const {
    fail<FormatError>("{}: {} is {}; expected {}", where_, quote_text(value.key), kind_of(value), expected);
  }

  std::string where_;
  std::shared_ptr<const MappedFile> file_;
  std::uint32_t version_ = 0;
  std::size_t alignment_ = 32;
  std::vector<GgufValue> values_;
  std::vector<std::size_t> by_key_;
  TensorTable table_;
};

PEFT_END_NAMESPACE
