/// peft inspect: what a file or folder holds, and what of it would not load and why.

#include <fmt/format.h>

#include <array>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "cli/adapter_kind.hpp"
#include "cli/command.hpp"
#include "hosts/open_model.hpp"
#include "hosts/open_tokenizer.hpp"
#include "peft/checkpoint/adapterhub_directory.hpp"
#include "peft/checkpoint/adapterhub_head.hpp"
#include "peft/checkpoint/peft_directory.hpp"
#include "peft/checkpoint/class_labels.hpp"
#include "peft/checkpoint/prompt_learning_directory.hpp"
#include "peft/checkpoint/train_state.hpp"
#include "peft/data/instruction_jsonl.hpp"
#include "peft/io/gguf.hpp"
#include "peft/io/safetensors.hpp"

namespace peft_examples {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

/// What was found; printed as text or as JSON.
struct Findings {
  std::string kind;
  Json facts = Json::object();
  std::vector<std::string> tensors;   ///< a line each
  std::vector<std::string> problems;  ///< what would not load, and why

  /// Does a step that may find the thing broken.
  template <class Step>
  void attempt(Step&& step) {
    try {
      step();
    } catch (const peft::Error& error) {
      problems.emplace_back(error.what());
    }
  }
};

std::string size_text(double bytes) {
  return bytes >= 1e9 ? fmt::format("{:.2f} GB", bytes / 1e9)
         : bytes >= 1e6 ? fmt::format("{:.2f} MB", bytes / 1e6)
                        : fmt::format("{:.2f} kB", bytes / 1e3);
}

void list_tensors(std::span<const peft::TensorRef> tensors, Findings& findings) {
  std::map<std::string, Index> types;
  Index elements = 0;
  double bytes = 0;
  for (const peft::TensorRef& tensor : tensors) {
    ++types[std::string(peft::name_of(tensor.type))];
    elements += tensor.elements();
    bytes += static_cast<double>(tensor.bytes.size());
    findings.tensors.push_back(
        fmt::format("{:<8} {:<20} {}", peft::name_of(tensor.type), tensor.shape_text(), peft::quote_text(tensor.name)));
    if (!tensor.is_readable() && peft::info_of(tensor.type).ggml_type >= 0) {
      findings.problems.push_back(fmt::format("{} is {}; readable are {}", tensor.where(),
                                              peft::name_of(tensor.type), peft::kReadableTypes));
    }
  }
  findings.facts["tensors"] = tensors.size();
  findings.facts["elements"] = elements;
  findings.facts["bytes"] = static_cast<Index>(bytes);
  findings.facts["size"] = size_text(bytes);
  Json by_type = Json::object();
  for (const auto& [type, count] : types) by_type[type] = count;
  findings.facts["types"] = by_type;
}

/// A metadata value; long arrays by their kind and number.
Json gguf_value(const peft::GgufFile& file, const peft::GgufValue& value) {
  using peft::GgufType;
  switch (value.type) {
    case GgufType::kString:
      return std::string(file.get<std::string_view>(value.key));
    case GgufType::kArray:
      return fmt::format("{} × {}", value.count, peft::name_of(value.element));
    case GgufType::kBool:
      return file.get<bool>(value.key);
    case GgufType::kFloat32:
    case GgufType::kFloat64:
      return file.get<double>(value.key);
    case GgufType::kUint64:
      return file.get<std::uint64_t>(value.key);
    default:
      return file.get<std::int64_t>(value.key);
  }
}

/// What a model is, whichever files it stands in.
Json describe(const LlamaConfig& c) {
  constexpr const char* kScalings[] = {"none", "linear", "llama3", "yarn", "llama3 (frequency factors)"};
  Json json = {{"type", c.model_type},
               {"layers", c.num_hidden_layers},
               {"hidden", c.hidden_size},
               {"feed-forward", c.intermediate_size},
               {"heads", fmt::format("{} of {}, {} for keys and values", c.num_attention_heads, c.head_dim, c.num_key_value_heads)},
               {"vocabulary", c.vocab_size},
               {"context", c.context()},
               {"rotary", fmt::format("theta {}, scaling {}", c.rope_theta, kScalings[static_cast<int>(c.rope_scaling.type)])},
               {"head", c.tie_word_embeddings ? "the embeddings" : "its own"}};
  if (c.context() != c.max_position_embeddings) {
    json["sliding window"] = fmt::format("{} of {} positions: longer sequences are refused", c.sliding_window, c.max_position_embeddings);
  }
  return json;
}

Json describe(const TokenizerSpec& spec) {
  const auto name = [&](std::int32_t id) { return id >= 0 ? Json(spec.tokens[static_cast<std::size_t>(id)]) : Json(); };
  Json stops = Json::array();
  for (const std::int32_t stop : spec.stops) stops.push_back(name(stop));
  return {{"kind", spec.byte_level ? "byte-level BPE" : spec.scores.empty() ? "BPE of characters" : "SentencePiece"},
          {"tokens", spec.tokens.size()},
          {"added tokens", spec.added.size()},
          {"beginning of text", spec.prefix.empty() ? Json() : name(spec.prefix.front())},
          {"ends of text", stops}};
}

/// Each step by itself: one problem does not hide another.
template <class ReadConfig, class ReadSource, class ReadTokenizer>
void check_model(Findings& findings, ReadConfig&& config, ReadSource&& source, ReadTokenizer&& tokenizer) {
  bool configured = false;
  findings.attempt([&] {
    findings.facts["model"] = describe(config());
    configured = true;
  });
  if (configured) {
    findings.attempt([&] {
      const ModelSource files = source();
      check_tensors(files);
      Index parameters = 0;
      for (const auto& [name, tensor] : files.tensors) parameters += tensor.elements();
      findings.facts["model"]["parameters"] = parameters;
    });
  }
  findings.attempt([&] { findings.facts["tokenizer"] = describe(BpeTokenizer(tokenizer()).spec()); });
}

void inspect_gguf(const fs::path& path, Findings& findings) {
  findings.kind = "GGUF";
  findings.attempt([&] {
    const auto file = peft::GgufFile::open(path);
    findings.facts["version"] = file.version();
    Json metadata = Json::object();
    for (const auto& value : file.metadata()) metadata[std::string(value.key)] = gguf_value(file, value);
    findings.facts["metadata"] = metadata;
    list_tensors(file.tensors(), findings);
    check_model(findings, [&] { return read_llama_config(file); }, [&] { return open_gguf_model(file); },
                [&] { return read_tokenizer(file); });
  });
}

void inspect_safetensors(const fs::path& path, Findings& findings) {
  findings.kind = "safetensors";
  findings.attempt([&] {
    const auto file = peft::SafetensorsFile::open(path);
    Json metadata = Json::object();
    for (const auto& [key, value] : file.metadata()) metadata[key] = value.size() <= 200 ? value : fmt::format("{} bytes", value.size());
    findings.facts["metadata"] = metadata;
    list_tensors(file.tensors(), findings);
    if (file.metadata().contains(peft::detail::kStateVersion)) {
      findings.kind = "train state";
      const peft::TrainState state = peft::load_train_state(path);
      findings.facts["isa"] = state.isa;
      for (const auto& [name, value] : state.fingerprint) findings.facts["run"][name] = value;
      for (const auto& [name, value] : state.scalars) findings.facts["state"][name] = peft::TrainState::text_of(value);
    }
  });
}

void count_parameters(std::span<const peft::TensorRef> tensors, Findings& findings) {
  Index parameters = 0;
  for (const peft::TensorRef& tensor : tensors) {
    parameters += tensor.elements();
    findings.tensors.push_back(fmt::format("{:<20} {}", tensor.shape_text(), tensor.name));
  }
  findings.facts["parameters"] = parameters;
}

void inspect_lora(const fs::path& folder, Findings& findings) {
  const peft::PeftAdapter adapter = peft::load_peft_adapter(folder);
  findings.facts["config"] = peft::lora_config_to_json(adapter.config);
  findings.facts["modules"] = adapter.modules.size();
  count_parameters(adapter.others, findings);
  findings.facts["parameters"] = adapter.parameter_count();
  for (const auto& module : adapter.modules) {
    findings.tensors.push_back(fmt::format("r={:<4} {:<20} {}", module.r(),
                                           fmt::format("[{}, {}]", module.out_features(), module.in_features()),
                                           module.module));
  }
}

/// The method of a folder.
void inspect_method(const fs::path& folder, Findings& findings) {
  findings.kind = "PEFT adapter";
  findings.attempt([&] {
    if (const std::vector<std::string> labels = peft::load_class_labels(folder); !labels.empty()) findings.facts["labels"] = labels;
    switch (adapter_kind(folder)) {
      case AdapterKind::kPrefix:
      case AdapterKind::kPrompt: {
        const peft::PromptLearningAdapter adapter = peft::load_prompt_learning(folder);
        findings.facts["config"] = peft::prompt_learning_config_to_json(adapter.config);
        std::vector<peft::TensorRef> tensors{adapter.prompt_embeddings};
        tensors.insert(tensors.end(), adapter.modules.begin(), adapter.modules.end());
        return count_parameters(tensors, findings);
      }
      case AdapterKind::kBottleneck: {
        findings.kind = "AdapterHub adapter";
        const peft::AdapterHubAdapter adapter = peft::load_adapterhub_adapter(folder);
        findings.facts["name"] = adapter.info.name;
        findings.facts["model"] = adapter.info.model_type;
        findings.facts["config"] = peft::bottleneck_config_to_json(adapter.config);
        return count_parameters(adapter.tensors, findings);
      }
      case AdapterKind::kFusion: {
        findings.kind = "AdapterHub AdapterFusion";
        const peft::AdapterHubFusion fusion = peft::load_adapterhub_fusion(folder);
        findings.facts["name"] = fusion.info.name;
        findings.facts["adapters"] = fusion.adapter_names;
        findings.facts["config"] = peft::adapter_fusion_config_to_json(fusion.config);
        return count_parameters(fusion.tensors, findings);
      }
      case AdapterKind::kParts:
        break;
    }
    const peft::AnyPeftAdapter adapter = peft::load_any_peft_adapter(folder);
    if (adapter.config.get_if<peft::LoraConfig>() != nullptr) return inspect_lora(folder, findings);
    findings.facts["config"] = peft::adapter_config_to_json(adapter.config);
    count_parameters(adapter.tensors, findings);
  });
}

/// The method, and AdapterHub's head beside it.
void inspect_adapter(const fs::path& folder, Findings& findings) {
  inspect_method(folder, findings);
  if (!peft::has_adapterhub_head(folder)) return;
  findings.attempt([&] {
    const peft::AdapterHubHead head = peft::load_adapterhub_head(folder);
    findings.facts["labels"] = head.labels;
    if (head.own) findings.facts["head"] = peft::classification_head_to_json(*head.own, head.labels, folder.string());
    const Index of_method = findings.facts.value("parameters", Index{0});
    count_parameters(head.tensors, findings);
    findings.facts["parameters"] = of_method + findings.facts["parameters"].get<Index>();
  });
}

/// The fields of any method's adapter_config.json, checked.
Json inspect_config(const fs::path& path) {
  const std::string where = "adapter config " + path.string();
  const Json json = peft::detail::read_config_json(path, where);
  switch (adapter_kind_of(json)) {
    case AdapterKind::kPrefix:
    case AdapterKind::kPrompt:
      return peft::prompt_learning_config_to_json(peft::prompt_learning_config_from_json(json, where));
    case AdapterKind::kBottleneck:
      return peft::bottleneck_config_to_json(peft::bottleneck_config_from_json(json["config"], where));
    case AdapterKind::kFusion:
    case AdapterKind::kParts:
      break;
  }
  return peft::adapter_config_to_json(peft::adapter_config_from_json(json, where));
}

void inspect_data(const fs::path& path, Findings& findings) {
  findings.kind = "instruction file";
  findings.attempt([&] {
    const auto records = peft::read_instruction_jsonl(path);
    std::size_t longest = 0, with_input = 0, with_facts = 0;
    for (const auto& record : records) {
      longest = std::max(longest, record.instruction.size() + record.input.size() + record.output.size());
      with_input += record.input.empty() ? 0 : 1;
      with_facts += record.facts.empty() ? 0 : 1;
    }
    findings.facts["records"] = records.size();
    findings.facts["with_input"] = with_input;
    findings.facts["with_facts"] = with_facts;
    findings.facts["longest_record_bytes"] = longest;
  });
}

void inspect_model_folder(const fs::path& folder, Findings& findings) {
  findings.kind = "Hugging Face model";
  const fs::path config = folder / "config.json";
  const auto read_config = [&] {
    const Json json = read_json(config);
    findings.facts["metadata"] = json;
    return read_llama_config(JsonFields(json, config.string()));
  };
  findings.attempt([&] {
    const auto file = peft::SafetensorsFile::open_folder(folder);
    list_tensors(file.tensors(), findings);
  });
  check_model(findings, read_config, [&] { return open_model_folder(folder); }, [&] { return read_tokenizer(folder); });
}

void inspect_folder(const fs::path& folder, Findings& findings) {
  std::error_code error;
  if (fs::exists(folder / "config.json", error) || fs::exists(folder / "model.safetensors", error) ||
      fs::exists(folder / "model.safetensors.index.json", error)) {
    inspect_model_folder(folder, findings);
  } else {
    inspect_adapter(folder, findings);
  }
  if (fs::exists(folder / "checkpoint-last", error)) findings.facts["checkpoint-last"] = "a training can go on from here: --resume";
}

void inspect(const fs::path& path, Findings& findings) {
  if (fs::is_directory(path)) return inspect_folder(path, findings);
  std::array<char, 4> magic{};
  std::ifstream(path, std::ios::binary).read(magic.data(), magic.size());
  if (std::string_view(magic.data(), magic.size()) == "GGUF" || path.extension() == ".gguf") return inspect_gguf(path, findings);
  if (path.extension() == ".jsonl") return inspect_data(path, findings);
  if (path.filename() == "adapter_config.json") {
    findings.kind = "adapter configuration";
    return findings.attempt([&] { findings.facts["config"] = inspect_config(path); });
  }
  inspect_safetensors(path, findings);
}

void print_text(const std::string& path, const Findings& findings, bool all_tensors) {
  fmt::print("{}: {}\n", path, findings.kind);
  for (const auto& [key, value] : findings.facts.items()) {
    if (!value.is_object()) {
      fmt::print("  {}: {}\n", key, value.is_string() ? value.get<std::string>() : value.dump());
      continue;
    }
    fmt::print("  {}:\n", key);
    for (const auto& [name, inner] : value.items()) {
      std::string text = inner.is_string() ? inner.get<std::string>() : inner.dump(-1, ' ', false, Json::error_handler_t::replace);
      for (char& c : text) c = c == '\n' ? ' ' : c;
      if (text.size() > 120) text = text.substr(0, 100) + fmt::format(" … ({} bytes)", text.size());
      fmt::print("    {}: {}\n", name, text);
    }
  }
  constexpr std::size_t kFew = 8;
  const std::size_t shown = all_tensors ? findings.tensors.size() : std::min(kFew, findings.tensors.size());
  for (std::size_t i = 0; i < shown; ++i) fmt::print("  {}\n", findings.tensors[i]);
  if (shown < findings.tensors.size()) fmt::print("  … and {} more: --tensors\n", findings.tensors.size() - shown);
  for (const std::string& problem : findings.problems) fmt::print("would not load: {}\n", problem);
  if (findings.problems.empty()) fmt::print("loads\n");
}

}  // namespace

void add_inspect_command(CLI::App& app, Run& run) {
  struct Options {
    std::string path;
    bool tensors = false, json = false;
  };
  auto options = std::make_shared<Options>();
  CLI::App& command = *app.add_subcommand("inspect", "what a model, adapter, checkpoint or data file holds");
  command.add_option("path", options->path, "file or folder")->required()->check(CLI::ExistingPath);
  command.add_flag("--tensors", options->tensors, "list every tensor or module");
  command.add_flag("--json", options->json, "the findings as one line of JSON");
  command.callback([options, &run] {
    run = [options] {
      Findings findings;
      inspect(options->path, findings);
      if (options->json) {
        Json json = {{"path", options->path}, {"kind", findings.kind}, {"loads", findings.problems.empty()}};
        json["problems"] = findings.problems;
        json.update(findings.facts);
        json["list"] = findings.tensors;
        std::printf("%s\n", json.dump(-1, ' ', false, Json::error_handler_t::replace).c_str());
      } else {
        print_text(options->path, findings, options->tensors);
      }
      return findings.problems.empty() ? 0 : 1;
    };
  });
}

}  // namespace peft_examples
