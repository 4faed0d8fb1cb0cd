#pragma once
/// What a config.json says of weights in four bits: the member quantization_config, as transformers writes it of a
/// BitsAndBytesConfig. Block sizes, and which modules have four bits, stand with the tensors (bnb_4bit.hpp).

#include <string>
#include <string_view>

#include "peft/io/json.hpp"
#include "peft/nf4_tensor.hpp"

PEFT_BEGIN_NAMESPACE

/// Names are BitsAndBytesConfig's, without their bnb_4bit_.
struct BnbConfig {
  FourBitCode quant_type = FourBitCode::kNf4;
  bool use_double_quant = false;
  std::string compute_dtype = "float32";  ///< of Python's products
};

inline Json bnb_config_to_json(const BnbConfig& config) {
  return {{"_load_in_4bit", true},
          {"_load_in_8bit", false},
          {"bnb_4bit_compute_dtype", config.compute_dtype},
          {"bnb_4bit_quant_storage", "uint8"},
          {"bnb_4bit_quant_type", std::string(name_of(config.quant_type))},
          {"bnb_4bit_use_double_quant", config.use_double_quant},
          {"llm_int8_enable_fp32_cpu_offload", false},
          {"llm_int8_has_fp16_weight", false},
          {"llm_int8_skip_modules", Json::array({"lm_head"})},
          {"llm_int8_threshold", 6.0},
          {"load_in_4bit", true},
          {"load_in_8bit", false},
          {"quant_method", "bitsandbytes"}};
}

/// Throws FormatError, beginning with `where`, for another method of quantisation than bitsandbytes' four bits in bytes.
inline BnbConfig bnb_config_from_json(const Json& json, std::string_view where) {
  if (!json.is_object()) fail<FormatError>("{}: quantization_config is {}; expected an object", where, kind_of(json));
  const auto find = [&](const char* name) -> const Json* {
    const auto found = json.find(name);
    return found != json.end() && !found->is_null() ? &*found : nullptr;
  };
  const auto text = [&](const char* name, std::string_view otherwise) -> std::string {
    const Json* value = find(name);
    if (value == nullptr) return std::string(otherwise);
    if (!value->is_string()) {
      fail<FormatError>("{}: quantization_config: {} is {}; expected a text", where, name, kind_of(*value));
    }
    return value->get<std::string>();
  };
  const auto truth = [&](const char* name) {
    const Json* value = find(name);
    if (value == nullptr) return false;
    if (!value->is_boolean()) {
      fail<FormatError>("{}: quantization_config: {} is {}; expected true or false", where, name, kind_of(*value));
    }
    return value->get<bool>();
  };
  if (const std::string method = text("quant_method", "bitsandbytes"); method != "bitsandbytes") {
    fail<FormatError>("{}: quantization_config: its weights are quantised by {}; expected bitsandbytes", where, quote_text(method));
  }
  if (!truth("load_in_4bit") && !truth("_load_in_4bit")) {
    fail<FormatError>("{}: quantization_config: its weights are bitsandbytes' of {} bits; expected load_in_4bit", where,
                      truth("load_in_8bit") || truth("_load_in_8bit") ? "8" : "an unknown number of");
  }
  if (const std::string storage = text("bnb_4bit_quant_storage", "uint8"); storage != "uint8") {
    fail<FormatError>("{}: quantization_config: bnb_4bit_quant_storage is {}; expected \"uint8\"", where, quote_text(storage));
  }
  BnbConfig config;
  const std::string type = text("bnb_4bit_quant_type", "fp4");  // transformers' default
  if (type == "fp4") {
    config.quant_type = FourBitCode::kFp4;
  } else if (type != "nf4") {
    fail<FormatError>("{}: quantization_config: bnb_4bit_quant_type is {}; expected \"nf4\" or \"fp4\"", where, quote_text(type));
  }
  config.use_double_quant = truth("bnb_4bit_use_double_quant");
  config.compute_dtype = text("bnb_4bit_compute_dtype", "float32");
  return config;
}

PEFT_END_NAMESPACE
