"""transformers + bitsandbytes: the loss of a model whose layers' linears are in four bits, on records that it does not learn.

    quantized_loss.py MODEL.gguf RECORDS.jsonl f32|nf4|nf4_single|fp4 [RECORDS]     prints one line of JSON

Mean over the label tokens of all records (at most 256 tokens each) of the model as it is; codes and products are bitsandbytes'.
"""

import sys

import torch
from common import quantize_linears, report
from medquad_job import load, loss_of, read


def main(gguf, path, storage, count="-1"):
    torch.set_num_threads(2)
    tokenizer, model = load(gguf)
    if storage != "f32":
        quantize_linears(model, storage.removesuffix("_single"), double_quant=storage == "nf4")
    report(loss=loss_of(model, read(path, int(count), tokenizer)))


if __name__ == "__main__":
    main(*sys.argv[1:])
