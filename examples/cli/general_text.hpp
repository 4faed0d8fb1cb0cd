#pragma once
/// examples/data/general.jsonl, as the program brings it along: general questions and prose by which forgetting is measured.

#include <string_view>

namespace peft_examples {

/// JSON lines with instruction and output. Defined in a file that CMake makes.
extern const std::string_view kGeneralText;

}  // namespace peft_examples
