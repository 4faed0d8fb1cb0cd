#pragma once
/// Byte-pair encoding (Sennrich et al., 2016): a word begins as its bytes or characters, and neighbouring pieces merge, the
/// pair of the best rank first, the leftmost of equals, until no pair has a rank. Ranks come from a list of merges (GPT-2,
/// Hugging Face) or from the scores of what the merges make (SentencePiece; Kudo and Richardson, 2018).

#include <algorithm>
#include <array>
#include <cstdint>
#include <functional>
#include <queue>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "hosts/byte_characters.hpp"
#include "hosts/tokenizer_spec.hpp"
#include "hosts/utf8.hpp"
#include "peft/error.hpp"
#include "peft/io/text.hpp"

namespace peft_examples {

/// A merge and its rank; rank 0 merges first.
struct RankedMerge {
  std::string_view left, right;
  std::int32_t rank;
};

/// The merges that scores mean: every way to put a piece together from two others has the rank of that piece's score;
/// equal scores are equal ranks. Best first; the views are of `spec`'s tokens.
inline std::vector<RankedMerge> merges_of_scores(const TokenizerSpec& spec) {
  std::unordered_map<std::string_view, std::size_t> pieces;
  std::vector<std::size_t> order;
  for (std::size_t i = 0; i < spec.tokens.size(); ++i) {
    if (!spec.is_piece[i]) continue;
    pieces.emplace(spec.tokens[i], i);
    order.push_back(i);
  }
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return spec.scores[a] > spec.scores[b]; });
  std::vector<RankedMerge> merges;
  std::int32_t rank = -1;
  for (std::size_t n = 0; n < order.size(); ++n) {
    if (n == 0 || spec.scores[order[n]] != spec.scores[order[n - 1]]) ++rank;
    const std::string_view piece = spec.tokens[order[n]];
    for (std::size_t cut = piece.size(); cut-- > 1;) {  // the longest left part first, as transformers lists them
      if (!pieces.contains(piece.substr(0, cut)) || !pieces.contains(piece.substr(cut))) continue;
      merges.push_back({piece.substr(0, cut), piece.substr(cut), rank});
    }
  }
  return merges;
}

class BpeModel {
 public:
  /// Refers to `spec`, which must outlive this. Throws ConfigError for a merge of unknown pieces.
  explicit BpeModel(const TokenizerSpec& spec) : spec_(&spec) {
    for (std::size_t i = 0; i < spec.tokens.size(); ++i) {
      if (!spec.tokens[i].empty()) ids_.emplace(spec.tokens[i], static_cast<std::int32_t>(i));
    }
    for (unsigned byte = 0; byte < 256; ++byte) {
      byte_ids_[byte] = find(spec.byte_level ? ByteCharacters::get().character(static_cast<std::uint8_t>(byte))
                                             : fmt::format("<0x{:02X}>", byte));
    }
    if (!spec.scores.empty()) {
      for (const RankedMerge& merge : merges_of_scores(spec)) add_merge(merge);
    }
    for (std::size_t rank = 0; rank < spec.merges.size(); ++rank) {
      add_merge({spec.merges[rank].first, spec.merges[rank].second, static_cast<std::int32_t>(rank)});
    }
  }

  /// The id of a token as the vocabulary writes it, or -1.
  std::int32_t find(std::string_view token) const {
    const auto found = ids_.find(token);
    return found != ids_.end() ? found->second : -1;
  }

  /// Appends the ids of one word. Throws ConfigError for a character that no token stands for.
  void encode(std::string_view word, std::vector<std::int32_t>& ids) const {
    if (spec_->ignore_merges && encode_whole(word, ids)) return;
    std::vector<std::int32_t> symbols;
    if (spec_->byte_level) {
      for (const char c : word) add_symbol(byte_ids_[static_cast<unsigned char>(c)], {&c, 1}, symbols);
    } else {
      while (!word.empty()) {
        const std::size_t length = std::max<std::size_t>(1, character_at(word));
        add_character(word.substr(0, length), symbols);
        word.remove_prefix(length);
      }
    }
    merge(symbols, ids);
  }

 private:
  struct Merge {
    std::int32_t rank, id;
  };
  struct TextHash {
    using is_transparent = void;
    std::size_t operator()(std::string_view text) const noexcept { return std::hash<std::string_view>()(text); }
  };

  static std::uint64_t pair_key(std::int32_t left, std::int32_t right) noexcept {
    return static_cast<std::uint64_t>(static_cast<std::uint32_t>(left)) << 32 | static_cast<std::uint32_t>(right);
  }

  void add_merge(const RankedMerge& merge) {
    const auto need = [&](std::string_view piece) {
      const std::int32_t id = find(piece);
      if (id < 0) {
        peft::fail<peft::ConfigError>("tokenizer: merge {} ({} and {}) has the piece {}, which is no token", merge.rank,
                                      peft::quote_text(merge.left), peft::quote_text(merge.right), peft::quote_text(piece));
      }
      return id;
    };
    const std::int32_t merged = need(std::string(merge.left) + std::string(merge.right));
    merges_[pair_key(need(merge.left), need(merge.right))] = {merge.rank, merged};  // of two the last counts, as there
  }

  bool encode_whole(std::string_view word, std::vector<std::int32_t>& ids) const {
    std::string text;
    if (spec_->byte_level) {
      for (const char c : word) text += ByteCharacters::get().character(static_cast<std::uint8_t>(c));
    }
    const std::int32_t id = find(spec_->byte_level ? std::string_view(text) : word);
    if (id >= 0) ids.push_back(id);
    return id >= 0;
  }

  void add_character(std::string_view character, std::vector<std::int32_t>& symbols) const {
    const std::int32_t id = find(character);
    if (id < 0 && spec_->byte_fallback &&
        std::all_of(character.begin(), character.end(), [&](char c) { return byte_ids_[static_cast<unsigned char>(c)] >= 0; })) {
      for (const char c : character) symbols.push_back(byte_ids_[static_cast<unsigned char>(c)]);
      return;
    }
    add_symbol(id, character, symbols);
  }
  void add_symbol(std::int32_t id, std::string_view character, std::vector<std::int32_t>& symbols) const {
    if (id >= 0) return symbols.push_back(id);
    if (spec_->unk < 0) {
      peft::fail<peft::ConfigError>("tokenizer: no token stands for {}, and none for what is unknown",
                                    peft::quote_text(character));
    }
    if (!spec_->fuse_unk || symbols.empty() || symbols.back() != spec_->unk) symbols.push_back(spec_->unk);
  }

  /// A heap of candidates over a linked list: O(n log n).
  void merge(std::span<const std::int32_t> symbols, std::vector<std::int32_t>& ids) const {
    struct Piece {
      std::int32_t id, previous, next;
    };
    struct Candidate {
      std::int32_t rank, left;
      std::uint64_t key;
      std::int32_t merged;
      bool operator<(const Candidate& o) const noexcept { return rank != o.rank ? rank > o.rank : left > o.left; }
    };
    std::vector<Piece> pieces;
    const auto count = static_cast<std::int32_t>(symbols.size());
    for (std::int32_t i = 0; i < count; ++i) {
      pieces.push_back({symbols[static_cast<std::size_t>(i)], i - 1, i + 1 < count ? i + 1 : -1});
    }
    std::priority_queue<Candidate> heap;
    const auto at = [&](std::int32_t i) -> Piece& { return pieces[static_cast<std::size_t>(i)]; };
    const auto offer = [&](std::int32_t left) {
      if (left < 0 || at(left).next < 0) return;
      const std::uint64_t key = pair_key(at(left).id, at(at(left).next).id);
      const auto found = merges_.find(key);
      if (found != merges_.end()) heap.push({found->second.rank, left, key, found->second.id});
    };
    for (std::int32_t i = 0; i + 1 < count; ++i) offer(i);
    while (!heap.empty()) {
      const Candidate best = heap.top();
      heap.pop();
      Piece& left = at(best.left);
      if (left.id < 0 || left.next < 0 || pair_key(left.id, at(left.next).id) != best.key) continue;  // out of date
      Piece& right = at(left.next);
      right.id = -1;
      left.id = best.merged;
      left.next = right.next;
      if (left.next >= 0) at(left.next).previous = best.left;
      offer(left.previous);
      offer(best.left);
    }
    for (std::int32_t i = 0; i >= 0 && i < count; i = at(i).next) ids.push_back(at(i).id);
  }

  const TokenizerSpec* spec_;
  std::unordered_map<std::string, std::int32_t, TextHash, std::equal_to<>> ids_;
  std::array<std::int32_t, 256> byte_ids_{};
  std::unordered_map<std::uint64_t, Merge> merges_;
};

}  // namespace peft_examples
