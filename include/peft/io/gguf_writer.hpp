#pragma once
/// Writes GGUF files, version 3 (see gguf.hpp for the layout), byte for byte as the reference implementation does: metadata
/// and tensors in the given order, each tensor's data padded to the alignment.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "peft/io/atomic_file.hpp"
#include "peft/io/deferred_tensor.hpp"
#include "peft/io/gguf_metadata.hpp"

PEFT_BEGIN_NAMESPACE

/// llama.cpp's limit on a tensor's name, in bytes.
inline constexpr std::size_t kGgufMaxTensorName = 63;

namespace detail {

inline constexpr std::size_t kGgufAlignment = 32;  // the format's default: nothing is said of it in the file

inline std::size_t gguf_padding(std::uint64_t size) noexcept {
  return static_cast<std::size_t>((kGgufAlignment - size % kGgufAlignment) % kGgufAlignment);
}

inline void check_gguf_tensor(const DeferredTensor& tensor, std::string_view where) {
  const std::string name = quote_text(tensor.name);
  if (tensor.name.empty() || tensor.name.size() > kGgufMaxTensorName || !is_utf8(tensor.name)) {
    fail<FormatError>("{}: a tensor is named {}; expected 1 to {} bytes of UTF-8", where, name, kGgufMaxTensorName);
  }
  const StoredTypeInfo& info = info_of(tensor.type);
  if (info.ggml_type < 0) fail<FormatError>("{}: tensor {} is {}, which GGUF does not know", where, name, info.name);
  const Index cols = tensor.shape.empty() ? 1 : tensor.shape.back();
  if (tensor.shape.size() > 4 || cols % info.block_elements != 0) {
    fail<ShapeError>("{}: tensor {} has the shape {}; expected at most 4 dimensions, and rows of whole blocks of {}", where,
                     name, shape_text(tensor.shape), info.block_elements);
  }
}

/// Everything before the data: metadata, names, shapes, offsets, padding.
inline std::string gguf_header(const GgufMetadata& metadata, std::span<const DeferredTensor> tensors, std::string_view where) {
  std::string text = "GGUF";
  const auto number = [&text](auto value) { text.append(reinterpret_cast<const char*>(&value), sizeof(value)); };
  number(std::uint32_t{3});
  number(static_cast<std::uint64_t>(tensors.size()));
  number(static_cast<std::uint64_t>(metadata.size()));
  text += metadata.bytes();
  std::uint64_t offset = 0;
  std::vector<std::string_view> names;
  for (const DeferredTensor& tensor : tensors) {
    check_gguf_tensor(tensor, where);
    names.push_back(tensor.name);
    number(static_cast<std::uint64_t>(tensor.name.size()));
    text += tensor.name;
    number(static_cast<std::uint32_t>(tensor.shape.size()));
    for (std::size_t i = tensor.shape.size(); i-- > 0;) number(static_cast<std::uint64_t>(tensor.shape[i]));
    number(static_cast<std::uint32_t>(info_of(tensor.type).ggml_type));
    number(offset);
    const auto size = static_cast<std::uint64_t>(tensor.byte_size());
    offset += size + gguf_padding(size);
  }
  std::sort(names.begin(), names.end());
  const auto twice = std::adjacent_find(names.begin(), names.end());
  if (twice != names.end()) fail<FormatError>("{}: two tensors are named {}", where, quote_text(*twice));
  text.append(gguf_padding(text.size()), '\0');
  return text;
}

}  // namespace detail

/// Writes to an open file and leaves finishing to its owner. Nothing is written where metadata or tensors are refused.
/// Throws IoError, FormatError, ShapeError, and what making a tensor throws; the file is then not complete.
inline void write_gguf(FileWriter& file, const GgufMetadata& metadata, std::span<const DeferredTensor> tensors) {
  file.write(detail::gguf_header(metadata, tensors, "writing " + file.shown().string()));
  for (const DeferredTensor& tensor : tensors) {
    const std::span<const std::byte> bytes = tensor.make();
    TensorRef{tensor.name, tensor.type, tensor.shape, bytes, nullptr}.check_size();
    file.write(bytes);
    file.write(std::string(detail::gguf_padding(bytes.size()), '\0'));
  }
}

/// Writes a file in one step (see AtomicFile). Throws as above; the old file then stays.
inline void write_gguf(const std::filesystem::path& path, const GgufMetadata& metadata, std::span<const DeferredTensor> tensors) {
  AtomicFile file(path);
  write_gguf(file.writer(), metadata, tensors);
  file.commit();
}

PEFT_END_NAMESPACE
