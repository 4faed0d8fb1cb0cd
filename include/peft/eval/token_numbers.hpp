#pragma once
/// Tokens as numbers, so that n-grams are compared without their texts.

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "peft/config.hpp"

PEFT_BEGIN_NAMESPACE

/// Gives equal tokens equal numbers, over all lists that one object has seen. The tokens must outlive it.
class TokenNumbers {
 public:
  std::vector<std::uint32_t> operator()(std::span<const std::u32string> tokens) {
    std::vector<std::uint32_t> result;
    result.reserve(tokens.size());
    for (const std::u32string& token : tokens) {
      result.push_back(numbers_.emplace(token, static_cast<std::uint32_t>(numbers_.size())).first->second);
    }
    return result;
  }

 private:
  std::unordered_map<std::u32string_view, std::uint32_t> numbers_;
};

PEFT_END_NAMESPACE
