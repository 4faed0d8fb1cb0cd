#pragma once
/// The quantised base that a start (LoftQ, PiSSA, OLoRA over four bits) left, as a model's folder: on it the trained adapter is
/// exactly what it was in training.

#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "cli/model_folder.hpp"
#include "cli/quantized_tensors.hpp"
#include "cli/source_tensors.hpp"
#include "hosts/llama.hpp"
#include "hosts/open_model.hpp"
#include "peft/checkpoint/bnb_config_json.hpp"
#include "peft/io/atomic_directory.hpp"
#include "peft/io/safetensors_shards.hpp"
#include "peft/nf4_linear.hpp"

namespace peft_examples {

namespace detail {

template <peft::FourBitCode kCode, Scalar T>
void write_changed_base(const std::filesystem::path& path, const Llama<T>& model, const std::filesystem::path& folder) {
  const ModelSource source = open_model(path);
  SourceTensors plain(source);
  QuantizedTensors<kCode> files;
  bool is_double = false;
  const auto sites = model.adapter_sites();
  for_each_llama_tensor(source.config, [&](const std::string& name, const std::vector<Index>& shape) {
    if (!is_layer_weight(name, shape)) {
      const peft::StoredType own = source.tensor(name).type;
      const bool is_plain = own == peft::StoredType::kF16 || own == peft::StoredType::kBF16;
      return files.add(plain.stored(name, shape, is_plain ? own : peft::StoredType::kF32));
    }
    for (const AdaptedLinear<T>* site : sites.linears) {
      if (name != site->name() + ".weight") continue;
      const auto* layer = std::as_const(*site).base().template get_if<peft::FourBitLinear<kCode>>();
      if (layer == nullptr) {
        peft::fail<peft::ConfigError>("writing the changed base: {} is not in {}, as others are", name, peft::name_of(kCode));
      }
      is_double = layer->weight().is_double_quantized();
      files.add_packed(name, layer->weight());
    }
  });
  const peft::Json quantization = peft::bnb_config_to_json({.quant_type = kCode, .use_double_quant = is_double});
  peft::AtomicDirectory out(folder, peft::ExistingFolder::kReplace);
  write_folder_files(path, source.config, peft::StoredType::kF32, &quantization, out);
  peft::write_safetensors_shards(out, files.tensors(), Index{5} * 1000 * 1000 * 1000);
  out.commit();
}

}  // namespace detail

/// Writes `model`, read from `path` with its layers' linears in four bits and started since, to `folder`: those linears as they
/// are now, all else as the files have it (a GGUF's blocks in F32). Throws ConfigError where not all are in the same four bits.
template <Scalar T>
void write_changed_base(const std::filesystem::path& path, const Llama<T>& model, const std::filesystem::path& folder) {
  const bool fp4 = std::as_const(*model.adapter_sites().linears.front()).base().template get_if<peft::Fp4Linear>() != nullptr;
  if (fp4) return detail::write_changed_base<peft::FourBitCode::kFp4>(path, model, folder);
  detail::write_changed_base<peft::FourBitCode::kNf4>(path, model, folder);
}

}  // namespace peft_examples
