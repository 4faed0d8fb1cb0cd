#include <string_view>

#include "fuzz/input.hpp"
#include "fuzz/tokenize.hpp"
#include "hosts/tokenizer_json.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  fuzz::attempt([&] {
    fuzz::tokenize(peft_examples::read_tokenizer_json(peft::parse_json(text, "tokenizer.json"), "tokenizer.json"));
  });
  return 0;
}
