#pragma once
/// What a refusal says.

#include <string>

namespace prompt_test {

/// The message of the E that act() throws.
template <class E, class Act>
std::string thrown(Act&& act) {
  try {
    act();
  } catch (const E& error) {
    return error.what();
  }
  return "nothing of the kind was thrown";
}
inline bool has(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace prompt_test
