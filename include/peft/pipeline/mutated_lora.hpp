#pragma once
/// A LoRA that started from PiSSA, OLoRA or LoftQ, with that start: what is saved of it is the plain LoRA of twice the rank that does
/// on the unchanged base what the trained one does on the base that the start changed,
///   W − s·B₀·A₀ + s·B·A = W + s·[B | −B₀]·[A ; A₀]
/// as Python PEFT's save_pretrained(path_initial_model_for_weight_conversion=…). In float a base and its remainder differ
/// by the remainder's rounding, half a unit of W's type per weight; over a quantised base by what quantising lost of it. Only
/// on that base itself, kept beside it, is the adapter as it is (save_as_is) what was trained.
/// Meng et al., "PiSSA", 2024 (arXiv 2404.02948), appendix on the conversion.

#include <cmath>
#include <filesystem>
#include <list>
#include <memory>
#include <numbers>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "peft/checkpoint/adapter_parameters.hpp"
#include "peft/checkpoint/peft_directory.hpp"
#include "peft/io/atomic_directory.hpp"
#include "peft/lora_config.hpp"
#include "peft/named_adapter.hpp"
#include "peft/pipeline/adapter_weights.hpp"
#include "peft/train/optimizer_hooks.hpp"

PEFT_BEGIN_NAMESPACE

template <Scalar T>
class MutatedLora {
 public:
  using A = Accumulator<T>;

  /// Keeps a copy of the adapter's A and B: make it between initialize_lora and the first step. Throws ConfigError for an
  /// adapter that is no LoRA.
  explicit MutatedLora(std::shared_ptr<NamedAdapter<T>> adapter) : adapter_(std::move(adapter)) {
    (void)adapter_->config();
    adapter_->for_each_weight([&](const ParameterInfo& info, VectorView<A> value, VectorView<A>) {
      if (factor_of(info.name) == Factor::kNone) return;
      Matrix<A> copy(info.rows, info.cols);
      std::copy(value.begin(), value.end(), copy.flat().begin());
      start_.push_back({std::string(info.name), std::move(copy)});
    });
  }
  MutatedLora(const MutatedLora&) = delete;
  MutatedLora& operator=(const MutatedLora&) = delete;

  NamedAdapter<T>& adapter() const noexcept { return *adapter_; }

  /// Of the plain LoRA: ranks doubled, lora_alpha so that the scale stays.
  LoraConfig plain_config() const {
    LoraConfig config = adapter_->config();
    const double factor = config.use_rslora ? std::numbers::sqrt2 : 2.0;
    config.init_lora_weights = true;
    config.loftq_config = {};
    config.r *= 2;
    config.lora_alpha *= factor;
    for (auto& [key, rank] : config.rank_pattern) rank *= 2;
    for (auto& [key, alpha] : config.alpha_pattern) alpha *= factor;
    return config;
  }

  /// Writes the adapter as it is into a folder, for the base that the start changed; there it is a LoRA like any other. Throws
  /// as save_pretrained.
  void save_as_is(const std::filesystem::path& folder) const {
    LoraConfig config = adapter_->config();
    config.init_lora_weights = true;
    config.loftq_config = {};
    const SavedWeights<T> weights(*adapter_);
    AtomicDirectory set(folder);
    write_peft_adapter(set, AnyConfig(std::move(config)), weights.tensors());
    set.commit();
  }

  /// The plain LoRA's tensors, named by parameter.
  class Tensors {
   public:
    Tensors(const Tensors&) = delete;
    Tensors& operator=(const Tensors&) = delete;
    std::span<const TensorRef> tensors() const noexcept { return tensors_; }

   private:
    friend class MutatedLora;
    explicit Tensors(const MutatedLora& lora) {
      detail::AdapterWeights<T> weights{*lora.adapter_};
      tensors_ = adapter_tensors(weights);
      auto tensor = tensors_.begin();
      auto start = lora.start_.begin();
      lora.adapter_->for_each_weight([&](const ParameterInfo& info, VectorView<A> value, VectorView<A>) {
        const Factor factor = factor_of(info.name);
        if (factor != Factor::kNone) {
          joined_.push_back(joined(factor, {value.data, info.rows, info.cols}, std::as_const(start->second).view()));
          *tensor = tensor_ref<A>(tensor->name, std::as_const(joined_.back()).view());
          ++start;
        }
        ++tensor;
      });
    }

    std::vector<TensorRef> tensors_;
    std::list<Matrix<A>> joined_;
  };
  Tensors plain_tensors() const { return Tensors(*this); }

  /// Keeps the start with a training's state. A resumed run makes it anew, from the same base and seed; one that became
  /// another there (another machine's decomposition) is refused: the base's remainder would not be the saved run's.
  static OptimizerHooks<A> hooks(std::shared_ptr<MutatedLora> lora) {
    OptimizerHooks<A> hooks;
    hooks.state = [lora] {
      NamedTensors<A> state;
      for (const auto& [name, value] : lora->start_) {
        state.push_back({"start." + name, value.rows(), value.cols(), VectorView<const A>(value.flat())});
      }
      return state;
    };
    hooks.restore = [lora](const NamedTensors<A>& state) {
      for (const auto& [name, value] : lora->start_) {
        const NamedTensor<A>& saved = find_tensor(state, "start." + name, "hooks");
        if (std::equal(saved.values.begin(), saved.values.end(), value.flat().begin())) continue;
        fail<ConfigError>("resuming: the start of {} is not the saved run's: the decomposition of its weight came out "
                          "otherwise than where the run began; go on there, or begin a new run",
                          name);
      }
    };
    return hooks;
  }

 private:
  enum class Factor { kNone, kA, kB };
  static Factor factor_of(std::string_view name) noexcept {
    const auto ends = [&](std::string_view part) { return name.ends_with(part); };
    if (ends(".lora_A.weight") || ends(".lora_embedding_A")) return Factor::kA;
    return ends(".lora_B.weight") || ends(".lora_embedding_B") ? Factor::kB : Factor::kNone;
  }
  /// [A ; A₀] or [B | −B₀].
  static Matrix<A> joined(Factor factor, MatrixView<const A> now, MatrixView<const A> start) {
    const bool below = factor == Factor::kA;
    Matrix<A> result(below ? 2 * now.rows : now.rows, below ? now.cols : 2 * now.cols);
    for (Index i = 0; i < now.rows; ++i) {
      for (Index j = 0; j < now.cols; ++j) {
        result(i, j) = now(i, j);
        (below ? result(now.rows + i, j) : result(i, now.cols + j)) = below ? start(i, j) : -start(i, j);
      }
    }
    return result;
  }

  std::shared_ptr<NamedAdapter<T>> adapter_;
  std::vector<std::pair<std::string, Matrix<A>>> start_;
};

PEFT_END_NAMESPACE
