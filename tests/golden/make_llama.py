"""Goldens of the Llama host: a tiny random model with LoRA on all linears (logits, loss, every adapter gradient, ten
optimizer steps), the same as an aLoRA, and SmolLM2's logits on real text.

    python tests/golden/make_llama.py [SMOLLM2.gguf]        (writes tests/golden/data/llama/)
"""

import json
import pathlib
import sys

import peft
import torch
import transformers
from safetensors.torch import load_file, save_file

assert peft.__version__ == "0.21.2", peft.__version__

OUT = pathlib.Path(__file__).parent / "data" / "llama"
OUT.mkdir(parents=True, exist_ok=True)


def tiny():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, rope_theta=10000.0, rms_norm_eps=1e-5,
        tie_word_embeddings=True, attn_implementation="eager",
    )
    model = transformers.LlamaForCausalLM(config).float()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "norm" in name:
                p.copy_(1 + 0.1 * torch.randn_like(p))
            else:
                p.copy_(0.15 * torch.randn_like(p))
    base = {k: v.clone() for k, v in model.state_dict().items() if k != "lm_head.weight"}
    lora = peft.LoraConfig(
        r=4, lora_alpha=8, task_type="CAUSAL_LM",
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    )
    model = peft.get_peft_model(model, lora)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_" in name:
                p.copy_(0.1 * torch.randn_like(p))
    adapter = lambda: {k.replace("base_model.model.", "").replace(".default", ""): p for k, p in model.named_parameters()
                       if "lora_" in k}
    start = {k: v.detach().clone() for k, v in adapter().items()}
    generator = torch.Generator().manual_seed(1)
    lengths = [7, 1, 12]
    sequences = [torch.randint(0, 96, (n,), generator=generator) for n in lengths]
    # Labels of the second half of each sequence; position i predicts id i + 1.
    targets = [[int(s[i + 1]) if i + 1 < len(s) and i + 1 >= len(s) // 2 else -1 for i in range(len(s))] for s in sequences]

    def losses():
        total, count, all_logits = 0.0, 0, []
        for s, t in zip(sequences, targets):
            logits = model(input_ids=s[None]).logits[0]
            all_logits.append(logits)
            t = torch.tensor(t)
            keep = t >= 0
            if keep.any():
                total = total + torch.nn.functional.cross_entropy(logits[keep], t[keep], reduction="sum")
                count += int(keep.sum())
        return total, count, torch.cat(all_logits)

    total, count, logits = losses()
    (total / count).backward()
    grads = {k: p.grad.clone() for k, p in adapter().items()}
    model.zero_grad()
    optimizer = torch.optim.AdamW(list(adapter().values()), lr=1e-2, weight_decay=0.0)
    schedule = transformers.get_scheduler("linear", optimizer, 0, 10)
    curve = []
    for _ in range(10):
        total, count, _ = losses()
        curve.append(float(total / count))
        (total / count).backward()
        torch.nn.utils.clip_grad_norm_(list(adapter().values()), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    tensors = {"base." + k: v for k, v in base.items()}
    tensors |= {"adapter." + k: v for k, v in start.items()}
    tensors |= {"grad." + k: v for k, v in grads.items()}
    tensors["logits"] = logits.detach()
    save_file({k: v.contiguous() for k, v in tensors.items()}, OUT / "tiny.safetensors")
    (OUT / "tiny.json").write_text(json.dumps({
        "lengths": lengths, "ids": [int(i) for s in sequences for i in s], "targets": [t for ts in targets for t in ts],
        "label_tokens": count, "losses": curve,
    }))


def alora():
    """The same model and adapter as an aLoRA: acts from the last [7, 8] on. Logits, gradients, greedy answers."""
    file = load_file(OUT / "tiny.safetensors")
    config = transformers.LlamaConfig(
        vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, rope_theta=10000.0, rms_norm_eps=1e-5,
        tie_word_embeddings=True, attn_implementation="eager",
    )
    model = transformers.LlamaForCausalLM(config).float()
    model.load_state_dict({k.removeprefix("base."): v for k, v in file.items() if k.startswith("base.")}, strict=False)
    model.tie_weights()
    model = peft.get_peft_model(model, peft.LoraConfig(
        r=4, lora_alpha=8, task_type="CAUSAL_LM", alora_invocation_tokens=[7, 8],
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    ))
    adapter = {k.replace("base_model.model.", "").replace(".default", ""): p for k, p in model.named_parameters() if "lora_" in k}
    with torch.no_grad():
        for k, p in adapter.items():
            p.copy_(file["adapter." + k] * 4)  # so that it tells where it acts
    sequences = [[5, 9, 7, 8, 11, 12, 13], [1, 2, 3, 4], [7, 8, 20, 21, 7, 8, 30, 31, 32], [40, 41, 42, 7, 8]]
    total, count, logits = 0.0, 0, []
    for s in sequences:
        rows = model(input_ids=torch.tensor([s])).logits[0]
        total = total + torch.nn.functional.cross_entropy(rows[:-1], torch.tensor(s[1:]), reduction="sum")
        count += len(s) - 1
        logits.append(rows)
    (total / count).backward()
    answers = [model.generate(input_ids=torch.tensor([s]), attention_mask=torch.ones(1, len(s), dtype=torch.long),
                              max_new_tokens=8, do_sample=False, eos_token_id=None, pad_token_id=0)[0][len(s):].tolist()
               for s in sequences]
    tensors = {"grad." + k: p.grad for k, p in adapter.items()} | {"logits": torch.cat(logits).detach()}
    save_file({k: v.contiguous() for k, v in tensors.items()}, OUT / "alora.safetensors")
    (OUT / "alora.json").write_text(json.dumps({"tokens": [7, 8], "sequences": sequences, "loss": float(total / count),
                                                "answers": answers}))


TEXTS = [
    "The quick brown fox jumps over the lazy dog. In 1969, three people flew to the moon,",
    "def add(a, b):\n    return a + b\n\nprint(add(2, 3))",
    "我们今天去公园散步，天气很好。",
]


def smollm2(path):
    path = pathlib.Path(path).resolve()
    tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    model = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    result = []
    for text in TEXTS:
        ids = tokenizer(text, add_special_tokens=False).input_ids
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0].float()
        top = logits.topk(5, dim=-1)
        result.append({
            "text": text, "ids": ids,
            "top_ids": top.indices.tolist(), "top_values": [[round(v, 5) for v in row] for row in top.values.tolist()],
            "sample_columns": list(range(0, 49152, 4096)),
            "sample": [[round(v, 5) for v in row] for row in logits[:, ::4096].tolist()],
        })
    (OUT / "smollm2.json").write_text(json.dumps(result, ensure_ascii=False))


tiny()
alora()
if len(sys.argv) > 1:
    smollm2(sys.argv[1])
