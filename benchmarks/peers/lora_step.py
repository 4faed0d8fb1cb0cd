"""torch + transformers + peft: the LoRA step of bench_step.cpp and the bare matrix products of that step.

    lora_step.py qv|all_linears|products|linear/M|linear_lora/M|adamw     prints one line of JSON
"""

import json
import resource
import statistics
import sys
import time

import torch

TOKENS, SEQUENCES = 512, 4


def measure(run, repeats):
    """Median seconds of `repeats` runs after one that does not count."""
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def report(**values):
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({**values, "peak_MiB": peak}))


def lora_step(all_linears):
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
                         num_attention_heads=9, num_key_value_heads=3, max_position_embeddings=2048,
                         tie_word_embeddings=True)
    modules = ["q_proj", "v_proj"]
    if all_linears:
        modules += ["k_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    lora = LoraConfig(r=8, lora_alpha=32, lora_dropout=0.05, target_modules=modules, task_type="CAUSAL_LM")
    model = get_peft_model(LlamaForCausalLM(config).float(), lora)
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-4, weight_decay=0.0)
    ids = torch.randint(0, 49152, (SEQUENCES, TOKENS // SEQUENCES))

    def run():
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        optimizer.step()

    report(**{"tok/s": TOKENS / measure(run, 4)})


def products():
    shapes = [(576, 576), (192, 576), (192, 576), (576, 576), (1536, 576), (1536, 576), (576, 1536)]
    weights = [torch.randn(out, wide) for _ in range(30) for out, wide in shapes] + [torch.randn(49152, 576)]
    inputs = {width: torch.randn(TOKENS, width) for width in (192, 576, 1536, 49152)}

    def run():
        for weight in weights:
            inputs[weight.shape[1]] @ weight.t()
        for weight in weights:
            inputs[weight.shape[0]] @ weight

    with torch.no_grad():
        report(**{"tok/s": TOKENS / measure(run, 5)})


def linear(rows, with_lora):
    base = torch.nn.Linear(4096, 4096, bias=False)
    x = torch.randn(rows, 4096)
    if with_lora:
        from peft.tuners.lora import Linear
        from peft import LoraConfig

        layer = Linear(base, "default", config=LoraConfig(r=8, lora_alpha=32), r=8, lora_alpha=32)
    else:
        layer = base
    layer.eval()
    with torch.no_grad():
        report(ms=1e3 * measure(lambda: layer(x), 40 if rows < 64 else 15))


def adamw():
    parameter = torch.nn.Parameter(torch.zeros(4096, 4096))
    parameter.grad = torch.full_like(parameter, 0.01)
    optimizer = torch.optim.AdamW([parameter], lr=1e-3, weight_decay=0.0, fused=True)
    report(**{"M/s": 4096 * 4096 * 1e-6 / measure(optimizer.step, 15)})


def main(work):
    torch.set_num_threads(2)
    name, _, rows = work.partition("/")
    if name in ("qv", "all_linears"):
        lora_step(name == "all_linears")
    elif name in ("linear", "linear_lora"):
        linear(int(rows), name == "linear_lora")
    else:
        {"products": products, "adamw": adamw}[name]()


if __name__ == "__main__":
    main(sys.argv[1])
