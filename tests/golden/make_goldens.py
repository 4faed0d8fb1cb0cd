"""Makes every golden again, with pinned versions, in an environment of its own (build/goldens-env).

    python3 tests/golden/make_goldens.py [--model SMOLLM2.gguf] [NAME ...]      e.g. eval lora; none: all of them

Then `git diff tests/golden/data` shows what changed. Hashing is fixed, so that sets are written in the same order.
"""

import argparse
import os
import pathlib
import subprocess
import sys
import venv

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
ENVIRONMENT = ROOT / "build" / "goldens-env"
# What is fetched for a script: by which function of cmake/setup.sh.
NEEDS = {"llama": "peft_model", "tokenizer": "peft_model", "bert": "peft_encoder", "wordpiece": "peft_encoder"}


def python():
    """The environment's Python, made on first use and whenever the pinned versions change."""
    executable = ENVIRONMENT / "bin" / "python"
    pins = (HERE / "requirements.txt").read_text()
    stamp = ENVIRONMENT / "requirements.txt"
    if not stamp.exists() or stamp.read_text() != pins:
        venv.create(ENVIRONMENT, with_pip=True, clear=True)
        subprocess.run([executable, "-m", "pip", "install", "-q", "-r", HERE / "requirements.txt"], check=True)
        stamp.write_text(pins)
    return executable


def main():
    names = sorted(path.stem.removeprefix("make_") for path in HERE.glob("make_*.py") if path.stem != "make_goldens")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="GGUF of SmolLM2-135M-Instruct; default: fetched as tests/run.sh does")
    parser.add_argument("--encoder", help="folder of all-MiniLM-L6-v2; default: fetched likewise")
    parser.add_argument("names", nargs="*", choices=[[], *names], metavar="NAME", help=", ".join(names))
    arguments = parser.parse_args()
    chosen = arguments.names or names
    models = {"peft_model": arguments.model, "peft_encoder": arguments.encoder}
    for function in {NEEDS[name] for name in chosen if name in NEEDS}:
        if models[function] is not None:
            continue
        fetch = subprocess.run(["bash", "-c", f". cmake/setup.sh && {function}"], cwd=ROOT, check=True, capture_output=True, text=True)
        models[function] = fetch.stdout.strip()
    environment = dict(os.environ, PYTHONHASHSEED="0", TOKENIZERS_PARALLELISM="false")
    for name in chosen:
        command = [python(), HERE / f"make_{name}.py", *([models[NEEDS[name]]] if name in NEEDS else [])]
        print("make_goldens:", name, flush=True)
        subprocess.run(command, check=True, env=environment, cwd=ROOT)


if __name__ == "__main__":
    sys.exit(main())
