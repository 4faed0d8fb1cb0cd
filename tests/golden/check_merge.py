"""Checks what `peft merge` wrote against transformers and peft: logits, weights, tokenizer ids.

    python tests/golden/check_merge.py BASE ADAPTER MERGED ...      each MERGED a folder or a .gguf

BASE is a folder or a GGUF; MERGED of --dtype f32. Makes nothing; says what differs and ends with status 1.
"""

import pathlib
import sys

import gguf
import numpy as np
import peft
import torch
import transformers

TEXTS = ["The quick brown fox jumps over the lazy dog.", "  two  spaces\n\n1234", "e\u0301 中文 🌡️", "<s>a</s> b", "x" * 30]


def load(path):
    path = pathlib.Path(path)
    where = dict(pretrained_model_name_or_path=path.parent, gguf_file=path.name) if path.suffix == ".gguf" else dict(pretrained_model_name_or_path=path)
    return transformers.AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32, attn_implementation="eager").eval()


def logits(model):
    ids = torch.arange(3, 35)[None] % model.config.vocab_size
    with torch.no_grad():
        return model(input_ids=ids).logits


def compare(name, got, want, most):
    return report(name, float((got - want).norm() / want.norm()), most)


def report(name, distance, most):
    print(f"{'ok ' if distance <= most else 'BAD'} {name}: {distance:.2e}, at most {most:.0e}")
    return distance <= most


def tokenizers_agree(name, a, b):
    different = [t for t in TEXTS if a(t).input_ids != b(t).input_ids]
    print(f"{'BAD' if different else 'ok '} {name}: tokenizer" + (f" differs at {different}" if different else ""))
    return not different


def gguf_weights(path):
    """A GGUF's tensors under Hugging Face's names, q and k of a llama with their halves again."""
    reader = gguf.GGUFReader(path)
    field = lambda key: reader.fields[key].contents()
    arch = field("general.architecture")
    heads = {"attn_q": field(f"{arch}.attention.head_count"), "attn_k": field(f"{arch}.attention.head_count_kv")}
    names = {"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
             "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm",
             "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
             "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
    top = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
    result = {}
    for tensor in reader.tensors:
        if tensor.name == "rope_freqs.weight":
            continue
        values = torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32))
        stem, kind = tensor.name.rsplit(".", 1)
        part = stem.split(".")[-1]
        if arch == "llama" and part in heads:
            n = heads[part]
            values = values.reshape(n, values.shape[0] // n // 2, 2, *values.shape[1:]).transpose(1, 2).reshape(values.shape)
        name = top[stem] if stem in top else f"model.layers.{stem.split('.')[1]}.{names[part]}"
        result[f"{name}.{kind}"] = values
    return result


base, adapter, *merged = sys.argv[1:]
expected = peft.PeftModel.from_pretrained(load(base), adapter).merge_and_unload()
state = expected.state_dict()
good = True
for path in merged:
    if path.endswith(".gguf"):
        weights = gguf_weights(path)
        missing = [k for k in state if k not in weights and not (k == "lm_head.weight" and expected.config.tie_word_embeddings)]
        good = good and not missing
        print("BAD missing" if missing else "ok  all tensors", path, missing)
        worst = max(float((weights[k] - state[k]).norm() / state[k].norm()) for k in weights)
        good &= report(f"{path}: weights", worst, 1e-6)
        continue
    good &= compare(f"{path}: logits", logits(load(path)), logits(expected), 2e-5)
    theirs = pathlib.Path(base)
    original = (transformers.AutoTokenizer.from_pretrained(theirs.parent, gguf_file=theirs.name) if theirs.suffix == ".gguf"
                else transformers.AutoTokenizer.from_pretrained(theirs))
    if theirs.suffix != ".gguf":  # transformers' reader of GGUF tokenizers ignores the pre-tokenizer's name
        good &= tokenizers_agree(path, transformers.AutoTokenizer.from_pretrained(path), original)
sys.exit(0 if good else 1)
