#include "fuzz/input.hpp"
#include "peft/checkpoint/lora_config_json.hpp"

// What was read is written and read again: the same text.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const fuzz::InputFile input(data, size);
  fuzz::attempt([&] {
    const peft::LoraConfig config = peft::read_lora_config(input.path());
    const std::string text = peft::lora_config_to_json(config).dump();
    const peft::LoraConfig again = peft::lora_config_from_json(peft::parse_json(text, "again"), "again");
    if (peft::lora_config_to_json(again).dump() != text) std::abort();
  });
  return 0;
}
