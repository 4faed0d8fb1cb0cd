"""torch + transformers + peft: the steps of bench_methods.cpp.

    method_step.py prefix|prefix_projection|prompt|p_tuning_mlp|p_tuning_lstm     prints one line of JSON
"""

import sys

import torch
from common import report_training, smollm2_135m

VIRTUAL_TOKENS = 20


def config_of(method):
    import peft

    common = dict(num_virtual_tokens=VIRTUAL_TOKENS, task_type="CAUSAL_LM")
    if method in ("prefix", "prefix_projection"):
        return peft.PrefixTuningConfig(prefix_projection=method == "prefix_projection", **common)
    if method == "prompt":
        return peft.PromptTuningConfig(prompt_tuning_init="SAMPLE_VOCAB", **common)
    return peft.PromptEncoderConfig(encoder_reparameterization_type=method.removeprefix("p_tuning_").upper(),
                                    encoder_hidden_size=256, **common)


def main(method):
    from peft import get_peft_model
    from transformers import LlamaForCausalLM

    torch.set_num_threads(2)
    torch.manual_seed(0)
    model = get_peft_model(LlamaForCausalLM(smollm2_135m()).float(), config_of(method))
    report_training(model)


if __name__ == "__main__":
    main(sys.argv[1])
