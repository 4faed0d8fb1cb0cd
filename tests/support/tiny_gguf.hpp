#pragma once
/// A GGUF of a tiny Llama with random weights and a tokenizer of single bytes, so that the whole way from a file to an
/// answer runs in a test.

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "peft/core/rng.hpp"
#include "unit/io/gguf_builder.hpp"

namespace peft_test {

struct TinyGguf {
  std::uint64_t hidden = 32, intermediate = 48, layers = 2, heads = 4, kv_heads = 2, context = 256;
  std::string architecture = "llama";
  std::uint32_t seed = 1;
  /// Weights in blocks: Q4_1, the embedding in Q8_0, v_proj in F16; widths are multiples of 32 then.
  bool in_blocks = false;

  /// GGUF's number of a tensor's type.
  std::uint32_t type_of(const std::string& name, bool is_matrix) const {
    if (!in_blocks || !is_matrix) return 0;
    return name == "token_embd.weight" ? 8 : name.find("attn_v.") != std::string::npos ? 1 : 3;
  }

  /// GPT-2's printable character for a byte, as UTF-8.
  static std::string printable(int byte) {
    const auto visible = [](int b) { return (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174; };
    int code = byte;
    if (!visible(byte)) {
      code = 256;
      for (int b = 0; b < byte; ++b) code += visible(b) ? 0 : 1;
    }
    if (code < 0x80) return std::string(1, static_cast<char>(code));
    return {static_cast<char>(0xC0 | code >> 6), static_cast<char>(0x80 | (code & 0x3F))};
  }
  static std::vector<std::string> tokens() {
    std::vector<std::string> result;
    for (int byte = 0; byte < 256; ++byte) result.push_back(printable(byte));
    for (const char* text : {"th", "the", "<|im_start|>", "<|im_end|>", "<|endoftext|>"}) result.emplace_back(text);
    return result;
  }

  std::string bytes() const {
    using io_test::GgufBuilder;
    const std::vector<std::string> vocabulary = tokens();
    struct Tensor {
      std::string name;
      std::uint64_t rows, cols;
    };
    const std::uint64_t key = hidden / heads * kv_heads;
    std::vector<Tensor> tensors{{"token_embd.weight", vocabulary.size(), hidden}, {"output_norm.weight", 0, hidden}};
    for (std::uint64_t i = 0; i < layers; ++i) {
      const std::string block = "blk." + std::to_string(i) + ".";
      for (Tensor tensor : {Tensor{"attn_norm", 0, hidden}, Tensor{"ffn_norm", 0, hidden}, Tensor{"attn_q", hidden, hidden},
                            Tensor{"attn_k", key, hidden}, Tensor{"attn_v", key, hidden}, Tensor{"attn_output", hidden, hidden},
                            Tensor{"ffn_gate", intermediate, hidden}, Tensor{"ffn_up", intermediate, hidden},
                            Tensor{"ffn_down", hidden, intermediate}}) {
        tensor.name = block + tensor.name + ".weight";
        tensors.push_back(tensor);
      }
    }
    GgufBuilder file;
    file.head(tensors.size(), 14);
    file.text_value("general.architecture", architecture);
    const auto whole = [&](const char* name, std::uint64_t value) {
      file.value(name, 4, static_cast<std::uint32_t>(value));
    };
    whole("llama.embedding_length", hidden);
    whole("llama.feed_forward_length", intermediate);
    whole("llama.block_count", layers);
    whole("llama.attention.head_count", heads);
    whole("llama.attention.head_count_kv", kv_heads);
    whole("llama.context_length", context);
    file.value("llama.attention.layer_norm_rms_epsilon", 6, 1e-5f);
    file.text_value("tokenizer.ggml.model", "gpt2");
    file.text_value("tokenizer.ggml.pre", "smollm");
    file.array("tokenizer.ggml.tokens", 8, vocabulary.size());
    for (const std::string& token : vocabulary) file.text(token);
    file.array("tokenizer.ggml.merges", 8, 2).text("t h").text("th e");
    file.array("tokenizer.ggml.token_type", 5, vocabulary.size());
    for (std::size_t i = 0; i < vocabulary.size(); ++i) file.number<std::int32_t>(i < 258 ? 1 : 3);
    whole("tokenizer.ggml.eos_token_id", 260);
    std::uint64_t offset = 0;
    for (const Tensor& tensor : tensors) {
      const std::uint32_t type = type_of(tensor.name, tensor.rows > 0);
      if (tensor.rows == 0) {
        file.tensor(tensor.name, {tensor.cols}, type, offset);
      } else {
        file.tensor(tensor.name, {tensor.cols, tensor.rows}, type, offset);
      }
      const std::uint64_t count = std::max<std::uint64_t>(tensor.rows, 1) * tensor.cols;
      const std::uint64_t bytes = type == 3 ? count / 32 * 20 : type == 8 ? count / 32 * 34 : count * (type == 1 ? 2 : 4);
      offset += (bytes + 31) / 32 * 32;
    }
    file.align();
    peft::Philox random(seed);
    for (const Tensor& tensor : tensors) {
      const std::uint64_t count = std::max<std::uint64_t>(tensor.rows, 1) * tensor.cols;
      const std::uint32_t type = type_of(tensor.name, tensor.rows > 0);
      const auto number = [&](float size) { return static_cast<float>(random.uniform_double() - 0.5) * size; };
      for (std::uint64_t i = 0; i < count; ++i) {
        const bool opens = i % 32 == 0;
        if (type == 3 && opens) file.number(peft::f16(0.03f + number(0.02f)).bits).number(peft::f16(-0.2f + number(0.1f)).bits);
        if (type == 8 && opens) file.number(peft::f16(0.002f + number(0.002f)).bits);
        if (type == 0) file.number(tensor.rows == 0 ? 1.0f : number(0.4f));
        if (type == 1) file.number(peft::f16(number(0.4f)).bits);
        if (type == 8 || (type == 3 && i % 2 == 0)) file.number(static_cast<std::uint8_t>(random.below(256)));
      }
      file.align();
    }
    return file.bytes();
  }
};

}  // namespace peft_test
