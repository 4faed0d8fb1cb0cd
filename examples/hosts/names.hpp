#pragma once
/// The library's names that every host is written with.

#include "peft/adapted_linear.hpp"
#include "peft/core/buffer.hpp"
#include "peft/core/executor.hpp"
#include "peft/core/scalar.hpp"
#include "peft/core/view.hpp"
#include "peft/linear.hpp"

namespace peft_examples {

using peft::Accumulate;
using peft::Accumulator;
using peft::AdaptedLinear;
using peft::Buffer;
using peft::ExecutorRef;
using peft::Index;
using peft::Matrix;
using peft::MatrixView;
using peft::Scalar;
using peft::VectorView;

}  // namespace peft_examples
