#pragma once
/// --dtype and what belongs to it: how the weights of a model are kept, and the type of its activations.

#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include <string>

#include "hosts/weight_storage.hpp"

namespace peft_examples {

struct WeightOptions {
  std::string dtype = "f32";
  WeightStorage quantized{};  ///< of nf4 and fp4: block size and whether twice

  void add_to(CLI::App& command) {
    command.add_option("--dtype", dtype,
                       "f32, bf16, f16: of weights and activations; native: weights as the file has them; nf4, fp4, int8: the "
                       "layers' quantised, the others as the file has them; activations of these four and all sums are f32")
        ->check(CLI::IsMember({"f32", "bf16", "f16", "native", "nf4", "fp4", "int8"}))
        ->capture_default_str();
    command.add_option("--block", quantized.block_size, "weights that share a scale, a power of two from 32 to 4096 [nf4, fp4]")
        ->capture_default_str();
    command.add_flag("--double-quant,!--no-double-quant", quantized.double_quant,
                     "scales are quantised too (the default) or floats [nf4, fp4]");
    command.add_flag("--int8-activations", quantized.int8_activations,
                     "layers in four bits take their activations in 8: faster, for a little more error; not in training [nf4, fp4, "
                     "native of four bits]");
  }
  /// In four bits.
  bool is_quantized() const noexcept { return dtype == "nf4" || dtype == "fp4"; }
  /// Throws CLI::ValidationError for an option that was given and is none of the dtype's.
  void check(const CLI::App& command) const {
    for (const char* name : {"--block", "--double-quant"}) {
      if (command.count(name) == 0 || is_quantized()) continue;
      throw CLI::ValidationError(name, fmt::format("is no option of --dtype {}; it belongs to nf4 and fp4", dtype));
    }
    if (quantized.int8_activations && !is_quantized() && dtype != "native") {
      throw CLI::ValidationError("--int8-activations", fmt::format("is no option of --dtype {}; it belongs to nf4, fp4 and native", dtype));
    }
  }
  /// The same for a command that trains.
  void check_training(const CLI::App& command) const {
    check(command);
    if (!quantized.int8_activations) return;
    throw CLI::ValidationError("--int8-activations", "is for eval and generate: rounding to 8 bits has no gradient");
  }
  WeightStorage storage() const noexcept {
    WeightStorage result = quantized;
    using Kind = WeightStorage::Kind;
    result.kind = dtype == "native" ? Kind::kFile : dtype == "nf4" ? Kind::kNf4 : dtype == "fp4" ? Kind::kFp4
                : dtype == "int8"   ? Kind::kInt8 : Kind::kActivations;
    return result;
  }
  /// Everything that decides the weights' values: "nf4, blocks of 64, twice".
  std::string text() const {
    if (!is_quantized()) return dtype;
    return fmt::format("{}, blocks of {}{}", dtype, quantized.block_size, quantized.double_quant ? ", twice" : "");
  }
};

}  // namespace peft_examples
