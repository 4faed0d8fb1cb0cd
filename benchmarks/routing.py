#!/usr/bin/env python3
"""A BERT learns to sort questions into classes, on both sides: accuracy on the test records, mean of seeds, and tokens/s.

    python3 benchmarks/routing.py --model FOLDER --data DIR [--methods LIST] [--seeds N] [--program FILE] [--env DIR]
                                  [--adapters-env DIR] [--epochs N] [--out FILE.jsonl]
    python3 benchmarks/routing.py --table FILE.jsonl

DIR holds routing-train.jsonl, routing-val.jsonl and routing-test.jsonl. With --env (torch, peft) and --adapters-env the same
training in Python (peers/routing.py) follows each of ours, so that both sides' means are of the same seeds. Results are added
to --out, a line each: of runs with 5 epochs the table takes accuracies, of the last of each side's for seed 0 the speed.
"""

import argparse
import json
import pathlib
import statistics
import tempfile

from json_run import result_of

HERE = pathlib.Path(__file__).resolve().parent
METHODS = {
    "lora": ["--r", "8", "--lora-alpha", "16", "--lora-dropout", "0", "--lr", "1e-3"],
    "prompt": ["--num-virtual-tokens", "16", "--prompt-tuning-init", "RANDOM", "--lr", "1e-2"],
    "prefix": ["--num-virtual-tokens", "16", "--lr", "1e-2"],
    "houlsby": ["--lr", "1e-3"],
    "full": ["--lr", "5e-5"],
    "houlsby_own_head": ["--head", "adapterhub", "--lr", "1e-3"],
    "full_own_head": ["--head", "adapterhub", "--lr", "5e-5"],
}
OWN_HEAD = "_own_head"  # AdapterHub's two-layer head, as peers/routing.py names it


def ours(args, method, seed):
    with tempfile.TemporaryDirectory() as folder:
        result = result_of([args.program, "train", "--task", "classify", "--model", args.model, "--threads", "2", "--json",
                            "--data", args.data / "routing-train.jsonl", "--val", args.data / "routing-val.jsonl",
                            "--test", args.data / "routing-test.jsonl", "--out", pathlib.Path(folder) / "run", "--method",
                            method.removesuffix(OWN_HEAD),
                            "--epochs", args.epochs, "--batch", "16", "--accumulate", "1", "--max-length", "128", "--seed", seed,
                            *METHODS[method]], OMP_NUM_THREADS="2")
    return {"side": "ours", "method": method, "seed": seed, "epochs": args.epochs, "accuracy": result["test"]["accuracy"],
            "macro_f1": result["test"]["macro_f1"], "tok_s": result["tok_s"], "peak_mib": result["peak_rss_mib"]}


def environment_of(args, method):
    return args.adapters_env if method == "houlsby" or method.endswith(OWN_HEAD) else args.env


def theirs(args, method, seed):
    environment = environment_of(args, method)
    result = result_of([environment / "bin" / "python", HERE / "peers" / "routing.py", args.model,
                        args.data / "routing-train.jsonl", args.data / "routing-test.jsonl", method, seed, args.epochs],
                       OMP_NUM_THREADS="2")
    return {"side": "python", "method": method, "seed": seed, "epochs": args.epochs, "accuracy": result["accuracy"], "tok_s": result["tok/s"],
            "peak_mib": result["peak_MiB"]}


def table(path):
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    print("| method | accuracy | macro-F1 | Python's accuracy | tokens/s | Python's | ratio | peak MiB, ours / theirs |")
    print("|---|---|---|---|---|---|---|---|")
    for method in METHODS:
        def of(side):
            return [row for row in rows if row["method"] == method and row["side"] == side]

        own, peer = ([row for row in of(side) if row["epochs"] == 5] for side in ("ours", "python"))
        fast, slow = ([row for row in of(side) if row["seed"] == 0][-1:] for side in ("ours", "python"))
        if not own:
            continue
        mean = lambda part, key: statistics.mean(row[key] for row in part)
        by_seed = lambda part: ", ".join(f"{row['seed']}: {row['accuracy']:.3f}" for row in part)
        accuracy = lambda part: f"{mean(part, 'accuracy'):.3f} ({by_seed(part)})" if part else "–"
        cells = [method, accuracy(own), f"{mean(own, 'macro_f1'):.3f}", accuracy(peer)]
        if fast and slow:
            speed, theirs_speed = fast[0]["tok_s"], slow[0]["tok_s"]
            cells += [f"{speed:.0f}", f"{theirs_speed:.0f}", f"{speed / theirs_speed:.2f} ×",
                      f"{fast[0]['peak_mib']:.0f} / {slow[0]['peak_mib']:.0f}"]
        else:
            cells += [f"{own[0]['tok_s']:.0f}", "–", "–", f"{own[0]['peak_mib']:.0f} / –"]
        print("| " + " | ".join(cells) + " |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=pathlib.Path)
    parser.add_argument("--data", type=pathlib.Path)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=5, help="fewer tell the speed, not the accuracy")
    parser.add_argument("--program", type=pathlib.Path, default=HERE.parent / "build/release/bin/peft")
    parser.add_argument("--env", type=pathlib.Path)
    parser.add_argument("--adapters-env", type=pathlib.Path)
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--table", type=pathlib.Path)
    args = parser.parse_args()
    if args.table:
        return table(args.table)
    if not args.model or not args.data:
        parser.error("expected --model and --data, or --table")
    for method in args.methods.split(","):
        for seed in range(args.first_seed, args.first_seed + args.seeds):
            results = [ours(args, method, seed)]
            if environment_of(args, method):
                results.append(theirs(args, method, seed))
            for result in results:
                print(json.dumps(result), flush=True)
                if args.out:
                    with args.out.open("a") as file:
                        file.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
