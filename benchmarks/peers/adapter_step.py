"""torch + transformers + adapters: the steps of bench_methods.cpp with bottleneck adapters.

    adapter_step.py seq_bn|double_seq_bn     prints one line of JSON
"""

import sys

import torch
from common import report_training, smollm2_135m


def main(name):
    import adapters
    from transformers import LlamaForCausalLM

    torch.set_num_threads(2)
    torch.manual_seed(0)
    model = LlamaForCausalLM(smollm2_135m()).float()
    adapters.init(model)
    model.add_adapter("default", config=name)
    model.train_adapter("default")
    report_training(model, use_cache=False)


if __name__ == "__main__":
    main(sys.argv[1])
