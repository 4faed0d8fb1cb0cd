#include <string>
#include <vector>

#include "fuzz/input.hpp"
#include "peft/checkpoint/bnb_4bit.hpp"

namespace {

/// Reads the weight, every value of it, and writes it again: what was read must be whole.
template <peft::FourBitCode kCode>
void read_weight(const peft::SafetensorsFile& file, const std::string& name) {
  const peft::FourBitTensor<kCode> tensor = peft::read_bnb_4bit<kCode>(file, name);
  std::vector<float> values(static_cast<std::size_t>(tensor.size()));
  tensor.dequantize_range(0, tensor.size(), values.data());
  const peft::Bnb4BitTensors<kCode> again(name, tensor);
  if (again.tensors().size() != (tensor.is_double_quantized() ? 6u : 4u)) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const fuzz::InputFile input(data, size);
  fuzz::attempt([&] {
    const auto file = peft::SafetensorsFile::open(input.path());
    for (const peft::TensorRef& tensor : file.tensors()) {
      fuzz::attempt([&] {
        const auto code = peft::bnb_4bit_code(file, tensor.name);
        if (code == peft::FourBitCode::kNf4) read_weight<peft::FourBitCode::kNf4>(file, tensor.name);
        if (code == peft::FourBitCode::kFp4) read_weight<peft::FourBitCode::kFp4>(file, tensor.name);
      });
    }
  });
  return 0;
}
