#pragma once
/// The names of a Llama's tensors in both worlds: Hugging Face's and GGUF's.

#include <charconv>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "hosts/names.hpp"

namespace peft_examples {

namespace detail {

/// Hugging Face's part after "model.layers.N." and GGUF's after "blk.N.".
inline constexpr std::pair<std::string_view, std::string_view> kLayerNames[] = {
    {"input_layernorm", "attn_norm"},       {"post_attention_layernorm", "ffn_norm"},
    {"self_attn.q_proj", "attn_q"},         {"self_attn.k_proj", "attn_k"},
    {"self_attn.v_proj", "attn_v"},         {"self_attn.o_proj", "attn_output"},
    {"self_attn.q_norm", "attn_q_norm"},    {"self_attn.k_norm", "attn_k_norm"},
    {"mlp.gate_proj", "ffn_gate"},          {"mlp.up_proj", "ffn_up"},
    {"mlp.down_proj", "ffn_down"},
};
inline constexpr std::pair<std::string_view, std::string_view> kModelNames[] = {
    {"model.embed_tokens", "token_embd"}, {"model.norm", "output_norm"}, {"lm_head", "output"}};

/// "PREFIX<number>.rest.weight" -> rest in the other world. `to_gguf` says which way.
inline std::optional<std::string> translate(std::string_view name, bool to_gguf) {
  const auto side = [&](const auto& pair, bool from) { return from == to_gguf ? pair.first : pair.second; };
  const std::size_t dot = name.rfind('.');
  if (dot == std::string_view::npos) return std::nullopt;
  const std::string_view ending = name.substr(dot);
  if (ending != ".weight" && ending != ".bias") return std::nullopt;
  std::string_view stem = name.substr(0, dot);
  for (const auto& pair : kModelNames) {
    if (side(pair, true) == stem) return std::string(side(pair, false)) + std::string(ending);
  }
  const std::string_view from = to_gguf ? "model.layers." : "blk.", to = to_gguf ? "blk." : "model.layers.";
  if (!stem.starts_with(from)) return std::nullopt;
  stem.remove_prefix(from.size());
  const std::size_t digits = stem.find('.');
  Index layer = 0;
  if (digits == std::string_view::npos || digits == 0 ||
      std::from_chars(stem.data(), stem.data() + digits, layer).ptr != stem.data() + digits) {
    return std::nullopt;
  }
  for (const auto& pair : kLayerNames) {
    if (side(pair, true) == stem.substr(digits + 1)) {
      std::string result(to);
      result += stem.substr(0, digits + 1);
      result += side(pair, false);
      result += ending;
      return result;
    }
  }
  return std::nullopt;
}

}  // namespace detail

/// "blk.0.attn_q.weight" for "model.layers.0.self_attn.q_proj.weight"; none for a name that is no Llama's.
inline std::optional<std::string> gguf_tensor_name(std::string_view name) { return detail::translate(name, true); }
/// The inverse.
inline std::optional<std::string> hf_tensor_name(std::string_view name) { return detail::translate(name, false); }

}  // namespace peft_examples
