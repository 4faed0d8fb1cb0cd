"""Goldens of a host with Conv1D weights [in, out]: a tiny random GPT-2 with LoRA (fan_in_fan_out) on c_attn and c_proj:
logits, loss, every adapter gradient, and the merged weights.

    python tests/golden/make_gpt2.py            (writes tests/golden/data/gpt2/)
"""

import json
import pathlib

import peft
import torch
import transformers
from safetensors.torch import save_file

assert peft.__version__ == "0.21.2", peft.__version__
assert transformers.__version__ == "5.23.0", transformers.__version__

OUT = pathlib.Path(__file__).parent / "data" / "gpt2"
OUT.mkdir(parents=True, exist_ok=True)

torch.manual_seed(0)
config = transformers.GPT2Config(
    vocab_size=50, n_positions=24, n_embd=32, n_layer=2, n_head=4, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    attn_implementation="eager",
)
model = transformers.GPT2LMHeadModel(config).float()
with torch.no_grad():
    for name, p in model.named_parameters():
        is_norm_weight = ".ln_" in name and name.endswith("weight")
        p.copy_((1 if is_norm_weight else 0) + (0.1 if ".ln_" in name or "bias" in name else 0.2) * torch.randn_like(p))
tensors = {"base." + k: v.clone() for k, v in model.state_dict().items() if k != "lm_head.weight"}
model = peft.get_peft_model(model, peft.LoraConfig(
    r=4, lora_alpha=8, task_type="CAUSAL_LM", fan_in_fan_out=True, target_modules=["c_attn", "c_proj"]))
with torch.no_grad():
    for name, p in model.named_parameters():
        if "lora_" in name:
            p.copy_(0.1 * torch.randn_like(p))
adapter = {k.replace("base_model.model.", "").replace(".default", ""): p for k, p in model.named_parameters() if "lora_" in k}
tensors |= {"adapter." + k: p.clone() for k, p in adapter.items()}
generator = torch.Generator().manual_seed(1)
lengths = [7, 2, 12]
sequences = [torch.randint(0, 50, (n,), generator=generator) for n in lengths]
targets = [[int(s[i + 1]) if i + 1 < len(s) else -1 for i in range(len(s))] for s in sequences]
total, count, logits = 0.0, 0, []
for s, t in zip(sequences, targets):
    out = model(input_ids=s[None]).logits[0]
    logits.append(out)
    t = torch.tensor(t)
    total = total + torch.nn.functional.cross_entropy(out[t >= 0], t[t >= 0], reduction="sum")
    count += int((t >= 0).sum())
tensors["logits"] = torch.cat(logits)
(total / count).backward()
tensors |= {"grad." + k: p.grad.clone() for k, p in adapter.items()}
merged = model.merge_and_unload()
tensors["merged"] = merged.transformer.h[0].attn.c_attn.weight
save_file({k: v.detach().contiguous() for k, v in tensors.items()}, OUT / "tiny.safetensors")
(OUT / "tiny.json").write_text(json.dumps({
    "lengths": lengths, "ids": [int(i) for s in sequences for i in s], "targets": [t for ts in targets for t in ts],
    "label_tokens": count, "loss": float((total / count).detach()), "modules": sorted({k.rsplit(".lora_", 1)[0] for k in adapter}),
}))
