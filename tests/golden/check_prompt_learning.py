"""Loads with peft what this library saved (data/prompt_learning/ours): no warning, peft's types, the logits that were
computed here. Says what differs and ends with status 1.

    python tests/golden/check_prompt_learning.py
"""

import sys
import warnings

import peft
import torch
from make_prompt_learning import OUT, logits_of, tiny_llama
from safetensors.torch import load_file

TYPES = {"prefix": (peft.PrefixTuningConfig, 3, 64), "prompt": (peft.PromptTuningConfig, 4, 32),
         "p_tuning": (peft.PromptEncoderConfig, 2, 32)}


def check(name):
    kind, rows, cols = TYPES[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # peft tells of missing keys by warnings
        model = peft.PeftModel.from_pretrained(tiny_llama(), OUT / "ours" / name).eval()
    config = model.peft_config["default"]
    assert type(config) is kind and config.inference_mode and config.num_virtual_tokens == rows, config
    assert config.base_model_name_or_path == "tiny" and config.task_type == "CAUSAL_LM", config
    i = torch.arange(rows * cols)
    expected = (((i * 37) % 101 - 50).float() / 64).reshape(rows, cols)
    assert torch.equal(model.prompt_encoder["default"].embedding.weight, expected), name
    with torch.no_grad():
        logits, base = torch.cat(logits_of(model)), torch.cat(logits_of(model.get_base_model()))
    ours = load_file(OUT / "ours" / f"{name}_logits.safetensors")["logits"]
    distance = float((ours - logits).norm() / logits.norm())
    change = float((base - logits).norm() / logits.norm())
    good = distance <= 300 * 2**-24 and change > 0.05
    print(f"{'ok ' if good else 'BAD'} {name}: logits differ by {distance:.1e} from peft's, those from the base's by {change:.2f}")
    return good


sys.exit(0 if all([check(name) for name in TYPES]) else 1)
