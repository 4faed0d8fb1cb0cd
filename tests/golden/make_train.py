"""Goldens of training: AdamW with decay and clipping, learning-rate schedules, loss scaling, the loss of a linear head.

    python tests/golden/make_train.py        (writes tests/golden/data/train/)

Numbers are written with all their digits; float32 inputs and outputs are exact.
"""

import json
import math
import pathlib

import torch
import transformers

assert torch.__version__.startswith("2."), torch.__version__
assert transformers.__version__.startswith("5."), transformers.__version__

OUT = pathlib.Path(__file__).parent / "data" / "train"


def numbers(tensor):
    return [float(x) for x in tensor.detach().double().flatten()]


# ---- AdamW: ten steps, decayed and undecayed parameters, clipped by the norm of all ---------------------------------
def adamw(dtype):
    torch.manual_seed(7)
    weight = torch.nn.Parameter(torch.randn(5, 7, dtype=dtype))
    bias = torch.nn.Parameter(torch.randn(11, dtype=dtype))
    config = {"beta1": 0.9, "beta2": 0.98, "eps": 1e-8, "weight_decay": 0.1, "max_norm": 1.0}
    optimizer = torch.optim.AdamW(
        [{"params": [weight], "weight_decay": config["weight_decay"]}, {"params": [bias], "weight_decay": 0.0}],
        lr=1.0, betas=(config["beta1"], config["beta2"]), eps=config["eps"], foreach=False,
    )
    result = {"config": config, "weight": numbers(weight), "bias": numbers(bias), "steps": []}
    for step in range(10):
        # Norms from well below max_norm to far above: some steps are clipped, some are not.
        scale = 0.02 * 2.0**step
        weight.grad = torch.randn(5, 7, dtype=dtype) * scale
        bias.grad = torch.randn(11, dtype=dtype) * scale * scale
        rate = 0.05 / (1 + step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        entry = {"lr": rate, "weight_grad": numbers(weight.grad), "bias_grad": numbers(bias.grad)}
        entry["norm"] = float(torch.nn.utils.clip_grad_norm_([weight, bias], config["max_norm"]))
        optimizer.step()
        entry["weight"] = numbers(weight)
        entry["bias"] = numbers(bias)
        result["steps"].append(entry)
    for name, parameter in (("weight", weight), ("bias", bias)):
        state = optimizer.state[parameter]
        result[name + "_exp_avg"] = numbers(state["exp_avg"])
        result[name + "_exp_avg_sq"] = numbers(state["exp_avg_sq"])
    return result


# ---- schedules ------------------------------------------------------------------------------------------------------
def schedules():
    cases = []
    for name in ("linear", "cosine", "constant", "constant_with_warmup"):
        for steps, warmup_steps, warmup_ratio in (
            (10, 0, 0.0), (10, 3, 0.0), (10, 0, 0.25), (7, 0, 0.5), (1, 0, 0.0), (5, 5, 0.0), (4, 9, 0.0), (30, 2, 0.9),
        ):
            # TrainingArguments.get_warmup_steps
            warmup = warmup_steps if warmup_steps > 0 else math.ceil(steps * warmup_ratio)
            optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=3e-4)
            scheduler = transformers.get_scheduler(
                name, optimizer=optimizer, num_warmup_steps=warmup, num_training_steps=steps
            )
            rates = []
            for _ in range(steps + 2):
                rates.append(scheduler.get_last_lr()[0])
                optimizer.step()
                scheduler.step()
            cases.append({
                "type": name, "learning_rate": 3e-4, "steps": steps, "warmup_steps": warmup_steps,
                "warmup_ratio": warmup_ratio, "rates": rates,
            })
    return cases


# ---- loss scaling: which steps overflow, and the scale after each ---------------------------------------------------
def grad_scaler(overflows, **config):
    scaler = torch.amp.GradScaler("cpu", **config)
    parameter = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([parameter], lr=0.0)
    scales = []
    for overflow in overflows:
        scaled = scaler.scale(parameter.sum())
        scaled.backward()
        if overflow:
            parameter.grad.fill_(float("inf"))
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        scales.append(scaler.get_scale())
    return {"config": config, "overflows": overflows, "scales": scales}


def grad_scalers():
    pattern = [0, 0, 1, 0, 0, 0, 0, 0, 1, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0]
    return [
        grad_scaler(pattern, init_scale=65536.0, growth_factor=2.0, backoff_factor=0.5, growth_interval=3),
        grad_scaler([0] * 12, init_scale=2.0**124, growth_factor=2.0, backoff_factor=0.5, growth_interval=2),
        grad_scaler([1, 0, 1, 0, 0], init_scale=65536.0, growth_factor=2.0, backoff_factor=0.5, growth_interval=2000),
    ]


# ---- the loss of a linear head --------------------------------------------------------------------------------------
def linear_cross_entropy():
    torch.manual_seed(3)
    rows, hidden, vocabulary = 9, 6, 13
    h = torch.randn(rows, hidden, dtype=torch.float64).float().double().requires_grad_()
    w = torch.randn(vocabulary, hidden, dtype=torch.float64).float().double()
    targets = torch.tensor([-100, 3, 12, -100, 0, 0, 7, -100, 5])
    logits = h @ w.T
    loss = torch.nn.functional.cross_entropy(logits, targets, ignore_index=-100, reduction="sum")
    scale = 0.37
    (loss * scale).backward()
    labelled = targets >= 0
    return {
        "rows": rows, "hidden": hidden, "vocabulary": vocabulary, "scale": scale, "h": numbers(h), "w": numbers(w),
        "targets": [int(t) if t >= 0 else -1 for t in targets], "loss": float(loss.detach()),
        "correct": int((logits.argmax(-1) == targets)[labelled].sum()), "d_h": numbers(h.grad),
    }


def write(name, value):
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / name).write_text(json.dumps(value) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write("adamw.json", {"float": adamw(torch.float32), "double": adamw(torch.float64)})
    write("schedules.json", schedules())
    write("grad_scaler.json", grad_scalers())
    write("linear_cross_entropy.json", linear_cross_entropy())
