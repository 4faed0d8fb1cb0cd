"""Goldens of the methods of Python PEFT that enter a BERT elsewhere than at its linears: prefix tuning (plain and through its
MLP), prompt tuning, P-tuning and LN-tuning of the tiny classifier of make_bert.py, each with its head: logits, loss, every
gradient, five AdamW steps, and the folders that peft saves after them.

    python tests/golden/make_bert_methods.py        (reads and writes tests/golden/data/bert/)
"""

import json
import shutil

import peft
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny_bert import DATA, batch

assert peft.__version__ == "0.21.2", peft.__version__
assert transformers.__version__ == "5.23.0", transformers.__version__

OUT = DATA / "methods"


def base():
    return transformers.BertForSequenceClassification.from_pretrained(DATA / "tiny", attn_implementation="eager")


def name_of(key):
    for part in ("base_model.model.", "base_model.", ".default", ".modules_to_save"):
        key = key.replace(part, "")
    return key


def case(name, config):
    torch.manual_seed(sum(map(ord, name)))
    model = peft.get_peft_model(base(), config).train()  # the configuration has no dropout
    parameters = {name_of(k): p for k, p in model.named_parameters() if p.requires_grad}
    assert {"classifier.weight", "classifier.bias"} < set(parameters), list(parameters)
    tensors = {"start." + k: p.detach().clone() for k, p in parameters.items()}
    out = model(**batch())
    out.loss.backward()
    tensors["logits"] = out.logits
    tensors |= {"grad." + k: p.grad.clone() for k, p in parameters.items()}
    # Without decay: what has it is another test's matter.
    optimizer = torch.optim.AdamW(list(parameters.values()), lr=1e-2, weight_decay=0.0)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = model(**batch()).loss
        loss.backward()
        losses.append(float(loss.detach()))
        optimizer.step()
    assert losses[-1] < losses[0], losses
    folder = OUT / name
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    config_path = folder / "adapter_config.json"  # not this machine's path
    config_path.write_text(json.dumps(json.loads(config_path.read_text()) | {"base_model_name_or_path": "tiny"}, indent=2))
    loaded = peft.PeftModel.from_pretrained(base(), folder).eval()
    with torch.no_grad():
        tensors["after.logits"] = loaded(**batch()).logits
        assert torch.allclose(tensors["after.logits"], model.eval()(**batch()).logits, atol=1e-5)
    save_file({k: v.detach().contiguous() for k, v in tensors.items()}, folder / "golden.safetensors")
    (folder / "golden.json").write_text(json.dumps({"losses": losses}))
    print(name, sorted(load_file(folder / "adapter_model.safetensors"))[:4], losses)


def main():
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True, exist_ok=True)
    task = dict(task_type="SEQ_CLS")
    case("prefix", peft.PrefixTuningConfig(num_virtual_tokens=5, **task))
    case("prefix_projection", peft.PrefixTuningConfig(num_virtual_tokens=3, prefix_projection=True, encoder_hidden_size=12, **task))
    case("prompt", peft.PromptTuningConfig(num_virtual_tokens=6, **task))
    case("p_tuning", peft.PromptEncoderConfig(num_virtual_tokens=4, encoder_hidden_size=10, **task))
    case("ln_tuning", peft.LNTuningConfig(target_modules=["LayerNorm"], **task))


main()
