#pragma once
/// The methods of the command line with their defaults, and the options that are fields of their configurations.

#include <string_view>

namespace peft_examples {

enum class FieldKind { kCount, kWhole, kInteger, kNumber, kText, kFlag, kModules, kNames, kWholes };

/// An option: PEFT's field, with hyphens. `methods`: those that have it, with spaces around each.
struct Field {
  std::string_view name;  ///< of the field; empty: no field of a configuration
  std::string_view option;
  FieldKind kind;
  std::string_view methods;
  std::string_view help;
};

inline constexpr std::string_view kLora = " lora qlora rslora dora ";
inline constexpr std::string_view kRank = " lora qlora rslora dora vera loha lokr ";
inline constexpr std::string_view kLoraAlpha = " lora qlora rslora dora adalora ";
inline constexpr std::string_view kLinear = " lora qlora rslora dora ia3 vera loha lokr adalora ln-tuning ";
inline constexpr std::string_view kLayers = " lora qlora rslora dora vera loha lokr adalora ";
inline constexpr std::string_view kBias = " lora qlora rslora dora vera adalora ";
inline constexpr std::string_view kVirtual = " prefix prompt p-tuning ";
inline constexpr std::string_view kBottleneck = " adapter houlsby parallel ";

inline constexpr Field kFields[] = {
    {"r", "--r", FieldKind::kCount, kRank, "rank"},
    {"lora_alpha", "--lora-alpha", FieldKind::kNumber, kLoraAlpha, "scale of the update times r"},
    {"alpha", "--alpha", FieldKind::kNumber, " loha lokr ", "scale of the update times r"},
    {"lora_dropout", "--lora-dropout", FieldKind::kNumber, kLoraAlpha, "probability, below 1"},
    {"vera_dropout", "--vera-dropout", FieldKind::kNumber, " vera ", "probability, below 1"},
    {"target_modules", "--target-modules", FieldKind::kModules, kLinear,
     "names with commas, all-linear, or a regular expression of whole paths"},
    {"exclude_modules", "--exclude-modules", FieldKind::kModules, " lora qlora rslora dora ia3 loha lokr adalora ln-tuning ",
     "the same, of modules that are left out"},
    {"feedforward_modules", "--feedforward-modules", FieldKind::kModules, " ia3 ", "of these the input is scaled"},
    {"layers_to_transform", "--layers-to-transform", FieldKind::kWholes, kLayers, "layer numbers with commas"},
    {"modules_to_save", "--modules-to-save", FieldKind::kNames, kLinear, "names with commas: trained in full"},
    {"bias", "--bias", FieldKind::kText, kBias, "which biases are trained: none, all or lora_only (vera_only)"},
    {"use_rslora", "--use-rslora", FieldKind::kFlag, kLora, "scale alpha/sqrt(r)"},
    {"use_dora", "--use-dora", FieldKind::kFlag, kLora, "a trained length per output row"},
    {"lora_bias", "--lora-bias", FieldKind::kFlag, " lora qlora rslora ", "a bias on B"},
    {"init_lora_weights", "--init-lora-weights", FieldKind::kText, kLora, "start: true, false, gaussian, orthogonal, pissa, pissa_niter_N, olora, loftq or eva"},
    {"loftq_config.loftq_iter", "--loftq-iter", FieldKind::kCount, kLora, "loftq: quantisations, each followed by a decomposition (1)"},
    {"eva_config.rho", "--eva-rho", FieldKind::kNumber, kLora, "eva: a module may get so many times r columns (2)"},
    {"eva_config.tau", "--eva-tau", FieldKind::kNumber, kLora, "eva: cosine between batches from which components have settled (0.99)"},
    {"eva_config.whiten", "--eva-whiten", FieldKind::kFlag, kLora, "eva: components over the roots of their values"},
    {"alora_invocation_tokens", "--alora-invocation-tokens", FieldKind::kWholes, " lora qlora rslora ",
     "aLoRA: token ids with commas from whose last occurrence on the adapter acts"},
    {"trainable_token_indices", "--trainable-token-indices", FieldKind::kWholes, kLora,
     "token ids with commas whose embeddings are trained"},
    {"", "--loraplus-lr-ratio", FieldKind::kNumber, " lora qlora rslora dora ", "LoRA+: B learns so many times as fast as A"},
    {"d_initial", "--d-initial", FieldKind::kNumber, " vera ", "start of the vector d"},
    {"projection_prng_key", "--projection-prng-key", FieldKind::kWhole, " vera ", "seed of the frozen projections"},
    {"decompose_both", "--decompose-both", FieldKind::kFlag, " lokr ", "factor the first matrix too"},
    {"decompose_factor", "--decompose-factor", FieldKind::kInteger, " lokr ", "size of the first factor, or -1"},
    {"init_r", "--init-r", FieldKind::kCount, " adalora ", "rank of every module at the start"},
    {"target_r", "--target-r", FieldKind::kCount, " adalora ", "rank per module at the end, on average"},
    {"tinit", "--tinit", FieldKind::kWhole, " adalora ", "steps before ranks are reduced"},
    {"tfinal", "--tfinal", FieldKind::kWhole, " adalora ", "steps at the end during which they stay"},
    {"deltaT", "--deltaT", FieldKind::kCount, " adalora ", "steps between two reductions"},
    {"beta1", "--beta1", FieldKind::kNumber, " adalora ", "smoothing of the sensitivity"},
    {"beta2", "--beta2", FieldKind::kNumber, " adalora ", "smoothing of its uncertainty"},
    {"orth_reg_weight", "--orth-reg-weight", FieldKind::kNumber, " adalora ", "of the loss's second term"},
    {"num_virtual_tokens", "--num-virtual-tokens", FieldKind::kCount, kVirtual, "that stand before every sequence (20)"},
    {"prefix_projection", "--prefix-projection", FieldKind::kFlag, " prefix ", "an MLP makes the prefix while it is trained"},
    {"encoder_hidden_size", "--encoder-hidden-size", FieldKind::kCount, " prefix p-tuning ", "width inside the encoder"},
    {"", "--prefix-init-text", FieldKind::kText, " prefix ", "start from what the model computes for this text"},
    {"prompt_tuning_init", "--prompt-tuning-init", FieldKind::kText, " prompt ", "start: TEXT, SAMPLE_VOCAB or RANDOM"},
    {"prompt_tuning_init_text", "--prompt-tuning-init-text", FieldKind::kText, " prompt ", "start from this text's embeddings"},
    {"tokenizer_name_or_path", "--tokenizer-name-or-path", FieldKind::kText, " prompt ", "for Python, with TEXT"},
    {"encoder_reparameterization_type", "--encoder-reparameterization-type", FieldKind::kText, " p-tuning ", "MLP or LSTM"},
    {"encoder_num_layers", "--encoder-num-layers", FieldKind::kCount, " p-tuning ", "of the LSTM"},
    {"encoder_dropout", "--encoder-dropout", FieldKind::kNumber, " p-tuning ", "between the LSTM's layers"},
    {"reduction_factor", "--reduction-factor", FieldKind::kNumber, kBottleneck, "how much narrower the bottleneck is"},
    {"non_linearity", "--non-linearity", FieldKind::kText, kBottleneck, "relu, gelu, gelu_new, silu, swish, tanh or leakyrelu"},
    {"dropout", "--dropout", FieldKind::kNumber, kBottleneck, "of the bottleneck's update: probability, below 1"},
    {"scaling", "--scaling", FieldKind::kText, kBottleneck, "factor of the update: a number, learned or channel"},
    {"leave_out", "--leave-out", FieldKind::kWholes, kBottleneck, "layer numbers with commas: without adapters"},
    {"init_weights", "--init-weights", FieldKind::kText, " prefix loha lokr adapter houlsby parallel ",
     "start: zero (prefix); true, false (loha, lokr); bert, mam_adapter, houlsby (adapters)"},
    {"", "--adapters", FieldKind::kNames, " fusion ", "folders of AdapterHub's adapters with commas, which are mixed and stay as they are"},
    {"", "--fusion", FieldKind::kText, " fusion ", "dynamic, or static: without a value matrix"},
};

inline constexpr std::string_view kBottleneckType = "AdapterHub's";
inline constexpr std::string_view kFusionType = "AdapterFusion";
inline constexpr std::string_view kFusion = "fusion";
inline constexpr std::string_view kQlora = "qlora";  ///< lora over weights in four bits
inline constexpr std::string_view kHead = "head";  ///< the classification head alone

struct Method {
  std::string_view name;
  std::string_view peft_type;
  double learning_rate;
  /// Fields that are set where no option is: Python PEFT's for Llama, or its documentation's.
  std::string_view defaults;
  /// The modules of them in a BERT: Python PEFT's.
  std::string_view of_bert = "{}";
};
inline constexpr std::string_view kQueryValue = R"({"target_modules":["query","value"]})";
inline constexpr Method kMethods[] = {
    {"lora", "LORA", 3e-4, R"({"r":8,"lora_alpha":32,"lora_dropout":0.05,"target_modules":["q_proj","v_proj"]})", kQueryValue},
    {kQlora, "LORA", 3e-4, R"({"r":8,"lora_alpha":32,"lora_dropout":0.05,"target_modules":["q_proj","v_proj"]})"},
    {"rslora", "LORA", 3e-4,
     R"({"r":8,"lora_alpha":32,"lora_dropout":0.05,"target_modules":["q_proj","v_proj"],"use_rslora":true})", kQueryValue},
    {"dora", "LORA", 3e-4,
     R"({"r":8,"lora_alpha":32,"lora_dropout":0.05,"target_modules":["q_proj","v_proj"],"use_dora":true})", kQueryValue},
    {"ia3", "IA3", 5e-3,
     R"({"target_modules":["k_proj","v_proj","down_proj"],"feedforward_modules":["down_proj"]})",
     R"({"target_modules":["key","value","output.dense"],"feedforward_modules":["output.dense"]})"},
    {"vera", "VERA", 4e-3, R"({"r":256,"target_modules":["q_proj","v_proj"]})", kQueryValue},
    {"loha", "LOHA", 1e-3, R"({"r":8,"alpha":8,"target_modules":["q_proj","v_proj"]})", kQueryValue},
    {"lokr", "LOKR", 1e-3, R"({"r":8,"alpha":8,"target_modules":["q_proj","v_proj"]})", kQueryValue},
    {"adalora", "ADALORA", 1e-3,
     R"({"init_r":12,"target_r":8,"lora_alpha":32,"lora_dropout":0.05,"target_modules":["q_proj","v_proj"]})", kQueryValue},
    {"ln-tuning", "LN_TUNING", 1e-3, R"({"target_modules":["input_layernorm","post_attention_layernorm","norm"]})",
     R"({"target_modules":["LayerNorm"]})"},
    {"bitfit", "FULL", 1e-3, R"({"bias_only":true})"},
    {"full", "FULL", 2e-5, "{}"},
    {kHead, "FULL", 1e-3, R"({"target_modules":["classifier"]})"},
    {"prefix", "PREFIX_TUNING", 1e-2, R"({"num_virtual_tokens":20})"},
    {"prompt", "PROMPT_TUNING", 2e-2, R"({"num_virtual_tokens":20,"prompt_tuning_init":"SAMPLE_VOCAB"})"},
    {"p-tuning", "P_TUNING", 1e-3, R"({"num_virtual_tokens":20})"},
    {"adapter", kBottleneckType, 1e-3, "seq_bn"},
    {"houlsby", kBottleneckType, 1e-3, "double_seq_bn"},
    {"parallel", kBottleneckType, 1e-3, "par_bn"},
    {kFusion, kFusionType, 5e-5, ""},
};

}  // namespace peft_examples
