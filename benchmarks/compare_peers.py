#!/usr/bin/env python3
"""The same work on both sides in one run, alternating, each side in processes of its own: a Markdown table of medians.

    python3 benchmarks/compare_peers.py [--only ROW,ROW] [--repeats N] [--quick] [--env DIR] [--adapters-env DIR] [--llama-env DIR]
                                        [--build DIR] [--data DIR] [--model FILE] [--out FILE] [--list]

Makes its own Python environments (benchmarks/requirements.txt, requirements-adapters.txt, requirements-llama.txt) in
build/peers, build/peers-adapters and build/peers-llama unless --env, --adapters-env and --llama-env name some, and builds the
benchmarks in build/bench. Both sides run with two threads. Rows on a real model fetch SmolLM2-135M-Instruct (97 MB) unless
--model names it; "job" and "job-qlora" need the files medquad-train.jsonl and medquad-val.jsonl in --data.
"""

import argparse
import dataclasses
import datetime
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile

from json_run import result_of

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent
QUICK_REPEATS, REPEATS = 1, 5
SENTENCE = "The heart pumps blood through the body. "  # 9 tokens
SENTENCES = {"tok_s": 8, "prefill": 57}  # of a prompt, by what is measured behind it or of it
REQUIREMENTS = {"peers": "requirements.txt", "adapters": "requirements-adapters.txt", "llama": "requirements-llama.txt"}
THREADS = {"PEFT_NUM_THREADS": "2", "OMP_NUM_THREADS": "2"}


def run(command, **kwargs):
    """stdout of a command that has to succeed."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, env={**os.environ, **THREADS}, **kwargs)
    if done.returncode != 0:
        sys.exit(f"compare_peers: {' '.join(map(str, command))} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return done.stdout


@dataclasses.dataclass
class Result:
    """One measurement: its value, the process's peak memory, and what else belongs into the row."""
    value: float
    peak: float | None = None
    limits: dict = dataclasses.field(default_factory=dict)
    losses: tuple = ()


@dataclasses.dataclass
class Bench:
    """A benchmark of one of our programs; `counter` "ms" is its time."""
    program: str
    name: str
    counter: str

    def measure(self, context):
        text = run([context.build / "bin" / self.program, "--benchmark_format=json",
                    f"--benchmark_filter=^{self.name}(/iterations:[0-9]+)?/(real|manual)_time$"])
        results = json.loads(text)["benchmarks"]
        if not results:
            sys.exit(f"compare_peers: {self.program} has no benchmark {self.name}")
        result = results[0]
        limits = {key: result[key] for key in ("%FMA", "%read") if key in result}
        return Result(result["real_time"] if self.counter == "ms" else result[self.counter], result.get("peak_MiB"), limits)


@dataclasses.dataclass
class Script:
    """A peer's script, which ends with one line of JSON, in one of the environments."""
    name: str
    arguments: tuple
    counter: str
    environment: str = "peers"

    def measure(self, context):
        arguments = [getattr(context, part[1:]) if part.startswith("@") else part for part in self.arguments]
        result = result_of([context.pythons[self.environment], HERE / "peers" / self.name, *arguments], **THREADS)
        losses = (result["val_loss_before"], result["val_loss_after"]) if "val_loss_after" in result else ()
        return Result(result[self.counter], result["peak_MiB"], {}, losses)


@dataclasses.dataclass
class Job:
    """peft train with the settings of peers/medquad_job.py, and those of `weights`."""
    weights: tuple = ()

    def measure(self, context):
        with tempfile.TemporaryDirectory() as folder:
            result = result_of([context.build / "bin" / "peft", "train", "--model", context.model, "--data", context.train,
                                "--val", context.validation, "--max-records", "160", "--max-val-records", "40",
                                "--out", pathlib.Path(folder) / "run", *(self.weights or ("--method", "lora")), "--r", "8",
                                "--lora-alpha", "32", "--lora-dropout", "0.05", "--target-modules", "q_proj,v_proj", "--batch", "4",
                                "--accumulate", "4", "--epochs", "1", "--lr", "3e-4", "--lr-scheduler", "linear", "--max-length", "256",
                                "--json"], **THREADS)
        return Result(result["tok_s"], result["peak_rss_mib"], {}, (result["val_loss_before"], result["val_loss_after"]))


@dataclasses.dataclass
class Generate:
    """peft generate on the model's file as it is: its answer's rate, or its prompt's."""
    counter: str

    def measure(self, context):
        result = result_of([context.build / "bin" / "peft", "generate", "--model", context.model, "--dtype", "native", "--template", "none",
                            "--prompt", SENTENCE * SENTENCES[self.counter], "--max-tokens", "2" if self.counter == "prefill" else "64", "--json"], **THREADS)
        return Result(result["prompt_tokens"] / result["prompt_s"] if self.counter == "prefill" else result["tok_s"], result["peak_rss_mib"])


@dataclasses.dataclass
class Reference:
    """What else is measured in the same run, and what share of its speed is the goal; 0: none."""
    what: str
    script: Script
    goal: float


@dataclasses.dataclass
class Row:
    """Goals: at least `ratio` times the peer; below `below`, at least `above` (in the unit); at least `share` percent of the limit
    named; at most `memory` MiB, or `memory_share` of the peer's; that of `reference`; a validation loss at most 0.01 above
    theirs."""
    what: str
    unit: str
    ours: object
    theirs: Script
    higher: bool = True
    ratio: float | None = None
    below: float | None = None
    above: float | None = None
    share: tuple | None = None
    memory: float | None = None
    memory_share: float | None = None
    reference: Reference | None = None


MKL_PRODUCTS = Script("lora_step.py", ("products",), "tok/s")


def products_on_mkl(goal):
    return Reference("MKL's products alone", MKL_PRODUCTS, goal)


def linear_row(rows):
    return Row(f"linear 4096², M = {rows}, LoRA r = 8", "ms", Bench("bench_lora", f"linear_lora/{rows}", "ms"),
               Script("lora_step.py", (f"linear_lora/{rows}",), "ms"), higher=False, ratio=1.0)


def decode_row(dtype, adapter):
    what = "LoRA r = 8 on all linears, unmerged" if adapter == "lora" else "no adapter"
    return Row(f"decode, batch 1, {dtype}, {what}", "tok/s", Bench("bench_decode", f"decode/{dtype}/{adapter}", "tok/s"),
               Script("decode.py", (dtype, adapter), "tok/s"), share=("%read", 85))


def nf4_decode_row(name, head, goal):
    return Row(f"decode, batch 1, NF4 quantised twice, tied head in {head} (theirs float), LoRA r = 8 on all linears, unmerged", "tok/s",
               Bench("bench_decode", f"decode/{name}/lora", "tok/s"), Script("decode.py", ("nf4", "lora"), "tok/s"), above=goal)


def nf4_row(rows, where):
    """Few rows from the cache or from memory, more from where they are: never slower than 1.05 times MKL over a float weight."""
    dense = None if rows < 16 else Reference("MKL's speed over a float weight", Script("lora_step.py", (f"linear/{rows}",), "ms"), 0.95)
    place = {"cache": " in a cache", "memory": " in memory", "forward": ""}[where]
    return Row(f"linear 4096², NF4{place}, M = {rows}", "ms", Bench("bench_nf4", f"nf4/{where}/{rows}", "ms"),
               Script("four_bit.py", (f"linear/{rows}",), "ms"), higher=False, ratio=35 if where == "cache" else None,
               share=("%read", 90) if where == "memory" else None, reference=dense)


def prefill_row(name, what, goal):
    return Row(f"prefill, 512 tokens, NF4 quantised twice, {what}", "tok/s", Bench("bench_decode", f"prefill/{name}", "tok/s"),
               Script("decode.py", ("nf4", "base", "prefill"), "tok/s"), above=goal)


def llama_cpp_row(what, counter):
    return Row(f"{what}, batch 1, SmolLM2-135M-Instruct's Q4_1 file; theirs: llama.cpp", "tok/s", Generate(counter),
               Script("llama_cpp_speed.py", ("@model", SENTENCE, str(SENTENCES[counter])), counter, "llama"))


def method_row(what, bench, script, arguments, ratio, environment="peers"):
    return Row(f"{what} step, 4×128 tokens", "tok/s", Bench("bench_methods", bench, "tok/s"),
               Script(script, arguments, "tok/s", environment), ratio=ratio, memory_share=0.4)


ROWS = {
    "linear-512": linear_row(512),
    "linear-64": linear_row(64),
    "linear-1": linear_row(1),
    "adamw": Row("AdamW, 16.7 M parameters, float", "M/s", Bench("bench_optimizer", "adamw/32bit", "M/s"),
                 Script("lora_step.py", ("adamw",), "M/s"), ratio=1.0),
    "adamw-8bit": Row("AdamW, 16.7 M parameters, 8 bits", "M/s", Bench("bench_optimizer", "adamw/8bit", "M/s"),
                      Script("lora_step.py", ("adamw_8bit",), "M/s"), ratio=12.0),
    "products": Row("matrix products of the step alone", "tok/s", Bench("bench_step", "products", "tok/s"), MKL_PRODUCTS,
                    ratio=0.95),
    "step-qv": Row("LoRA step, q and v, 4×128 tokens", "tok/s", Bench("bench_step", "lora_step/qv", "tok/s"),
                   Script("lora_step.py", ("qv",), "tok/s"), ratio=1.35, memory=950, reference=products_on_mkl(0.90)),
    "step-qv-bf16": Row("the same, what is saved for backward in bf16", "tok/s",
                        Bench("bench_step", "lora_step/qv_saved_bf16", "tok/s"),
                        Script("lora_step.py", ("qv",), "tok/s"), ratio=1.35, memory=950, reference=products_on_mkl(0.90)),
    "step-all": Row("LoRA step, all linears, 4×128 tokens", "tok/s", Bench("bench_step", "lora_step/all_linears", "tok/s"),
                    Script("lora_step.py", ("all_linears",), "tok/s"), ratio=1.75, memory=1050, reference=products_on_mkl(0)),
    "job": Row("the whole job: MedQuAD, 160 records, LoRA q and v", "tok/s", Job(),
               Script("medquad_job.py", ("@model", "@train", "@validation"), "tok/s"), ratio=2.6, memory=1000),
    "qlora-qv": Row("QLoRA step, NF4, q and v, 4×128 tokens; ours: embedding and saved activations in bf16", "tok/s",
                    Bench("bench_step", "qlora_step/qv", "tok/s"), Script("lora_step.py", ("qlora_qv",), "tok/s"), ratio=1.6, memory=450),
    "qlora-all": Row("QLoRA step, NF4, all linears, 4×128 tokens; ours as above", "tok/s",
                     Bench("bench_step", "qlora_step/all_linears", "tok/s"), Script("lora_step.py", ("qlora_all_linears",), "tok/s"),
                     ratio=2.0, memory=450),
    "job-qlora": Row("the whole job with QLoRA: NF4 quantised twice, q and v", "tok/s", Job(("--method", "qlora")),
                     Script("medquad_job.py", ("@model", "@train", "@validation", "nf4"), "tok/s")),
    "nf4-1": nf4_row(1, "cache"),
    "nf4-1-memory": nf4_row(1, "memory"),
    "nf4-16": nf4_row(16, "forward"),
    "nf4-64": nf4_row(64, "forward"),
    "nf4-128": nf4_row(128, "forward"),
    "nf4-512": nf4_row(512, "forward"),
    "nf4-quantize": Row("quantise 16.7 M weights to NF4", "M/s", Bench("bench_nf4", "quantize", "Mweights/s"),
                        Script("four_bit.py", ("quantize",), "M/s"), ratio=30.0),
    "nf4-dequantize": Row("dequantise 16.7 M weights from NF4", "M/s", Bench("bench_nf4", "dequantize", "Mweights/s"),
                          Script("four_bit.py", ("dequantize",), "M/s"), above=3000),
    "prefill-nf4": prefill_row("nf4", "activations in float", 1150),
    "prefill-nf4-int8": prefill_row("nf4_int8", "our activations in 8 bits (theirs float)", 1800),
    "decode-nf4": nf4_decode_row("nf4", "float", 115),
    "decode-nf4-bf16-head": nf4_decode_row("nf4_bf16_head", "bf16", 160),
    "decode-nf4-q8-head": nf4_decode_row("nf4_q8_head", "8 bits (Q8_0)", 180),
    "decode-native": llama_cpp_row("decode", "tok_s"),
    "prefill-native": llama_cpp_row("prefill, 512 tokens", "prefill"),
    "decode-f32": decode_row("f32", "lora"),
    "decode-bf16": decode_row("bf16", "lora"),
    "decode-f32-base": decode_row("f32", "base"),
    "decode-bf16-base": decode_row("bf16", "base"),
    "switch": Row("switch the active adapter", "ms", Bench("bench_lora", "switch", "ms"),
                  Script("switch_load_merge.py", ("switch",), "ms"), higher=False, below=0.01),
    "load": Row("load an adapter from disk", "ms", Bench("bench_lora", "load", "ms"), Script("switch_load_merge.py", ("load",), "ms"),
                higher=False, below=20),
    "merge": Row("merge it into all weights", "ms", Bench("bench_lora", "merge", "ms"),
                 Script("switch_load_merge.py", ("merge",), "ms"), higher=False, below=150),
    "prefix": method_row("prefix tuning, 20 virtual tokens,", "prefix_step/plain", "method_step.py", ("prefix",), 1.35),
    "prompt": method_row("prompt tuning, 20 virtual tokens,", "prompt_step", "method_step.py", ("prompt",), 1.35),
    "adapter-seq": method_row("adapter behind the feed-forward (seq_bn)", "adapter_step/seq_bn", "adapter_step.py",
                              ("seq_bn",), 2.0, "adapters"),
    "adapter-double": method_row("adapters behind attention and feed-forward (double_seq_bn)",
                                 "adapter_step/double_seq_bn", "adapter_step.py", ("double_seq_bn",), 2.0, "adapters"),
}


def make_environment(folder, requirements):
    python = folder / "bin" / "python"
    if not python.exists():
        print(f"making {folder}", file=sys.stderr)
        run([sys.executable, "-m", "venv", folder])
        run([python, "-m", "pip", "install", "--quiet", "-r", HERE / requirements])
    return python


def needs_model(rows):
    return any(isinstance(ROWS[name].ours, (Job, Generate)) for name in rows)


def needs_data(rows):
    return any(isinstance(ROWS[name].ours, Job) for name in rows)


def build_programs(folder, rows):
    """Only what the rows need: the program wants more libraries than the benchmarks."""
    with_program = "ON" if needs_model(rows) else "OFF"
    targets = sorted({ROWS[name].ours.program for name in rows if isinstance(ROWS[name].ours, Bench)})
    run(["cmake", "-S", ROOT, "-B", folder, "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release", "-DPEFT_BUILD_BENCHMARKS=ON",
         "-DPEFT_BUILD_TESTS=OFF", f"-DPEFT_BUILD_EXAMPLES={with_program}"])
    run(["cmake", "--build", folder, "--target", *targets, *(["peft_program"] if needs_model(rows) else [])])


def machine():
    model, flags = platform.processor(), ""
    for line in open("/proc/cpuinfo", encoding="utf-8"):
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
        if line.startswith("flags"):
            flags = line
    features = [name for name in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16") if f" {name}" in flags]
    return f"{model}, {os.cpu_count()} cores, {' '.join(features)}"


def median_of(results, what=lambda result: result.value):
    return statistics.median(what(result) for result in results)


def table_row(row, context, repeats):
    mine, other, beside = [], [], []
    for _ in range(repeats):
        mine.append(row.ours.measure(context))
        other.append(row.theirs.measure(context))
        if row.reference is not None:
            beside.append(row.reference.script.measure(context))
    a, b = median_of(mine), median_of(other)
    ratio = a / b if row.higher else b / a
    shares = {key: median_of(mine, lambda result, key=key: result.limits[key]) for key in mine[0].limits}
    limit = [f"{value:.0f} {key}" for key, value in shares.items()]
    goals = []  # (text, met)
    if row.ratio is not None:
        goals.append((f"{row.ratio} ×", ratio >= row.ratio))
    if row.below is not None:
        goals.append((f"< {row.below:g} {row.unit}", a < row.below))
    if row.above is not None:
        goals.append((f"≥ {row.above:g} {row.unit}", a >= row.above))
    if row.share is not None:
        goals.append((f"{row.share[1]} {row.share[0]}", shares[row.share[0]] >= row.share[1]))
    if beside:
        c = median_of(beside)
        share = a / c if row.higher else c / a
        limit.append(f"{share:.2f} × {row.reference.what}")
        if row.reference.goal > 0:
            goals.append((f"{row.reference.goal} × {row.reference.what}", share >= row.reference.goal))
    if mine[0].losses:
        ours, theirs = median_of(mine, lambda r: r.losses[1]), median_of(other, lambda r: r.losses[1])
        limit.append(f"validation loss {mine[0].losses[0]:.3f} → {ours:.3f}, theirs {other[0].losses[0]:.3f} → {theirs:.3f}")
        goals.append(("their loss + 0.01", ours <= theirs + 0.01))
    memory = "–"
    if mine[0].peak and other[0].peak:
        peak = median_of(mine, lambda r: r.peak)
        memory = f"{peak:.0f} / {median_of(other, lambda r: r.peak):.0f}"
        if row.memory is not None:
            goals.append((f"{row.memory:g} MiB", peak <= row.memory))
        if row.memory_share is not None:
            goals.append((f"{row.memory_share:g} × their memory", peak <= row.memory_share * median_of(other, lambda r: r.peak)))
    goal = ", ".join(text if met else f"**{text}: missed**" for text, met in goals)
    return (f"| {row.what} | {b:.4g} {row.unit} | {a:.4g} {row.unit} | {ratio:.2f} × | {goal} | {'; '.join(limit) or '–'} | "
            f"{memory} |")


@dataclasses.dataclass
class Context:
    pythons: dict
    build: pathlib.Path
    model: pathlib.Path | None
    train: pathlib.Path
    validation: pathlib.Path


def fetch_model():
    return pathlib.Path(run(["bash", "-c", f'. "{ROOT}/cmake/setup.sh"; peft_model']).strip())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(ROWS), help="rows, separated by commas")
    parser.add_argument("--repeats", type=int, default=REPEATS, help="of each row; its figures are medians (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_REPEATS} repeat")
    parser.add_argument("--env", type=pathlib.Path, default=ROOT / "build" / "peers")
    parser.add_argument("--adapters-env", type=pathlib.Path, default=ROOT / "build" / "peers-adapters")
    parser.add_argument("--llama-env", type=pathlib.Path, default=ROOT / "build" / "peers-llama")
    parser.add_argument("--build", type=pathlib.Path, default=ROOT / "build" / "bench")
    parser.add_argument("--data", type=pathlib.Path, default=ROOT.parent / "shared" / "data",
                        help="folder of medquad-train.jsonl and medquad-val.jsonl")
    parser.add_argument("--model", type=pathlib.Path, help="SmolLM2-135M-Instruct as a GGUF; else it is fetched")
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--list", action="store_true", help="name the rows and stop")
    options = parser.parse_args()
    if options.list:
        print("\n".join(f"{name}: {row.what}" for name, row in ROWS.items()))
        return
    chosen = options.only.split(",")
    for name in chosen:
        if name not in ROWS:
            parser.error(f"--only {name}: expected of {', '.join(ROWS)}")
    train, validation = options.data / "medquad-train.jsonl", options.data / "medquad-val.jsonl"
    skipped = []
    if needs_data(chosen) and not (train.exists() and validation.exists()):
        skipped.append(f"The rows of the whole job left out: {options.data} has no medquad-train.jsonl and medquad-val.jsonl.")
        print(skipped[-1], file=sys.stderr)
        chosen = [name for name in chosen if not needs_data([name])]
    model = (options.model or fetch_model()) if needs_model(chosen) else None
    build_programs(options.build, chosen)
    folders = {"peers": options.env, "adapters": options.adapters_env, "llama": options.llama_env}
    rows = [ROWS[name] for name in chosen]
    scripts = [row.theirs for row in rows] + [row.reference.script for row in rows if row.reference is not None]
    pythons = {name: make_environment(folders[name], REQUIREMENTS[name]) for name in {script.environment for script in scripts}}
    context = Context(pythons, options.build, model, train, validation)
    repeats = QUICK_REPEATS if options.quick else options.repeats
    command = " ".join(["python3", "benchmarks/compare_peers.py", *sys.argv[1:]])
    lines = [f"{machine()}; {datetime.date.today()}; `{command}`; medians of {repeats}", "",
             "| work | Python's | peft (C++) | ratio | goal | % of this machine's limit | peak MiB, ours / theirs |",
             "|---|---|---|---|---|---|---|"]
    for name in chosen:
        lines.append(table_row(ROWS[name], context, repeats))
        print(lines[-1], file=sys.stderr)
    text = "\n".join([*lines, *(["", *skipped] if skipped else [])]) + "\n"
    print(text)
    if options.out:
        options.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
