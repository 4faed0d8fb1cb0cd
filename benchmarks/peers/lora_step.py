"""torch + transformers + peft: the LoRA step of bench_step.cpp and the bare matrix products of that step.

    lora_step.py qv|all_linears|qlora_qv|qlora_all_linears|products|linear/M|linear_lora/M|adamw|adamw_8bit     prints one line of JSON
"""

import sys

import torch
from common import TOKENS, lora_of, measure, quantize_linears, report, report_training, smollm2_135m


def lora_step(all_linears, quantized):
    from peft import get_peft_model
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(smollm2_135m()).float()
    if quantized:
        quantize_linears(model)
    report_training(get_peft_model(model, lora_of(all_linears)), use_cache=False)


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


def adamw_8bit():
    import bitsandbytes

    parameter = torch.nn.Parameter(torch.zeros(4096, 4096))
    parameter.grad = torch.rand_like(parameter) * 0.02 - 0.01
    optimizer = bitsandbytes.optim.AdamW8bit([parameter], lr=1e-3, weight_decay=0.0)
    report(**{"M/s": 4096 * 4096 * 1e-6 / measure(optimizer.step, 5)})


def main(work):
    torch.set_num_threads(2)
    name, _, rows = work.partition("/")
    if name.removeprefix("qlora_") in ("qv", "all_linears"):
        lora_step(name.endswith("all_linears"), name.startswith("qlora_"))
    elif name in ("linear", "linear_lora"):
        linear(int(rows), name == "linear_lora")
    else:
        {"products": products, "adamw": adamw, "adamw_8bit": adamw_8bit}[name]()


if __name__ == "__main__":
    main(sys.argv[1])
