"""The methods of method_losses.py in Python: a model with what the method adds, ready to train."""

TEXT = "Answer the medical question clearly and correctly."


def peft_config(method, steps):
    import peft

    from common import lora_of

    llm = {"task_type": "CAUSAL_LM"}
    attention = {"target_modules": ["q_proj", "v_proj"], **llm}
    return {
        "lora": lambda: lora_of(False),
        "rslora": lambda: lora_of(False, use_rslora=True),
        "dora": lambda: lora_of(False, use_dora=True),
        "ia3": lambda: peft.IA3Config(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"], **llm),
        "vera": lambda: peft.VeraConfig(r=64, **attention),
        "loha": lambda: peft.LoHaConfig(r=8, alpha=8, **attention),
        "lokr": lambda: peft.LoKrConfig(r=8, alpha=8, **attention),
        "adalora": lambda: peft.AdaLoraConfig(init_r=12, target_r=8, lora_alpha=32, lora_dropout=0.05, tinit=2, tfinal=2, deltaT=1,
                                              total_step=steps, **attention),
        "ln-tuning": lambda: peft.LNTuningConfig(target_modules=["input_layernorm", "post_attention_layernorm", "norm"], **llm),
        "prefix": lambda: peft.PrefixTuningConfig(num_virtual_tokens=20, **llm),
        "prompt": lambda: peft.PromptTuningConfig(num_virtual_tokens=20, prompt_tuning_init="TEXT", prompt_tuning_init_text=TEXT,
                                                  tokenizer_name_or_path="@tokenizer", **llm),
        "p-tuning": lambda: peft.PromptEncoderConfig(num_virtual_tokens=20, encoder_hidden_size=256, **llm),
    }[method]()


def add(model, method, steps, tokenizer_folder):
    """Returns the model to train, and the Trainer's callbacks."""
    if method == "full":
        return model, []
    if method in ("adapter", "houlsby"):
        import adapters

        adapters.init(model)
        model.add_adapter("default", config={"adapter": "seq_bn", "houlsby": "double_seq_bn"}[method])
        model.train_adapter("default")
        return model, []
    from peft import get_peft_model

    config = peft_config(method, steps)
    if method == "prompt":
        config.tokenizer_name_or_path = tokenizer_folder
    model = get_peft_model(model, config)
    if method != "adalora":
        return model, []
    from transformers import TrainerCallback

    class Allocate(TrainerCallback):
        """AdaLoRA's ranks are given out between the optimizer's step and the gradients' end."""

        def on_optimizer_step(self, args, state, control, **kwargs):
            model.base_model.update_and_allocate(state.global_step)

    return model, [Allocate()]
