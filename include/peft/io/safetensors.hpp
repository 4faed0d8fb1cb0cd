#pragma once
/// safetensors files, read in place: 8 bytes little-endian header length n, n bytes of JSON
///   {"__metadata__": {text: text}, name: {"dtype": "F32", "shape": [8, 32], "data_offsets": [begin, end]}, …}
/// padded with spaces, then the tensors' bytes without gaps or overlaps; offsets count from the end of the header.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "peft/io/json.hpp"
#include "peft/io/mapped_file.hpp"
#include "peft/io/tensor_table.hpp"

PEFT_BEGIN_NAMESPACE

/// Text that goes with the tensors; Python's writers put {"format": "pt"}.
using SafetensorsMetadata = std::map<std::string, std::string>;

/// The limit of the reference implementation.
inline constexpr std::uint64_t kSafetensorsMaxHeader = 100'000'000;

/// The tensors of one file or of the shards of one model. Everything is checked before open() returns.
class SafetensorsFile {
 public:
  /// Throws IoError, FormatError.
  static SafetensorsFile open(const std::filesystem::path& path) {
    SafetensorsFile result;
    result.where_ = "safetensors file " + path.string();
    std::vector<TensorRef> tensors;
    result.read(path, tensors);
    result.table_ = TensorTable(std::move(tensors), result.where_);
    return result;
  }

  /// All shards that an index (`model.safetensors.index.json`) names. Every tensor of the index must stand in the shard
  /// it names, and every tensor of a shard in the index. Throws IoError, FormatError.
  static SafetensorsFile open_sharded(const std::filesystem::path& index) {
    SafetensorsFile result;
    result.where_ = "safetensors index " + index.string();
    const auto file = MappedFile::open(index);
    const std::string_view text(reinterpret_cast<const char*>(file->bytes().data()), file->bytes().size());
    if (text.size() > kSafetensorsMaxHeader) {
      fail<FormatError>("{}: {} bytes; expected at most {}", result.where_, text.size(), kSafetensorsMaxHeader);
    }
    const std::map<std::string, std::string> shard_of = result.read_weight_map(parse_json(text, result.where_, 8));
    std::set<std::string> shards;
    for (const auto& [tensor, shard] : shard_of) shards.insert(shard);
    std::vector<TensorRef> tensors;
    for (const std::string& shard : shards) {
      const std::size_t first = tensors.size();
      result.read(index.parent_path() / shard, tensors);
      for (std::size_t i = first; i < tensors.size(); ++i) {
        const auto entry = shard_of.find(tensors[i].name);
        if (entry == shard_of.end() || entry->second != shard) {
          fail<FormatError>("{}: shard {} holds {}; the index {}", result.where_, shard, quote_text(tensors[i].name),
                            entry == shard_of.end() ? "does not name it" : "puts it into " + quote_text(entry->second));
        }
      }
    }
    result.table_ = TensorTable(std::move(tensors), result.where_);
    for (const auto& [tensor, shard] : shard_of) {
      if (result.find(tensor) == nullptr) {
        fail<FormatError>("{}: tensor {} is said to be in {}; it is not there", result.where_, quote_text(tensor),
                          quote_text(shard));
      }
    }
    return result;
  }

  /// A folder's `model.safetensors`, or its shards. Throws IoError where it has neither, FormatError.
  static SafetensorsFile open_folder(const std::filesystem::path& folder) {
    const std::filesystem::path single = folder / "model.safetensors";
    const std::filesystem::path index = folder / "model.safetensors.index.json";
    std::error_code ignored;
    if (std::filesystem::exists(single, ignored)) return open(single);
    if (std::filesystem::exists(index, ignored)) return open_sharded(index);
    fail<IoError>("SafetensorsFile: {} has neither model.safetensors nor model.safetensors.index.json", folder.string());
  }

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
  const SafetensorsMetadata& metadata() const noexcept { return metadata_; }

 private:
  /// A tensor and where the header says it stands in the data.
  struct Entry {
    TensorRef tensor;
    std::size_t begin;
    std::size_t size;
  };

  SafetensorsFile() = default;

  std::map<std::string, std::string> read_weight_map(const Json& index) const {
    const auto map = index.is_object() ? index.find("weight_map") : index.end();
    if (!index.is_object() || map == index.end() || !map->is_object()) {
      fail<FormatError>("{}: expected an object with an object \"weight_map\" of tensor names and file names", where_);
    }
    std::map<std::string, std::string> result;
    for (const auto& [tensor, shard] : map->items()) {
      const std::string* name = shard.is_string() ? &shard.get_ref<const std::string&>() : nullptr;
      // A plain file name beside the index: nothing that leads elsewhere.
      if (name == nullptr || name->empty() || name->find('/') != std::string::npos || *name == "." || *name == ".." ||
          name->find('\0') != std::string::npos) {
        fail<FormatError>("{}: weight_map[{}] is {}; expected the name of a file in the same folder", where_,
                          quote_text(tensor), name != nullptr ? quote_text(*name) : std::string(kind_of(shard)));
      }
      result.emplace(tensor, *name);
    }
    return result;
  }

  /// Adds one file's tensors and metadata.
  void read(const std::filesystem::path& path, std::vector<TensorRef>& tensors) {
    const auto file = MappedFile::open(path);
    const std::span<const std::byte> bytes = file->bytes();
    const std::string where = "safetensors file " + path.string();
    if (bytes.size() < 8) {
      fail<FormatError>("{}: {} bytes; expected at least 8, the length of the header", where, bytes.size());
    }
    const auto length = detail::load<std::uint64_t>(bytes.data());
    if (length > kSafetensorsMaxHeader) {
      fail<FormatError>("{}: its first 8 bytes give a header of {} bytes; expected at most {}; this may be no "
                        "safetensors file",
                        where, length, kSafetensorsMaxHeader);
    }
    if (length > bytes.size() - 8) {
      fail<FormatError>("{}: the header should have {} bytes, but only {} follow; the file is cut off", where, length,
                        bytes.size() - 8);
    }
    const std::string_view header(reinterpret_cast<const char*>(bytes.data()) + 8, static_cast<std::size_t>(length));
    if (header.empty() || header.front() != '{') {
      fail<FormatError>("{}: the header begins with {}; expected \"{{\"", where, quote_text(header.substr(0, 1)));
    }
    const Json root = parse_json(header, where + ", header", 4);
    std::vector<Entry> entries;
    for (const auto& [name, entry] : root.items()) {
      if (name == "__metadata__") {
        read_metadata(entry, where);
      } else {
        entries.push_back(read_entry(name, entry, where));
      }
    }
    place(entries, file, bytes.subspan(8 + static_cast<std::size_t>(length)), where);
    for (Entry& entry : entries) tensors.push_back(std::move(entry.tensor));
  }

  void read_metadata(const Json& entry, std::string_view where) {
    if (!entry.is_object()) {
      fail<FormatError>("{}: __metadata__ is {}; expected an object of strings", where, kind_of(entry));
    }
    for (const auto& [key, value] : entry.items()) {
      if (!value.is_string()) {
        fail<FormatError>("{}: __metadata__[{}] is {}; expected a string", where, quote_text(key), kind_of(value));
      }
      metadata_.emplace(key, value.get_ref<const std::string&>());
    }
  }

  /// Type, shape and offsets of one tensor, consistent among themselves.
  static Entry read_entry(const std::string& name, const Json& entry, std::string_view where) {
    const std::string tensor = fmt::format("{}: tensor {}", where, quote_text(name));
    const auto member = [&](const char* key) -> const Json& {
      const auto found = entry.is_object() ? entry.find(key) : entry.end();
      if (!entry.is_object() || found == entry.end()) {
        fail<FormatError>("{}: has no \"{}\"; expected dtype, shape and data_offsets", tensor, key);
      }
      return *found;
    };
    const Json& dtype = member("dtype");
    const Json& shape = member("shape");
    const Json& offsets = member("data_offsets");
    if (entry.size() != 3) {
      for (const auto& [key, value] : entry.items()) {
        if (key != "dtype" && key != "shape" && key != "data_offsets") {
          fail<FormatError>("{}: has a member {}; expected only dtype, shape and data_offsets", tensor, quote_text(key));
        }
      }
    }
    const auto type = dtype.is_string() ? safetensors_type(dtype.get_ref<const std::string&>()) : std::nullopt;
    if (!type) {
      fail<FormatError>("{}: dtype is {}; expected a name like \"F32\", \"F16\" or \"BF16\"", tensor,
                        dtype.is_string() ? quote_text(dtype.get_ref<const std::string&>()) : std::string(kind_of(dtype)));
    }
    Entry result{{name, *type, {}, {}, nullptr}, 0, 0};
    if (!shape.is_array()) fail<FormatError>("{}: shape is {}; expected a list of sizes", tensor, kind_of(shape));
    for (const Json& size : shape) result.tensor.shape.push_back(read_size(size, tensor, "shape"));
    if (!offsets.is_array() || offsets.size() != 2) {
      fail<FormatError>("{}: data_offsets is {}; expected [begin, end]", tensor,
                        offsets.is_array() ? fmt::format("a list of {}", offsets.size()) : std::string(kind_of(offsets)));
    }
    const Index begin = read_size(offsets[0], tensor, "data_offsets");
    const Index end = read_size(offsets[1], tensor, "data_offsets");
    const std::optional<Index> count = detail::element_count(result.tensor.shape);
    const std::optional<Index> size = count ? detail::byte_count(*type, *count) : std::nullopt;
    if (!size) {
      fail<FormatError>("{}: shape {} of {} has a size that is no whole number of bytes or cannot be addressed", tensor,
                        result.tensor.shape_text(), name_of(*type));
    }
    if (end < begin || end - begin != *size) {
      fail<FormatError>("{}: data_offsets [{}, {}] hold {} bytes; expected {} for {} {}", tensor, begin, end,
                        end - begin, *size, name_of(*type), result.tensor.shape_text());
    }
    result.begin = static_cast<std::size_t>(begin);
    result.size = static_cast<std::size_t>(*size);
    return result;
  }

  static Index read_size(const Json& value, std::string_view tensor, std::string_view what) {
    if (value.is_number_unsigned()) {
      const auto number = value.get<std::uint64_t>();
      if (number <= static_cast<std::uint64_t>(std::numeric_limits<Index>::max())) return static_cast<Index>(number);
    }
    fail<FormatError>("{}: {} holds {}; expected a whole number from 0 below 2^63", tensor, what,
                      value.is_number() ? value.dump() : std::string(kind_of(value)));
  }

  /// Checks that the tensors fill `data` from end to end and points them into it, in that order.
  static void place(std::vector<Entry>& entries, const std::shared_ptr<const MappedFile>& file,
                    std::span<const std::byte> data, std::string_view where) {
    std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
      return std::pair(a.begin, a.size) < std::pair(b.begin, b.size);
    });
    std::size_t filled = 0;
    for (Entry& entry : entries) {
      if (entry.begin != filled) {
        fail<FormatError>("{}: tensor {} begins at byte {} of the data; expected {}, where the one before it ends ({})",
                          where, quote_text(entry.tensor.name), entry.begin, filled,
                          entry.begin < filled ? "they overlap" : "there is a gap");
      }
      if (entry.size > data.size() - filled) {
        fail<FormatError>("{}: tensor {} needs bytes {} to {} of the data, which has {}; the file is cut off", where,
                          quote_text(entry.tensor.name), entry.begin, entry.begin + entry.size, data.size());
      }
      entry.tensor.bytes = data.subspan(filled, entry.size);
      entry.tensor.file = file;
      filled += entry.size;
    }
    if (filled != data.size()) {
      fail<FormatError>("{}: {} bytes follow the last tensor; expected none", where, data.size() - filled);
    }
  }

  std::string where_;
  TensorTable table_;
  SafetensorsMetadata metadata_;
};

PEFT_END_NAMESPACE
