#pragma once
/// Models of the shapes of real ones with random weights, so that scale can be measured without having the model: a Hugging
/// Face folder whose layers' linears are NF4, quantised twice in blocks of 64, as `peft quantize` writes it.

#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <functional>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "cli/model_folder.hpp"
#include "cli/progress.hpp"
#include "hosts/byte_characters.hpp"
#include "hosts/llama_config.hpp"
#include "hosts/llama_shapes.hpp"
#include "hosts/model_source.hpp"
#include "peft/checkpoint/bnb_4bit.hpp"
#include "peft/checkpoint/bnb_config_json.hpp"
#include "peft/core/parallel.hpp"
#include "peft/core/rng.hpp"
#include "peft/io/deferred_tensor.hpp"
#include "peft/io/safetensors_writer.hpp"

namespace peft_examples {

/// The tensors of such a model, made when they are written, one at a time. Codes are evenly distributed and maxima such that
/// weights have a standard deviation of 0.02, those of embedding and head too; norms are 1.
class SyntheticModel {
 public:
  explicit SyntheticModel(const LlamaConfig& config) {
    Index largest = 0;
    for_each_llama_tensor(config, [&](const std::string&, const std::vector<Index>& shape) {
      largest = std::max(largest, peft::detail::element_product(shape));
    });
    const Index blocks = largest / kBlock, groups = blocks / peft::kernels::kNestedBlock + 1;
    zeros_ = peft::Buffer<std::uint8_t>::zeros(largest / 2);
    maxima_ = peft::Buffer<float>(groups);
    std::fill(maxima_.begin(), maxima_.end(), kSpread);
    const auto& map = peft::kernels::dynamic_map();
    map_ = peft::Buffer<float>(static_cast<Index>(map.size()));
    std::copy(map.begin(), map.end(), map_.begin());
    for_each_llama_tensor(config, [&](const std::string& name, const std::vector<Index>& shape) {
      if (is_layer_weight(name, shape)) {
        add_quantized(name, shape);
      } else {
        add_bf16(name, shape);
      }
    });
    zeros_ = {};
  }
  SyntheticModel(const SyntheticModel&) = delete;
  SyntheticModel& operator=(const SyntheticModel&) = delete;

  /// Everything that is written. This must outlive them; one is valid until the next is made.
  const std::vector<peft::DeferredTensor>& tensors() const noexcept { return tensors_; }
  Index byte_size() const {
    Index sum = 0;
    for (const peft::DeferredTensor& tensor : tensors_) sum += tensor.byte_size();
    return sum;
  }

 private:
  static constexpr Index kBlock = 64;
  /// NF4's sixteen values have a root mean square of 0.517.
  static constexpr float kDeviation = 0.02f, kMaximum = kDeviation / 0.517f, kSpread = 0.2f * kMaximum;

  void add_quantized(const std::string& name, const std::vector<Index>& shape) {
    const Index size = peft::detail::element_product(shape), blocks = size / kBlock;
    peft::FourBitStorage storage;
    storage.shape = shape;
    storage.dtype = peft::DType::kBF16;
    storage.block_size = kBlock;
    storage.codes = {zeros_.data(), size / 2};
    storage.nested_codes = {zeros_.data(), blocks};
    storage.nested_map = std::as_const(map_).view();
    storage.nested_absmax = {maxima_.data(), (blocks + peft::kernels::kNestedBlock - 1) / peft::kernels::kNestedBlock};
    storage.nested_offset = kMaximum;
    const peft::Bnb4BitTensors<> parts(name, peft::Nf4Tensor(storage, "SyntheticModel"));
    for (const peft::TensorRef& part : parts.tensors()) {
      if (part.name == name || part.name == name + ".absmax") {
        tensors_.push_back({part.name, part.type, part.shape,
                            [this, count = static_cast<Index>(part.bytes.size()), stream = next_stream_++] {
                              return random_bytes(count, stream);
                            }});
      } else {
        auto bytes = std::make_shared<std::vector<std::byte>>(part.bytes.begin(), part.bytes.end());
        tensors_.push_back({part.name, part.type, part.shape, [bytes] { return std::span<const std::byte>(*bytes); }});
      }
    }
  }
  /// A matrix of random numbers, a vector of ones.
  void add_bf16(const std::string& name, const std::vector<Index>& shape) {
    const Index size = peft::detail::element_product(shape);
    const bool is_random = shape.size() == 2;
    tensors_.push_back({name, peft::StoredType::kBF16, shape, [this, size, is_random, stream = next_stream_++] {
                          random_bytes(2 * size, stream);
                          auto* const bytes = reinterpret_cast<unsigned char*>(bytes_.data());
                          peft::parallel_for_ranges(peft::default_executor(), size, kPiece, [&](Index first, Index last) {
                            for (Index i = first; i < last; ++i) {
                              std::uint16_t word;
                              std::memcpy(&word, bytes + 2 * i, 2);
                              // Evenly in ±√3 deviations.
                              const float value = is_random ? (static_cast<float>(word) - 32767.5f) * (1.7320508f / 32768 * kDeviation) : 1.0f;
                              const peft::bf16 stored(value);
                              std::memcpy(bytes + 2 * i, &stored, 2);
                            }
                          });
                          return std::as_bytes(std::span<const std::uint8_t>(bytes_.data(), static_cast<std::size_t>(2 * size)));
                        }});
  }

  /// The first `count` bytes of a stream.
  std::span<const std::byte> random_bytes(Index count, std::uint32_t stream) {
    bytes_.resize_discard((count + 15) / 16 * 16);
    peft::parallel_for_ranges(peft::default_executor(), bytes_.size() / 16, kPiece, [&](Index first, Index last) {
      for (Index i = first; i < last; ++i) {
        const peft::PhiloxBlock block = peft::philox4x32(
            {static_cast<std::uint32_t>(i), static_cast<std::uint32_t>(static_cast<std::uint64_t>(i) >> 32), stream, 0}, 0, 0);
        std::memcpy(bytes_.data() + 16 * i, block.data(), 16);
      }
    });
    return std::as_bytes(std::span<const std::uint8_t>(bytes_.data(), static_cast<std::size_t>(count)));
  }

  static constexpr Index kPiece = 1 << 14;

  std::vector<peft::DeferredTensor> tensors_;
  peft::Buffer<std::uint8_t> zeros_, bytes_;
  peft::Buffer<float> maxima_, map_;
  std::uint32_t next_stream_ = 0;
};

/// Writes the model of a shape to `folder` unless it is there already. Throws ConfigError for a name that is no shape's or a
/// folder that holds another model, IoError where the disk has no room for it.
inline void make_synthetic_model(std::string_view name, const std::filesystem::path& folder, Progress& progress) {
  // Bytes are tokens; the other ids have none.
  TokenizerSpec tokenizer;
  for (unsigned byte = 0; byte < 256; ++byte) tokenizer.tokens.push_back(ByteCharacters::get().character(static_cast<std::uint8_t>(byte)));
  tokenizer.pre_tokenizer.push_back({});
  const LlamaConfig config = llama_shape(name);
  peft::Json json = llama_config_json(config, tokenizer, torch_name(peft::StoredType::kBF16));
  json["quantization_config"] = peft::bnb_config_to_json({.use_double_quant = true});
  json["_name_or_path"] = fmt::format("synthetic {}", name);

  std::error_code error;
  if (std::filesystem::exists(folder / "config.json", error)) {
    if (read_json(folder / "config.json") == json) return;
    peft::fail<peft::ConfigError>("--synthetic {}: {} holds another model; expected a new folder, or that of an earlier --synthetic {}",
                                  name, folder.string(), name);
  }
  SyntheticModel model(config);
  const std::filesystem::path beside = std::filesystem::absolute(folder, error).parent_path();
  const auto space = std::filesystem::space(beside, error);
  if (!error && space.available < static_cast<std::uintmax_t>(model.byte_size())) {
    peft::fail<peft::IoError>("--synthetic {}: it has {} bytes and {} has {}; make room, or name a folder on another disk: --model",
                              name, model.byte_size(), beside.string(), space.available);
  }
  peft::AtomicDirectory target(folder);
  write_json(target, "config.json", json);
  write_json(target, "tokenizer.json", tokenizer_json(tokenizer, [](std::size_t) { return false; }));
  write_json(target, "tokenizer_config.json", tokenizer_config_json(tokenizer, config.max_position_embeddings));
  std::vector<peft::DeferredTensor> tensors = model.tensors();
  Index done = 0;
  for (peft::DeferredTensor& tensor : tensors) {
    tensor.make = [&, size = tensor.byte_size(), make = std::move(tensor.make)] {
      progress.update(static_cast<double>(done) / static_cast<double>(model.byte_size()),
                      fmt::format("{}: {:.1f} of {:.1f} GB written", folder.string(), static_cast<double>(done) / 1e9,
                                  static_cast<double>(model.byte_size()) / 1e9));
      done += size;
      return make();
    };
  }
  peft::FileWriter file = target.create("model.safetensors");
  peft::write_safetensors(file, std::span<const peft::DeferredTensor>(tensors));
  file.finish();
  target.commit();
  progress.finish();
  progress.line(fmt::format("{}: random weights of {}'s shape, {:.2f} GB, nf4 in blocks of 64, quantised twice", folder.string(), name,
                            static_cast<double>(model.byte_size()) / 1e9));
}

}  // namespace peft_examples
