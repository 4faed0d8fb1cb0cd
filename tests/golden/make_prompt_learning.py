"""Goldens of prefix tuning, prompt tuning and P-tuning on a tiny Llama with grouped-query attention: logits, loss, every
gradient, five AdamW steps, and the folders that peft saves after them.

    python tests/golden/make_prompt_learning.py        (writes tests/golden/data/prompt_learning/)
"""

import json
import pathlib
import shutil
import tempfile

import peft
import tokenizers
import torch
import transformers
from safetensors.torch import load_file, save_file

assert peft.__version__ == "0.21.2", peft.__version__

OUT = pathlib.Path(__file__).parent / "data" / "prompt_learning"
VOCABULARY = 96
TEXT = "w5 w17 w60"


def tiny_llama():
    """The base of every case; `check_prompt_learning.py` makes it again."""
    torch.manual_seed(3)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, rope_theta=10000.0, rms_norm_eps=1e-5,
        tie_word_embeddings=True, attn_implementation="eager",
    )
    model = transformers.LlamaForCausalLM(config).float()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_((1 if "norm" in name else 0) + (0.1 if "norm" in name else 0.2) * torch.randn_like(p))
    return model


def sequences():
    generator = torch.Generator().manual_seed(1)
    ids = [torch.randint(0, VOCABULARY, (n,), generator=generator) for n in (7, 1, 12)]
    # Labels of the second half of each sequence; position i predicts id i + 1.
    targets = [[int(s[i + 1]) if i + 1 < len(s) and i + 1 >= len(s) // 2 else -1 for i in range(len(s))] for s in ids]
    return ids, targets


def tokenizer_folder(folder):
    words = {f"w{i}": i for i in range(VOCABULARY)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    return folder


def logits_of(model):
    """Logits of the real tokens of every sequence, one after another."""
    rows = []
    for s in sequences()[0]:
        rows.append(model(input_ids=s[None]).logits[0][-len(s):])
    return rows


def trained(model):
    return {k.replace(".default", ""): p for k, p in model.named_parameters() if p.requires_grad}


def case(name, config):
    torch.manual_seed(sum(map(ord, name)))
    model = peft.get_peft_model(tiny_llama(), config)
    model.train()
    parameters = trained(model)
    assert parameters and all(k.startswith("prompt_encoder.") for k in parameters), list(parameters)
    _, targets = sequences()
    tensors = {"start." + k: p.detach().clone() for k, p in parameters.items()}

    def loss_of():
        total, count, rows = 0.0, 0, logits_of(model)
        for row, target in zip(rows, targets):
            target = torch.tensor(target)
            keep = target >= 0
            if keep.any():
                total = total + torch.nn.functional.cross_entropy(row[keep], target[keep], reduction="sum")
                count += int(keep.sum())
        return total / count, torch.cat(rows), count

    loss, logits, count = loss_of()
    base = torch.cat(logits_of(model.get_base_model()))
    assert (logits - base).norm() > 0.05 * base.norm(), name
    loss.backward()
    tensors["logits"] = logits.detach().clone()
    tensors |= {"grad." + k: p.grad.clone() for k, p in parameters.items()}
    tensors["prompt_embeddings"] = model.get_prompt_embedding_to_save("default").clone()

    biases = [p for k, p in parameters.items() if "bias" in k]  # without decay, as Hugging Face's trainer
    weights = [p for k, p in parameters.items() if "bias" not in k]
    optimizer = torch.optim.AdamW([dict(params=weights, weight_decay=0.01), dict(params=biases, weight_decay=0.0)], lr=1e-2)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss, _, _ = loss_of()
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
    assert losses[-1] < losses[0], losses
    tensors |= {"after." + k: p.detach().clone() for k, p in parameters.items()}

    folder = OUT / name
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    saved = load_file(folder / "adapter_model.safetensors")
    assert list(saved) == ["prompt_embeddings"], list(saved)
    loaded = peft.PeftModel.from_pretrained(tiny_llama(), folder).eval()
    with torch.no_grad():
        tensors["after.logits"] = torch.cat(logits_of(loaded))
        assert torch.allclose(tensors["after.logits"], torch.cat(logits_of(model.eval())), atol=1e-5)
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "golden.safetensors")
    (folder / "golden.json").write_text(json.dumps({"losses": losses, "label_tokens": count}))


def main():
    ours = OUT / "ours"
    kept = pathlib.Path(tempfile.mkdtemp()) / "ours"
    if ours.exists():
        shutil.copytree(ours, kept)
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    if kept.exists():
        shutil.copytree(kept, ours)
    base = {k: v.clone() for k, v in tiny_llama().state_dict().items() if k != "lm_head.weight"}
    save_file(base, OUT / "base.safetensors")
    ids, targets = sequences()
    (OUT / "batch.json").write_text(json.dumps({
        "ids": [int(i) for s in ids for i in s], "lengths": [len(s) for s in ids], "targets": sum(targets, []),
    }))
    task = dict(task_type="CAUSAL_LM")
    case("prefix", peft.PrefixTuningConfig(num_virtual_tokens=5, **task))
    case("prefix_projection", peft.PrefixTuningConfig(num_virtual_tokens=4, prefix_projection=True,
                                                      encoder_hidden_size=24, **task))
    case("prompt_random", peft.PromptTuningConfig(num_virtual_tokens=6, **task))
    with tempfile.TemporaryDirectory() as folder:
        case("prompt_text", peft.PromptTuningConfig(
            num_virtual_tokens=7, prompt_tuning_init="TEXT", prompt_tuning_init_text=TEXT,
            tokenizer_name_or_path=tokenizer_folder(folder), **task))
    path = OUT / "prompt_text" / "adapter_config.json"
    config = json.loads(path.read_text()) | {"tokenizer_name_or_path": "tiny-tokenizer"}  # not a temporary folder
    path.write_text(json.dumps(config, indent=2, sort_keys=True))
    case("p_tuning_mlp", peft.PromptEncoderConfig(num_virtual_tokens=5, encoder_hidden_size=20, **task))
    case("p_tuning_lstm", peft.PromptEncoderConfig(
        num_virtual_tokens=5, encoder_hidden_size=12, encoder_num_layers=2,
        encoder_reparameterization_type="LSTM", **task))


if __name__ == "__main__":
    main()
