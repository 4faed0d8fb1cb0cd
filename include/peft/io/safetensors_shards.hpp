#pragma once
/// A model's tensors as transformers stores them: `model.safetensors`, or, above a size, shards
/// `model-00001-of-00003.safetensors` … and `model.safetensors.index.json`, which says where each tensor is.

#include <cstddef>
#include <span>
#include <string>
#include <vector>

#include "peft/io/atomic_directory.hpp"
#include "peft/io/safetensors_writer.hpp"

PEFT_BEGIN_NAMESPACE

/// Positions of the tensors of each shard: in their order, a new shard where the next tensor would exceed `max_bytes`. A
/// tensor above the limit has a shard for itself. Throws ConfigError for a limit below 1, ShapeError.
inline std::vector<std::vector<std::size_t>> split_into_shards(std::span<const DeferredTensor> tensors, Index max_bytes) {
  if (max_bytes < 1) fail<ConfigError>("splitting a model into shards: the limit is {} bytes; expected at least 1", max_bytes);
  std::vector<std::vector<std::size_t>> shards(1);
  Index filled = 0;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const Index size = tensors[i].byte_size();
    if (!shards.back().empty() && size > max_bytes - filled) {
      shards.emplace_back();
      filled = 0;
    }
    shards.back().push_back(i);
    filled = size > max_bytes ? max_bytes : filled + size;
  }
  return shards;
}

/// Returns the number of files of tensors. Throws IoError, FormatError, ShapeError, ConfigError, and what making a tensor
/// throws.
inline std::size_t write_safetensors_shards(AtomicDirectory& folder, std::span<const DeferredTensor> tensors,
                                            Index max_bytes) {
  const auto shards = split_into_shards(tensors, max_bytes);
  Json weight_map = Json::object();
  Index total = 0;
  for (std::size_t n = 0; n < shards.size(); ++n) {
    const std::string name = shards.size() == 1 ? "model.safetensors"
                                                : fmt::format("model-{:05}-of-{:05}.safetensors", n + 1, shards.size());
    std::vector<DeferredTensor> part;
    for (const std::size_t i : shards[n]) {
      part.push_back(tensors[i]);
      total += tensors[i].byte_size();
      weight_map[tensors[i].name] = name;
    }
    FileWriter file = folder.create(name);
    write_safetensors(file, std::span<const DeferredTensor>(part));
    file.finish();
  }
  if (shards.size() > 1) {
    FileWriter index = folder.create("model.safetensors.index.json");
    index.write(Json{{"metadata", {{"total_size", total}}}, {"weight_map", weight_map}}.dump(2) + "\n");
    index.finish();
  }
  return shards.size();
}

PEFT_END_NAMESPACE
