#!/usr/bin/env python3
"""What each method learns from the same records, on both sides: validation loss after the job of tests/medquad.sh.

    python3 benchmarks/method_losses.py --model FILE.gguf --data DIR [--methods LIST] [--seeds N] [--first-seed N] [--program FILE] [--env DIR]
                                        [--adapters-env DIR] [--threads N] [--out FILE.jsonl]
    python3 benchmarks/method_losses.py --table FILE.jsonl

DIR holds medquad-train.jsonl and medquad-val.jsonl: 160 records, one epoch of 10 steps, validation on 40. Theirs are torch and
transformers with peft, or with adapters (peers/medquad_job.py, the environments of requirements*.txt), under the same settings.
Results are added to --out, a line each; the table has the means over seeds.
"""

import argparse
import json
import pathlib
import statistics
import sys
import tempfile

from json_run import result_of

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "peers"))
from job_methods import TEXT  # noqa: E402

ATTENTION = ["--target-modules", "q_proj,v_proj"]
LOW_RANK = [*ATTENTION, "--r", "8", "--lora-alpha", "32", "--lora-dropout", "0.05"]
#: method: (learning rate, our options); theirs are in peers/job_methods.py
METHODS = {
    "lora": ("3e-4", LOW_RANK),
    "rslora": ("3e-4", LOW_RANK),
    "dora": ("3e-4", LOW_RANK),
    "ia3": ("5e-3", ["--target-modules", "k_proj,v_proj,down_proj", "--feedforward-modules", "down_proj"]),
    "vera": ("4e-3", [*ATTENTION, "--r", "64"]),
    "loha": ("1e-3", [*ATTENTION, "--r", "8", "--alpha", "8"]),
    "lokr": ("1e-3", [*ATTENTION, "--r", "8", "--alpha", "8"]),
    "adalora": ("1e-3", [*ATTENTION, "--init-r", "12", "--target-r", "8", "--lora-alpha", "32", "--lora-dropout", "0.05", "--tinit", "2",
                         "--tfinal", "2", "--deltaT", "1"]),
    "ln-tuning": ("1e-3", ["--target-modules", "input_layernorm,post_attention_layernorm,norm"]),
    "prefix": ("1e-2", ["--num-virtual-tokens", "20"]),
    "prompt": ("1e-2", ["--num-virtual-tokens", "20", "--prompt-tuning-init", "TEXT", "--prompt-tuning-init-text", TEXT]),
    "p-tuning": ("1e-3", ["--num-virtual-tokens", "20", "--encoder-hidden-size", "256"]),
    "adapter": ("1e-3", []),
    "houlsby": ("1e-3", []),
    "full": ("5e-5", []),
}


def ours(options, method, seed):
    rate, arguments = METHODS[method]
    with tempfile.TemporaryDirectory() as folder:
        return result_of([options.program, "train", "--model", options.model, "--data", options.data / "medquad-train.jsonl", "--val",
                          options.data / "medquad-val.jsonl", "--max-records", 160, "--max-val-records", 40, "--out",
                          pathlib.Path(folder) / "run", "--method", method, "--batch", 4, "--accumulate", 4, "--epochs", 1, "--lr", rate,
                          "--max-length", 256, "--seed", seed, "--threads", options.threads, "--json", *arguments])


def theirs(options, method, seed):
    environment = options.adapters_env if method in ("adapter", "houlsby") else options.env
    return result_of([environment / "bin" / "python", HERE / "peers" / "medquad_job.py", options.model,
                      options.data / "medquad-train.jsonl", options.data / "medquad-val.jsonl", "f32", method, METHODS[method][0], seed,
                      options.threads])


def table(path):
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    print("| method | before, ours / theirs | after: peft (C++) | Python | difference |\n|---|---|---|---|---|")
    for method in METHODS:
        sides = [[row for row in rows if row["method"] == method and row["side"] == side] for side in ("ours", "python")]
        if not all(sides):
            continue
        before, after = ([statistics.mean(row[key] for row in side) for side in sides] for key in ("before", "after"))
        seeds = [", ".join(f"{row['after']:.3f}" for row in side) for side in sides]
        cells = [f"{mean:.4f} ({each})" if len(side) > 1 else f"{mean:.4f}" for mean, each, side in zip(after, seeds, sides)]
        print(f"| {method} | {before[0]:.4f} / {before[1]:.4f} | {cells[0]} | {cells[1]} | {after[0] - after[1]:+.4f} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=pathlib.Path)
    parser.add_argument("--data", type=pathlib.Path)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--program", type=pathlib.Path, default=HERE.parent / "build" / "release" / "bin" / "peft")
    parser.add_argument("--env", type=pathlib.Path, default=HERE.parent / "build" / "peers")
    parser.add_argument("--adapters-env", type=pathlib.Path, default=HERE.parent / "build" / "peers-adapters")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("method_losses.jsonl"))
    parser.add_argument("--table", type=pathlib.Path)
    options = parser.parse_args()
    if options.table:
        return table(options.table)
    if not options.model or not options.data:
        parser.error("expected --model and --data, or --table")
    for method in options.methods.split(","):
        for seed in range(options.first_seed, options.first_seed + options.seeds):
            for side, job in (("ours", ours), ("python", theirs)):
                result = job(options, method, seed)
                row = {"side": side, "method": method, "seed": seed, "before": result["val_loss_before"], "after": result["val_loss_after"]}
                print(json.dumps(row), flush=True)
                with options.out.open("a") as file:
                    file.write(json.dumps(row) + "\n")
    return table(options.out)


if __name__ == "__main__":
    main()
