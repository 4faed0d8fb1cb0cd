"""AdapterHub loads what this library saved: tests/golden/data/adapter/ours/, written by
PEFT_UPDATE_GOLDEN=1 test_adapter. Every key is known and none missing, values are those that both sides compute, and the
layers give what ours gave.

    python tests/golden/check_adapter.py        (in the environment of make_adapter.py)
"""

import safetensors.torch
import torch

import make_adapter
from make_adapter import HIDDEN, OUT, bert, llama, sites

OURS = OUT / "ours"


def pattern(size, number):
    i = torch.arange(size)
    return ((i * 37 + number * 11) % 101 - 50).float() / 256


def check_values(found):
    """`found`: parameters by the name that this library visits them with."""
    for number, name in enumerate(sorted(found)):
        value = found[name]
        assert torch.equal(value.flatten(), pattern(value.numel(), number)), name


def check_adapter(folder, model, name):
    info = {}
    loaded = model.load_adapter(str(OURS / folder), loading_info=info, set_active=True, use_safetensors=True)
    assert loaded == name, loaded
    assert not info["missing_keys"] and not info["unexpected_keys"], info
    body = f"{model.base_model_prefix}." if hasattr(model, model.base_model_prefix) else ""
    check_values({
        key.removeprefix(body): parameter for key, parameter in model.named_parameters() if f"adapters.{name}." in key
    })
    return model.adapters_config.get(name)


def rows():
    i = torch.arange(6 * HIDDEN)
    h = ((i * 29 % 83) - 41).float() / 64
    r = (((i * 31 + 7) % 89) - 44).float() / 64
    return h.reshape(1, 6, HIDDEN), r.reshape(1, 6, HIDDEN)


def check_output(name, module, norm):
    h, r = rows()
    with torch.no_grad():
        theirs = module.bottleneck_layer_forward(h, r, norm)[0]
    ours = safetensors.torch.load_file(OURS / "outputs.safetensors")[name]
    difference = (theirs - ours).abs().max().item()
    assert difference < 1e-5, (name, difference)
    # The update is there: a hundred times what may differ (the Llama's learned scale is -0.0234).
    assert (theirs - (h + r)[0]).abs().max().item() > 1e-3
    print("check_adapter:", name, "differs by", difference)


def main():
    model = bert().eval()
    config = check_adapter("bert_ln_before", model, "task")
    assert config.ln_before and config.ln_after and config.dropout == 0.1 and config.non_linearity == "gelu", config
    assert config.reduction_factor == {"0": 2, "default": 4}, config
    _, _, module, norm = next(sites(model))
    j = torch.arange(HIDDEN)
    norm.weight.data = 1 + ((j * 13 % 7) - 3).float() / 16
    norm.bias.data = ((j * 5 % 11) - 5).float() / 16
    check_output("bert", module, norm)

    model = llama(head=True).eval()
    # add_adapter takes no point in a name of its own making; a file's it renames.
    info = {}
    model.load_adapter(str(OURS / "llama_scaled_par_bn"), load_as="task", loading_info=info, set_active=True,
                       use_safetensors=True)
    assert not info["missing_keys"] and not info["unexpected_keys"], info
    check_values({key.removeprefix("model.").replace("adapters.task.", "adapters.my.task."): parameter
                  for key, parameter in model.named_parameters() if "adapters.task." in key})
    config = model.adapters_config.get("task")
    assert config == make_adapter.ParBnConfig(scaling="learned"), config
    _, _, module, norm = list(sites(model))[1]
    check_output("llama", module, norm)

    model = bert()
    for name in ("a", "b"):
        model.add_adapter(name, config=make_adapter.seq())
    loaded = model.load_adapter_fusion(str(OURS / "fusion"), use_safetensors=True)  # fills no loading_info
    assert loaded == "a,b", loaded
    fusion = {key: parameter for key, parameter in model.named_parameters() if "adapter_fusion_layer." in key}
    assert fusion.keys() == safetensors.torch.load_file(OURS / "fusion" / "model_adapter_fusion.safetensors").keys()
    check_values(fusion)
    print("check_adapter: adapters loads ours/: every key known, none missing, same values, same outputs")


if __name__ == "__main__":
    main()
