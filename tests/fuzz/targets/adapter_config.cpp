#include <vector>

#include "fuzz/input.hpp"
#include "peft/checkpoint/lora_config_json.hpp"
#include "peft/target_modules.hpp"

// What was read is written and read again: the same text. Its patterns are tried on names of modules.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const fuzz::InputFile input(data, size);
  peft::LoraConfig config;
  if (!fuzz::attempt([&] { config = peft::read_lora_config(input.path()); })) return 0;
  std::string text;
  if (fuzz::attempt([&] { text = peft::lora_config_to_json(config).dump(); })) {
    const peft::LoraConfig again = peft::lora_config_from_json(peft::parse_json(text, "again"), "again");
    if (peft::lora_config_to_json(again).dump() != text) std::abort();
  }
  const std::vector<std::string> names{"model.layers.0.self_attn.q_proj", "model.layers.11.mlp.experts.2.up_proj", "h.1.attn",
                                       "lm_head"};
  fuzz::attempt([&] {
    for (const peft::TargetMatch& match : peft::match_target_modules(config, names)) {
      if (match.module >= names.size() || match.r < 1 || !peft::is_finite(match.scaling)) std::abort();
    }
  });
  return 0;
}
