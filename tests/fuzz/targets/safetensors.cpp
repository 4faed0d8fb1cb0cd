#include "fuzz/input.hpp"
#include "peft/io/safetensors.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const fuzz::InputFile input(data, size);
  fuzz::attempt([&] {
    const auto file = peft::SafetensorsFile::open(input.path());
    for (const peft::TensorRef& tensor : file.tensors()) {
      if (file.find(tensor.name) != &tensor) std::abort();
      fuzz::read_values(tensor);
    }
  });
  return 0;
}
