"""Goldens of LoRA's family and its relatives, made by peft: for each method forward, every gradient, five AdamW steps, the
saved adapter, the merged weight; initialisations, add_weighted_adapter, AdaLoRA's allocator, LoRA+; and the check that
peft loads what this library saved.

    PYTHONHASHSEED=0 python tests/golden/make_lora_family.py        (writes tests/golden/data/lora_family/)

The hash seed keeps the order of the sets that peft saves as lists. `ours/` there is written by the test program
(PEFT_UPDATE_GOLDEN=1 test_golden_lora_family) and only checked here.
"""

import dataclasses
import json
import math
import pathlib
import shutil
import warnings

import peft
import peft.optimizers
import safetensors.torch
import torch
from torch import nn

assert peft.__version__ == "0.21.2", peft.__version__
assert torch.__version__.startswith("2."), torch.__version__
warnings.simplefilter("ignore")

OUT = pathlib.Path(__file__).parent / "data" / "lora_family"
ROWS, IN, OUT_Q, OUT_V, VOCAB = 5, 12, 10, 8, 16


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.q_proj = nn.Linear(IN, OUT_Q)
        self.v_proj = nn.Linear(IN, OUT_V, bias=False)
        self.down_proj = nn.Linear(OUT_Q, IN)
        self.norm = nn.LayerNorm(IN)


class Toy(nn.Module):
    """An embedding, two blocks and a head; each part is called by itself."""

    def __init__(self):
        super().__init__()
        self.embed_tokens = nn.Embedding(VOCAB, IN)
        self.layers = nn.ModuleList([Block(), Block()])
        self.lm_head = nn.Linear(IN, VOCAB, bias=False)

    def get_input_embeddings(self):
        return self.embed_tokens

    def get_output_embeddings(self):
        return self.lm_head


def rounded(tensor):
    """Few digits, so that the files stay small; exact in float32."""
    return (tensor * 256).round() / 256


def toy(seed=3):
    torch.manual_seed(seed)
    model = Toy()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(rounded(torch.randn(parameter.shape) * 0.5))
    return model


def values(tensor):
    return [float(f"{v:.9g}") for v in tensor.detach().float().flatten().tolist()]


class FixedDropout(nn.Module):
    def __init__(self, mask, p):
        super().__init__()
        self.mask, self.p = mask, p

    def forward(self, x):
        return x * self.mask / (1 - self.p)


def key_of(name):
    """The saved key without "base_model.model.", for a parameter's name in the model."""
    name = name.removeprefix("base_model.model.").replace(".modules_to_save.default", "")
    name = name.replace(".token_adapter.trainable_tokens_delta.default", ".token_adapter.trainable_tokens_delta")
    name = name.replace(".ln_tuning_layers.default", ".ln_tuning_layers")
    if "lora_magnitude_vector" in name:
        name = name.replace(".default.weight", "")
    return name.replace(".default", "")


Q, V = ["q_proj", "v_proj"], ["v_proj"]
CASES = {
    "rslora": peft.LoraConfig(r=4, lora_alpha=6, use_rslora=True, target_modules=Q),
    "lora_bias": peft.LoraConfig(r=3, lora_alpha=6, lora_bias=True, target_modules=Q),
    "bias_lora_only": peft.LoraConfig(r=2, lora_alpha=4, bias="lora_only", target_modules=Q),
    "bias_all": peft.LoraConfig(r=2, lora_alpha=4, bias="all", target_modules=Q),
    "dora": peft.LoraConfig(r=3, lora_alpha=6, use_dora=True, target_modules=Q),
    "dora_dropout": peft.LoraConfig(r=3, lora_alpha=6, use_dora=True, lora_dropout=0.25, target_modules=Q),
    "embedding": peft.LoraConfig(r=3, lora_alpha=6, target_modules=["embed_tokens", "q_proj"]),
    "modules_to_save": peft.LoraConfig(r=2, lora_alpha=4, target_modules=V, modules_to_save=["lm_head", "norm"]),
    "save_embedding": peft.LoraConfig(r=2, lora_alpha=4, target_modules=V, modules_to_save=["embed_tokens"]),
    "tokens": peft.LoraConfig(r=2, lora_alpha=4, target_modules=V, trainable_token_indices=[3, 9, 11]),
    "ia3": peft.IA3Config(target_modules=["q_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "ln_tuning": peft.LNTuningConfig(target_modules=["norm"]),
    "vera": peft.VeraConfig(r=6, target_modules=["q_proj", "v_proj", "down_proj"], vera_dropout=0.25),
    "loha": peft.LoHaConfig(r=2, alpha=4, target_modules=Q),
    "loha_whole": peft.LoHaConfig(r=4, alpha=4, target_modules=Q, rank_pattern={"v_proj": 5}),
    "lokr": peft.LoKrConfig(r=8, alpha=4, target_modules=Q),
    "lokr_factored": peft.LoKrConfig(r=1, alpha=4, target_modules=Q, decompose_both=True, decompose_factor=2),
    "adalora": peft.AdaLoraConfig(init_r=5, target_r=2, lora_alpha=4, total_step=20, tinit=2, tfinal=5, deltaT=2,
                                  lora_dropout=0.25, target_modules=Q),
}


def dropout_of(config):
    return getattr(config, "lora_dropout", getattr(config, "vera_dropout", 0.0)) or 0.0


def sites_of(model):
    """(path, module) of everything that the toy calls, as it is in the wrapped model."""
    root = model.base_model.model
    yield "embed_tokens", root.embed_tokens
    for i, layer in enumerate(root.layers):
        for name in ["q_proj", "v_proj", "down_proj", "norm"]:
            yield f"layers.{i}.{name}", getattr(layer, name)
    yield "lm_head", root.lm_head


def method_case(name, config):
    torch.manual_seed(7)
    model = peft.get_peft_model(toy(), config)
    generator = torch.Generator().manual_seed(11)
    p = dropout_of(config)
    trainable = {n: q for n, q in model.named_parameters() if q.requires_grad}
    with torch.no_grad():
        for n, q in trainable.items():
            noise = rounded(torch.randn(q.shape, generator=generator) * 0.25)
            q.copy_(rounded(q + noise) if ("ia3" in n or "magnitude" in n or "bias" in n or "norm" in n or "token" in n
                                            or "lm_head" in n or n.endswith("embed_tokens.weight")) else noise)
    sites = {}
    calls = []
    for path, module in sites_of(model):
        # The training loss leaves out what this case does not touch.
        adapted = any(key_of(n).startswith(path + ".") for n in trainable)
        if not adapted:
            continue
        if path == "embed_tokens":
            x = torch.tensor([3, 1, 9, 3, 15])
            width = IN
        else:
            fan_in = OUT_Q if path.endswith("down_proj") else IN
            x = rounded(torch.randn(ROWS, fan_in, generator=generator))
            width = {"q_proj": OUT_Q, "v_proj": OUT_V, "down_proj": IN, "norm": IN, "lm_head": VOCAB}[path.split(".")[-1]]
        dy = rounded(torch.randn(ROWS, width, generator=generator))
        site = {"x": values(x) if path != "embed_tokens" else x.tolist(), "dy": values(dy)}
        holder = getattr(module, "lora_dropout", None) or getattr(module, "vera_dropout", None)
        if p > 0 and holder is not None and "default" in holder:
            mask = (torch.rand(x.shape, generator=generator) >= p).float()
            holder["default"] = FixedDropout(mask, p)
            site["mask"] = [int(v) for v in mask.flatten().tolist()]
        calls.append((path, module, x, dy))
        sites[path] = site

    def run(path, module, x, train):
        model.train(train)
        holder = getattr(module, "lora_dropout", None) or getattr(module, "vera_dropout", None)
        saved = None
        if not train and holder is not None and "default" in holder and isinstance(holder["default"], FixedDropout):
            saved, holder["default"] = holder["default"], nn.Identity()
        y = module(x)
        if saved is not None:
            holder["default"] = saved
        return y

    for path, module, x, dy in calls:
        with torch.no_grad():
            sites[path]["y_eval"] = values(run(path, module, x, False))
        if path != "embed_tokens":
            x = x.clone().requires_grad_(True)
        y = run(path, module, x, True)
        sites[path]["y"] = values(y)
        (y * dy).sum().backward()
        if path != "embed_tokens":
            sites[path]["dx"] = values(x.grad)
    shapes = {key_of(n): list(q.shape) for n, q in trainable.items()}
    start = {key_of(n): values(q) for n, q in trainable.items()}
    grads = {key_of(n): values(q.grad if q.grad is not None else torch.zeros_like(q)) for n, q in trainable.items()}
    folder = OUT / "saved" / name
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder, save_embedding_layers=name == "embedding")
    (folder / "README.md").unlink()
    merged = {}
    if name not in ("ln_tuning", "tokens"):
        for path, module, x, dy in calls:
            if hasattr(module, "merge") and hasattr(module, "get_base_layer") and not path.startswith("embed") and (
                not getattr(module, "lora_bias", {}).get("default", False) or module.get_base_layer().bias is not None):
                before = module.get_base_layer().weight.data.clone()
                bias = module.get_base_layer().bias
                before_bias = None if bias is None else bias.data.clone()
                module.merge()
                merged[path] = {"weight": values(module.get_base_layer().weight)}
                if bias is not None:
                    merged[path]["bias"] = values(module.get_base_layer().bias)
                module.get_base_layer().weight.data = before
                if bias is not None:
                    module.get_base_layer().bias.data = before_bias
                module.merged_adapters = []
    optimizer = torch.optim.AdamW(trainable.values(), lr=0.01, weight_decay=0.0)
    for _ in range(5):
        optimizer.zero_grad()
        for path, module, x, dy in calls:
            (run(path, module, x, True) * dy).sum().backward()
        optimizer.step()
    stepped = {key_of(n): values(q) for n, q in trainable.items()}
    return {"sites": sites, "shapes": shapes, "start": start, "grads": grads, "merged": merged, "stepped": stepped}


def base_weights():
    tensors = {n: q.detach().clone() for n, q in toy().named_parameters()}
    safetensors.torch.save_file(tensors, OUT / "base.safetensors", metadata={"format": "pt"})


# ---- initialisations -------------------------------------------------------------------------------------------------
def initialisations():
    result = {}
    for name, fields in {
        "pissa": dict(init_lora_weights="pissa"), "pissa_rs": dict(init_lora_weights="pissa", use_rslora=True),
        "pissa_niter_8": dict(init_lora_weights="pissa_niter_8"), "olora": dict(init_lora_weights="olora"),
    }.items():
        torch.manual_seed(1)
        model = peft.get_peft_model(toy(), peft.LoraConfig(r=4, lora_alpha=6, target_modules=Q, **fields))
        layer = model.base_model.model.layers[0].q_proj
        result[name] = {
            "delta": values(layer.get_delta_weight("default")), "base": values(layer.get_base_layer().weight),
            "scaling": layer.scaling["default"],
        }
    torch.manual_seed(1)
    model = peft.get_peft_model(toy(), peft.LoraConfig(r=4, lora_alpha=6, target_modules=Q, init_lora_weights="orthogonal"))
    a = model.base_model.model.layers[0].q_proj.lora_A["default"].weight
    b = model.base_model.model.layers[0].q_proj.lora_B["default"].weight
    result["orthogonal"] = {"largest_ba": (b @ a).abs().max().item(), "a_std": a.std().item()}
    (OUT / "initialisations.json").write_text(json.dumps(result) + "\n")


# ---- a PiSSA or OLoRA as the plain LoRA that it comes to -------------------------------------------------------------
def conversions():
    result = {}
    for name, fields in {
        "pissa_converted": dict(init_lora_weights="pissa", r=4, lora_alpha=6),
        "olora_converted": dict(init_lora_weights="olora", r=3, lora_alpha=6, rank_pattern={"v_proj": 2},
                                alpha_pattern={"v_proj": 5}),
    }.items():
        torch.manual_seed(1)
        model = peft.get_peft_model(toy(), peft.LoraConfig(target_modules=Q, **fields))
        factors = {n: q for n, q in model.named_parameters() if q.requires_grad}
        start = {key_of(n): values(q) for n, q in factors.items()}
        initial = OUT / "scratch" / "initial"
        model.peft_config["default"].init_lora_weights = True
        model.save_pretrained(initial)
        model.peft_config["default"].init_lora_weights = fields["init_lora_weights"]
        generator = torch.Generator().manual_seed(17)
        with torch.no_grad():
            for q in factors.values():
                q += rounded(torch.randn(q.shape, generator=generator) * 0.125)
        trained = {key_of(n): values(q) for n, q in factors.items()}
        sites = {}
        for path, module in sites_of(model):
            if path.split(".")[-1] in Q:
                x = rounded(torch.randn(ROWS, IN, generator=generator))
                with torch.no_grad():
                    sites[path] = {"x": values(x), "y": values(module(x))}
        folder = OUT / "saved" / name
        shutil.rmtree(folder, ignore_errors=True)
        model.save_pretrained(folder, path_initial_model_for_weight_conversion=str(initial))
        (folder / "README.md").unlink()
        shutil.rmtree(OUT / "scratch")
        result[name] = {"start": start, "trained": trained, "sites": sites}
    (OUT / "conversions.json").write_text(json.dumps(result) + "\n")


# ---- EVA -------------------------------------------------------------------------------------------------------------
class EvaToy(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(4)
        self.one = nn.Linear(8, 6)
        self.two = nn.Linear(6, 7)

    def forward(self, x):
        return self.two(torch.tanh(self.one(x)))


def eva():
    torch.manual_seed(5)
    batches = [rounded(torch.randn(24, 8) * torch.linspace(2.0, 0.2, 8)) for _ in range(6)]
    config = peft.LoraConfig(r=2, lora_alpha=4, target_modules=["one", "two"], init_lora_weights="eva",
                             eva_config=peft.EvaConfig(rho=2.0, tau=0.9999, use_label_mask=False))
    model = peft.get_peft_model(EvaToy(), config)
    peft.initialize_lora_eva_weights(
        model, dataloader=batches, forward_fn=lambda m, x: m(x), prepare_model_inputs_fn=None, gather_distributed_inputs=False,
        prepare_layer_inputs_fn=lambda x, model_input, layer_name: x[0] if isinstance(x, tuple) else x, show_progress_bar=False)
    base = EvaToy()
    layers = {}
    for name in ["one", "two"]:
        layer = getattr(model.base_model.model, name)
        a = layer.lora_A["default"].weight
        layers[name] = {"r": a.shape[0], "projector": values(a.T @ a), "alpha": layer.lora_alpha["default"],
                        "scaling": layer.scaling["default"]}
    inputs = {"one": [values(b) for b in batches], "two": [values(torch.tanh(base.one(b))) for b in batches]}
    (OUT / "eva.json").write_text(json.dumps({"layers": layers, "inputs": inputs, "rows": 24}) + "\n")


# ---- add_weighted_adapter --------------------------------------------------------------------------------------------
def weighted():
    kinds = ["linear", "cat", "svd", "ties", "ties_svd", "dare_linear", "dare_ties", "dare_linear_svd", "dare_ties_svd",
             "magnitude_prune", "magnitude_prune_svd"]
    drawn = []
    real = torch.bernoulli

    def record(input, *args, **kwargs):
        mask = real(input, *args, **kwargs)
        drawn.append([int(v) for v in mask.flatten().tolist()])
        return mask

    result = []
    for kind in kinds:
        for weights, method in [([0.7, -0.4], "total"), ([1.0, 0.5], "frequency")]:
            torch.manual_seed(2)
            model = peft.get_peft_model(toy(), peft.LoraConfig(r=3, lora_alpha=6, target_modules=Q))
            model.add_adapter("second", peft.LoraConfig(r=3, lora_alpha=9, target_modules=Q))
            generator = torch.Generator().manual_seed(13)
            factors = {}
            with torch.no_grad():
                for n, q in model.named_parameters():
                    if "lora_" in n:  # not rounded: equal magnitudes would be pruned in topk's own order
                        q.copy_(torch.randn(q.shape, generator=generator) * 0.5)
                        factors[n.removeprefix("base_model.model.")] = values(q)
            drawn.clear()
            torch.bernoulli = record
            model.add_weighted_adapter(["default", "second"], weights, "mixed", combination_type=kind, density=0.4,
                                       majority_sign_method=method, svd_rank=4 if kind.endswith("svd") else None)
            torch.bernoulli = real
            entry = {"kind": kind, "weights": weights, "method": method, "masks": list(drawn), "modules": {}}
            for path in ["layers.0.q_proj", "layers.0.v_proj", "layers.1.q_proj", "layers.1.v_proj"]:
                layer = model.base_model.model.get_submodule(path)
                entry["modules"][path] = {
                    "r": layer.r["mixed"], "scaling": layer.scaling["mixed"], "delta": values(layer.get_delta_weight("mixed")),
                }
                if not kind.endswith("svd"):
                    entry["modules"][path]["a"] = values(layer.lora_A["mixed"].weight)
                    entry["modules"][path]["b"] = values(layer.lora_B["mixed"].weight)
            result.append(entry)
    (OUT / "weighted.json").write_text(json.dumps({"factors": factors, "cases": result}) + "\n")


# ---- AdaLoRA's allocator and regulariser -----------------------------------------------------------------------------
def adalora():
    config = peft.AdaLoraConfig(init_r=4, target_r=2, lora_alpha=4, total_step=14, tinit=2, tfinal=4, deltaT=2,
                                orth_reg_weight=0.5, target_modules=Q)
    torch.manual_seed(9)
    model = peft.get_peft_model(toy(), config)
    generator = torch.Generator().manual_seed(21)
    trainable = {n: q for n, q in model.named_parameters() if q.requires_grad}
    with torch.no_grad():
        for q in trainable.values():
            q.copy_(rounded(torch.randn(q.shape, generator=generator) * 0.5))
    start = {key_of(n): values(q) for n, q in trainable.items()}
    regu, count = 0.0, 0
    for n, q in trainable.items():
        if "lora_A" in n or "lora_B" in n:
            cov = q @ q.T if "lora_A" in n else q.T @ q
            regu = regu + torch.norm(cov - torch.eye(cov.shape[0]), p="fro")
            count += 1
    (0.5 * regu / count).backward()
    regularisation = {"loss": (0.5 * regu / count).item(),
                      "grads": {key_of(n): values(q.grad if q.grad is not None else torch.zeros_like(q)) for n, q in trainable.items()}}
    steps = []
    for step in range(1, 15):
        given = {}
        for n, q in trainable.items():
            q.grad = rounded(torch.randn(q.shape, generator=generator))
            given[key_of(n)] = values(q.grad)
        with torch.no_grad():
            for q in trainable.values():  # a plain step, so that parameters move
                q -= 0.0625 * q.grad
        model.base_model.update_and_allocate(step)
        pattern = model.peft_config["default"].rank_pattern
        steps.append({"grads": given, "e": {key_of(n): values(q) for n, q in trainable.items() if "lora_E" in n},
                      "rank_pattern": None if pattern is None else {key_of(k): v for k, v in pattern.items()}})
    folder = OUT / "saved" / "adalora_finished"
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    (folder / "README.md").unlink()
    (OUT / "adalora_allocator.json").write_text(json.dumps({"start": start, "regularisation": regularisation, "steps": steps}) + "\n")


# ---- LoRA+ -----------------------------------------------------------------------------------------------------------
def loraplus():
    torch.manual_seed(9)
    model = peft.get_peft_model(toy(), peft.LoraConfig(r=2, lora_alpha=4, target_modules=["embed_tokens", "q_proj"], lora_bias=False))
    generator = torch.Generator().manual_seed(31)
    trainable = {n: q for n, q in model.named_parameters() if q.requires_grad}
    with torch.no_grad():
        for q in trainable.values():
            q.copy_(rounded(torch.randn(q.shape, generator=generator) * 0.5))
    start = {key_of(n): values(q) for n, q in trainable.items()}
    shapes = {key_of(n): list(q.shape) for n, q in trainable.items()}
    optimizer = peft.optimizers.create_loraplus_optimizer(model, torch.optim.AdamW, lr=0.01, loraplus_lr_ratio=16.0,
                                                          loraplus_lr_embedding=0.001, loraplus_weight_decay=0.1)
    grads = []
    for _ in range(3):
        for q in trainable.values():
            q.grad = rounded(torch.randn(q.shape, generator=generator))
        grads.append({key_of(n): values(q.grad) for n, q in trainable.items()})
        optimizer.step()
    (OUT / "loraplus.json").write_text(json.dumps({
        "start": start, "shapes": shapes, "grads": grads, "end": {key_of(n): values(q) for n, q in trainable.items()}}) + "\n")


# ---- aLoRA -----------------------------------------------------------------------------------------------------------
def alora():
    from peft.tuners.lora.variants import calculate_alora_offsets
    config = {"default": peft.LoraConfig(alora_invocation_tokens=[7, 8], target_modules=Q)}
    sequences = [[1, 7, 8, 2, 7, 8, 3], [7, 7, 8, 1, 1, 7, 1], [1, 2, 3, 4, 5, 6, 9], [7, 8, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 7, 8]]
    offsets = calculate_alora_offsets(config, "default", torch.tensor(sequences))
    (OUT / "alora.json").write_text(json.dumps({"tokens": [7, 8], "sequences": sequences, "offsets": offsets}) + "\n")


# ---- the fields of every configuration -------------------------------------------------------------------------------
def fields():
    result = {}
    for cls, given in [(peft.LoraConfig, {}), (peft.IA3Config, {"feedforward_modules": []}), (peft.VeraConfig, {}),
                       (peft.LoHaConfig, {}), (peft.LoKrConfig, {}), (peft.AdaLoraConfig, {"total_step": 10}),
                       (peft.LNTuningConfig, {})]:
        folder = OUT / "scratch"
        cls(target_modules=["q_proj"], **given).save_pretrained(folder)
        saved = json.loads((folder / "adapter_config.json").read_text())
        shutil.rmtree(folder)
        names = [field.name for field in dataclasses.fields(cls)]
        result[cls.__name__] = {name: saved.get(name) for name in names}
    (OUT / "config_fields.json").write_text(json.dumps(result, indent=1, sort_keys=True) + "\n")


# ---- what this library saved -----------------------------------------------------------------------------------------
def check_ours():
    folder = OUT / "ours"
    if not folder.exists():
        print("make_lora_family: there is no", folder, "yet; run PEFT_UPDATE_GOLDEN=1 test_golden_lora_family")
        return
    checked = 0
    for case in sorted(CASES):
        if not (folder / case).exists():
            print("make_lora_family: ours/ lacks", case)
            continue
        golden = json.loads((OUT / f"{case}.json").read_text())
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=r"(?i).*(missing|unexpected|mismatched|ignored).*")
            model = peft.PeftModel.from_pretrained(toy(), folder / case, **({"low_cpu_mem_usage": False}))
        model.eval()
        for path, module in sites_of(model):
            if path not in golden["sites"]:
                continue
            site = golden["sites"][path]
            if path == "embed_tokens":
                x = torch.tensor(site["x"])
            else:
                x = torch.tensor(site["x"]).reshape(ROWS, -1)
            with torch.no_grad():
                y = module(x)
            want = torch.tensor(site["y_eval"]).reshape(y.shape)
            assert torch.allclose(y, want, rtol=1e-5, atol=1e-5), (case, path, (y - want).abs().max())
            checked += 1
    print("make_lora_family: peft loads ours/:", checked, "modules give the same")


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    base_weights()
    for name, config in CASES.items():
        (OUT / f"{name}.json").write_text(json.dumps(method_case(name, config)) + "\n")
    initialisations()
    conversions()
    eva()
    weighted()
    adalora()
    loraplus()
    alora()
    fields()
    check_ours()


if __name__ == "__main__":
    main()
