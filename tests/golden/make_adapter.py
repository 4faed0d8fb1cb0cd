"""Goldens of bottleneck adapters, their compositions and AdapterFusion: AdapterHub's own layers, called with a branch's
output h and the block's residual r, in a tiny BERT (layer norm behind the sum) and a tiny Llama (no norm there).

    python tests/golden/make_adapter.py        (writes tests/golden/data/adapter/)

The loss is Σ(y − target)²/2. Per case: h, r, target, y, the gradients of h, r and all parameters, and the parameters after
five steps of AdamW (no decay for biases and norms). `saved/` holds directories as AdapterHub saves them.
"""

import json
import logging
import pathlib
import shutil

import adapters
import adapters.composition as ac
import safetensors.torch
import torch
import transformers
from adapters.configuration import (
    AdapterFusionConfig,
    AdapterPlusConfig,
    BnConfig,
    DoubleSeqBnConfig,
    DynamicAdapterFusionConfig,
    ParBnConfig,
    SeqBnConfig,
    StaticAdapterFusionConfig,
)
from adapters.context import ForwardContext

assert adapters.__version__ == "1.3.0", adapters.__version__

OUT = pathlib.Path(__file__).parent / "data" / "adapter"
HIDDEN, LAYERS = 8, 2
BATCH, LENGTH = 2, 3
LR, DECAY, STEPS = 1e-2, 0.05, 5


def bert(head=False):
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=HIDDEN, num_hidden_layers=LAYERS, num_attention_heads=2, intermediate_size=12,
        max_position_embeddings=16, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )
    model = transformers.BertForSequenceClassification(config) if head else transformers.BertModel(config)
    adapters.init(model)
    for module in model.modules():  # a norm that is seen
        if isinstance(module, torch.nn.LayerNorm):
            module.weight.data.normal_(1.0, 0.2)
            module.bias.data.normal_(0.0, 0.3)
    return model


def llama(head=False):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=20, hidden_size=HIDDEN, intermediate_size=12, num_hidden_layers=LAYERS, num_attention_heads=2,
        num_key_value_heads=1,
    )
    model = transformers.LlamaForCausalLM(config) if head else transformers.LlamaModel(config)
    adapters.init(model)
    return model


HOSTS = {"bert": bert, "llama": llama}


def sites(model):
    """(layer, site, AdapterHub's layer, the block's norm or None) in the model's order."""
    base = model.base_model
    for i, layer in base.iter_layers():
        if model.config.model_type == "bert":
            yield i, "attention", layer.attention.output, layer.attention.output.LayerNorm
            yield i, "output", layer.output, layer.output.LayerNorm
        else:
            yield i, "attention", layer.attention_adapters, None
            yield i, "output", layer.output_adapters, None


def randomise(module):
    """Weights that matter: AdapterHub's starts make updates of nearly nothing."""
    for name, parameter in module.named_parameters():
        if "norm" in name and name.endswith("weight") or name == "scaling":
            parameter.data.normal_(1.0, 0.2)
        elif parameter.dim() == 2:
            parameter.data.normal_(0.0, parameter.shape[1] ** -0.5)
        else:
            parameter.data.normal_(0.0, 0.3)


class Tensors:
    """One file of float tensors."""

    def __init__(self):
        self.values = {}

    def add(self, name, tensor):
        self.values[name] = tensor.detach().to(torch.float32).contiguous().clone()

    def save(self, path):
        safetensors.torch.save_file(self.values, path)


def changed(config):
    """The fields that differ from BnConfig's defaults."""
    defaults = BnConfig(mh_adapter=False, output_adapter=True, reduction_factor=16, non_linearity="relu").to_dict()
    return {key: value for key, value in config.to_dict().items() if value != defaults[key]}


def write_json(name, value):
    (OUT / name).write_text(json.dumps(value, separators=(",", ":")).replace('{"name"', '\n{"name"') + "\n")


def run(tensors, prefix, forward, modules, norm, batch=BATCH, length=LENGTH, after=True):
    """`forward(h, r)` with the parameters of `modules` (by name). Recorded: "rows", [h, r, target, y, dh, dr]; "norm",
    the block's weight and bias; per parameter [value, gradient, value after the steps]."""
    h = torch.randn(batch, length, HIDDEN, requires_grad=True)
    r = torch.randn(batch, length, HIDDEN, requires_grad=True)
    target = torch.randn_like(forward(h, r))
    if norm is not None:
        tensors.add(f"{prefix}.norm", torch.stack([norm.weight, norm.bias]))
        norm.requires_grad_(False)
    named = {f"{m}{name}": p for m, module in modules.items() for name, p in module.named_parameters()}
    records = {name: [parameter.detach().clone()] for name, parameter in named.items()}
    for parameter in named.values():
        parameter.grad = None
        parameter.requires_grad_(True)
    decays = lambda name, p: p.dim() == 2 or name.endswith("scaling")
    groups = [
        {"params": [p for n, p in named.items() if decays(n, p)], "weight_decay": DECAY},
        {"params": [p for n, p in named.items() if not decays(n, p)], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]], lr=LR)
    for step in range(STEPS if after else 1):
        optimizer.zero_grad()
        h.grad = r.grad = None
        y = forward(h, r)
        (0.5 * (y - target) ** 2).sum().backward()
        if step == 0:
            zero = torch.zeros_like(h)
            rows = [h, r, target, y, zero if h.grad is None else h.grad, zero if r.grad is None else r.grad]
            tensors.add(f"{prefix}.rows", torch.stack([t.detach() for t in rows]))
            for name, parameter in named.items():
                grad = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
                records[name].append(grad.detach().clone())
        optimizer.step()
    for name, parameter in named.items():
        if after:
            records[name].append(parameter.detach().clone())
        tensors.add(f"{prefix}.{name}", torch.stack(records[name]))


# ---- one adapter -----------------------------------------------------------------------------------------------------
def seq(**changes):
    return SeqBnConfig(**{"reduction_factor": 2, **changes})


CASES = [
    ("seq_bn", "bert", seq()),
    ("seq_bn", "llama", seq()),
    ("double_seq_bn", "bert", DoubleSeqBnConfig(reduction_factor=2)),
    ("double_seq_bn", "llama", DoubleSeqBnConfig(reduction_factor=2)),
    ("par_bn", "bert", ParBnConfig(reduction_factor=2)),
    ("par_bn", "llama", ParBnConfig(reduction_factor=2)),
    ("scaled_par_bn", "bert", ParBnConfig(reduction_factor=2, scaling="learned")),
    ("scaled_par_bn", "llama", ParBnConfig(reduction_factor=2, scaling="learned")),
    ("channel", "bert", seq(scaling="channel")),
    ("learned", "llama", seq(scaling="learned")),
    ("ln_before", "bert", seq(ln_before=True)),
    ("ln_after", "bert", seq(ln_after=True)),
    ("ln_after", "llama", seq(ln_after=True, ln_before=True)),
    ("ln_after_residual_first", "bert", seq(ln_after=True, adapter_residual_before_ln=True)),
    ("parallel_norms", "bert", ParBnConfig(reduction_factor=2, ln_before=True, ln_after=True)),
    ("post_add", "bert", seq(residual_before_ln="post_add")),
    ("residual_after_ln", "bert", seq(residual_before_ln=False)),
    ("residual_after_ln", "llama", seq(residual_before_ln=False)),
    ("no_ln_after", "bert", seq(original_ln_after=False)),
    ("parallel_no_ln_after", "bert", ParBnConfig(reduction_factor=2, original_ln_after=False)),
    ("adapter_plus", "bert", AdapterPlusConfig(reduction_factor=2, stochastic_depth=0.0)),
    ("gelu", "bert", seq(non_linearity="gelu")),
    ("gelu_new", "llama", seq(non_linearity="gelu_new")),
    ("silu", "bert", seq(non_linearity="silu")),
    ("tanh", "bert", seq(non_linearity="tanh")),
    ("leakyrelu", "llama", seq(non_linearity="leakyrelu")),
    ("per_layer", "llama", DoubleSeqBnConfig(reduction_factor={"1": 3, "default": 2})),
    ("leave_out", "bert", DoubleSeqBnConfig(reduction_factor=2, leave_out=[0])),
]


def write_layers():
    tensors, cases = Tensors(), []
    seed = 100
    for name, host, config in CASES:
        model = HOSTS[host]()
        model.add_adapter("task", config=config)
        model.set_active_adapters("task")
        model.train()
        found, recorded = [], False
        for layer, site, module, norm in sites(model):
            if "task" not in module.adapters:
                continue
            adapter = module.adapters["task"]
            found.append({"layer": layer, "site": site, "bottleneck": adapter.down_sample})
            if recorded:  # one site's numbers say it all; the others' sizes are listed
                continue
            recorded = True
            seed += 1
            torch.manual_seed(seed)
            randomise(adapter)
            forward = lambda h, r: module.bottleneck_layer_forward(h, r, norm)
            run(tensors, f"{len(cases)}", forward, {"": adapter}, norm)
        cases.append({"name": name, "host": host, "config": changed(config), "sites": found,
                      "parameters": sum(p.numel() for _, _, m, _ in sites(model) if "task" in m.adapters
                                        for p in m.adapters["task"].parameters())})
    tensors.save(OUT / "layers.safetensors")
    write_json("layers.json", {"lr": LR, "decay": DECAY, "steps": STEPS, "cases": cases})


# ---- several adapters ------------------------------------------------------------------------------------------------
def fusion_config(**changes):
    return DynamicAdapterFusionConfig(**changes)


COMPOSITIONS = [
    ("bert", "seq", ac.Stack("a", "b"), None),
    ("llama", "double", ac.Stack("a", "b", "c"), None),
    ("bert", "par", ac.Stack("a", "b"), None),
    ("bert", "seq", ac.Average("a", "b", "c", weights=[1.0, 2.0, 5.0]), None),
    ("llama", "seq", ac.Average("a", "b"), None),
    ("bert", "seq", ac.Average("a", "b", weights=[0.5, -2.0], normalize_weights=False), None),
    ("bert", "seq", ac.BatchSplit("a", "b", batch_sizes=[1, 3]), None),
    ("llama", "double", ac.BatchSplit("a", "b", "c", batch_sizes=[2, 1, 1]), None),
    ("bert", "seq", ac.Parallel("a", "b"), None),
    ("llama", "par", ac.Parallel("a", "b"), None),
    ("bert", "seq", ac.Split("a", "b", splits=[1, 2]), None),
    ("llama", "double", ac.Split("a", "b", splits=[2, 1]), None),
    ("bert", "seq", ac.Average(ac.Stack("a", "b"), "c"), None),
    ("bert", "double", ac.Stack("a", ac.Average("b", "c")), None),
    ("llama", "seq", ac.BatchSplit(ac.Stack("a", "b"), "c", batch_sizes=[3, 1]), None),
    ("bert", "seq", ac.Fuse("a", "b"), fusion_config()),
    ("llama", "seq", ac.Fuse("a", "b", "c"), fusion_config()),
    ("bert", "double", ac.Fuse("a", "b"), StaticAdapterFusionConfig()),
    ("bert", "par", ac.Fuse("a", "b"), fusion_config()),
    ("bert", "seq", ac.Fuse("a", "b"), fusion_config(query_before_ln=True, value_before_softmax=False)),
    ("bert", "seq", ac.Fuse("a", "b"), fusion_config(query=False)),
    ("llama", "double", ac.Fuse("a", "b"), fusion_config(key=False, value_initialized=False)),
    ("bert", "seq", ac.Fuse(ac.Stack("a", "b"), "c"), fusion_config()),
    ("bert", "seq", ac.Stack("c", ac.Fuse("a", "b")), fusion_config()),
]
COMPOSED = {
    "seq": lambda: seq(),
    "double": lambda: DoubleSeqBnConfig(reduction_factor=2),
    "par": lambda: ParBnConfig(reduction_factor=2),
}


def fused_names(setup):
    """The Fuse block within a setup, or None."""
    if isinstance(setup, ac.Fuse):
        return setup
    if isinstance(setup, ac.AdapterCompositionBlock):
        for child in setup:
            if (found := fused_names(child)) is not None:
                return found
    return None


def write_compositions():
    tensors, cases = Tensors(), []
    for number, (host, kind, setup, fusion) in enumerate(COMPOSITIONS):
        model = HOSTS[host]()
        for name in sorted(setup.flatten()):
            model.add_adapter(name, config=COMPOSED[kind]())
        if fusion is not None:
            model.add_adapter_fusion(fused_names(setup).name.split(","), config=fusion)
        model.set_active_adapters(setup)
        model.train()
        _, site, module, norm = list(sites(model))[1]  # after the feed-forward of layer 0
        torch.manual_seed(500 + number)
        modules = {}
        for name, adapter in module.adapters.items():
            randomise(adapter)
            modules[f"{name}:"] = adapter
        if fusion is not None:
            layer = module.adapter_fusion_layer[fused_names(setup).name]
            randomise(layer)
            modules["fusion:"] = layer

        def forward(h, r):
            with ForwardContext(None) as context:
                context.adapters_parallelized = True  # the host repeats the batch before the first layer
                return module.bottleneck_layer_forward(h, r, norm)

        run(tensors, f"{number}", forward, modules, norm, batch=4, after=fusion is not None and number % 3 == 0)
        cases.append({"name": str(setup), "host": host, "config": changed(COMPOSED[kind]()), "setup": setup.to_dict(),
                      "fusion": None if fusion is None else fusion.to_dict()})
    tensors.save(OUT / "compositions.safetensors")
    write_json("compositions.json",
               {"lr": LR, "decay": DECAY, "steps": STEPS, "batch": 4, "length": LENGTH, "cases": cases})


# ---- directories -----------------------------------------------------------------------------------------------------
SAVED = [
    ("bert_seq_bn", "bert", False, "task", seq()),
    ("bert_head_double", "bert", True, "my_task", DoubleSeqBnConfig(reduction_factor={"1": 4, "default": 2})),
    ("bert_channel", "bert", False, "task", seq(scaling="channel", ln_after=True, leave_out=[1])),
    ("llama_seq_bn", "llama", False, "task", seq()),
    ("llama_head_par", "llama", True, "task", ParBnConfig(reduction_factor=4, scaling="learned", dropout=0.1)),
]


def write_saved():
    folder = OUT / "saved"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, host, head, adapter, config in SAVED:
        model = HOSTS[host](head)
        model.add_adapter(adapter, config=config)
        for _, _, module, _ in sites(model):
            if adapter in module.adapters:
                randomise(module.adapters[adapter])
        keyword = {"with_head": False} if head else {}
        model.save_adapter(str(folder / name), adapter, use_safetensors=True, **keyword)
    model = bert()
    for name in ("a", "b"):
        model.add_adapter(name, config=seq())
    for kind, config in (("dynamic", DynamicAdapterFusionConfig()), ("static", StaticAdapterFusionConfig())):
        model.add_adapter_fusion(["a", "b"], config=config, name=kind)
        for _, _, module, _ in sites(model):
            if kind in module.adapter_fusion_layer:
                randomise(module.adapter_fusion_layer[kind])
        model.save_adapter_fusion(str(folder / f"fusion_{kind}"), kind, use_safetensors=True)
    # Every field of BnConfig, and AdapterFusion's, with the defaults.
    fields = {"BnConfig": BnConfig(mh_adapter=False, output_adapter=True, reduction_factor=16,
                                   non_linearity="relu").to_dict(),
              "presets": {name: adapters.ADAPTER_CONFIG_MAP[name].to_dict()
                          for name in ("seq_bn", "double_seq_bn", "par_bn", "scaled_par_bn", "pfeiffer", "houlsby",
                                       "parallel", "scaled_parallel", "seq_bn_inv", "compacter")},
              "static": StaticAdapterFusionConfig().to_dict(), "dynamic": DynamicAdapterFusionConfig().to_dict()}
    assert issubclass(DynamicAdapterFusionConfig, AdapterFusionConfig)
    write_json("fields.json", fields)


def main():
    logging.disable(logging.WARNING)
    OUT.mkdir(parents=True, exist_ok=True)
    write_layers()
    write_compositions()
    write_saved()


if __name__ == "__main__":
    main()
