#pragma once
/// Everything that decides a tokenizer's ids, whichever file it came from: a tokenizer.json, a vocab.txt or a GGUF. The
/// steps are those of Hugging Face's tokenizers:
///   text → special tokens cut out → normalizer → pre-tokenizer → pieces, word by word → ids between prefix and suffix

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace peft_examples {

/// One step of a normalizer.
struct NormalizerStep {
  enum class Kind : std::uint8_t { kNfc, kNfd, kNfkc, kNfkd, kPrepend, kReplace, kBert };
  Kind kind = Kind::kNfc;
  std::string pattern = {};  ///< kReplace: every occurrence of it …
  std::string content = {};  ///< … becomes this; kPrepend: goes before a text that is not empty
  bool clean_text = true;      ///< kBert: control characters go, white space of any kind becomes a space
  bool handle_chinese_chars = true;  ///< kBert: ideographs get a space on either side
  bool strip_accents = true;   ///< kBert: combining marks go
  bool lowercase = true;       ///< kBert
  bool operator==(const NormalizerStep&) const = default;
};

/// One step of a pre-tokenizer.
struct PreTokenizerStep {
  enum class Kind : std::uint8_t { kSplit, kDigits, kByteLevel, kMetaspace, kBert };
  /// What becomes of a match of kSplit: a word of its own, nothing, or a part of the word beside it.
  enum class Behavior : std::uint8_t { kIsolated, kRemoved, kMergedWithPrevious, kMergedWithNext, kContiguous };
  enum class Prepend : std::uint8_t { kAlways, kFirst, kNever };

  Kind kind = Kind::kByteLevel;
  std::string pattern = {};                 ///< kSplit: a regular expression
  bool is_literal = false;                  ///< kSplit: the pattern is plain text
  Behavior behavior = Behavior::kIsolated;  ///< kSplit
  bool invert = false;                      ///< kSplit: what lies between the matches counts as the match
  bool individual_digits = false;           ///< kDigits
  bool use_regex = true;                    ///< kByteLevel: cuts as GPT-2 did
  bool add_prefix_space = false;            ///< kByteLevel: a text that begins otherwise begins with a space
  Prepend prepend = Prepend::kAlways;       ///< kMetaspace: texts that begin with its character: all, the first, none
  bool split = true;                        ///< kMetaspace: cuts before its character
  bool operator==(const PreTokenizerStep&) const = default;
};

/// A token that is found in the text before anything else.
struct AddedToken {
  std::int32_t id = -1;
  std::string content = {};
  bool special = false;     ///< left out where text is decoded without special tokens
  bool normalized = false;  ///< looked for in the normalized text, itself normalized
  bool lstrip = false;      ///< takes the white space on its left along
  bool rstrip = false;
  bool operator==(const AddedToken&) const = default;
};

/// SentencePiece's stand-in for a space, U+2581.
inline constexpr std::string_view kMetaspace = "\xE2\x96\x81";

struct TokenizerSpec {
  enum class Model : std::uint8_t { kBytePair, kWordPiece };
  Model model = Model::kBytePair;
  std::vector<std::string> tokens;  ///< by id; "": none has that id
  std::vector<std::pair<std::string, std::string>> merges;  ///< the first has the highest priority
  std::vector<float> scores;  ///< by id: pieces merge by the score of what they become (SentencePiece); then no merges
  std::vector<bool> is_piece;  ///< with scores: the tokens that merges may make or take
  std::vector<AddedToken> added;
  std::vector<NormalizerStep> normalizer;
  std::vector<PreTokenizerStep> pre_tokenizer;
  bool byte_level = true;      ///< tokens are bytes in GPT-2's printable characters; otherwise characters, with U+2581
  bool byte_fallback = false;  ///< a character that is no token becomes its bytes, <0x00> to <0xFF>
  bool fuse_unk = false;       ///< unknown characters in a row are one unknown token
  bool ignore_merges = false;  ///< a word that is a token is that token, whatever the merges say
  std::int32_t unk = -1;
  std::string continuing_prefix = "##";          ///< WordPiece: before pieces that do not begin their word
  std::int32_t max_input_chars_per_word = 100;   ///< WordPiece: longer words are unknown
  bool cleanup = true;                           ///< WordPiece: decoding takes spaces before punctuation away
  int strip_left = 0;  ///< spaces that decoding takes from the front of a text
  std::vector<std::int32_t> prefix, suffix;  ///< ids around a text where special tokens are asked for
  std::int32_t bos = -1, eos = -1, pad = -1;
  std::vector<std::int32_t> stops;  ///< ids that end a text, eos among them
  std::string chat_template;        ///< a Jinja template, carried along

  bool operator==(const TokenizerSpec&) const = default;
};

}  // namespace peft_examples
