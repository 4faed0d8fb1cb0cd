#pragma once
/// The whole library for the CPU, in reading order: the way of the data from a weight to an adapted, trained model.

#include "peft/version.hpp"
#include "peft/config.hpp"
#include "peft/error.hpp"

#include "peft/core/scalar.hpp"
#include "peft/core/view.hpp"
#include "peft/core/buffer.hpp"
#include "peft/core/eigen.hpp"
#include "peft/core/rng.hpp"
#include "peft/core/executor.hpp"
#include "peft/core/thread_pool.hpp"
#include "peft/core/parallel.hpp"

#include "peft/parameter.hpp"
#include "peft/linear.hpp"
#include "peft/low_rank_product.hpp"
#include "peft/low_rank_merge.hpp"
#include "peft/dense_linear.hpp"
#include "peft/any_linear.hpp"

#include "peft/module_selector.hpp"
#include "peft/lora_config.hpp"
#include "peft/target_modules.hpp"
#include "peft/dropout_mask.hpp"
#include "peft/lora.hpp"

#include "peft/named_adapter.hpp"
#include "peft/selection.hpp"
#include "peft/adapted_linear.hpp"
#include "peft/adapter_registry.hpp"
#include "peft/merge.hpp"

