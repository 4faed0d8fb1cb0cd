// adapter_config.json: every field of PEFT's LoraConfig is read and written, or refused by name.

#include "peft/checkpoint/lora_config_json.hpp"

#include <algorithm>
#include <limits>
#include <map>
#include <string>
#include <vector>

#include "support/catch.hpp"
#include "unit/io/scratch.hpp"

using namespace peft;
using namespace io_test;

namespace {

LoraConfig full_config() {
  LoraConfig config{.r = 4, .lora_alpha = 6.5, .target_modules = {"q_proj", "v_proj"}, .lora_dropout = 0.05f};
  config.exclude_modules = ".*\\.3\\..*";
  config.fan_in_fan_out = true;
  config.use_rslora = true;
  config.init_lora_weights = "gaussian";
  config.layers_to_transform = {0, 2};
  config.layers_pattern = {"layers", "h"};
  config.rank_pattern = {{"z\\.proj", 3}, {"é", 9}, {"a_proj", 2}};
  config.alpha_pattern = {{"q_proj", 5.0}, {"b", 0.1}, {"a", 1e300}};
  config.task_type = "CAUSAL_LM";
  config.base_model_name_or_path = "models/tiny \"llama\"";
  config.revision = "main";
  config.inference_mode = true;
  return config;
}

Json parse(const std::string& text) { return parse_json(text, "test"); }

/// The message with which a configuration is refused; "" where it is taken.
std::string refusal(const Json& json) {
  return message_of<ConfigError>([&] { lora_config_from_json(json, "adapter config X"); });
}

const Json& fields_golden() {
  static const Json golden =
      parse(read_file(std::filesystem::path(PEFT_GOLDEN_DIR) / "checkpoint" / "lora_config_fields.json"));
  return golden;
}

}  // namespace

TEST_CASE("lora config: what is written is read again, all fields, in order") {
  for (const LoraConfig& config : {full_config(), LoraConfig{.target_modules = "all-linear"},
                                   LoraConfig{.lora_alpha = 1e17, .target_modules = {"x"}, .lora_dropout = 1e-5f}}) {
    const std::string text = lora_config_to_json(config).dump(2);
    INFO(text);
    CHECK(lora_config_from_json(parse(text), "test") == config);
  }
  const std::string text = lora_config_to_json(full_config()).dump();
  CHECK(text.find(R"("rank_pattern":{"z\\.proj":3,"é":9,"a_proj":2})") != std::string::npos);
  CHECK(text.find(R"("alpha_pattern":{"q_proj":5,"b":0.1,"a":1e+300})") != std::string::npos);
  CHECK(text.find(R"("lora_dropout":0.05,)") != std::string::npos);
  CHECK(text.find(R"("peft_version":"0.21.2")") != std::string::npos);
}

TEST_CASE("lora config: of two equal keys of a pattern the first counts, in the file too") {
  LoraConfig config{.target_modules = {"x"}};
  config.rank_pattern = {{"x", 3}, {"x", 5}};
  CHECK(lora_config_to_json(config)["rank_pattern"].dump() == R"({"x":3})");
}

TEST_CASE("lora config: what cannot be written is refused by name") {
  LoraConfig config{.target_modules = {"x"}};
  config.rank_pattern = {{"\xff", 3}};
  CHECK_THROWS_WITH(lora_config_to_json(config), Catch::Contains("rank_pattern") && Catch::Contains("UTF-8"));
  config.rank_pattern.clear();
  config.base_model_name_or_path = "\xc3";
  CHECK_THROWS_WITH(lora_config_to_json(config), Catch::Contains("base_model_name_or_path"));
  config.base_model_name_or_path.reset();
  config.lora_dropout = std::numeric_limits<float>::quiet_NaN();
  CHECK_THROWS_WITH(lora_config_to_json(config), Catch::Contains("lora_dropout"));
}

TEST_CASE("lora config: every field of PEFT is supported or refused by name") {
  REQUIRE(fields_golden()["peft_version"] == std::string(kPeftFormatVersion));
  const Json& fields = fields_golden()["fields"];
  Json plain = fields;
  plain["target_modules"] = Json::array({"q_proj"});
  LoraConfig expected{.target_modules = {"q_proj"}};
  REQUIRE(lora_config_from_json(plain, "test") == expected);  // PEFT's defaults, all of them

  // A changed value for each field that is supported, and another that makes it valid.
  const std::map<std::string, std::string> supported{
      {"task_type", R"({"task_type": "SEQ_CLS"})"},
      {"base_model_name_or_path", R"({"base_model_name_or_path": "m"})"},
      {"revision", R"({"revision": "r"})"},
      {"inference_mode", R"({"inference_mode": true})"},
      {"r", R"({"r": 3})"},
      {"target_modules", R"({"target_modules": ".*_proj"})"},
      {"exclude_modules", R"({"exclude_modules": ["k_proj"]})"},
      {"lora_alpha", R"({"lora_alpha": 2.5})"},
      {"lora_dropout", R"({"lora_dropout": 0.25})"},
      {"fan_in_fan_out", R"({"fan_in_fan_out": true})"},
      {"use_rslora", R"({"use_rslora": true})"},
      {"init_lora_weights", R"({"init_lora_weights": false})"},
      {"layers_to_transform", R"({"layers_to_transform": [1]})"},
      {"layers_pattern", R"({"layers_pattern": ["h"], "layers_to_transform": [1]})"},
      {"rank_pattern", R"({"rank_pattern": {"q_proj": 2}})"},
      {"alpha_pattern", R"({"alpha_pattern": {"q_proj": 2}})"},
      {"bias", R"({"bias": "lora_only"})"},
      {"modules_to_save", R"({"modules_to_save": ["lm_head"]})"},
      {"lora_bias", R"({"lora_bias": true})"},
      {"use_dora", R"({"use_dora": true})"},
      {"trainable_token_indices", R"({"trainable_token_indices": [1, 2]})"},
      {"alora_invocation_tokens", R"({"alora_invocation_tokens": [3, 4]})"},
      {"loftq_config", R"({"loftq_config": {"loftq_bits": 8, "loftq_iter": 2}})"},
      {"eva_config", R"({"eva_config": {"adjust_scaling_factors": true, "label_mask_value": -100, "rho": 3, "tau": 0.5,
                         "use_label_mask": false, "whiten": true}})"},
  };
  // They change nothing here, whatever they say.
  const std::vector<std::string> informative{"auto_mapping", "peft_version"};
  std::size_t found = 0;
  for (const auto& [name, standard] : fields.items()) {
    INFO("field " << name);
    Json changed = plain;
    if (const auto entry = supported.find(name); entry != supported.end()) {
      ++found;
      const Json change = parse(entry->second);
      for (const auto& [key, value] : change.items()) changed[key] = value;
      const LoraConfig config = lora_config_from_json(changed, "test");
      CHECK_FALSE(config == expected);
      CHECK(lora_config_to_json(config)[name] == changed[name]);
    } else if (std::find(informative.begin(), informative.end(), name) != informative.end()) {
      changed[name] = Json::object({{"base_model_class", "X"}});
      CHECK(lora_config_from_json(changed, "test") == expected);
    } else {
      for (const char* other : {"true", "1", "8", R"("other")", "[1]", R"({"a": 1})"}) {
        changed[name] = parse(other);
        if (changed[name] == standard) continue;
        INFO("set to " << other);
        CHECK(refusal(changed).find("adapter config X: ") == 0);
        CHECK(refusal(changed).find(name) != std::string::npos);
      }
      // Left out, or null where PEFT has null.
      changed.erase(name);
      if (name != "peft_type") CHECK(lora_config_from_json(changed, "test") == expected);
    }
  }
  CHECK(found == supported.size());

  // As PEFT itself writes them.
  for (const auto& [name, value] : fields_golden()["asked"].items()) {
    Json changed = plain;
    changed[name] = value;
    INFO("field " << name);
    if (supported.contains(name)) {
      CHECK_NOTHROW(lora_config_from_json(changed, "test"));
    } else {
      CHECK(refusal(changed).find(name) != std::string::npos);
    }
  }
  // Token ids by embedding.
  Json by_name = plain;
  by_name["trainable_token_indices"] = parse(R"({"embed_tokens": [1], "other": [2, 3]})");
  CHECK(lora_config_to_json(lora_config_from_json(by_name, "test"))["trainable_token_indices"] ==
        by_name["trainable_token_indices"]);
}

TEST_CASE("lora config: fields that PEFT does not know, and values of a wrong kind, are refused by name") {
  const Json plain = parse(R"({"peft_type": "LORA", "target_modules": ["q_proj"]})");
  CHECK(lora_config_from_json(plain, "test").r == 8);
  const auto refused = [&](const char* name, const char* value, const char* expected) {
    Json changed = plain;
    changed[name] = parse(value);
    INFO(name << ": " << value << ": " << refusal(changed));
    CHECK(refusal(changed).find(name) != std::string::npos);
    CHECK(refusal(changed).find(expected) != std::string::npos);
  };
  refused("use_lora_of_tomorrow", "true", "does not know");
  refused("r", "0", "at least 1");
  refused("r", "8.5", "a whole number");
  refused("r", "null", "expected a value");
  refused("r", "18446744073709551615", "a whole number");
  refused("r", "\"8\"", "a whole number");
  refused("lora_alpha", "\"x\"", "a number");
  refused("lora_alpha", "null", "expected a value");
  refused("lora_dropout", "1.0", "0 <= p < 1");
  refused("lora_dropout", "1e300", "0 <= p < 1");
  refused("target_modules", "null", "target_modules");
  refused("target_modules", "[]", "target_modules");
  refused("target_modules", "[1]", "texts in the list");
  refused("target_modules", "{}", "a list of texts");
  refused("rank_pattern", "[]", "an object");
  refused("rank_pattern", R"({"q": 0})", "at least 1");
  refused("rank_pattern", R"({"q": 1.5})", "a whole number");
  refused("layers_to_transform", "[-1]", "from 0");
  refused("use_rslora", "1", "true or false");
  refused("bias", "\"some\"", "lora_only");
  refused("init_lora_weights", "\"corda\"", "not supported");
  refused("trainable_token_indices", "3", "a list of token ids");
  refused("trainable_token_indices", "[1.5]", "a whole number");
  refused("eva_config", "3", "expected an object");
  refused("eva_config", R"({"rho": 0})", "rho");
  refused("eva_config", R"({"tomorrow": 1})", "eva_config");
  refused("loftq_config", R"({"loftq_bits": 2})", "expected 4 or 8");
  refused("loftq_config", R"({"loftq_iter": 0})", "at least 1");
  refused("loftq_config", R"({"tomorrow": 1})", "loftq_config");
  refused("peft_type", "\"LOHA\"", "\"LORA\"");
  CHECK(refusal(parse("[]")).find("a list; expected an object") != std::string::npos);
  CHECK(refusal(parse(R"({"r": 4})")).find("peft_type is missing") != std::string::npos);
  // As older versions of PEFT wrote them; a number or a text may stand for a list of one.
  const Json old = parse(R"({"peft_type": "LORA", "target_modules": ["q_proj"], "enable_lora": null,
      "merge_weights": false, "layers_to_transform": 3, "layers_pattern": "layers", "modules_to_save": []})");
  const LoraConfig config = lora_config_from_json(old, "test");
  CHECK(config.layers_to_transform == std::vector<Index>{3});
  CHECK(config.layers_pattern == std::vector<std::string>{"layers"});
}

TEST_CASE("lora config: files that are no JSON, twice a key, or cut off") {
  const ScratchFolder folder;
  const auto path = folder / "adapter_config.json";
  const std::string good = lora_config_to_json(full_config()).dump(1);
  write_file(path, good);
  CHECK(read_lora_config(path) == full_config());
  for (std::size_t length = 0; length < good.size(); length += 7) {
    write_file(path, std::string_view(good).substr(0, length));
    const std::string message = message_of<FormatError>([&] { read_lora_config(path); });
    INFO("first " << length << " bytes");
    CHECK(message.find(path.string()) != std::string::npos);
  }
  write_file(path, R"({"peft_type": "LORA", "r": 8, "r": 4, "target_modules": ["x"]})");
  CHECK_THROWS_WITH(read_lora_config(path), Catch::Contains("\"r\" stands twice"));
  CHECK_THROWS_AS(read_lora_config(folder / "none.json"), IoError);
}
