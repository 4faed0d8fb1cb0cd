"""Goldens of what changes a quantised base, by peft 0.21.2 over bitsandbytes 0.50.2 on a CPU: LoRA merged into a Linear4bit
(dequantise, add, quantise again), rows in int8, and LoftQ's start.

    python3 tests/golden/make_requantize.py      (requirements-bnb.txt)
"""

import json
import pathlib
import shutil
import warnings

import bitsandbytes as bnb
import peft
import torch
from bitsandbytes import functional as F
from peft.utils import loftq_utils
from safetensors.torch import save_file

OUT = pathlib.Path(__file__).resolve().parent / "data" / "requantize"
assert bnb.__version__ == "0.50.2" and peft.__version__ == "0.21.2"
torch.set_num_threads(1)


class Model(torch.nn.Module):
    is_loaded_in_4bit = True  # what PEFT asks for its layer over Linear4bit

    def __init__(self, layer):
        super().__init__()
        self.proj = layer


# Rows are whole blocks, or one: where a row ends inside a block, bitsandbytes' AVX-512 kernel takes another block's maximum.
def normal(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def merged(name, quant_type, out, inner, rank, exact, tensors, description):
    """A base in four bits, an adapter, and codes and maxima after PEFT merged it."""
    layer = bnb.nn.Linear4bit(inner, out, bias=False, compress_statistics=False, quant_type=quant_type)
    layer.weight.data = normal(out, inner, seed=1) * 0.05
    layer = layer.to("cpu")
    if layer.weight.quant_state is None:
        layer.weight._quantize("cpu")
    tensors[name + ".before"] = layer.weight.data.reshape(-1).clone()
    tensors[name + ".before.absmax"] = layer.weight.quant_state.absmax.clone()
    config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=["proj"])
    model = peft.get_peft_model(Model(layer), config)
    module = model.base_model.model.proj
    a, b = normal(rank, inner, seed=2) * 0.1, normal(out, rank, seed=3) * 0.1
    if exact:  # numbers whose product needs no rounding: the sum is rounded once, whatever adds
        a, b = (a * 1024).round() / 1024, (b * 1024).round() / 1024
    module.lora_A["default"].weight.data, module.lora_B["default"].weight.data = a.clone(), b.clone()
    assert isinstance(module, peft.tuners.lora.Linear4bit)
    module.merge(safe_merge=True)
    after = module.get_base_layer().weight
    tensors[name + ".a"], tensors[name + ".b"] = a, b
    tensors[name + ".after"] = after.data.reshape(-1).clone()
    tensors[name + ".after.absmax"] = after.quant_state.absmax.clone()
    description[name] = dict(type=quant_type, out=out, inner=inner, rank=rank, scale=2.0, exact=exact)


def loftq(weight, bits, rank, iterations):
    """peft's loftq_init, which computes on a GPU, on this CPU."""
    plain = torch.Tensor.to
    here = lambda value: torch.device("cpu") if isinstance(value, str) and value == "xpu" else value
    loftq_utils.is_xpu_available = lambda: True
    torch.Tensor.to = lambda self, *a, **k: plain(self, *map(here, a), **{key: here(v) for key, v in k.items()})
    params = bnb.nn.Params4bit.to
    bnb.nn.Params4bit.to = lambda self, *a, **k: params(self, *map(here, a), **{key: here(v) for key, v in k.items()})
    try:
        return loftq_utils.loftq_init(weight, bits, rank, iterations)
    finally:
        torch.Tensor.to = plain
        bnb.nn.Params4bit.to = params


def main():
    warnings.filterwarnings("ignore", message=".*rounding errors.*")
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    tensors, description = {}, {}
    merged("exact", "nf4", 24, 128, 1, True, tensors, description)
    merged("rank4", "nf4", 40, 192, 4, False, tensors, description)
    merged("fp4", "fp4", 17, 64, 1, True, tensors, description)
    merged("tail", "nf4", 1, 173, 1, True, tensors, description)

    rows = normal(20, 96, seed=4)
    rows[3] = 0
    rows[5] *= 1e-30
    rows[6, :9] = torch.tensor([127.0, 2.5, 3.5, -2.5, -126.5, 0.5, -0.5, 1.5, 126.5])
    rows[6, 9:] = 0
    for name, dtype in {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}.items():
        x = rows.clone()
        if name == "f16":
            x[5] = 0
        x = x.to(dtype)
        codes, stats, _ = F.int8_vectorwise_quant(x.clone())
        back = F.int8_vectorwise_dequant(codes, stats)
        tensors.update({f"int8.{name}": x, f"int8.{name}.codes": codes, f"int8.{name}.absmax": stats.float()})
        tensors[f"int8.{name}.values"] = back

    weight = normal(64, 128, seed=5) * 0.02
    tensors["loftq.weight"] = weight
    for iterations in (1, 3):
        values, a, b = loftq(weight.clone(), 4, 8, iterations)
        tensors[f"loftq.{iterations}.values"] = values.contiguous()
        tensors[f"loftq.{iterations}.update"] = (b @ a).contiguous()
        description[f"loftq.{iterations}"] = dict(left=torch.linalg.norm(weight - values - b @ a).item() / torch.linalg.norm(weight).item())
    save_file({k: v.contiguous() for k, v in tensors.items()}, OUT / "cases.safetensors")
    (OUT / "cases.json").write_text(json.dumps(description, indent=1) + "\n")
    print({path.name: path.stat().st_size for path in OUT.iterdir()}, description)


main()
