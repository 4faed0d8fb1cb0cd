"""Goldens of the BERT host: a tiny random BertForSequenceClassification with LoRA on query and value and the classifier
among the modules_to_save (logits, loss, every gradient, five optimizer steps), the same model trained in full, and
MiniLM's hidden states and sentence embeddings on real text.

    python tests/golden/make_bert.py [MINILM_FOLDER]        (writes tests/golden/data/bert/)
"""

import copy
import json
import pathlib
import sys

import peft
import torch
import transformers
from safetensors.torch import save_file

assert peft.__version__ == "0.21.2", peft.__version__
assert transformers.__version__ == "5.23.0", transformers.__version__

OUT = pathlib.Path(__file__).parent / "data" / "bert"
OUT.mkdir(parents=True, exist_ok=True)


def steps(forward, parameters, count=5):
    """Losses before each of `count` steps, and the parameters after the last."""
    optimizer = torch.optim.AdamW(list(parameters.values()), lr=1e-2, weight_decay=0.0)
    schedule = transformers.get_scheduler("linear", optimizer, 0, count)
    losses = []
    for _ in range(count):
        loss = forward().loss
        losses.append(float(loss.detach()))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(list(parameters.values()), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return losses


def tiny():
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=60, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=40, type_vocab_size=2, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        layer_norm_eps=1e-12, num_labels=3, id2label={0: "heart", 1: "lung", 2: "rare"},
        label2id={"heart": 0, "lung": 1, "rare": 2}, attn_implementation="eager",
    )
    model = transformers.BertForSequenceClassification(config).float()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_((1 if "LayerNorm.weight" in name else 0) + (0.1 if "LayerNorm" in name or "bias" in name else 0.2) * torch.randn_like(p))
    model.save_pretrained(OUT / "tiny")
    generator = torch.Generator().manual_seed(1)
    lengths = [7, 1, 12, 3]
    sequences = [torch.randint(1, 60, (n,), generator=generator) for n in lengths]
    labels = torch.tensor([2, 0, 2, 1])
    ids = torch.zeros(len(lengths), max(lengths), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, s in enumerate(sequences):
        ids[i, :len(s)] = s
        mask[i, :len(s)] = 1

    tensors = {}
    out = model(input_ids=ids, attention_mask=mask, labels=labels, output_hidden_states=True)
    tensors["base.logits"] = out.logits
    tensors["base.hidden"] = torch.cat([out.hidden_states[-1][i, :n] for i, n in enumerate(lengths)])

    full = copy.deepcopy(model)
    forward = lambda: full(input_ids=ids, attention_mask=mask, labels=labels)
    forward().loss.backward()
    parameters = dict(full.named_parameters())
    tensors |= {"full.grad." + k: p.grad.clone() for k, p in parameters.items()}
    full.zero_grad()
    full_losses = steps(forward, parameters)
    tensors["full.after"] = parameters["bert.encoder.layer.0.attention.output.LayerNorm.weight"].detach().clone()

    lora = peft.get_peft_model(model, peft.LoraConfig(r=4, lora_alpha=8, task_type="SEQ_CLS", target_modules=["query", "value"]))
    name = lambda k: k.replace("base_model.model.", "").replace(".default", "").replace(".modules_to_save", "")
    with torch.no_grad():
        for k, p in lora.named_parameters():
            if "lora_" in k:
                p.copy_(0.1 * torch.randn_like(p))
    parameters = {name(k): p for k, p in lora.named_parameters() if p.requires_grad}
    assert {"classifier.weight", "classifier.bias"} < set(parameters), list(parameters)
    tensors |= {"lora.start." + k: p.detach().clone() for k, p in parameters.items()}
    forward = lambda: lora(input_ids=ids, attention_mask=mask, labels=labels)
    out = forward()
    tensors["lora.logits"] = out.logits
    out.loss.backward()
    tensors |= {"lora.grad." + k: p.grad.clone() for k, p in parameters.items()}
    lora.zero_grad()
    lora_losses = steps(forward, parameters)
    save_file({k: v.detach().contiguous() for k, v in tensors.items()}, OUT / "tiny.safetensors")
    (OUT / "tiny.json").write_text(json.dumps({
        "lengths": lengths, "ids": [int(i) for s in sequences for i in s], "labels": labels.tolist(),
        "lora_losses": lora_losses, "full_losses": full_losses,
    }))


TEXTS = [
    "What are the symptoms of Bronchitis ?",
    "The quick brown fox jumps over the lazy dog.",
    "Größe, naïve café — 我们今天去公园散步 😀 supercalifragilisticexpialidocious",
    "x",
]


def minilm(folder):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    result = []
    for text in TEXTS:
        ids = tokenizer(text).input_ids
        with torch.no_grad():
            out = model(input_ids=torch.tensor([ids]))
        hidden = out.last_hidden_state[0]
        embedding = torch.nn.functional.normalize(hidden.mean(0), dim=0)
        rounded = lambda values: [round(v, 7) for v in values.tolist()]
        result.append({"text": text, "ids": ids, "first": rounded(hidden[0]), "last": rounded(hidden[-1]),
                       "pooled": rounded(out.pooler_output[0]), "embedding": rounded(embedding)})
    (OUT / "minilm.json").write_text(json.dumps(result, ensure_ascii=True))


tiny()
if len(sys.argv) > 1:
    minilm(sys.argv[1])
