#!/usr/bin/env python3
"""What four bits cost: the loss on the same records of a model in float, NF4, NF4 quantised once and FP4, on both sides.

    python3 benchmarks/quantized_losses.py --model FILE.gguf --data RECORDS.jsonl [--records N] [--program FILE] [--env DIR]

Theirs are transformers and bitsandbytes on a CPU (peers/quantized_loss.py, environment of requirements.txt). The layers'
linears are quantised in blocks of 64, the tied embedding and head are not. Ends with status 1 where a pair differs by more
than 2e-3, where FP4 is not worse than NF4, or where quantising twice costs more than 0.005.
"""

import argparse
import pathlib
import sys

from json_run import result_of

HERE = pathlib.Path(__file__).resolve().parent
KINDS = {"f32": ["f32"], "nf4": ["nf4"], "nf4_single": ["nf4", "--no-double-quant"], "fp4": ["fp4", "--no-double-quant"]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=pathlib.Path, required=True)
    parser.add_argument("--data", type=pathlib.Path, required=True)
    parser.add_argument("--records", type=int, default=-1, help="only the first so many")
    parser.add_argument("--program", type=pathlib.Path, default=HERE.parent / "build" / "release" / "bin" / "peft")
    parser.add_argument("--env", type=pathlib.Path, default=HERE.parent / "build" / "peers")
    options = parser.parse_args()
    some = ["--max-records", options.records] if options.records >= 0 else []
    losses, good = {}, True
    print("| weights | peft (C++) | transformers + bitsandbytes | difference |\n|---|---|---|---|")
    for kind, arguments in KINDS.items():
        ours = result_of([options.program, "eval", "--model", options.model, "--data", options.data, "--metrics", "loss",
                          "--max-length", 256, "--json", "--dtype", *arguments, *some])["loss"]
        theirs = result_of([options.env / "bin" / "python", HERE / "peers" / "quantized_loss.py", options.model, options.data, kind,
                            options.records])["loss"]
        losses[kind] = ours
        good = good and abs(ours - theirs) <= 2e-3
        print(f"| {kind} | {ours:.5f} | {theirs:.5f} | {ours - theirs:+.5f} |", flush=True)
    good = good and losses["fp4"] > losses["nf4"] and losses["nf4"] <= losses["nf4_single"] + 0.005
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
