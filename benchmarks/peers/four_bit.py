"""torch + bitsandbytes: a weight of 4096 × 4096 in NF4, blocks of 64, quantised once, activations in float.

    four_bit.py linear/M|quantize|dequantize     prints one line of JSON
"""

import sys

import bitsandbytes
import torch
from common import measure, quantize_linears, report

SIZE = 4096


def linear(rows):
    model = torch.nn.Module()
    model.layers = torch.nn.ModuleList([torch.nn.Linear(SIZE, SIZE, bias=False)])
    layer = quantize_linears(model, double_quant=False).layers[0].eval()
    x = torch.randn(rows, SIZE)
    with torch.no_grad():
        report(ms=1e3 * measure(lambda: layer(x), 15))


def main(work):
    torch.set_num_threads(2)
    name, _, rows = work.partition("/")
    if name == "linear":
        return linear(int(rows))
    weight = torch.rand(SIZE, SIZE) * 2 - 1
    codes, state = bitsandbytes.functional.quantize_4bit(weight, blocksize=64, quant_type="nf4")
    run = {"quantize": lambda: bitsandbytes.functional.quantize_4bit(weight, blocksize=64, quant_type="nf4"),
           "dequantize": lambda: bitsandbytes.functional.dequantize_4bit(codes, state)}[name]
    return report(**{"M/s": SIZE * SIZE * 1e-6 / measure(run, 5)})


if __name__ == "__main__":
    main(sys.argv[1])
