"""AdapterHub loads an adapter with a head of its own that this library saved: tests/golden/data/bert/ours/, written by
PEFT_UPDATE_GOLDEN=1 test_bert. Every key is known and none missing, the classes have their names, and the logits are ours.

    python tests/golden/check_bert_adapters.py        (in the environment of make_bert_adapters.py)
"""

import adapters
import torch
from safetensors.torch import load_file
from tiny_bert import DATA, batch

OURS = DATA / "ours"


def main():
    model = adapters.BertAdapterModel.from_pretrained(DATA / "tiny", attn_implementation="eager").eval()
    model.delete_head("default")  # the tiny classifier's
    info = {}
    loaded = model.load_adapter(str(OURS), with_head=True, loading_info=info, set_active=True, use_safetensors=True)
    assert loaded == "task" and list(model.heads) == ["task"], (loaded, list(model.heads))
    assert not info["missing_keys"] and not info["unexpected_keys"], info
    assert model.heads["task"].config["label2id"] == {"heart": 0, "lung": 1, "rare": 2}, model.heads["task"].config
    for name, value in load_file(OURS / "model_head.safetensors").items():
        assert torch.equal(model.state_dict()[name], value), name
    with torch.no_grad():
        theirs = model(**batch()).logits
    ours = load_file(OURS / "outputs.safetensors")["logits"]
    difference = (theirs - ours).abs().max().item()
    assert difference < 1e-5, difference
    assert theirs.abs().max().item() > 0.01 and theirs.std(0).min().item() > 1e-4, theirs
    print("check_bert_adapters: adapters loads ours/: every key known, none missing; logits differ by", difference)


if __name__ == "__main__":
    main()
