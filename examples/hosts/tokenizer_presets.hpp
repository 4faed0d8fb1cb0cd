#pragma once
/// Pre-tokenizers that GGUFs name (`tokenizer.ggml.pre`), step by step as the models' own tokenizer.json have them.

#include <algorithm>
#include <array>
#include <charconv>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "hosts/pre_tokenizer.hpp"
#include "hosts/tokenizer_spec.hpp"
#include "hosts/utf8.hpp"
#include "peft/error.hpp"

namespace peft_examples {

/// What a name says of a tokenizer.
struct TokenizerPreset {
  std::vector<NormalizerStep> normalizer;
  std::vector<PreTokenizerStep> pre_tokenizer;
  bool ignore_merges = false;
  bool operator==(const TokenizerPreset&) const = default;
};

namespace detail {

/// Letters that DeepSeek LLM's pre-tokenizer keeps together: those with case, of an older Unicode.
inline constexpr std::string_view kDeepseekLetters =
    "A-Za-z\\x{B5}\\x{C0}-\\x{D6}\\x{D8}-\\x{F6}\\x{F8}-\\x{1BA}\\x{1BC}-\\x{1BF}\\x{1C4}-\\x{293}\\x{295}-\\x{2AF}"
    "\\x{370}-\\x{373}\\x{376}\\x{377}\\x{37B}-\\x{37D}\\x{37F}\\x{386}\\x{388}-\\x{38A}\\x{38C}\\x{38E}-\\x{3A1}"
    "\\x{3A3}-\\x{3F5}\\x{3F7}-\\x{481}\\x{48A}-\\x{52F}\\x{531}-\\x{556}\\x{10A0}-\\x{10C5}\\x{13A0}-\\x{13F5}"
    "\\x{13F8}-\\x{13FD}\\x{1C90}-\\x{1CBA}\\x{1CBD}-\\x{1CBF}\\x{1D00}-\\x{1D2B}\\x{1D6B}-\\x{1D77}\\x{1D79}-\\x{1D9A}"
    "\\x{1E00}-\\x{1F15}\\x{1F18}-\\x{1F1D}\\x{1F20}-\\x{1F45}\\x{1F48}-\\x{1F4D}\\x{1F50}-\\x{1F57}\\x{1F59}\\x{1F5B}"
    "\\x{1F5D}\\x{1F5F}-\\x{1F7D}\\x{1F80}-\\x{1FB4}\\x{1FB6}-\\x{1FBC}\\x{1FBE}\\x{1FC2}-\\x{1FC4}\\x{1FC6}-\\x{1FCC}"
    "\\x{1FD0}-\\x{1FD3}\\x{1FD6}-\\x{1FDB}\\x{1FE0}-\\x{1FEC}\\x{1FF2}-\\x{1FF4}\\x{1FF6}-\\x{1FFC}\\x{2102}\\x{2107}"
    "\\x{210A}-\\x{2113}\\x{2115}\\x{2119}-\\x{211D}\\x{2124}\\x{2126}\\x{2128}\\x{212A}-\\x{212D}\\x{212F}-\\x{2134}"
    "\\x{2139}\\x{213C}-\\x{213F}\\x{2145}-\\x{2149}\\x{214E}\\x{2183}\\x{2184}\\x{2C00}-\\x{2C7B}\\x{2C7E}-\\x{2CE4}"
    "\\x{2CEB}-\\x{2CEE}\\x{2CF2}\\x{2CF3}\\x{A640}-\\x{A66D}\\x{A680}-\\x{A69B}\\x{A722}-\\x{A76F}\\x{A771}-\\x{A787}"
    "\\x{A78B}-\\x{A78E}\\x{AB70}-\\x{ABBF}\\x{FB00}-\\x{FB06}\\x{FB13}-\\x{FB17}\\x{FF21}-\\x{FF3A}\\x{FF41}-\\x{FF5A}"
    "\\x{10400}-\\x{1044F}\\x{104B0}-\\x{104D3}\\x{104D8}-\\x{104FB}\\x{10C80}-\\x{10CB2}\\x{10CC0}-\\x{10CF2}"
    "\\x{118A0}-\\x{118DF}\\x{1E900}-\\x{1E943}";

/// "\x{…}" as the character itself: how a tokenizer.json spells it.
inline std::string spelled_out(std::string_view pattern) {
  std::string result;
  while (!pattern.empty()) {
    if (!pattern.starts_with("\\x{")) {
      result += pattern.front();
      pattern.remove_prefix(1);
      continue;
    }
    std::uint32_t code = 0;
    const std::size_t end = pattern.find('}');
    std::from_chars(pattern.data() + 3, pattern.data() + end, code, 16);
    append_utf8(result, static_cast<char32_t>(code));
    pattern.remove_prefix(end + 1);
  }
  return result;
}

inline PreTokenizerStep split_step(std::string_view pattern) {
  return {.kind = PreTokenizerStep::Kind::kSplit, .pattern = spelled_out(pattern)};
}

}  // namespace detail

/// The preset of a name, llama.cpp's aliases included; none where it is not known.
inline std::optional<TokenizerPreset> tokenizer_preset(std::string_view name) {
  using StepKind = PreTokenizerStep::Kind;
  // Contractions; letters with one other character before them; up to three digits; others; line ends; white space.
  constexpr std::string_view kLlama3 =
      "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|"
      "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
  constexpr std::string_view kQwen2 =
      "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|"
      "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
  const PreTokenizerStep cuts_as_gpt2{.kind = StepKind::kByteLevel}, bytes{.kind = StepKind::kByteLevel, .use_regex = false};
  const PreTokenizerStep digits{.kind = StepKind::kDigits, .individual_digits = true};
  const auto is = [&](std::initializer_list<std::string_view> names) {
    return std::find(names.begin(), names.end(), name) != names.end();
  };
  if (is({"gpt-2", "gpt2"})) return TokenizerPreset{{}, {cuts_as_gpt2}};
  if (is({"smollm"})) return TokenizerPreset{{}, {digits, cuts_as_gpt2}};
  if (is({"llama-bpe", "llama3", "llama-3", "llama-v3"})) return TokenizerPreset{{}, {detail::split_step(kLlama3), bytes}, true};
  if (is({"smaug-bpe", "dbrx"})) return TokenizerPreset{{}, {detail::split_step(kLlama3), bytes}};
  if (is({"qwen2", "deepseek-r1-qwen"})) {
    return TokenizerPreset{{{NormalizerStep::Kind::kNfc}}, {detail::split_step(kQwen2), bytes}};
  }
  if (is({"deepseek-llm"})) {
    return TokenizerPreset{{},
                           {detail::split_step("[\r\n]"),
                            detail::split_step("\\s?[" + std::string(detail::kDeepseekLetters) + "]+"),
                            detail::split_step("\\s?[!-/:-~\\x{FF01}-\\x{FF0F}\\x{FF1A}-\\x{FF5E}\\x{2018}-\\x{201F}"
                                               "\\x{3000}-\\x{3002}]+"),
                            detail::split_step("\\s+$"),
                            detail::split_step("[\\x{4E00}-\\x{9FA5}\\x{800}-\\x{4E00}\\x{AC00}-\\x{D7FF}]+"), digits,
                            bytes}};
  }
  return std::nullopt;
}

/// For messages, and the names that a GGUF may be written with.
inline constexpr std::array<std::string_view, 6> kPresetNames = {"gpt-2", "smollm", "llama-bpe", "smaug-bpe", "qwen2",
                                                                 "deepseek-llm"};

/// The name of a tokenizer's normalizer and pre-tokenizer in a GGUF; none where no name stands for them.
inline std::optional<std::string> preset_name(const TokenizerSpec& spec) {
  for (const std::string_view name : kPresetNames) {
    if (tokenizer_preset(name) == TokenizerPreset{spec.normalizer, spec.pre_tokenizer, spec.ignore_merges}) return std::string(name);
  }
  return std::nullopt;
}

}  // namespace peft_examples
