"""What the peers' scripts share: the model's shape, timing, and one line of JSON as their result."""

import json
import resource
import statistics
import time

TOKENS, SEQUENCES = 512, 4


def smollm2_135m():
    """transformers' configuration of random_llama.hpp's shape."""
    from transformers import LlamaConfig

    return LlamaConfig(vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
                       num_attention_heads=9, num_key_value_heads=3, max_position_embeddings=2048,
                       tie_word_embeddings=True)


def lora_of(all_linears, **changes):
    """r = 8, alpha = 32, dropout 0.05 on q_proj and v_proj, or on all linears."""
    from peft import LoraConfig

    modules = ["q_proj", "v_proj"]
    if all_linears:
        modules += ["k_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    return LoraConfig(**{"r": 8, "lora_alpha": 32, "lora_dropout": 0.05, "target_modules": modules,
                         "task_type": "CAUSAL_LM", **changes})


def quantize_linears(model, quant_type="nf4", double_quant=True, in_bf16=False):
    """The layers' linears, not the head, become bitsandbytes' four bits in blocks of 64, computing in float.

    Where the processor has AVX512-BF16, bitsandbytes' first pass in eval mode rounds the scales to bfloat16, computes in that from
    then on and has no gradient; only with in_bf16 it may.
    """
    import bitsandbytes
    import torch

    for name, module in list(model.named_modules()):
        if not isinstance(module, torch.nn.Linear) or "layers." not in name:
            continue
        layer = bitsandbytes.nn.Linear4bit(module.in_features, module.out_features, bias=False, compute_dtype=torch.float32,
                                           compress_statistics=double_quant, quant_type=quant_type)
        layer.weight = bitsandbytes.nn.Params4bit(module.weight.data, requires_grad=False, compress_statistics=double_quant,
                                                  quant_type=quant_type, blocksize=64, module=layer)
        layer.support_avx512bf16_for_cpu &= in_bf16
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, layer.to("cpu"))
    return model


def measure(run, repeats):
    """Median seconds of `repeats` runs after one that does not count."""
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def report_training(model, **inputs):
    """Reports tokens per second of a step: forward, backward, AdamW, on 4 × 128 tokens with a label on every position."""
    import torch

    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-4, weight_decay=0.0)
    ids = torch.randint(0, 49152, (SEQUENCES, TOKENS // SEQUENCES))

    def run():
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids, **inputs).loss.backward()
        optimizer.step()

    report(**{"tok/s": TOKENS / measure(run, 4)})


def peak_mib():
    """Peak resident memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def report(**values):
    print(json.dumps({**values, "peak_MiB": peak_mib()}))
