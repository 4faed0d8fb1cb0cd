#include "fuzz/input.hpp"
#include "peft/checkpoint/train_state.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const fuzz::InputFile input(data, size);
  fuzz::attempt([&] { (void)peft::load_train_state(input.path()); });
  return 0;
}
