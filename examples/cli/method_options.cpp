/// --method and the options that are fields of its configuration. They become the JSON of an adapter_config.json, which the
/// library reads and checks: a file and the command line mean the same.

#include "cli/method_options.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <filesystem>
#include <string_view>
#include <utility>

#include "peft/adalora_config.hpp"
#include "peft/checkpoint/adapter_config_json.hpp"
#include "peft/checkpoint/adapterhub_config_json.hpp"
#include "peft/error.hpp"

namespace peft_examples {
namespace {

using peft::Json;

enum class Kind { kCount, kWhole, kInteger, kNumber, kText, kFlag, kModules, kNames, kWholes };

/// An option: PEFT's field, with hyphens. `methods`: those that have it, with spaces around each.
struct Field {
  std::string_view name;  ///< of the field; empty: no field of a configuration
  std::string_view option;
  Kind kind;
  std::string_view methods;
  std::string_view help;
};

constexpr std::string_view kLora = " lora rslora dora ";
constexpr std::string_view kRank = " lora rslora dora vera loha lokr ";
constexpr std::string_view kLoraAlpha = " lora rslora dora adalora ";
constexpr std::string_view kLinear = " lora rslora dora ia3 vera loha lokr adalora ln-tuning ";
constexpr std::string_view kLayers = " lora rslora dora vera loha lokr adalora ";
constexpr std::string_view kBias = " lora rslora dora vera adalora ";
constexpr std::string_view kVirtual = " prefix prompt p-tuning ";
constexpr std::string_view kBottleneck = " adapter houlsby parallel ";

constexpr Field kFields[] = {
    {"r", "--r", Kind::kCount, kRank, "rank"},
    {"lora_alpha", "--lora-alpha", Kind::kNumber, kLoraAlpha, "scale of the update times r"},
    {"alpha", "--alpha", Kind::kNumber, " loha lokr ", "scale of the update times r"},
    {"lora_dropout", "--lora-dropout", Kind::kNumber, kLoraAlpha, "probability, below 1"},
    {"vera_dropout", "--vera-dropout", Kind::kNumber, " vera ", "probability, below 1"},
    {"target_modules", "--target-modules", Kind::kModules, kLinear,
     "names with commas, all-linear, or a regular expression of whole paths"},
    {"exclude_modules", "--exclude-modules", Kind::kModules, " lora rslora dora ia3 loha lokr adalora ln-tuning ",
     "the same, of modules that are left out"},
    {"feedforward_modules", "--feedforward-modules", Kind::kModules, " ia3 ", "of these the input is scaled"},
    {"layers_to_transform", "--layers-to-transform", Kind::kWholes, kLayers, "layer numbers with commas"},
    {"modules_to_save", "--modules-to-save", Kind::kNames, kLinear, "names with commas: trained in full"},
    {"bias", "--bias", Kind::kText, kBias, "which biases are trained: none, all or lora_only (vera_only)"},
    {"use_rslora", "--use-rslora", Kind::kFlag, kLora, "scale alpha/sqrt(r)"},
    {"use_dora", "--use-dora", Kind::kFlag, kLora, "a trained length per output row"},
    {"lora_bias", "--lora-bias", Kind::kFlag, " lora rslora ", "a bias on B"},
    {"init_lora_weights", "--init-lora-weights", Kind::kText, kLora, "start: true, false, gaussian, orthogonal, pissa, pissa_niter_N, olora or eva"},
    {"eva_config.rho", "--eva-rho", Kind::kNumber, kLora, "eva: a module may get so many times r columns (2)"},
    {"eva_config.tau", "--eva-tau", Kind::kNumber, kLora, "eva: cosine between batches from which components have settled (0.99)"},
    {"eva_config.whiten", "--eva-whiten", Kind::kFlag, kLora, "eva: components over the roots of their values"},
    {"alora_invocation_tokens", "--alora-invocation-tokens", Kind::kWholes, " lora rslora ",
     "aLoRA: token ids with commas from whose last occurrence on the adapter acts"},
    {"trainable_token_indices", "--trainable-token-indices", Kind::kWholes, kLora,
     "token ids with commas whose embeddings are trained"},
    {"", "--loraplus-lr-ratio", Kind::kNumber, " lora rslora dora ", "LoRA+: B learns so many times as fast as A"},
    {"d_initial", "--d-initial", Kind::kNumber, " vera ", "start of the vector d"},
    {"projection_prng_key", "--projection-prng-key", Kind::kWhole, " vera ", "seed of the frozen projections"},
    {"decompose_both", "--decompose-both", Kind::kFlag, " lokr ", "factor the first matrix too"},
    {"decompose_factor", "--decompose-factor", Kind::kInteger, " lokr ", "size of the first factor, or -1"},
    {"init_r", "--init-r", Kind::kCount, " adalora ", "rank of every module at the start"},
    {"target_r", "--target-r", Kind::kCount, " adalora ", "rank per module at the end, on average"},
    {"tinit", "--tinit", Kind::kWhole, " adalora ", "steps before ranks are reduced"},
    {"tfinal", "--tfinal", Kind::kWhole, " adalora ", "steps at the end during which they stay"},
    {"deltaT", "--deltaT", Kind::kCount, " adalora ", "steps between two reductions"},
    {"beta1", "--beta1", Kind::kNumber, " adalora ", "smoothing of the sensitivity"},
    {"beta2", "--beta2", Kind::kNumber, " adalora ", "smoothing of its uncertainty"},
    {"orth_reg_weight", "--orth-reg-weight", Kind::kNumber, " adalora ", "of the loss's second term"},
    {"num_virtual_tokens", "--num-virtual-tokens", Kind::kCount, kVirtual, "that stand before every sequence (20)"},
    {"prefix_projection", "--prefix-projection", Kind::kFlag, " prefix ", "an MLP makes the prefix while it is trained"},
    {"encoder_hidden_size", "--encoder-hidden-size", Kind::kCount, " prefix p-tuning ", "width inside the encoder"},
    {"", "--prefix-init-text", Kind::kText, " prefix ", "start from what the model computes for this text"},
    {"prompt_tuning_init", "--prompt-tuning-init", Kind::kText, " prompt ", "start: TEXT, SAMPLE_VOCAB or RANDOM"},
    {"prompt_tuning_init_text", "--prompt-tuning-init-text", Kind::kText, " prompt ", "start from this text's embeddings"},
    {"tokenizer_name_or_path", "--tokenizer-name-or-path", Kind::kText, " prompt ", "for Python, with TEXT"},
    {"encoder_reparameterization_type", "--encoder-reparameterization-type", Kind::kText, " p-tuning ", "MLP or LSTM"},
    {"encoder_num_layers", "--encoder-num-layers", Kind::kCount, " p-tuning ", "of the LSTM"},
    {"encoder_dropout", "--encoder-dropout", Kind::kNumber, " p-tuning ", "between the LSTM's layers"},
    {"reduction_factor", "--reduction-factor", Kind::kNumber, kBottleneck, "how much narrower the bottleneck is"},
    {"non_linearity", "--non-linearity", Kind::kText, kBottleneck, "relu, gelu, gelu_new, silu, swish, tanh or leakyrelu"},
    {"dropout", "--dropout", Kind::kNumber, kBottleneck, "of the bottleneck's update: probability, below 1"},
    {"scaling", "--scaling", Kind::kText, kBottleneck, "factor of the update: a number, learned or channel"},
    {"leave_out", "--leave-out", Kind::kWholes, kBottleneck, "layer numbers with commas: without adapters"},
    {"init_weights", "--init-weights", Kind::kText, " prefix loha lokr adapter houlsby parallel ",
     "start: zero (prefix); true, false (loha, lokr); bert, mam_adapter, houlsby (adapters)"},
    {"", "--adapters", Kind::kNames, " fusion ", "folders of AdapterHub's adapters with commas, which are mixed and stay as they are"},
    {"", "--fusion", Kind::kText, " fusion ", "dynamic, or static: without a value matrix"},
};

constexpr std::string_view kBottleneckType = "AdapterHub's";
constexpr std::string_view kFusionType = "AdapterFusion";

struct Method {
  std::string_view name;
  std::string_view peft_type;
  double learning_rate;
  /// Fields that are set where no option is: Python PEFT's for Llama, or its documentation's.
  std::string_view defaults;
};
constexpr Method kMethods[] = {
    {"lora", "LORA", 3e-4, R"({"r":8,"lora_alpha":32,"lora_dropout":0.05,"target_modules":["q_proj","v_proj"]})"},
    {"rslora", "LORA", 3e-4,
     R"({"r":8,"lora_alpha":32,"lora_dropout":0.05,"target_modules":["q_proj","v_proj"],"use_rslora":true})"},
    {"dora", "LORA", 3e-4,
     R"({"r":8,"lora_alpha":32,"lora_dropout":0.05,"target_modules":["q_proj","v_proj"],"use_dora":true})"},
    {"ia3", "IA3", 5e-3,
     R"({"target_modules":["k_proj","v_proj","down_proj"],"feedforward_modules":["down_proj"]})"},
    {"vera", "VERA", 4e-3, R"({"r":256,"target_modules":["q_proj","v_proj"]})"},
    {"loha", "LOHA", 1e-3, R"({"r":8,"alpha":8,"target_modules":["q_proj","v_proj"]})"},
    {"lokr", "LOKR", 1e-3, R"({"r":8,"alpha":8,"target_modules":["q_proj","v_proj"]})"},
    {"adalora", "ADALORA", 1e-3,
     R"({"init_r":12,"target_r":8,"lora_alpha":32,"lora_dropout":0.05,"target_modules":["q_proj","v_proj"]})"},
    {"ln-tuning", "LN_TUNING", 1e-3, R"({"target_modules":["input_layernorm","post_attention_layernorm","norm"]})"},
    {"bitfit", "FULL", 1e-3, R"({"bias_only":true})"},
    {"full", "FULL", 2e-5, "{}"},
    {"prefix", "PREFIX_TUNING", 1e-2, R"({"num_virtual_tokens":20})"},
    {"prompt", "PROMPT_TUNING", 2e-2, R"({"num_virtual_tokens":20,"prompt_tuning_init":"SAMPLE_VOCAB"})"},
    {"p-tuning", "P_TUNING", 1e-3, R"({"num_virtual_tokens":20})"},
    {"adapter", kBottleneckType, 1e-3, "seq_bn"},
    {"houlsby", kBottleneckType, 1e-3, "double_seq_bn"},
    {"parallel", kBottleneckType, 1e-3, "par_bn"},
    {"fusion", kFusionType, 5e-5, ""},
};

const Method& method_named(std::string_view name) {
  return *std::find_if(std::begin(kMethods), std::end(kMethods), [&](const Method& m) { return m.name == name; });
}
bool belongs(const Field& field, std::string_view method) {
  return field.methods.find(" " + std::string(method) + " ") != std::string_view::npos;
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
    case Kind::kCount:
    case Kind::kWhole:
    case Kind::kInteger:
      return parse<std::int64_t>(field, text);
    case Kind::kNumber:
      return parse<double>(field, text);
    case Kind::kFlag:
      return true;
    case Kind::kModules:  // all-linear, or anything with a character of regular expressions: one pattern, as in PEFT
      if (text == "all-linear" || text.find_first_of("*+?|()[]{}^$\\") != std::string::npos) return text;
      return split(text);
    case Kind::kNames:
      return split(text);
    case Kind::kWholes: {
      Json list = Json::array();
      for (const std::string& part : split(text)) list.push_back(parse<std::int64_t>(field, part));
      return list;
    }
    case Kind::kText:
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
    if (const auto* full = parts->get_if<peft::FullConfig>()) return full->bias_only ? "bitfit" : "full";
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

/// Sets what a new training decides: not for inference, the base's name, the task.
template <class Config>
void complete(Config& config, const std::string& model) {
  config.inference_mode = false;
  if (!config.base_model_name_or_path) config.base_model_name_or_path = base_name(model);
  if (!config.task_type) config.task_type = "CAUSAL_LM";
}

/// Throws ConfigError for what the library can and this program does not do.
void check_supported(const peft::AnyConfig& config, Index total_steps) {
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
std::vector<Index> MethodChoice::invocation_tokens() const {
  const peft::LoraConfig* lora = lora_of(config);
  return lora != nullptr ? lora->alora_invocation_tokens : std::vector<Index>();
}

std::vector<std::string> method_names() {
  std::vector<std::string> names;
  for (const Method& method : kMethods) names.emplace_back(method.name);
  return names;
}

void MethodOptions::add_to(CLI::App& command) {
  const std::string help = [] {
    std::string text = "what is added to the model; in brackets the learning rate where --lr gives none:";
    for (const Method& method : kMethods) text += fmt::format(" {} ({:g})", method.name, method.learning_rate);
    return text;
  }();
  method_option_ = command.add_option("--method", method_, help)
                       ->check([](const std::string& name) {
                         const auto names = method_names();
                         if (std::find(names.begin(), names.end(), name) != names.end()) return std::string();
                         std::string known;
                         for (const std::string& one : names) known += (known.empty() ? "" : ", ") + one;
                         return fmt::format("{} is no method; expected {}", name, known);
                       })
                       ->default_str("lora");
  command.add_option("--config", config_, "adapter_config.json instead of the method's options; it says the method too")
      ->check(CLI::ExistingFile);
  for (const Field& field : kFields) {
    const std::string option(field.option);
    const std::string text = fmt::format("{} [{}]", field.help, list_of(field.methods));
    if (field.kind == Kind::kFlag) {
      options_.emplace_back(option, command.add_flag(option, text));
    } else {
      const bool is_whole = field.kind == Kind::kCount || field.kind == Kind::kWhole || field.kind == Kind::kInteger;
      CLI::Option* added = command.add_option(option, values_[option], text);
      added->type_name(is_whole ? "INT" : field.kind == Kind::kNumber ? "FLOAT" : "TEXT");
      if (field.kind == Kind::kCount) added->check(CLI::PositiveNumber);
      if (field.kind == Kind::kWhole) added->check(CLI::NonNegativeNumber);
      options_.emplace_back(option, added);
    }
    options_.back().second->group("Options of methods");
  }
}

void MethodOptions::check() const {
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

MethodChoice MethodOptions::choose(const std::string& model, Index total_steps) const {
  MethodChoice choice = config_.empty() ? from_options(model, total_steps) : from_file(total_steps);
  choice.learning_rate = method_named(choice.name).learning_rate;
  choice.base_model = base_name(model);
  if (auto* tokens = std::get_if<peft::PromptLearningConfig>(&choice.config)) {
    std::visit([&](auto& config) { complete(config, model); }, *tokens);
  } else if (auto* parts = std::get_if<peft::AnyConfig>(&choice.config)) {
    const auto set = [&]<class Config>() {
      const Config* config = parts->get_if<Config>();
      if (config == nullptr) return;
      Config own = *config;
      complete(own, model);
      own.validate();
      *parts = peft::AnyConfig(std::move(own));
    };
    set.template operator()<peft::LoraConfig>();
    peft::detail::for_each_config_type(set);
    check_supported(*parts, total_steps);
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

MethodChoice MethodOptions::from_options(const std::string& model, Index total_steps) const {
  const Method& method = method_named(method_);
  if (method.peft_type == kFusionType) return fusion();
  const bool is_bottleneck = method.peft_type == kBottleneckType;
  Json json = is_bottleneck ? peft::bottleneck_config_to_json(peft::AdapterConfig::named(method.defaults))
                            : peft::parse_json(method.defaults, method.name);
  if (!is_bottleneck) json["peft_type"] = std::string(method.peft_type);
  MethodChoice choice;
  choice.name = method.name;
  for (const Field& field : kFields) {
    if (count(field.option) == 0) continue;
    const std::string value = field.kind == Kind::kFlag ? std::string() : values_.find(field.option)->second;
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

std::size_t MethodOptions::count(std::string_view option) const {
  const auto found = std::find_if(options_.begin(), options_.end(), [&](const auto& one) { return one.first == option; });
  return found->second->count();
}

}  // namespace peft_examples
