#include "fuzz/input.hpp"
#include "fuzz/tokenize.hpp"
#include "hosts/llama_gguf.hpp"
#include "hosts/llama_loader.hpp"
#include "hosts/tokenizer_gguf.hpp"
#include "peft/io/gguf.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const fuzz::InputFile input(data, size);
  fuzz::attempt([&] {
    const auto file = peft::GgufFile::open(input.path());
    for (const peft::TensorRef& tensor : file.tensors()) fuzz::read_values(tensor);
    fuzz::attempt([&] { peft_examples::load_llama<float>(peft_examples::open_gguf_model(file)); });
    fuzz::attempt([&] { fuzz::tokenize(peft_examples::read_tokenizer(file)); });
  });
  return 0;
}
