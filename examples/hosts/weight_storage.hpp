#pragma once
/// How a model's weights are kept while it runs.

#include "hosts/names.hpp"

namespace peft_examples {

/// kActivations: every weight in the activations' type. kFile: as the file has it, in its blocks where it has some. kNf4,
/// kFp4, kInt8: the layers' linears are quantised while they are read, the embedding and the head stay as in kFile.
struct WeightStorage {
  enum class Kind { kActivations, kFile, kNf4, kFp4, kInt8 };

  Kind kind = Kind::kActivations;
  Index block_size = 64;     ///< of kNf4 and kFp4
  bool double_quant = true;  ///< of them: their maxima are quantised too
  bool int8_activations = false;  ///< linears in four bits take their activations in 8, for inference

  bool quantizes() const noexcept { return kind == Kind::kNf4 || kind == Kind::kFp4 || kind == Kind::kInt8; }
  bool keeps_file() const noexcept { return kind != Kind::kActivations; }
};

}  // namespace peft_examples
