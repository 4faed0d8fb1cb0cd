// The names of the design card, used as on the card. A program of static_asserts: it compiles or it does not.
#include <peft/peft.hpp>

#include <type_traits>

namespace {

/// A host's layer in three members.
struct HostLinear {
  using value_type = float;
  peft::Index in_features() const { return 4; }
  peft::Index out_features() const { return 2; }
  void forward(peft::MatrixView<const float>, peft::MatrixView<float>) const {}
};
static_assert(peft::LinearLike<HostLinear>);
static_assert(!peft::ExecutorForward<HostLinear> && !peft::PanelSource<HostLinear> &&
              !peft::BackwardLinear<HostLinear> && !peft::FusedLowRank<HostLinear> &&
              !peft::MergeableLinear<HostLinear> && !peft::WeightGrad<HostLinear>);

// peft::Lora<T>, T = float unless said otherwise; made from sizes or from a configuration.
static_assert(std::is_same_v<peft::Lora<>, peft::Lora<float>>);
static_assert(std::is_same_v<decltype(peft::Lora(4, 2, 8, 4.0)), peft::Lora<float>>);
static_assert(
    std::is_same_v<decltype(peft::Lora(4, 2, peft::LoraConfig{.r = 8, .lora_alpha = 32})), peft::Lora<float>>);
static_assert(std::is_same_v<peft::Lora<peft::bf16>::accumulator_type, float>);
static_assert(std::is_same_v<peft::Lora<double>::accumulator_type, double>);
static_assert(std::is_nothrow_move_constructible_v<peft::Lora<>> && !std::is_copy_constructible_v<peft::Lora<>>);
static_assert(!std::is_polymorphic_v<peft::Lora<>>);

// LoraConfig is an aggregate with PEFT's names.
static_assert(std::is_aggregate_v<peft::LoraConfig>);
[[maybe_unused]] const peft::LoraConfig kConfig{
    .r = 8, .lora_alpha = 32, .target_modules = {"q_proj", "v_proj"}, .lora_dropout = 0.05f};
[[maybe_unused]] const peft::LoraConfig kEveryField{.r = 8,
                                                    .lora_alpha = 16,
                                                    .target_modules = "all-linear",
                                                    .exclude_modules = {"lm_head"},
                                                    .lora_dropout = 0.0f,
                                                    .fan_in_fan_out = false,
                                                    .bias = "none",
                                                    .use_rslora = true,
                                                    .init_lora_weights = "gaussian",
                                                    .layers_to_transform = {},
                                                    .layers_pattern = {},
                                                    .rank_pattern = {{"q_proj", 16}},
                                                    .alpha_pattern = {{"q_proj", 32}},
                                                    .modules_to_save = {},
                                                    .task_type = "CAUSAL_LM",
                                                    .base_model_name_or_path = "model",
                                                    .revision = {},
                                                    .inference_mode = false};

// peft::Adapter<T>, T = float unless said otherwise; made from the hidden size and a configuration, AdapterHub's by name.
static_assert(std::is_same_v<peft::Adapter<>, peft::Adapter<float>>);
static_assert(std::is_same_v<decltype(peft::Adapter(576, peft::AdapterConfig::seq_bn())), peft::Adapter<float>>);
static_assert(std::is_same_v<peft::Adapter<peft::bf16>::accumulator_type, float>);
static_assert(std::is_nothrow_move_constructible_v<peft::Adapter<>> && !std::is_copy_constructible_v<peft::Adapter<>> &&
              !std::is_polymorphic_v<peft::Adapter<>>);
static_assert(std::is_same_v<peft::AdapterSet<>, peft::AdapterSet<float>>);

// peft::PrefixCache<T> and peft::PromptEmbedding<T>, T = float unless said otherwise; made from sizes or a configuration.
static_assert(std::is_same_v<peft::PrefixCache<>, peft::PrefixCache<float>>);
static_assert(std::is_same_v<decltype(peft::PrefixCache(20, 30, 3, 64)), peft::PrefixCache<float>>);
static_assert(std::is_same_v<decltype(peft::PrefixCache(peft::PrefixTuningConfig{.num_virtual_tokens = 20})),
                             peft::PrefixCache<float>>);
static_assert(std::is_same_v<peft::PromptEmbedding<>, peft::PromptEmbedding<float>>);
static_assert(std::is_same_v<decltype(peft::PromptEmbedding(20, 576)), peft::PromptEmbedding<float>>);
static_assert(std::is_same_v<decltype(peft::PromptEmbedding(peft::PromptTuningConfig{.num_virtual_tokens = 20})),
                             peft::PromptEmbedding<float>>);
static_assert(std::is_same_v<decltype(peft::PromptEmbedding(peft::PromptEncoderConfig{.num_virtual_tokens = 20})),
                             peft::PromptEmbedding<float>>);
static_assert(std::is_nothrow_move_constructible_v<peft::PrefixCache<>> &&
              !std::is_copy_constructible_v<peft::PrefixCache<>> && !std::is_polymorphic_v<peft::PrefixCache<>>);
static_assert(!std::is_copy_constructible_v<peft::PromptEmbedding<>> && !std::is_polymorphic_v<peft::PromptEmbedding<>>);
static_assert(peft::KvCacheLike<peft::PrefixCache<>> && peft::KvCacheLike<peft::PrefixCache<peft::f16>>);
static_assert(std::is_aggregate_v<peft::PrefixTuningConfig> && std::is_aggregate_v<peft::PromptTuningConfig> &&
              std::is_aggregate_v<peft::PromptEncoderConfig>);

// Layers: an adapted one is a layer again, and can itself be adapted or erased.
static_assert(peft::LinearLike<peft::AdaptedLinear<float>>);
static_assert(peft::LinearLike<peft::AnyLinear<float>> && peft::FusedLowRank<peft::AnyLinear<float>>);
static_assert(std::is_constructible_v<peft::AnyLinear<float>, HostLinear>);
static_assert(std::is_constructible_v<peft::AnyLinear<float>, peft::AdaptedLinear<float>>);
static_assert(!std::is_constructible_v<peft::AnyLinear<float>, int>);
template <class W, class T>
constexpr bool kHasEverything = peft::LinearLike<peft::DenseLinear<W>, T>&&
    peft::ExecutorForward<peft::DenseLinear<W>, T>&& peft::BackwardLinear<peft::DenseLinear<W>, T>&&
        peft::ExecutorBackward<peft::DenseLinear<W>, T>&& peft::FusedLowRank<peft::DenseLinear<W>, T>&&
            peft::MergeableLinear<peft::DenseLinear<W>, T>&& peft::WeightGrad<peft::DenseLinear<W>, T>;
static_assert(kHasEverything<float, float> && kHasEverything<float, peft::bf16> && kHasEverything<float, peft::f16>);
static_assert(kHasEverything<peft::bf16, float> && kHasEverything<peft::f16, peft::f16> &&
              kHasEverything<double, double>);
static_assert(peft::PanelSource<peft::DenseLinear<peft::bf16>> && !peft::PanelSource<peft::DenseLinear<double>>);

// peft::Nf4Tensor: bytes that are owned or a file's; a copy shares them.
static_assert(std::is_same_v<decltype(peft::Nf4Tensor::quantize(peft::MatrixView<const peft::bf16>())), peft::Nf4Tensor>);
static_assert(std::is_nothrow_move_constructible_v<peft::Nf4Tensor> && std::is_copy_constructible_v<peft::Nf4Tensor> &&
              !std::is_polymorphic_v<peft::Nf4Tensor>);
static_assert(!std::is_same_v<peft::Nf4Tensor, peft::Fp4Tensor>);
static_assert(peft::PanelSource<peft::Nf4Linear> && peft::FusedLowRank<peft::Nf4Linear, peft::bf16>);
[[maybe_unused]] const peft::FourBitConfig kFourBits{.block_size = 64, .double_quant = true};

// Executors.
static_assert(peft::Executor<peft::SerialExecutor> && peft::Executor<peft::ThreadPool>);

// Views convert to constant ones and not back.
static_assert(std::is_convertible_v<peft::MatrixView<float>, peft::MatrixView<const float>>);
static_assert(!std::is_convertible_v<peft::MatrixView<const float>, peft::MatrixView<float>>);

}  // namespace

// Every member compiles, for every activation type.
template class peft::Lora<float>;
template class peft::Lora<peft::bf16>;
template class peft::Lora<peft::f16>;
template class peft::Lora<double>;
template class peft::Adapter<float>;
template class peft::Adapter<peft::bf16>;
template class peft::Adapter<double>;
template class peft::AdapterSet<peft::f16>;
template class peft::PrefixCache<float>;
template class peft::PrefixCache<peft::bf16>;
template class peft::PrefixCache<double>;
template class peft::PromptEmbedding<float>;
template class peft::PromptEmbedding<peft::f16>;
template class peft::PromptEmbedding<double>;
template class peft::DenseLinear<float>;
template class peft::DenseLinear<double>;
template class peft::FourBitTensor<peft::FourBitCode::kNf4>;
template class peft::FourBitTensor<peft::FourBitCode::kFp4>;
template class peft::AnyLinear<peft::f16>;
template class peft::AdaptedLinear<peft::bf16>;
template class peft::AdapterRegistry<double>;
