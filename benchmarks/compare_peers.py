#!/usr/bin/env python3
"""The same work on both sides in one run, alternating, each side in processes of its own: a Markdown table of medians.

    python3 benchmarks/compare_peers.py [--only ROW,ROW] [--quick] [--env DIR] [--build DIR] [--out FILE] [--list]

Makes its own Python environment (benchmarks/requirements.txt) in build/peers unless --env names one, and builds the
benchmarks in build/bench. Both sides run with two threads.
"""

import argparse
import datetime
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent

# name: (what it is, unit, our program and benchmark, our counter, their script and argument, higher is better, goal)
ROWS = {
    "linear-512": ("linear 4096², M = 512, LoRA r = 8", "ms", ("bench_lora", "linear_lora/512"), "ms",
                   ("lora_step.py", "linear_lora/512"), False, 1.0),
    "linear-64": ("linear 4096², M = 64, LoRA r = 8", "ms", ("bench_lora", "linear_lora/64"), "ms",
                  ("lora_step.py", "linear_lora/64"), False, 1.0),
    "linear-1": ("linear 4096², M = 1, LoRA r = 8", "ms", ("bench_lora", "linear_lora/1"), "ms",
                 ("lora_step.py", "linear_lora/1"), False, 1.0),
    "adamw": ("AdamW, 16.7 M parameters, float", "M/s", ("bench_lora", "adamw"), "M/s", ("lora_step.py", "adamw"), True,
              1.0),
    "products": ("matrix products of the step alone", "tok/s", ("bench_step", "products"), "tok/s",
                 ("lora_step.py", "products"), True, 0.95),
    "step-qv": ("LoRA step, q and v, 4×128 tokens", "tok/s", ("bench_step", "lora_step/qv"), "tok/s",
                ("lora_step.py", "qv"), True, 1.35),
    "step-all": ("LoRA step, all linears, 4×128 tokens", "tok/s", ("bench_step", "lora_step/all_linears"), "tok/s",
                 ("lora_step.py", "all_linears"), True, 1.75),
}


def run(command, **kwargs):
    environment = {**os.environ, "PEFT_NUM_THREADS": "2", "OMP_NUM_THREADS": "2"}
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, env=environment, **kwargs)
    if done.returncode != 0:
        sys.exit(f"compare_peers: {' '.join(map(str, command))} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return done.stdout


def make_environment(folder):
    python = folder / "bin" / "python"
    if not python.exists():
        print(f"making {folder}", file=sys.stderr)
        run([sys.executable, "-m", "venv", folder])
        run([python, "-m", "pip", "install", "--quiet", "-r", HERE / "requirements.txt"])
    return python


def ours(build, program, name, counter):
    text = run([build / "bin" / program, f"--benchmark_filter=^{name}/real_time$", "--benchmark_format=json"])
    report = json.loads(text)
    if not report["benchmarks"]:
        sys.exit(f"compare_peers: {program} has no benchmark {name}")
    result = report["benchmarks"][0]
    value = result["real_time"] if counter == "ms" else result[counter]
    limits = {key: result[key] for key in ("%FMA", "%read") if key in result}
    return value, limits, result.get("peak_MiB")


def theirs(python, script, argument, counter):
    result = json.loads(run([python, HERE / "peers" / script, argument]).splitlines()[-1])
    return result[counter], result["peak_MiB"]


def machine():
    model, flags = platform.processor(), ""
    for line in open("/proc/cpuinfo", encoding="utf-8"):
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
        if line.startswith("flags"):
            flags = line
    features = [name for name in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16") if f" {name}" in flags]
    return f"{model}, {os.cpu_count()} cores, {' '.join(features)}"


def row(name, python, build, repeats):
    what, unit, (program, benchmark), counter, (script, argument), higher, goal = ROWS[name]
    mine, other, limits, peaks = [], [], [], [[], []]
    for _ in range(repeats):
        value, limit, peak = ours(build, program, benchmark, counter)
        mine.append(value)
        limits.append(limit)
        peaks[0].append(peak)
        value, peak = theirs(python, script, argument, counter)
        other.append(value)
        peaks[1].append(peak)
    a, b = statistics.median(mine), statistics.median(other)
    ratio = a / b if higher else b / a
    share = " ".join(f"{statistics.median(l[key] for l in limits):.0f} {key}" for key in limits[0])
    memory = f"{peaks[0][-1]:.0f} / {peaks[1][-1]:.0f}" if peaks[0][-1] else "–"
    return f"| {what} | {b:.4g} {unit} | {a:.4g} {unit} | {ratio:.2f} × | {goal} × | {share} | {memory} |"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(ROWS), help="rows, separated by commas")
    parser.add_argument("--quick", action="store_true", help="one repeat instead of five")
    parser.add_argument("--env", type=pathlib.Path, default=ROOT / "build" / "peers")
    parser.add_argument("--build", type=pathlib.Path, default=ROOT / "build" / "bench")
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--list", action="store_true")
    options = parser.parse_args()
    if options.list:
        print("\n".join(f"{name}: {entry[0]}" for name, entry in ROWS.items()))
        return
    chosen = options.only.split(",")
    for name in chosen:
        if name not in ROWS:
            parser.error(f"--only {name}: expected of {', '.join(ROWS)}")
    python = make_environment(options.env)
    run(["cmake", "-S", ROOT, "-B", options.build, "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release",
         "-DPEFT_BUILD_BENCHMARKS=ON", "-DPEFT_BUILD_TESTS=OFF", "-DPEFT_BUILD_EXAMPLES=OFF"])
    run(["cmake", "--build", options.build])
    repeats = 1 if options.quick else 5
    lines = [f"{machine()}; {datetime.date.today()}; `{' '.join(['python3', 'benchmarks/compare_peers.py', *sys.argv[1:]])}`; "
             f"medians of {repeats}", "",
             "| work | torch + peft | peft (C++) | ratio | goal | % of this machine's limit | peak MiB, ours / theirs |",
             "|---|---|---|---|---|---|---|"]
    for name in chosen:
        lines.append(row(name, python, options.build, repeats))
        print(lines[-1], file=sys.stderr)
    text = "\n".join(lines) + "\n"
    print(text)
    if options.out:
        options.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
