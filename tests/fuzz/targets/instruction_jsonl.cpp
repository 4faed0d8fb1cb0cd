#include "fuzz/input.hpp"
#include "peft/data/instruction_jsonl.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const fuzz::InputFile input(data, size);
  fuzz::attempt([&] {
    for (const peft::InstructionRecord& record : peft::read_instruction_jsonl(input.path())) {
      if (record.output.empty() || record.line < 1) std::abort();
    }
  });
  return 0;
}
