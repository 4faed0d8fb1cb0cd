"""torch + transformers + peft: the steps of bench_methods.cpp.

    method_step.py prefix|prefix_projection|prompt|p_tuning_mlp|p_tuning_lstm     prints one line of JSON
"""

import sys

import torch
from lora_step import SEQUENCES, TOKENS, measure, report

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
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(2)
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
                         num_attention_heads=9, num_key_value_heads=3, max_position_embeddings=2048,
                         tie_word_embeddings=True)
    model = get_peft_model(LlamaForCausalLM(config).float(), config_of(method))
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-4, weight_decay=0.0)
    ids = torch.randint(0, 49152, (SEQUENCES, TOKENS // SEQUENCES))

    def run():
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()

    report(**{"tok/s": TOKENS / measure(run, 4)})


if __name__ == "__main__":
    main(sys.argv[1])
