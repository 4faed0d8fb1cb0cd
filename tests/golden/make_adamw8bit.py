"""Goldens of AdamW with moments in 8 bits: three steps of bitsandbytes' AdamW8bit on a CPU.

    python tests/golden/make_adamw8bit.py        (writes tests/golden/data/adamw8bit/; requirements-bnb.txt)

Its search of codes on a CPU misses the nearest one next to some thresholds. So the steps are made twice: as they come
("theirs"), and with its own portable rule for the codes (backends/default/ops.py: nearest, halfway the lower one) in the
place of that search ("nearest"); all else is its CPU code.
"""

import json
import os
import pathlib
import shutil

os.environ["TORCHDYNAMO_DISABLE"] = "1"

import bitsandbytes as bnb
import bitsandbytes.backends.cpu.ops as cpu_ops
import bitsandbytes.functional as F
import torch
from safetensors.torch import save_file

assert bnb.__version__ == "0.50.2", bnb.__version__
torch.set_num_threads(1)

OUT = pathlib.Path(__file__).resolve().parent / "data" / "adamw8bit"
SIZES = {"matrix": 4096 + 293, "few": 4095}  # blocks and a tail; below 4096 elements moments stay in 32 bits
CONFIG = dict(lr=1e-2, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1)
STEPS = 3


def nearest(values, code, absmax_out, codes_out, blocksize):
    pieces = torch.split(values.reshape(-1), blocksize)
    absmax = torch.stack([piece.abs().max() for piece in pieces])
    if len(pieces[-1]) < blocksize:
        absmax[-1] = absmax[-1].clamp(min=1e-38)
    middle = (code[:-1] + code[1:]) / 2
    codes = []
    for piece, largest in zip(pieces, absmax):
        least = largest.clamp(min=1e-38)
        scaled = piece * (1.0 / least) if len(piece) == blocksize else piece / least
        codes.append(torch.bucketize(torch.clamp(scaled, -1, 1), middle))
    codes_out.copy_(torch.cat(codes).to(torch.uint8).reshape(codes_out.shape))
    absmax_out.copy_(absmax)


def start():
    random = torch.Generator().manual_seed(0)
    numbers, gradients = {}, {}
    for name, size in SIZES.items():
        numbers[name] = (torch.randn(size, generator=random) * 0.1).half()
        gradients[name] = []
        for step in range(STEPS):
            # Sizes over many decades, so that the maps' whole range is met.
            gradient = torch.randn(size, generator=random) * 10 ** (-3 * torch.rand(size, generator=random))
            gradient[512:768] = 0  # a block that never sees anything
            if step == 0:
                gradient[1024:1280] = 0
            gradients[name].append(gradient.half())
    return numbers, gradients


def steps(numbers, gradients):
    parameters = {name: torch.nn.Parameter(value.float()) for name, value in numbers.items()}
    optimizer = bnb.optim.AdamW8bit(list(parameters.values()), **CONFIG)
    result = {}
    for step in range(STEPS):
        for name, parameter in parameters.items():
            parameter.grad = gradients[name][step].float()
        optimizer.step()
        state = optimizer.state[parameters["matrix"]]
        assert state["state1"].dtype == torch.uint8
        for key in ("state1", "state2", "absmax1", "absmax2"):
            result[f"{step}.{key}"] = state[key].clone()
    for name, parameter in parameters.items():
        result[f"{name}.after"] = parameter.data.clone()
    few = optimizer.state[parameters["few"]]
    assert few["state1"].dtype == torch.float32
    return result


def main():
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    numbers, gradients = start()
    tensors = {"dynamic": F.create_dynamic_map(signed=True), "udynamic": F.create_dynamic_map(signed=False)}
    for name in SIZES:
        tensors[f"{name}.before"] = numbers[name]
        for step in range(STEPS):
            tensors[f"{name}.gradient{step}"] = gradients[name][step]
    theirs = steps(numbers, gradients)
    cpu_ops._quant_blockwise_fp32_direct = nearest
    ours = steps(numbers, gradients)
    differ = []
    for key in (f"{step}.state{k}" for step in range(STEPS) for k in (1, 2)):
        # A block of zeros has a code, but it means nothing.
        means = ours[key.replace("state", "absmax")].repeat_interleave(256)[: len(ours[key])] > 0
        differ.append((theirs[key] != ours[key])[means].float().mean().item())
    print("share of codes that their search on a CPU finds elsewhere, by step and moment:", differ)
    tensors.update({f"nearest.{key}": value for key, value in ours.items()})
    tensors.update({f"theirs.{key}": theirs[key] for key in ("0.state1", "0.state2", "0.absmax1", "0.absmax2")})
    save_file(tensors, OUT / "steps.safetensors")
    (OUT / "config.json").write_text(json.dumps(dict(CONFIG, steps=STEPS), indent=1) + "\n")
    print({path.name: path.stat().st_size for path in OUT.iterdir()})


main()
