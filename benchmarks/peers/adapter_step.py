"""torch + transformers + adapters: the steps of bench_methods.cpp with bottleneck adapters.

    adapter_step.py seq_bn|double_seq_bn     prints one line of JSON
"""

import sys

import torch
from common import measure, report, smollm2_135m
from lora_step import SEQUENCES, TOKENS


def main(name):
    import adapters
    from transformers import LlamaForCausalLM

    torch.set_num_threads(2)
    torch.manual_seed(0)
    model = LlamaForCausalLM(smollm2_135m()).float()
    adapters.init(model)
    model.add_adapter("default", config=name)
    model.train_adapter("default")
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-4, weight_decay=0.0)
    ids = torch.randint(0, 49152, (SEQUENCES, TOKENS // SEQUENCES))

    def run():
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        optimizer.step()

    report(**{"tok/s": TOKENS / measure(run, 4)})


if __name__ == "__main__":
    main(sys.argv[1])
