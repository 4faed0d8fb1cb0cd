"""Checks a folder that `peft quantize` wrote against transformers and bitsandbytes: loaded keys, modules, logits.

    python tests/golden/check_quantized.py BASE FOLDER ...      in an environment of requirements-bnb.txt with transformers

BASE is a folder or a GGUF. Expected are the logits of BASE with every linear of its layers quantised and dequantised by
bitsandbytes itself; FOLDER of --dtype f32. Makes nothing; says what differs and ends with status 1.
"""

import pathlib
import sys

import bitsandbytes as bnb
import torch
import transformers


def load(path):
    path = pathlib.Path(path)
    where = dict(pretrained_model_name_or_path=path.parent, gguf_file=path.name) if path.suffix == ".gguf" else dict(
        pretrained_model_name_or_path=path)
    return transformers.AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32, attn_implementation="eager",
                                                             output_loading_info=path.suffix != ".gguf")


def logits(model):
    ids = torch.arange(3, 35)[None] % model.config.vocab_size
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits


base, *folders = sys.argv[1:]
good = True
for folder in folders:
    model, info = load(folder)
    lost = [key for key in (*info["missing_keys"], *info["unexpected_keys"]) if key != "lm_head.weight"]
    for module in model.modules():
        # Else, where the processor has AVX512-BF16, its first pass rounds the scales to bfloat16 and computes in that.
        if isinstance(module, bnb.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False
    layers = {name: module for name, module in model.named_modules() if isinstance(module, bnb.nn.Linear4bit)}
    linears = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear) and "layers." in name]
    expected = load(base)
    expected = expected[0] if isinstance(expected, tuple) else expected
    modules = dict(expected.named_modules())
    for name, module in layers.items():
        state = module.weight.quant_state
        codes, own = bnb.functional.quantize_4bit(modules[name].weight.data, blocksize=state.blocksize, quant_type=state.quant_type,
                                                  compress_statistics=state.nested)
        modules[name].weight.data = bnb.functional.dequantize_4bit(codes, own)
    got, want = logits(model), logits(expected)
    distance = float((got - want).norm() / want.norm())
    fine = not lost and len(layers) == len(linears) and distance <= 2e-3
    good &= fine
    print(f"{'ok ' if fine else 'BAD'} {folder}: {len(layers)} of {len(linears)} linears in four bits; logits differ by "
          f"{distance:.2e}, at most 2e-03{'; not loaded: ' + ', '.join(lost) if lost else ''}")
sys.exit(0 if good else 1)
