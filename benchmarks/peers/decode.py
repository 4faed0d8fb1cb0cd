"""torch + transformers + peft: the decoding of bench_decode.cpp; greedy, key/value cache, batch 1.

    decode.py f32|bf16|nf4 base|lora [prefill]     prints one line of JSON; prefill: 512 tokens at once, logits of the last
"""

import statistics
import sys
import time

import torch
from common import TOKENS, lora_of, measure, quantize_linears, report, smollm2_135m

PROMPT, GENERATED = 64, 64


def prefill(model):
    prompt = torch.randint(0, 49152, (1, TOKENS))
    with torch.inference_mode():
        seconds = measure(lambda: model(input_ids=prompt, use_cache=True, logits_to_keep=1), 5)
    report(**{"tok/s": TOKENS / seconds})


def main(dtype, adapter, work="decode"):
    from peft import get_peft_model
    from transformers import LlamaForCausalLM

    torch.set_num_threads(2)
    torch.manual_seed(0)
    model = LlamaForCausalLM(smollm2_135m()).to(torch.bfloat16 if dtype == "bf16" else torch.float32)
    if dtype == "nf4":
        quantize_linears(model, in_bf16=True)
    if adapter == "lora":
        model = get_peft_model(model, lora_of(True, init_lora_weights=False))
    model.eval()
    if work == "prefill":
        return prefill(model)
    prompt = torch.randint(0, 49152, (1, PROMPT))
    seconds = []
    with torch.inference_mode():
        for _ in range(2):  # the first round warms up
            out = model(input_ids=prompt, use_cache=True)
            seconds.clear()
            for _ in range(GENERATED):
                start = time.perf_counter()
                out = model(input_ids=out.logits[:, -1:].argmax(-1), past_key_values=out.past_key_values, use_cache=True)
                seconds.append(time.perf_counter() - start)
    report(**{"tok/s": 1.0 / statistics.median(seconds)})


if __name__ == "__main__":
    main(*sys.argv[1:])
