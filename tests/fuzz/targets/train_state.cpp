#include <algorithm>

#include "fuzz/input.hpp"
#include "peft/checkpoint/train_state.hpp"

// What was read is written and read again: the same state.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const fuzz::InputFile input(data, size);
  peft::TrainState state;
  if (!fuzz::attempt([&] { state = peft::load_train_state(input.path()); })) return 0;
  fuzz::attempt([&] { state.require_fingerprint({{"r", "8"}}); });
  const fuzz::InputFile output(nullptr, 0);
  const auto write = [&] {
    peft::FileWriter writer(::dup(output.descriptor()), "again");
    peft::write_train_state(writer, state);
  };
  if (!fuzz::attempt(write)) return 0;
  const peft::TrainState again = peft::load_train_state(output.path());
  if (again.isa != state.isa || again.fingerprint != state.fingerprint || again.scalars != state.scalars) std::abort();
  if (again.tensors.size() != state.tensors.size()) std::abort();
  for (const peft::TensorRef& tensor : state.tensors) {
    fuzz::read_values(tensor);
    const auto same = std::find_if(again.tensors.begin(), again.tensors.end(), [&](const auto& other) {
      return other.name == tensor.name && other.type == tensor.type && other.shape == tensor.shape &&
             std::equal(other.bytes.begin(), other.bytes.end(), tensor.bytes.begin(), tensor.bytes.end());
    });
    if (same == again.tensors.end()) std::abort();
  }
  return 0;
}
