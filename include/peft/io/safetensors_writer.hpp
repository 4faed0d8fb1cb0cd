#pragma once
/// Writes safetensors files, byte for byte as the reference implementation does: tensors by type (widest alignment
/// first) and then by name, the header padded with spaces to a multiple of 8.

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "peft/io/atomic_file.hpp"
#include "peft/io/deferred_tensor.hpp"
#include "peft/io/json.hpp"
#include "peft/io/safetensors.hpp"
#include "peft/io/tensor_ref.hpp"

PEFT_BEGIN_NAMESPACE

/// What Python's loaders expect.
inline SafetensorsMetadata safetensors_metadata() { return {{"format", "pt"}}; }

/// The file's header for these tensors (TensorRef or DeferredTensor), and the order in which their bytes follow it.
struct SafetensorsHeader {
  std::string text;                 ///< with its length in front
  std::vector<std::size_t> order;  ///< positions in the list of tensors

  /// Throws FormatError: a name twice, not UTF-8 or reserved, a type that safetensors lacks, a header above the format's
  /// limit; ShapeError: bytes that do not fit type and shape.
  template <class Tensor>
  SafetensorsHeader(std::span<const Tensor> tensors, const SafetensorsMetadata& metadata, std::string_view where) {
    order.resize(tensors.size());
    for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
    std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
      if (tensors[a].type != tensors[b].type) return tensors[a].type > tensors[b].type;
      return tensors[a].name < tensors[b].name;
    });
    std::string json = "{";
    const auto member = [&json](const std::string& key, std::string_view value) {
      if (json.size() > 1) json += ',';
      json += Json(key).dump() + ":";
      json += value;
    };
    if (!metadata.empty()) {
      Json values = Json::object();
      for (const auto& [key, value] : metadata) {
        if (!is_utf8(key) || !is_utf8(value)) {
          fail<FormatError>("{}: writing the metadata {}: it is not UTF-8", where, quote_text(key));
        }
        values[key] = value;
      }
      member("__metadata__", values.dump());
    }
    Index offset = 0;
    for (const std::size_t i : order) {
      const Tensor& tensor = tensors[i];
      const Index end = offset + checked_size(tensor, where);
      Json value = Json::object();
      value["dtype"] = std::string(name_of(tensor.type));
      value["shape"] = tensor.shape;
      value["data_offsets"] = {offset, end};
      member(tensor.name, value.dump());
      offset = end;
    }
    json += '}';
    json.append((8 - json.size() % 8) % 8, ' ');
    if (json.size() > kSafetensorsMaxHeader) {
      fail<FormatError>("{}: the header would have {} bytes; the format allows {}", where, json.size(),
                        kSafetensorsMaxHeader);
    }
    check_distinct(tensors, where);
    const auto length = static_cast<std::uint64_t>(json.size());
    text.resize(sizeof(length));
    std::memcpy(text.data(), &length, sizeof(length));
    text += json;
  }

 private:
  template <class Tensor>
  static Index checked_size(const Tensor& tensor, std::string_view where) {
    if (!is_utf8(tensor.name) || tensor.name == "__metadata__") {
      fail<FormatError>("{}: a tensor is named {}; expected UTF-8 other than \"__metadata__\"", where,
                        quote_text(tensor.name));
    }
    if (!info_of(tensor.type).in_safetensors) {
      fail<FormatError>("{}: tensor {} is {}, which safetensors does not know; dequantise it first", where,
                        quote_text(tensor.name), name_of(tensor.type));
    }
    if constexpr (std::same_as<Tensor, TensorRef>) tensor.check_size();
    const std::optional<Index> count = detail::element_count(tensor.shape);
    const std::optional<Index> size = count ? detail::byte_count(tensor.type, *count) : std::nullopt;
    if (!size) {
      fail<ShapeError>("{}: tensor {} has the shape {}; expected a size that can be addressed", where,
                       quote_text(tensor.name), detail::shape_text(tensor.shape));
    }
    return *size;
  }
  template <class Tensor>
  static void check_distinct(std::span<const Tensor> tensors, std::string_view where) {
    std::vector<std::string_view> names;
    for (const Tensor& tensor : tensors) names.push_back(tensor.name);
    std::sort(names.begin(), names.end());
    const auto twice = std::adjacent_find(names.begin(), names.end());
    if (twice != names.end()) fail<FormatError>("{}: two tensors are named {}", where, quote_text(*twice));
  }
};

/// Writes to an open file and leaves finishing to its owner. Nothing is written where the tensors are refused. `done`, where
/// there is one, is called with every piece of a tensor that has been written, so that its memory can be given back.
/// Throws IoError, FormatError, ShapeError.
inline void write_safetensors(FileWriter& file, std::span<const TensorRef> tensors,
                              const SafetensorsMetadata& metadata = safetensors_metadata(),
                              const std::function<void(std::span<const std::byte>)>& done = {}) {
  constexpr std::size_t kPiece = std::size_t{256} << 10;
  const SafetensorsHeader header(tensors, metadata, "writing " + file.shown().string());
  file.write(header.text);
  for (const std::size_t i : header.order) {
    std::span<const std::byte> bytes = tensors[i].bytes;
    while (done && !bytes.empty()) {
      const std::span<const std::byte> piece = bytes.first(std::min(kPiece, bytes.size()));
      file.write(piece);
      done(piece);
      bytes = bytes.subspan(piece.size());
    }
    file.write(bytes);
  }
}

/// The same with tensors that are made one after the other, in the file's order. Throws also ShapeError where one's bytes
/// do not fit its shape, and what making it throws; the file is then not complete.
inline void write_safetensors(FileWriter& file, std::span<const DeferredTensor> tensors,
                              const SafetensorsMetadata& metadata = safetensors_metadata()) {
  const SafetensorsHeader header(tensors, metadata, "writing " + file.shown().string());
  file.write(header.text);
  for (const std::size_t i : header.order) {
    const std::span<const std::byte> bytes = tensors[i].make();
    TensorRef{tensors[i].name, tensors[i].type, tensors[i].shape, bytes, nullptr}.check_size();
    file.write(bytes);
  }
}

/// Writes a file in one step (see AtomicFile). Throws IoError, FormatError, ShapeError; the old file then stays.
inline void write_safetensors(const std::filesystem::path& path, std::span<const TensorRef> tensors,
                              const SafetensorsMetadata& metadata = safetensors_metadata()) {
  AtomicFile file(path);
  write_safetensors(file.writer(), tensors, metadata);
  file.commit();
}

PEFT_END_NAMESPACE
