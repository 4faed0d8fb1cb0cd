/// peft merge: writes the base model with an adapter added to its weights, under Hugging Face's names.

#include <fmt/format.h>

#include <cstdio>
#include <filesystem>
#include <string>
#include <vector>

#include "cli/command.hpp"
#include "cli/session.hpp"
#include "peft/io/safetensors_writer.hpp"
#include "peft/kernels/convert.hpp"
#include "peft/merge.hpp"

namespace peft_examples {
namespace {

struct MergeOptions {
  ModelOptions model;
  std::string out;
};

/// Values as the bytes of a type that a file stores; one tensor at a time.
class StoredValues {
 public:
  explicit StoredValues(peft::StoredType type) : type_(type) {}
  peft::StoredType type() const noexcept { return type_; }

  std::span<const std::byte> convert(const float* values, Index count) {
    const auto size = static_cast<std::size_t>(count);
    if (type_ == peft::StoredType::kF32) return std::as_bytes(std::span(values, size));
    narrow_.resize_discard(count);
    const auto type = type_ == peft::StoredType::kBF16 ? peft::DType::kBF16 : peft::DType::kF16;
    peft::kernels::convert(count, values, peft::DType::kF32, narrow_.data(), type);
    for (Index i = 0; type_ == peft::StoredType::kF16 && i < count; ++i) {
      if ((narrow_[i] & 0x7C00u) == 0x7C00u) {
        peft::fail<peft::NumericError>("peft merge: a weight is {}, too large for f16; write --dtype bf16 or f32", values[i]);
      }
    }
    return std::as_bytes(std::span(narrow_.data(), size));
  }

 private:
  peft::StoredType type_;
  peft::Buffer<std::uint16_t> narrow_;
};

int run_merge(const MergeOptions& options) {
  ModelOptions wide = options.model;  // sums are f32 whatever is written
  wide.dtype = "f32";
  Session<float> session(wide);
  Llama<float>& model = session.model();
  StoredValues stored(options.model.dtype == "bf16"  ? peft::StoredType::kBF16
                      : options.model.dtype == "f16" ? peft::StoredType::kF16
                                                     : peft::StoredType::kF32);
  std::vector<peft::DeferredTensor> tensors;
  const auto add_vector = [&](std::string name, VectorView<const float> values) {
    tensors.push_back({std::move(name) + ".weight", stored.type(), {values.size},
                       [&stored, values] { return stored.convert(values.data, values.size); }});
  };
  const auto add_matrix = [&](std::string name, MatrixView<const float> values) {
    tensors.push_back({std::move(name) + ".weight", stored.type(), {values.rows, values.cols},
                       [&stored, values] { return stored.convert(values.data, values.rows * values.cols); }});
  };
  Matrix<float> merged;
  Index changed = 0;
  add_matrix("model.embed_tokens", model.embedding());
  add_vector("model.norm", model.final_norm());
  if (!model.is_tied()) add_matrix("lm_head", model.head().weight());
  for (Index i = 0; i < model.config().num_hidden_layers; ++i) {
    add_vector(fmt::format("model.layers.{}.input_layernorm", i), model.layer(i).input_norm.view());
    add_vector(fmt::format("model.layers.{}.post_attention_layernorm", i), model.layer(i).post_norm.view());
  }
  for (const auto* site : session.sites()) {
    changed += site->merge_terms(model.selection()).empty() ? 0 : 1;
    tensors.push_back({site->name() + ".weight", stored.type(), {site->out_features(), site->in_features()},
                       [&stored, &merged, &model, site] {
                         merged = peft::merged_weight(*site, model.selection());
                         return stored.convert(merged.data(), merged.size());
                       }});
  }
  peft::AtomicFile file(options.out);
  peft::write_safetensors(file.writer(), std::span<const peft::DeferredTensor>(tensors));
  file.commit();
  std::fprintf(stderr, "%s: %zu tensors (%s), %lld of them with the adapter's update\n", options.out.c_str(), tensors.size(),
               options.model.dtype.c_str(), static_cast<long long>(changed));
  return 0;
}

}  // namespace

void add_merge_command(CLI::App& app, Run& run) {
  auto options = std::make_shared<MergeOptions>();
  CLI::App& command = *app.add_subcommand("merge", "write the model with an adapter merged into its weights");
  options->model.add_to(command, true);
  command.get_option("--adapter")->required();
  command.get_option("--dtype")->description("type of the written weights; the sum is f32");
  command.add_option("--out", options->out, "safetensors file to write")->required();
  command.callback([options, &run] {
    run = [options] {
      const Threads threads(options->model.threads);
      return run_merge(*options);
    };
  });
}

}  // namespace peft_examples
