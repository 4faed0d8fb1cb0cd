#!/usr/bin/env python3
"""What #include <peft/lora.hpp> adds to a translation unit that has <immintrin.h>, <string>, <memory> and fmt's core.

    python3 benchmarks/compile_time.py [--compilers g++,clang++] [--repeats 7] [--header peft/lora.hpp] [--flags "-O2"]

Both units are compiled in turn, to an object file; prints a Markdown table of median seconds. Ends with 1 where the
difference exceeds --limit seconds (0.6 unless given).
"""

import argparse
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
BASE = "#include <immintrin.h>\n\n#include <fmt/core.h>\n\n#include <memory>\n#include <string>\n"


def compile_seconds(compiler, flags, source):
    start = time.perf_counter()
    done = subprocess.run([compiler, "-std=c++20", *flags, "-I", str(ROOT / "include"), "-c", str(source), "-o", "/dev/null"],
                          capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if done.returncode != 0:
        sys.exit(f"compile_time: {compiler} cannot compile {source.name}:\n{done.stderr[-2000:]}")
    return seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compilers", default="g++,clang++")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--header", default="peft/lora.hpp")
    parser.add_argument("--flags", default="-O2", help="of the compiler, separated by spaces")
    parser.add_argument("--limit", type=float, default=0.6, help="seconds")
    options = parser.parse_args()
    print(f"| compiler | without | with <{options.header}> | difference | goal |\n|---|---|---|---|---|")
    missed = False
    with tempfile.TemporaryDirectory() as folder:
        without, including = pathlib.Path(folder) / "without.cpp", pathlib.Path(folder) / "with.cpp"
        without.write_text(BASE, encoding="utf-8")
        including.write_text(f"{BASE}#include <{options.header}>\n", encoding="utf-8")
        for compiler in options.compilers.split(","):
            if shutil.which(compiler) is None:
                print(f"compile_time: there is no {compiler}; left out", file=sys.stderr)
                continue
            times = {without: [], including: []}
            for _ in range(options.repeats + 1):
                for source, seconds in times.items():
                    seconds.append(compile_seconds(compiler, options.flags.split(), source))
            a, b = (statistics.median(seconds[1:]) for seconds in times.values())
            met = b - a <= options.limit
            missed |= not met
            version = subprocess.run([compiler, "-dumpversion"], capture_output=True, text=True).stdout.strip()
            print(f"| {compiler} {version} | {a:.2f} s | {b:.2f} s | {b - a:.2f} s | "
                  f"{f'≤ {options.limit:g} s' if met else f'**≤ {options.limit:g} s: missed**'} |", flush=True)
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
