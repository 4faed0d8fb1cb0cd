"""Goldens of bottleneck adapters in a whole model: AdapterHub's Llama, a tiny random one, trained on two sequences.

    python tests/golden/make_llama_adapters.py        (writes tests/golden/data/adapter/llama/; requirements-adapters.txt)

Per case: the logits of both sequences, the mean loss at each of five steps of AdamW (no decay for biases and norms), and per
parameter [value, gradient, value after the steps].
"""

import json
import logging
import pathlib
import shutil

import adapters
import adapters.composition as ac
import torch
import transformers
from adapters.configuration import (
    BnConfig, DoubleSeqBnConfig, DynamicAdapterFusionConfig, ParBnConfig, SeqBnConfig, StaticAdapterFusionConfig,
)
from safetensors.torch import save_file

assert adapters.__version__ == "1.3.0", adapters.__version__

OUT = pathlib.Path(__file__).parent / "data" / "adapter" / "llama"
LR, DECAY, STEPS = 1e-2, 0.05, 5
SEQUENCES = [[3, 1, 4, 1, 5, 9, 2], [6, 5, 3, 5, 8]]


def base():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=24, hidden_size=16, intermediate_size=20, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=32, tie_word_embeddings=True, attn_implementation="eager",
    )
    model = transformers.LlamaForCausalLM(config).float()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(1 + 0.1 * torch.randn_like(p) if "norm" in name else 0.3 * torch.randn_like(p))
            p.copy_(p.bfloat16().float())
    return model


CASES = [
    ("seq_bn", SeqBnConfig(reduction_factor=2)),
    ("double_seq_bn", DoubleSeqBnConfig(reduction_factor=4)),
    ("par_bn", ParBnConfig(reduction_factor=4)),
    ("scaled_par_bn", ParBnConfig(reduction_factor=4, scaling="learned", mh_adapter=True)),
    ("norms", SeqBnConfig(reduction_factor=2, ln_before=True, ln_after=True, scaling="channel", mh_adapter=True)),
    ("leave_out", DoubleSeqBnConfig(reduction_factor=4, leave_out=[0])),
]
BLOCKS = [
    ("stack", SeqBnConfig(reduction_factor=4), ac.Stack("a", "b")),
    ("average", DoubleSeqBnConfig(reduction_factor=4),
     ac.Average("a", "b", weights=[0.25, 0.75], normalize_weights=False)),
    ("batch_split", SeqBnConfig(reduction_factor=4), ac.BatchSplit("a", "b", batch_sizes=[1, 1])),
]


# AdapterFusion alone is trained, as train_adapter_fusion does it: without its regulariser, which the trainer adds.
FUSIONS = [
    ("fuse", DoubleSeqBnConfig(reduction_factor=4), ac.Fuse("a", "b"), DynamicAdapterFusionConfig()),
    ("fuse_static", SeqBnConfig(reduction_factor=4), ac.Fuse("a", "b", "c"), StaticAdapterFusionConfig()),
]


def randomise(parameters):
    generator = torch.Generator().manual_seed(1)
    for name, p in parameters.items():
        noise = torch.randn(p.shape, generator=generator)
        if "norm" in name and name.endswith("weight") or name.endswith("scaling"):
            p.data.copy_(1 + 0.2 * noise)
        else:
            p.data.copy_(noise * (p.shape[1] ** -0.5 if p.dim() == 2 else 0.3))


def run(name, model, parameters, tensors, padded):
    """`padded`: both sequences at once, the shorter one with padding behind it, whose positions have no label."""
    randomise(parameters)
    records = {key: [p.detach().clone()] for key, p in parameters.items()}
    for p in model.parameters():
        p.requires_grad_(False)
    for p in parameters.values():
        p.requires_grad_(True)
    decays = lambda key, p: p.dim() == 2 or key.endswith("scaling")
    optimizer = torch.optim.AdamW([
        {"params": [p for key, p in parameters.items() if decays(key, p)], "weight_decay": DECAY},
        {"params": [p for key, p in parameters.items() if not decays(key, p)], "weight_decay": 0.0},
    ], lr=LR)
    model.train()
    losses = []
    for step in range(STEPS):
        optimizer.zero_grad()
        if padded:
            longest = max(map(len, SEQUENCES))
            ids = torch.tensor([s + [0] * (longest - len(s)) for s in SEQUENCES])
            mask = torch.tensor([[1] * len(s) + [0] * (longest - len(s)) for s in SEQUENCES])
            rows = model(input_ids=ids, attention_mask=mask).logits
            logits = [row[: len(s)] for row, s in zip(rows, SEQUENCES)]
        else:
            logits = [model(input_ids=torch.tensor([s])).logits[0] for s in SEQUENCES]
        loss = sum(torch.nn.functional.cross_entropy(row[:-1], torch.tensor(s[1:]), reduction="sum")
                   for row, s in zip(logits, SEQUENCES)) / sum(len(s) - 1 for s in SEQUENCES)
        loss.backward()
        losses.append(float(loss))
        if step == 0:
            tensors[f"{name}.logits"] = torch.cat(logits).detach()
            for key, p in parameters.items():
                records[key].append(p.grad.clone())
        optimizer.step()
    for key, p in parameters.items():
        records[key].append(p.detach().clone())
        tensors[f"{name}.{key}"] = torch.stack(records[key])
    return losses


def own(model):
    """The adapters' parameters under the names of a body's file."""
    return {key.removeprefix("model."): p for key, p in model.named_parameters() if ".adapters." in key}


def changed(config):
    defaults = BnConfig(mh_adapter=False, output_adapter=True, reduction_factor=16, non_linearity="relu").to_dict()
    return {key: value for key, value in config.to_dict().items() if value != defaults[key]}


def main():
    logging.disable(logging.WARNING)
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    base().bfloat16().save_pretrained(OUT)
    (OUT / "generation_config.json").unlink()
    tensors, cases = {}, []
    for name, config in CASES:
        model = base()
        adapters.init(model)
        model.add_adapter("task", config=config)
        model.set_active_adapters("task")
        losses = run(name, model, own(model), tensors, False)
        cases.append({"name": name, "config": changed(config), "losses": losses})
    blocks = []
    for name, config, setup in BLOCKS:
        model = base()
        adapters.init(model)
        for adapter in ("a", "b"):
            model.add_adapter(adapter, config=config)
        model.set_active_adapters(setup)
        losses = run(name, model, own(model), tensors, isinstance(setup, ac.BatchSplit))
        blocks.append({"name": name, "config": changed(config), "setup": setup.to_dict(), "losses": losses})
    fusions = []
    for name, config, setup, fusion in FUSIONS:
        model = base()
        adapters.init(model)
        for adapter in setup.children:
            model.add_adapter(adapter, config=config)
        fixed = own(model)
        randomise(fixed)
        tensors |= {f"{name}.{key}": p.detach().clone()[None] for key, p in fixed.items()}
        model.add_adapter_fusion(list(setup.children), config=fusion)
        model.set_active_adapters(setup)
        parameters = {key.removeprefix("model."): p for key, p in model.named_parameters() if "adapter_fusion_layer." in key}
        losses = run(name, model, parameters, tensors, False)
        fusions.append({"name": name, "config": changed(config), "setup": setup.to_dict(), "static": not fusion.value,
                        "regularization": float(sum(
                            0.01 * ((torch.eye(p.shape[0]) - tensors[f"{name}.{key}"][0]) ** 2).sum()
                            for key, p in parameters.items() if key.endswith("value.weight"))), "losses": losses})
    save_file({key: value.contiguous() for key, value in tensors.items()}, OUT / "golden.safetensors")
    (OUT / "golden.json").write_text(json.dumps(
        {"lr": LR, "decay": DECAY, "steps": STEPS, "sequences": SEQUENCES, "cases": cases, "blocks": blocks,
         "fusions": fusions}) + "\n")


if __name__ == "__main__":
    main()
