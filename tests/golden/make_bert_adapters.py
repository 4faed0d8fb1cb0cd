"""Goldens of bottleneck adapters in a whole BERT: AdapterHub's adapters behind, or beside, the branches of the tiny classifier
of make_bert.py, with its head or with one of AdapterHub's own: logits, loss, every gradient, five AdamW steps, and the
folders that adapters saves after them (adapter and head).

    python tests/golden/make_bert_adapters.py        (reads and writes tests/golden/data/bert/; requirements-adapters.txt)
"""

import json
import shutil

import adapters
import adapters.composition as ac
import torch
import transformers
from adapters.configuration import DoubleSeqBnConfig, ParBnConfig, SeqBnConfig
from safetensors.torch import load_file, save_file
from tiny_bert import DATA, batch

assert adapters.__version__ == "1.3.0", adapters.__version__

OUT = DATA / "adapters"


def base(head=None):
    """The classifier; with `head` (add_classification_head's arguments) AdapterHub's model class with such a head, "task"."""
    if head is None:
        model = transformers.BertForSequenceClassification.from_pretrained(DATA / "tiny", attn_implementation="eager")
        adapters.init(model)
        return model
    model = adapters.BertAdapterModel.from_pretrained(DATA / "tiny", attn_implementation="eager")
    model.delete_head("default")  # the classifier's, which from_pretrained has turned into one
    model.add_classification_head("task", num_labels=3, id2label=dict(enumerate(["heart", "lung", "rare"])), **head)
    return model


def randomise(parameters):
    generator = torch.Generator().manual_seed(1)
    for name, p in parameters.items():
        noise = torch.randn(p.shape, generator=generator)
        p.data.copy_(1 + 0.2 * noise if name.endswith("scaling") else noise * (p.shape[1] ** -0.5 if p.dim() == 2 else 0.3))


def five_steps(model, parameters):
    optimizer = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.0)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = model(**batch()).loss
        loss.backward()
        losses.append(float(loss.detach()))
        optimizer.step()
    assert losses[-1] < losses[0], losses
    return losses


def case(name, config, setup=None, names=("task",), head=None):
    torch.manual_seed(0)
    model = base(head)
    for one in names:
        model.add_adapter(one, config)
    setup = setup or names[0]
    model.train_adapter(setup)
    model.set_active_adapters(setup)
    model.train()
    parameters = {k.removeprefix("bert."): p for k, p in model.named_parameters() if p.requires_grad}
    assert {"classifier.weight" if head is None else "heads.task.1.weight"} < set(parameters), list(parameters)
    randomise({k: p for k, p in parameters.items() if ".adapters." in k or "heads." in k})
    tensors = {"start." + k: p.detach().clone() for k, p in parameters.items()}
    out = model(**batch())
    out.loss.backward()
    tensors["logits"] = out.logits
    tensors |= {"grad." + k: p.grad.clone() for k, p in parameters.items()}
    losses = five_steps(model, list(parameters.values()))
    folder = OUT / name
    folder.mkdir()
    if len(names) == 1:
        model.save_adapter(folder, names[0], with_head=True, use_safetensors=True)
        for path in folder.glob("*_config.json"):  # not this machine's path
            path.write_text(json.dumps(json.loads(path.read_text()) | {"model_name": "tiny"}, indent=2))
        loaded = base(head)
        loaded.load_adapter(str(folder), with_head=True, set_active=True, use_safetensors=True)
        with torch.no_grad():
            tensors["after.logits"] = loaded.eval()(**batch()).logits
            assert torch.allclose(tensors["after.logits"], model.eval()(**batch()).logits, atol=1e-5)
    save_file({k: v.detach().contiguous() for k, v in tensors.items()}, folder / "golden.safetensors")
    (folder / "golden.json").write_text(json.dumps({"losses": losses}))
    print(name, losses, sorted(p.name for p in folder.glob("*")))


def full_case():
    """All parameters trained with AdapterHub's head: through the steps, whose losses every gradient decides."""
    torch.manual_seed(0)
    model = base({})
    head = {k: p for k, p in model.named_parameters() if k.startswith("heads.")}
    randomise(head)
    start = {"start." + k: p.detach().clone() for k, p in head.items()}
    model.train()
    losses = five_steps(model, [p for k, p in model.named_parameters() if not k.startswith("bert.pooler.")])
    folder = OUT / "own_head_full"
    folder.mkdir()
    with torch.no_grad():
        logits = model.eval()(**batch()).logits
    save_file(start | {"after.logits": logits}, folder / "golden.safetensors")
    (folder / "golden.json").write_text(json.dumps({"losses": losses}))
    print("own_head_full", losses)


def main():
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    case("seq_bn", SeqBnConfig(reduction_factor=4))
    case("double_seq_bn", DoubleSeqBnConfig(reduction_factor=8))
    case("par_bn", ParBnConfig(reduction_factor=8, scaling="learned"))
    case("leave_out", DoubleSeqBnConfig(reduction_factor=8, leave_out=[0]))
    case("own_head", DoubleSeqBnConfig(reduction_factor=8), head={})
    case("own_head_gelu", SeqBnConfig(reduction_factor=8, leave_out=[0]), head={"activation_function": "gelu_new"})
    case("own_head_one_layer", SeqBnConfig(reduction_factor=8, leave_out=[0]), head={"layers": 1})
    full_case()
    case("batch_split", SeqBnConfig(reduction_factor=8), ac.BatchSplit("a", "b", batch_sizes=[1, 3]), ("a", "b"))


main()
