/// --method and the options that are fields of its configuration. They become the JSON of an adapter_config.json, which the
/// library reads and checks: a file and the command line mean the same.

#include "cli/method_options.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <concepts>
#include <cstdint>
#include <filesystem>
#include <string_view>
#include <utility>

#include "cli/method_table.hpp"
#include "peft/adalora_config.hpp"
#include "peft/checkpoint/adapter_config_json.hpp"
#include "peft/checkpoint/adapterhub_config_json.hpp"
#include "peft/error.hpp"

namespace peft_examples {
namespace {

using peft::Json;

const Method& method_named(std::string_view name) {
  return *std::find_if(std::begin(kMethods), std::end(kMethods), [&](const Method& m) { return m.name == name; });
}
bool belongs(const Field& field, std::string_view method) {
  return field.methods.find(fmt::format(" {} ", method)) != std::string_view::npos;
}
/// "lora, rslora, dora".
std::string list_of(std::string_view names) {
  std::string text;
  for (std::size_t begin = 1; begin < names.size();) {
    const std::size_t end = names.find(' ', begin);
    text += (text.empty() ? "" : ", ") + std::string(names.substr(begin, end - begin));
    begin = end + 1;
  }
  return text;
}

std::vector<std::string> split(const std::string& text) {
  std::vector<std::string> parts;
  for (std::size_t begin = 0; begin <= text.size();) {
    const std::size_t end = std::min(text.find(',', begin), text.size());
    if (end > begin) parts.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return parts;
}
template <class Number>
Number parse(const Field& field, const std::string& text) {
  Number number{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || end != text.data() + text.size()) {
    peft::fail<peft::ConfigError>("{} is {}; expected a {}", field.option, peft::quote_text(text),
                                  std::is_integral_v<Number> ? "whole number" : "number");
  }
  return number;
}

Json value_of(const Field& field, const std::string& text) {
  switch (field.kind) {
    case FieldKind::kCount:
    case FieldKind::kWhole:
    case FieldKind::kInteger:
      return parse<std::int64_t>(field, text);
    case FieldKind::kNumber:
      return parse<double>(field, text);
    case FieldKind::kFlag:
      return true;
    case FieldKind::kModules:  // all-linear, or anything with a character of regular expressions: one pattern, as in PEFT
      if (text == "all-linear" || text.find_first_of("*+?|()[]{}^$\\") != std::string::npos) return text;
      return split(text);
    case FieldKind::kNames:
      return split(text);
    case FieldKind::kWholes: {
      Json list = Json::array();
      for (const std::string& part : split(text)) list.push_back(parse<std::int64_t>(field, part));
      return list;
    }
    case FieldKind::kText:
      break;
  }
  if (text == "true" || text == "false") return text == "true";
  const bool is_number = field.name == "scaling" && text.find_first_not_of("0123456789.+-eE") == std::string::npos;
  return is_number ? Json(parse<double>(field, text)) : Json(text);
}

MethodChoice::Config parse_config(const Json& json, std::string_view where, Index total_steps) {
  if (!json.is_object()) peft::fail<peft::ConfigError>("{}: it is {}; expected an object", where, peft::kind_of(json));
  if (!json.contains("peft_type") && json.contains("config")) return peft::bottleneck_config_from_json(json["config"], where);
  if (!json.contains("peft_type") && json.contains("reduction_factor")) return peft::bottleneck_config_from_json(json, where);
  const Json type = json.value("peft_type", Json("LORA"));
  if (type == "PREFIX_TUNING" || type == "PROMPT_TUNING" || type == "P_TUNING") {
    return peft::prompt_learning_config_from_json(json, where);
  }
  if (type != "ADALORA") return peft::adapter_config_from_json(json, where);
  Json own = json;
  if (!own.contains("total_step") || own["total_step"].is_null()) own["total_step"] = total_steps;
  return peft::adapter_config_from_json(own, where);
}

std::string_view type_of(const MethodChoice::Config& config) {
  if (const auto* parts = std::get_if<peft::AnyConfig>(&config)) return parts->peft_type();
  if (const auto* tokens = std::get_if<peft::PromptLearningConfig>(&config)) return peft::detail::peft_type_of(*tokens);
  if (std::get_if<FusionChoice>(&config) != nullptr) return kFusionType;
  return kBottleneckType;
}

/// The method whose default learning rate a configuration has.
std::string_view name_of(const MethodChoice::Config& config) {
  if (const auto* parts = std::get_if<peft::AnyConfig>(&config)) {
    if (const auto* lora = parts->get_if<peft::LoraConfig>()) return lora->use_dora ? "dora" : lora->use_rslora ? "rslora" : "lora";
    if (const auto* full = parts->get_if<peft::FullConfig>()) {
      return full->bias_only ? "bitfit" : full->target_modules.empty() ? "full" : kHead;
    }
  }
  if (const auto* bottleneck = std::get_if<peft::AdapterConfig>(&config)) {
    return bottleneck->is_parallel ? "parallel" : bottleneck->mh_adapter ? "houlsby" : "adapter";
  }
  const std::string_view type = type_of(config);
  return std::find_if(std::begin(kMethods), std::end(kMethods), [&](const Method& m) { return m.peft_type == type; })->name;
}

/// The file name of the base model, as PEFT keeps it.
std::string base_name(const std::string& path) {
  const std::filesystem::path model = std::filesystem::path(path).lexically_normal();
  return (model.has_filename() ? model : model.parent_path()).filename().string();
}

/// Python PEFT writes "classifier" and "score", the two names that a head may have.
bool is_head(const std::string& name) { return name == "classifier" || name == "score"; }
/// The classification head among the modules that are trained in full, unless all are, or it alone.
void save_head(std::vector<std::string>& modules) {
  std::erase_if(modules, is_head);
  modules.emplace_back("classifier");
}

/// Sets what a new training decides: not for inference, the base's name, the task, and transformers' head among what is
/// trained. Throws ConfigError for the configuration of another task.
template <class Config>
void complete(Config& config, const std::string& model, Task task, Head head) {
  const std::string type = task == Task::kClassify ? "SEQ_CLS" : "CAUSAL_LM";
  config.inference_mode = false;
  if (!config.base_model_name_or_path) config.base_model_name_or_path = base_name(model);
  if (config.task_type.value_or(type) != type && (task == Task::kClassify || *config.task_type == "SEQ_CLS")) {
    peft::fail<peft::ConfigError>("--config: task_type is \"{}\"; expected \"{}\" for --task {}", *config.task_type, type,
                                  task == Task::kClassify ? "classify" : "generate");
  }
  if (!config.task_type) config.task_type = type;
  if (task != Task::kClassify) return;
  if (head == Head::kAdapterHub) {
    std::erase_if(config.modules_to_save, is_head);
    return;
  }
  if constexpr (std::same_as<Config, peft::FullConfig>) {
    if (config.bias_only) save_head(config.modules_to_save);
  } else {
    save_head(config.modules_to_save);
  }
}

/// Throws ConfigError for what the library can and this program does not do.
void check_supported(const peft::AnyConfig& config, Index total_steps, Task task) {
  if (const auto* lora = config.get_if<peft::LoraConfig>(); lora != nullptr && task == Task::kClassify) {
    if (lora->init_lora_weights == std::variant<bool, std::string>("eva")) {
      peft::fail<peft::ConfigError>("init_lora_weights is \"eva\", which this program finds on a Llama's inputs; expected another start "
                                    "for --task classify");
    }
    if (!lora->alora_invocation_tokens.empty()) {
      peft::fail<peft::ConfigError>("alora_invocation_tokens is set: an activated LoRA acts behind those tokens of a causal model; "
                                    "expected none for --task classify");
    }
  }
  if (const auto* adalora = config.get_if<peft::AdaLoraConfig>()) {
    if (adalora->total_step != total_steps) {
      peft::fail<peft::ConfigError>("AdaLoraConfig: total_step is {}; expected {}, the steps of this training", adalora->total_step,
                                    total_steps);
    }
    if (!adalora->rank_pattern.empty()) {
      peft::fail<peft::ConfigError>("AdaLoraConfig: rank_pattern is set, as an earlier training left it; a new one begins with "
                                    "all columns: leave it out");
    }
  }
}

}  // namespace

bool MethodChoice::replaces_parameters() const {
  const auto* parts = std::get_if<peft::AnyConfig>(&config);
  return parts != nullptr && parts->get_if<peft::FullConfig>() != nullptr;
}

namespace {

const peft::LoraConfig* lora_of(const MethodChoice::Config& config) {
  const auto* parts = std::get_if<peft::AnyConfig>(&config);
  return parts != nullptr ? parts->get_if<peft::LoraConfig>() : nullptr;
}

}  // namespace

bool MethodChoice::starts_from_inputs() const {
  const peft::LoraConfig* lora = lora_of(config);
  return lora != nullptr && lora->init_lora_weights == std::variant<bool, std::string>("eva");
}
bool MethodChoice::changes_base() const {
  const peft::LoraConfig* lora = lora_of(config);
  return lora != nullptr && lora->changes_base();
}
std::vector<Index> MethodChoice::invocation_tokens() const {
  const peft::LoraConfig* lora = lora_of(config);
  return lora != nullptr ? lora->alora_invocation_tokens : std::vector<Index>();
}

std::vector<std::string> method_names(Task task) {
  std::vector<std::string> names;
  for (const Method& method : kMethods) {
    const bool of_other = task == Task::kClassify ? method.name == kFusion || method.name == kQlora : method.name == kHead;
    if (!of_other) names.emplace_back(method.name);
  }
  return names;
}

void MethodOptions::add_to(CLI::App& command) {
  const std::string help = [] {
    std::string text = "what is added to the model; in brackets the learning rate where --lr gives none:";
    for (const Method& method : kMethods) text += fmt::format(" {} ({:g})", method.name, method.learning_rate);
    return text + "; head: the classification head alone, of --task classify";
  }();
  method_option_ = command.add_option("--method", method_, help)
                       ->check([](const std::string& name) {
                         std::string known;
                         for (const Method& one : kMethods) {
                           if (one.name == name) return std::string();
                           known += fmt::format("{}{}", known.empty() ? "" : ", ", one.name);
                         }
                         return fmt::format("{} is no method; expected {}", name, known);
                       })
                       ->default_str("lora");
  command.add_option("--config", config_, "adapter_config.json instead of the method's options; it says the method too")
      ->check(CLI::ExistingFile);
  for (const Field& field : kFields) {
    const std::string option(field.option);
    const std::string text = fmt::format("{} [{}]", field.help, list_of(field.methods));
    if (field.kind == FieldKind::kFlag) {
      options_.emplace_back(option, command.add_flag(option, text));
    } else {
      const bool is_whole = field.kind == FieldKind::kCount || field.kind == FieldKind::kWhole || field.kind == FieldKind::kInteger;
      CLI::Option* added = command.add_option(option, values_[option], text);
      added->type_name(is_whole ? "INT" : field.kind == FieldKind::kNumber ? "FLOAT" : "TEXT");
      if (field.kind == FieldKind::kCount) added->check(CLI::PositiveNumber);
      if (field.kind == FieldKind::kWhole) added->check(CLI::NonNegativeNumber);
      options_.emplace_back(option, added);
    }
    options_.back().second->group("Options of methods");
  }
}

void MethodOptions::check(Task task, Head head) const {
  if (head == Head::kAdapterHub && method_ == kHead) {
    throw CLI::ValidationError("--head", "adapterhub stands beside another method's files; --method head has none: choose --method "
                                         "adapter, houlsby, lora…, or leave --head out");
  }
  if (task != Task::kClassify && method_ == kHead) {
    throw CLI::ValidationError("--method", "head trains a classification head alone; it belongs to --task classify");
  }
  if (task == Task::kClassify && method_ == kFusion) {
    throw CLI::ValidationError("--method", "fusion mixes adapters of a Llama; it belongs to --task generate");
  }
  if (task == Task::kClassify && method_ == kQlora) {
    throw CLI::ValidationError("--method", "qlora trains over a Llama's weights in four bits; it belongs to --task generate");
  }
  for (const Field& field : kFields) {
    if (count(field.option) == 0) continue;
    if (!config_.empty()) {
      throw CLI::ValidationError(std::string(field.option), "stands beside --config, whose file says it; expected one of them");
    }
    if (belongs(field, method_)) continue;
    throw CLI::ValidationError(std::string(field.option), fmt::format("is no option of --method {}; it belongs to {}", method_,
                                                                      list_of(field.methods)));
  }
}

MethodChoice MethodOptions::choose(const std::string& model, Index total_steps, Task task, Head head) const {
  MethodChoice choice = config_.empty() ? from_options(model, total_steps, task) : from_file(total_steps);
  choice.learning_rate = method_named(choice.name).learning_rate;
  choice.base_model = base_name(model);
  if (auto* tokens = std::get_if<peft::PromptLearningConfig>(&choice.config)) {
    std::visit([&](auto& config) { complete(config, model, task, head); }, *tokens);
  } else if (auto* parts = std::get_if<peft::AnyConfig>(&choice.config)) {
    const auto set = [&]<class Config>() {
      const Config* config = parts->get_if<Config>();
      if (config == nullptr) return;
      Config own = *config;
      complete(own, model, task, head);
      own.validate();
      *parts = peft::AnyConfig(std::move(own));
    };
    set.template operator()<peft::LoraConfig>();
    peft::detail::for_each_config_type(set);
    check_supported(*parts, total_steps, task);
  }
  return choice;
}

MethodChoice MethodOptions::from_file(Index total_steps) const {
  const std::string where = "adapter config " + config_;
  MethodChoice choice;
  choice.config = parse_config(peft::detail::read_config_json(config_, where), where, total_steps);
  choice.name = name_of(choice.config);
  if (const std::string_view asked = method_named(method_).peft_type; method_option_->count() > 0 && asked != type_of(choice.config)) {
    peft::fail<peft::ConfigError>("--config {} is of peft_type {}, --method {} of {}; expected one method: leave one of them out",
                                  config_, type_of(choice.config), method_, asked);
  }
  return choice;
}

MethodChoice MethodOptions::from_options(const std::string& model, Index total_steps, Task task) const {
  const Method& method = method_named(method_);
  if (method.peft_type == kFusionType) return fusion();
  const bool is_bottleneck = method.peft_type == kBottleneckType;
  Json json = is_bottleneck ? peft::bottleneck_config_to_json(peft::AdapterConfig::named(method.defaults))
                            : peft::parse_json(method.defaults, method.name);
  if (task == Task::kClassify) json.update(peft::parse_json(method.of_bert, method.name));
  if (!is_bottleneck) json["peft_type"] = std::string(method.peft_type);
  MethodChoice choice;
  choice.name = method.name;
  for (const Field& field : kFields) {
    if (count(field.option) == 0) continue;
    const std::string value = field.kind == FieldKind::kFlag ? std::string() : values_.find(field.option)->second;
    if (const std::size_t dot = field.name.find('.'); dot != std::string_view::npos) {  // of a configuration inside
      json[std::string(field.name.substr(0, dot))][std::string(field.name.substr(dot + 1))] = value_of(field, value);
    } else if (!field.name.empty()) {
      json[std::string(field.name)] = value_of(field, value);
    } else if (field.option == "--loraplus-lr-ratio") {
      choice.loraplus_lr_ratio = parse<double>(field, value);
    } else {
      choice.prefix_init_text = value;
    }
  }
  if (count("--prompt-tuning-init-text") > 0) {
    if (count("--prompt-tuning-init") == 0) json["prompt_tuning_init"] = "TEXT";
    if (count("--tokenizer-name-or-path") == 0) json["tokenizer_name_or_path"] = base_name(model);
  }
  choice.config = parse_config(json, "--method " + choice.name, total_steps);
  return choice;
}

MethodChoice MethodOptions::fusion() const {
  FusionChoice fusion;
  if (count("--adapters") > 0) fusion.adapters = split(values_.find("--adapters")->second);
  if (fusion.adapters.size() < 2) {
    peft::fail<peft::ConfigError>("--method fusion: {} adapters; expected --adapters with at least two folders, with commas",
                                  fusion.adapters.size());
  }
  const std::string kind = count("--fusion") > 0 ? values_.find("--fusion")->second : "dynamic";
  if (kind != "dynamic" && kind != "static") {
    peft::fail<peft::ConfigError>("--fusion is {}; expected dynamic or static", peft::quote_text(kind));
  }
  if (kind == "static") fusion.config = peft::AdapterFusionConfig::static_fusion();
  MethodChoice choice;
  choice.name = "fusion";
  choice.config = std::move(fusion);
  return choice;
}

bool MethodOptions::wants_quantized() const noexcept { return method_ == kQlora; }

std::size_t MethodOptions::count(std::string_view option) const {
  const auto found = std::find_if(options_.begin(), options_.end(), [&](const auto& one) { return one.first == option; });
  return found->second->count();
}

}  // namespace peft_examples
