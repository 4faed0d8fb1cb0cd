#pragma once
/// The GPU's half of the library, in the order of the data's way: memory, products, layers, methods, optimizer. For files that
/// nvcc compiles; nothing outside of cuda/ includes it.

#include "peft/cuda/buffer.hpp"
#include "peft/cuda/device_matrix.hpp"
#include "peft/cuda/device_view.hpp"
#include "peft/cuda/event.hpp"
#include "peft/cuda/graph.hpp"
#include "peft/cuda/stream.hpp"
#include "peft/cuda/transfer.hpp"

#include "peft/cuda/context.hpp"
#include "peft/cuda/device_info.hpp"
#include "peft/cuda/matmul.hpp"

#include "peft/cuda/dense_linear.hpp"
#include "peft/cuda/linear.hpp"
#include "peft/cuda/linear_cross_entropy.hpp"
#include "peft/cuda/nf4_linear.hpp"
#include "peft/cuda/nf4_tensor.hpp"

#include "peft/cuda/adapter_batch.hpp"
#include "peft/cuda/adapter_row_map.hpp"
#include "peft/cuda/bottleneck.hpp"
#include "peft/cuda/dropout_mask.hpp"
#include "peft/cuda/lora.hpp"

#include "peft/cuda/adamw.hpp"
#include "peft/cuda/gradient_norm.hpp"
#include "peft/cuda/paged_adamw.hpp"
