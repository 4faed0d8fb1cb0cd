"""torch + transformers + peft: switch, load and merge of bench_lora.cpp; adapters of rank 8 on all linears.

    switch_load_merge.py switch|load|merge     prints one line of JSON
"""

import statistics
import sys
import tempfile
import time

import torch
from common import lora_of, measure, report, smollm2_135m


def two_adapters():
    from peft import get_peft_model
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    config = lora_of(True, init_lora_weights=False)
    model = get_peft_model(LlamaForCausalLM(smollm2_135m()).float(), config, adapter_name="first")
    model.add_adapter("second", config)
    return model


def switch():
    model = two_adapters()
    names = iter(["second", "first"] * 50)
    report(ms=1e3 * measure(lambda: model.set_adapter(next(names)), 20))


def load():
    model = two_adapters()
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, selected_adapters=["second"])
        times = []
        for _ in range(4):
            start = time.perf_counter()
            model.load_adapter(folder + "/second", adapter_name="loaded")
            times.append(time.perf_counter() - start)
            model.delete_adapter("loaded")
    report(ms=1e3 * statistics.median(times[1:]))


def merge():
    model = two_adapters()
    model.set_adapter("second")
    times = []
    for _ in range(4):
        start = time.perf_counter()
        model.merge_adapter()  # the sums of merge_and_unload, which would take the model apart
        times.append(time.perf_counter() - start)
        model.unmerge_adapter()
    start = time.perf_counter()
    model.merge_and_unload()
    report(ms=1e3 * (time.perf_counter() - start), merge_adapter_ms=1e3 * statistics.median(times[1:]))


if __name__ == "__main__":
    torch.set_num_threads(2)
    {"switch": switch, "load": load, "merge": merge}[sys.argv[1]]()
