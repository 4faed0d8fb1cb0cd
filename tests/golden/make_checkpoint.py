"""Goldens of files: GGUF types, safetensors of every type, LoRA adapters saved by peft, and the check that peft loads
what this library saved.

    PYTHONHASHSEED=0 python tests/golden/make_checkpoint.py            (writes tests/golden/data/checkpoint/)

The hash seed keeps the order of the sets that peft saves as lists.
`ours/` there is written by the test program (PEFT_UPDATE_GOLDEN=1 test_checkpoint) and only checked here.
"""

import dataclasses
import json
import pathlib
import shutil
import tempfile
import warnings

import gguf
import numpy as np
import peft
import safetensors.torch
import torch
import transformers

assert peft.__version__ == "0.21.2", peft.__version__
assert torch.__version__.startswith("2."), torch.__version__

OUT = pathlib.Path(__file__).parent / "data" / "checkpoint"


# ---- GGUF ------------------------------------------------------------------------------------------------------------
def gguf_types():
    """One tensor [3, 64] per type, and the same as the package dequantises it."""
    kinds = gguf.GGMLQuantizationType
    rng = np.random.default_rng(7)
    rows = (rng.standard_normal((3, 64)) * np.array([[0.02], [1.0], [300.0]])).astype(np.float32)
    rows[1, :32] = 0.0  # a block without content
    rows[2, 5] = -0.0
    with_metadata = gguf.GGUFWriter(OUT / "types.gguf.bin", "llama")
    with_metadata.add_uint32("llama.block_count", 2)
    with_metadata.add_token_list(["<s>", "é", "中文", ""])
    with_metadata.add_token_scores([0.0, -1.5, 2.0, 3.0])
    expected = gguf.GGUFWriter(OUT / "types_f32.gguf.bin", "llama")
    for kind in [kinds.F32, kinds.F16, kinds.BF16, kinds.Q4_0, kinds.Q4_1, kinds.Q8_0]:
        stored = gguf.quants.quantize(rows, kind)
        if kind is kinds.F16:  # subnormal and largest halves
            stored[0, :4] = np.array([6e-8, -6e-5, 65504.0, 6.1e-5], dtype=np.float16)
        with_metadata.add_tensor(kind.name, stored, raw_dtype=kind)
        expected.add_tensor(kind.name, np.ascontiguousarray(gguf.quants.dequantize(stored, kind), dtype=np.float32))
    for writer in (with_metadata, expected):
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


# ---- safetensors -----------------------------------------------------------------------------------------------------
def safetensors_types():
    """A tensor of every type that torch knows, in an order that the writer has to change."""
    tensors = {
        "z.é\"\\\n\t": torch.arange(6, dtype=torch.float32).reshape(2, 3),
        "bool": torch.tensor([True, False, True]),
        "scalar": torch.tensor(1.5),
        "none": torch.zeros(2, 0),
    }
    kinds = [
        "uint8", "int8", "float8_e5m2", "float8_e4m3fn", "float8_e8m0fnu", "float8_e4m3fnuz", "float8_e5m2fnuz",
        "int16", "uint16", "float16", "bfloat16", "int32", "uint32", "float32", "complex64", "float64", "int64",
        "uint64",
    ]
    for kind in kinds:
        tensors[kind] = torch.arange(1, 4).to(getattr(torch, kind))
    safetensors.torch.save_file(tensors, OUT / "types.safetensors", metadata={"format": "pt"})


# ---- LoRA adapters ---------------------------------------------------------------------------------------------------
def tiny_llama():
    torch.manual_seed(5)
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64,
    )
    return transformers.LlamaForCausalLM(config).eval()


LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
QV = dict(r=4, lora_alpha=8, lora_dropout=0.05, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
PATTERNS = dict(
    r=4, lora_alpha=12, use_rslora=True, target_modules=LINEARS, task_type="CAUSAL_LM",
    rank_pattern={r"layers\.1\.self_attn\.v_proj": 2, "down_proj": 3, "o_proj": 8},
    alpha_pattern={"q_proj": 5, "up_proj": 0.5},
)


def fill_random(model, name, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, value in model.named_parameters():
            if f".{name}." in key:
                value.copy_(torch.randn(value.shape, generator=generator) * 0.3)


def described(folder):
    """What stands in the saved file, and what PEFT makes of it: each module's scale and its update of one input."""
    tensors = {}
    for key, value in safetensors.torch.load_file(folder / "adapter_model.safetensors").items():
        value = value.float()
        tensors[key] = {
            "shape": list(value.shape), "sum": value.double().sum().item(),
            "first": value.flatten()[:4].tolist(), "last": value.flatten()[-1].item(),
        }
    model = peft.PeftModel.from_pretrained(tiny_llama(), folder)
    scaling, update = {}, {}
    for path, module in model.named_modules():
        if not isinstance(getattr(module, "scaling", None), dict):
            continue
        path = path.removeprefix("base_model.model.")
        scaling[path] = module.scaling["default"]
        x = ((torch.arange(module.in_features) * 7) % 13 - 6).double() / 8
        update[path] = (module.get_delta_weight("default").double() @ x)[:3].tolist()
    return {"tensors": tensors, "scaling": scaling, "update": update}


def adapters():
    expected = {}
    model = peft.get_peft_model(tiny_llama(), peft.LoraConfig(**QV))
    model.add_adapter("second", peft.LoraConfig(**PATTERNS))
    fill_random(model, "default", 1)
    fill_random(model, "second", 2)
    folder = OUT / "peft_lora"
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)  # "default" in the folder, "second" in a sub-folder
    for readme in folder.rglob("README.md"):
        readme.unlink()
    expected["default"] = described(folder)
    expected["second"] = described(folder / "second")
    for name, kind in [("half", torch.float16), ("brain", torch.bfloat16)]:  # as files of other programs have them
        narrow = folder / name
        narrow.mkdir()
        shutil.copy(folder / "adapter_config.json", narrow)
        tensors = safetensors.torch.load_file(folder / "adapter_model.safetensors")
        safetensors.torch.save_file({k: v.to(kind) for k, v in tensors.items()}, narrow / "adapter_model.safetensors",
                                    metadata={"format": "pt"})
        expected[name] = described(narrow)
    (OUT / "peft_lora.json").write_text(json.dumps(expected, indent=1, sort_keys=True) + "\n")


# ---- the fields of LoraConfig ----------------------------------------------------------------------------------------
def saved_config(**fields):
    with tempfile.TemporaryDirectory() as folder:
        peft.LoraConfig(**fields).save_pretrained(folder)
        return json.loads((pathlib.Path(folder) / "adapter_config.json").read_text())


def config_fields():
    """Every field with its default, and some that ask for another method, as peft writes them."""
    plain = saved_config(target_modules=["q_proj"])
    default = peft.LoraConfig()
    fields = {}
    for field in dataclasses.fields(peft.LoraConfig):
        value = getattr(default, field.name)
        fields[field.name] = plain[field.name] if field.name in plain else dataclasses.asdict(value)
    fields["target_modules"] = None
    asked = {
        "alora_invocation_tokens": dict(alora_invocation_tokens=[3, 4]),
        "bias": dict(bias="all"),
        "corda_config": dict(init_lora_weights="corda", corda_config=peft.tuners.lora.config.CordaConfig()),
        "ensure_weight_tying": dict(ensure_weight_tying=True, modules_to_save=["embed_tokens"]),
        "eva_config": dict(init_lora_weights="eva", eva_config=peft.EvaConfig()),
        "init_lora_weights": dict(init_lora_weights="pissa"),
        "layer_replication": dict(layer_replication=[[0, 2], [1, 2]]),
        "lora_bias": dict(lora_bias=True),
        "modules_to_save": dict(modules_to_save=["lm_head"]),
        "target_parameters": dict(target_parameters=["mlp.experts.down_proj"]),
        "trainable_token_indices": dict(trainable_token_indices=[1, 2]),
        "use_dora": dict(use_dora=True),
        "use_qalora": dict(use_qalora=True, qalora_group_size=8),
    }
    others = {name: saved_config(target_modules=["q_proj"], **given)[name] for name, given in asked.items()}
    text = json.dumps({"peft_version": peft.__version__, "fields": fields, "asked": others}, indent=1, sort_keys=True)
    (OUT / "lora_config_fields.json").write_text(text + "\n")


# ---- what this library saved -----------------------------------------------------------------------------------------
def check_ours():
    """`ours/` is saved by the tests with values that both sides compute: peft must load it without a word about keys
    and give the logits of a model that was given the same values directly."""
    folder = OUT / "ours"
    if not folder.exists():
        print("make_checkpoint: there is no", folder, "yet; run PEFT_UPDATE_GOLDEN=1 test_checkpoint")
        return
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # peft tells of missing keys by warnings
        loaded = peft.PeftModel.from_pretrained(tiny_llama(), folder).eval()
    config = loaded.peft_config["default"]
    assert config.task_type == "CAUSAL_LM" and config.inference_mode and config.lora_dropout == 0.05, config
    assert config.base_model_name_or_path == "tiny-llama" and config.target_modules == {"q_proj", "v_proj"}, config

    direct = peft.get_peft_model(
        tiny_llama(),
        peft.LoraConfig(
            r=4, lora_alpha=16, target_modules=["q_proj", "v_proj"], use_rslora=True, lora_dropout=0.05,
            rank_pattern={r"layers\.1\.self_attn\.v_proj": 2}, alpha_pattern={r"layers\.0\.self_attn\.q_proj": 6},
            task_type="CAUSAL_LM",
        ),
    ).eval()
    names = sorted(key for key, _ in direct.named_parameters() if "lora_" in key)
    with torch.no_grad():
        for number, key in enumerate(names):
            value = direct.get_parameter(key)
            i = torch.arange(value.numel())
            value.copy_((((i * 37 + number * 11) % 101 - 50).float() / 256).reshape(value.shape))
    for key in names:
        assert torch.equal(loaded.get_parameter(key), direct.get_parameter(key)), key
    result = peft.load_peft_weights(folder, device="cpu")
    assert len(result) == len(names), (len(result), len(names))
    ids = torch.arange(3, 23).reshape(2, 10)
    with torch.no_grad():
        ours, theirs, base = loaded(ids).logits, direct(ids).logits, tiny_llama()(ids).logits
    assert torch.equal(ours, theirs)
    change = (ours - base).abs().max().item()
    assert change > 0.01, change
    print("make_checkpoint: peft loads ours/: logits equal; they differ from the base's by", change)


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    gguf_types()
    safetensors_types()
    adapters()
    config_fields()
    check_ours()


if __name__ == "__main__":
    main()
