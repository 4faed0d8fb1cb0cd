"""Goldens of LoRA: forward and every gradient of one layer, and which modules a configuration adapts.

    python tests/golden/make_lora.py        (writes tests/golden/data/lora/)
"""

import copy
import json
import pathlib

import peft
import torch
import transformers
from torch import nn

assert peft.__version__ == "0.21.2", peft.__version__
assert torch.__version__.startswith("2."), torch.__version__

OUT = pathlib.Path(__file__).parent / "data" / "lora"


# ---- which modules ---------------------------------------------------------------------------------------------------
class Tree(nn.Module):
    """Linear layers at given paths."""

    def __init__(self, paths):
        super().__init__()
        for path in paths:
            parent = self
            *folders, last = path.split(".")
            for folder in folders:
                if not hasattr(parent, folder):
                    parent.add_module(folder, nn.Module())
                parent = getattr(parent, folder)
            parent.add_module(last, nn.Linear(4, 4))


def tiny_llama():
    config = transformers.LlamaConfig(
        vocab_size=16, hidden_size=8, intermediate_size=16, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=1,
    )
    return transformers.LlamaForCausalLM(config)


def tiny_gpt2():
    config = transformers.GPT2Config(vocab_size=16, n_positions=8, n_embd=8, n_layer=2, n_head=2)
    return transformers.GPT2LMHeadModel(config)


def tiny_bert():
    config = transformers.BertConfig(
        vocab_size=16, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=8,
    )
    return transformers.BertForSequenceClassification(config)


MADE_UP = [
    "xq_proj",
    "q_proj",
    "a.q_proj",
    "a.xq_proj",
    "a.self_attn.q_proj_extra",
    "a.self_attn.q_proj",
    "blocks.0.q_proj",
    "blocks.1.q_proj",
    "model.h.1.q_proj",
    "model.h.11.q_proj",
    "model.layers.1.experts.0.w1",
    "model.layers.1.experts.2.w1",
    "model.layers.2.experts.1.w1",
    "model.decoder.layers.1.v_proj.inner",
    "model.decoder.layers.2.fc-1",
    "model.decoder.layers.2.fc_1",
    "lm_head",
]

MODELS = {"llama": tiny_llama, "gpt2": tiny_gpt2, "bert": tiny_bert, "made_up": lambda: Tree(MADE_UP)}

CASES = [
    ("llama", dict(target_modules=["q_proj", "v_proj"], lora_alpha=32)),
    ("llama", dict(target_modules=["model.layers.1.self_attn.q_proj"])),
    ("llama", dict(target_modules="all-linear", r=4)),
    ("llama", dict(target_modules="All-Linear", exclude_modules=["down_proj"])),
    ("llama", dict(target_modules="all-linear", exclude_modules=r".*\.layers\.[02]\..*")),
    ("llama", dict(target_modules=r".*(q|v)_proj$")),
    ("llama", dict(target_modules=r"model\.layers\.[0-1]\.self_attn\..*")),
    ("llama", dict(target_modules=r".*\.\d+\.mlp\.(?!down)\w+_proj")),
    ("llama", dict(target_modules=["q_proj", "k_proj"], layers_to_transform=[0, 2])),
    ("llama", dict(target_modules=["q_proj"], layers_to_transform=1)),
    ("llama", dict(target_modules=["q_proj"], layers_to_transform=[1], layers_pattern="layers")),
    ("llama", dict(target_modules=["q_proj", "model.layers.2.mlp.up_proj"], layers_to_transform=[1])),
    ("llama", dict(target_modules=["q_proj", "v_proj"], rank_pattern={"q_proj": 16}, alpha_pattern={"v_proj": 4})),
    ("llama", dict(target_modules=["q_proj"], use_rslora=True, r=9, lora_alpha=6,
                   rank_pattern={r"layers\.1\.self_attn\.q_proj": 3, "q_proj": 5})),
    ("llama", dict(target_modules=["q_proj", "o_proj"],
                   rank_pattern={"^model.layers.0.self_attn.q_proj": 2, "attn.o_proj": 7, "self_attn.o_proj": 6})),
    ("llama", dict(target_modules=["q_proj", "k_proj", "up_proj"],
                   alpha_pattern={r"(q|k)_proj": 1, r"[02]\.mlp\.up_proj": 64, ".*": 3}, r=2)),
    ("llama", dict(target_modules=["self_attn.q_proj", "mlp.up_proj"])),
    ("llama", dict(target_modules=["q_proj", "k_proj"],
                   exclude_modules=["layers.0.self_attn.q_proj", "1.self_attn.k_proj"])),
    ("llama", dict(target_modules=["lm_head", "gate_proj"])),
    ("gpt2", dict(target_modules=["c_attn"], fan_in_fan_out=True)),
    ("gpt2", dict(target_modules=["c_proj"], fan_in_fan_out=True, layers_to_transform=[1], layers_pattern=["h"])),
    ("gpt2", dict(target_modules="all-linear", fan_in_fan_out=True)),
    ("gpt2", dict(target_modules=["attn.c_proj"], fan_in_fan_out=True)),
    ("bert", dict(target_modules=["query", "value"])),
    ("bert", dict(target_modules="all-linear", task_type="SEQ_CLS")),
    ("bert", dict(target_modules="all-linear")),
    ("bert", dict(target_modules=["dense"], exclude_modules=["output.dense"])),
    ("made_up", dict(target_modules=["q_proj"])),
    ("made_up", dict(target_modules=r"q_proj")),
    ("made_up", dict(target_modules=r".*q_proj")),
    ("made_up", dict(target_modules=r".*\.q_proj|lm_head")),
    ("made_up", dict(target_modules=["q_proj", "w1"], layers_to_transform=[1])),
    ("made_up", dict(target_modules=["w1"], layers_to_transform=[2], layers_pattern=["experts"])),
    ("made_up", dict(target_modules=["q_proj", "w1"], layers_to_transform=[1, 11], layers_pattern=["h", "layers"])),
    ("made_up", dict(target_modules=["q_proj"], layers_to_transform=[1], layers_pattern="(h|blocks)")),
    ("made_up", dict(target_modules=["fc-1", "fc_1"], rank_pattern={"fc-1": 3})),
    ("made_up", dict(target_modules=["q_proj", "xq_proj"], rank_pattern={"q_proj": 3, "a.xq_proj": 5, "x?q_proj": 6})),
    ("made_up", dict(target_modules=["inner"],
                     rank_pattern={"v_proj": 3}, alpha_pattern={"nner": 4, "inner": 5, "v_proj.inner": 6})),
    ("made_up", dict(target_modules=["q_proj"], exclude_modules="a.q_proj")),
    ("made_up", dict(target_modules=["q_proj"], exclude_modules=["q_proj_extra", "a.q_proj"])),
]


def linear_names(model):
    kinds = (nn.Linear, transformers.pytorch_utils.Conv1D)
    return [name for name, module in model.named_modules() if isinstance(module, kinds)]


def write_matching():
    models = {name: linear_names(make()) for name, make in MODELS.items()}
    cases = []
    for model_name, config in CASES:
        model = MODELS[model_name]()
        adapted = peft.get_peft_model(model, peft.LoraConfig(**copy.deepcopy(config))).base_model.model
        found = []
        for name, module in adapted.named_modules():
            if isinstance(module, peft.tuners.lora.LoraLayer):
                found.append([name, module.r["default"], module.scaling["default"]])
        assert {name for name, _, _ in found} <= set(models[model_name])
        assert found, config
        cases.append({"model": model_name, "config": config, "adapted": found})
    assert len(cases) >= 25
    with open(OUT / "matching.json", "w") as file:
        json.dump({"models": models, "cases": cases}, file, indent=0)


# ---- one layer -------------------------------------------------------------------------------------------------------
def layer_case(seed, rows, n_in, n_out, r, alpha, dropout, bias, rslora, init_b):
    """y = x W^T + bias + s (x~ A^T) B^T with peft's layer; the loss is sum(y * g), so that dy = g."""
    torch.manual_seed(seed)
    host = nn.Module()
    host.proj = nn.Linear(n_in, n_out, bias=bias)
    model = peft.get_peft_model(
        host,
        peft.LoraConfig(r=r, lora_alpha=alpha, target_modules=["proj"], lora_dropout=dropout, use_rslora=rslora),
    )
    layer = model.base_model.model.proj
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    if init_b:
        nn.init.normal_(b, std=0.3)
    x = torch.randn(rows, n_in, requires_grad=True)
    g = torch.randn(rows, n_out)
    case = {"rows": rows, "in": n_in, "out": n_out, "r": r, "dropout": dropout, "scaling": layer.scaling["default"]}
    if dropout > 0:
        keep = (torch.rand(rows, n_in) >= dropout).float()

        class Injected(nn.Module):
            def forward(self, value):
                return value * keep / (1 - dropout)

        layer.lora_dropout["default"] = Injected()
        case["mask"] = keep.int().flatten().tolist()
    model.train()
    y = layer(x)
    (y * g).sum().backward()
    tensors = {
        "w": layer.base_layer.weight, "a": a, "b": b, "x": x, "dy": g, "y": y, "dx": x.grad, "da": a.grad, "db": b.grad,
    }
    if bias:
        tensors["bias"] = layer.base_layer.bias
    for key, tensor in tensors.items():
        case[key] = [float(f"{v:.9g}") for v in tensor.detach().double().flatten().tolist()]
    return case


def write_layers():
    layers = [
        layer_case(1, 7, 40, 48, 8, 32, 0.0, False, False, True),
        layer_case(2, 7, 40, 48, 8, 16, 0.0, True, True, True),
        layer_case(3, 7, 40, 24, 4, 8, 0.25, True, False, True),
        layer_case(4, 1, 13, 11, 1, 3, 0.5, False, True, True),
        layer_case(5, 5, 6, 9, 16, 4, 0.1, True, False, True),
        layer_case(6, 7, 17, 10, 3, 6, 0.0, False, False, False),
    ]
    with open(OUT / "layer.json", "w") as file:
        json.dump(layers, file)


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    write_matching()
    write_layers()


if __name__ == "__main__":
    main()
