"""Goldens of weights in four bits: what bitsandbytes makes of them on a CPU (codes, absmax, nested state, dequantised values),
and a checkpoint of Linear4bit layers as it saves one.

    python tests/golden/make_nf4.py        (writes tests/golden/data/nf4/; requirements-bnb.txt)
"""

import json
import os
import pathlib
import shutil

os.environ["TORCHDYNAMO_DISABLE"] = "1"  # the shapes are too many to compile something for each

import bitsandbytes as bnb
import bitsandbytes.functional as F
import torch
from safetensors.torch import save_file

assert bnb.__version__ == "0.50.2", bnb.__version__
torch.set_num_threads(1)  # the mean of the maxima depends on it

OUT = pathlib.Path(__file__).resolve().parent / "data" / "nf4"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

# name: type, block, first element of the pool, shape, dtype, nested
CASES = {
    "plain": ("nf4", 64, 0, [16, 64], "float32", False),
    "odd": ("nf4", 64, 1000, [23, 31], "float32", False),
    "rows_across_blocks": ("nf4", 128, 2000, [10, 96], "float32", False),
    "bf16": ("nf4", 64, 3000, [9, 100], "bfloat16", False),
    "f16": ("nf4", 32, 3000, [9, 99], "float16", False),
    "one": ("nf4", 64, 500, [1, 1], "float32", False),
    "three": ("nf4", 32, 500, [1, 3], "float32", False),
    "zero_block": ("nf4", 64, 4096, [4, 64], "float32", False),
    "zero_tail": ("nf4", 64, 4096 - 128, [1, 128 + 41], "float32", False),
    "zero_one": ("nf4", 64, 4100, [1, 1], "float32", False),
    "tiny_numbers": ("nf4", 32, 4320, [3, 33], "float32", False),
    "b256": ("nf4", 256, 5000, [2, 400], "float32", False),
    "b512": ("nf4", 512, 5000, [2, 700], "float32", False),
    "b1024": ("nf4", 1024, 5000, [1, 2049], "float32", False),
    "b2048": ("nf4", 2048, 1000, [3, 1400], "float32", False),
    "b4096": ("nf4", 4096, 0, [1, 8229], "float32", False),
    "fp4": ("fp4", 64, 0, [16, 64], "float32", False),
    "fp4_odd": ("fp4", 64, 1000, [23, 31], "float32", False),
    "fp4_zero_tail": ("fp4", 64, 4096 - 128, [1, 128 + 41], "float32", False),
    "fp4_b2048": ("fp4", 2048, 1000, [1, 2051], "float32", False),
    "nested": ("nf4", 32, 0, [3, 2743], "float32", True),
    "nested_bf16": ("nf4", 64, 0, [33, 200], "bfloat16", True),
    "nested_fp4": ("fp4", 64, 100, [64, 64], "float32", True),
    "nested_one_block": ("nf4", 64, 100, [4, 16], "float32", True),
}


def make_pool():
    pool = torch.randn(8229, generator=torch.Generator().manual_seed(0)) * 0.05
    pool[4096 : 4096 + 192] = 0  # three whole blocks of 64
    pool[4320 : 4320 + 64] *= 1e-35  # so small that 1/absmax is large
    pool[4384 : 4384 + 35] = 1e-39
    pool[5100] = 3e38
    pool[5001] = -0.0
    # Numbers at the thresholds and beside them: absmax is 1.
    for k, quant_type in enumerate(("nf4", "fp4")):
        code = F.get_4bit_type(quant_type, device="cpu").sort().values
        middle = (code[1:] + code[:-1]) / 2
        around = torch.cat([middle, middle.nextafter(torch.tensor(2.0)), middle.nextafter(torch.tensor(-2.0))])
        at = 64 * (2 + k)
        pool[at : at + 45] = around
        pool[at + 45] = 1
    return pool


def dequantize(codes, state):
    """As one row: where a row ends inside a block, the AVX-512 kernel takes another block's maximum; CUDA and the other
    CPU kernels do not."""
    shape = state.shape
    state.shape = torch.Size([1, shape.numel()])
    back = F.dequantize_4bit(codes, state).reshape(shape)
    state.shape = shape
    return back


def main():
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    pool = make_pool()
    tensors, description = {"pool": pool}, {}
    for name, (quant_type, block, first, shape, dtype, nested) in CASES.items():
        count = shape[0] * shape[1]
        x = pool[first : first + count].reshape(shape).to(DTYPES[dtype])
        assert x.numel() == count
        codes, state = F.quantize_4bit(x, blocksize=block, quant_type=quant_type, compress_statistics=nested)
        back = dequantize(codes, state)
        assert back.dtype == x.dtype and back.shape == x.shape
        tensors[name + ".codes"] = codes.reshape(-1)
        tensors[name + ".absmax"] = state.absmax
        description[name] = dict(type=quant_type, block=block, first=first, shape=shape, dtype=dtype, nested=nested)
        if nested:
            tensors[name + ".nested_absmax"] = state.state2.absmax
            tensors["nested_map"] = state.state2.code.clone()
            description[name]["offset"] = state.offset.item()
        if count <= 800:
            tensors[name + ".dequantized"] = back
    save_file(tensors, OUT / "cases.safetensors")

    # A checkpoint, saved as transformers saves one: the module's state as it is.
    torch.manual_seed(1)
    layers = torch.nn.ModuleDict(
        {
            "twice": bnb.nn.Linear4bit(128, 12, bias=True, compress_statistics=True, quant_type="nf4"),
            "once": bnb.nn.Linear4bit(64, 10, bias=False, compress_statistics=False, quant_type="nf4"),
            "fp4": bnb.nn.Linear4bit(96, 7, bias=False, compress_statistics=True, quant_type="fp4"),
        }
    )
    layers["once"].weight.data = layers["once"].weight.data.to(torch.bfloat16)
    layers = layers.to("cpu")
    for layer in layers.values():
        if layer.weight.quant_state is None:
            layer.weight._quantize("cpu")
    assert all(layer.weight.dtype == torch.uint8 for layer in layers.values())
    save_file({k: v.clone() for k, v in layers.state_dict().items()}, OUT / "checkpoint.safetensors", metadata={"format": "pt"})
    expected = {}
    for name, layer in layers.items():
        expected[name] = dequantize(layer.weight.data, layer.weight.quant_state)
        print(name, sorted(layer.state_dict()))
    save_file(expected, OUT / "checkpoint_values.safetensors")
    (OUT / "cases.json").write_text(json.dumps(description, indent=1) + "\n")
    print({path.name: path.stat().st_size for path in OUT.iterdir()})


main()
