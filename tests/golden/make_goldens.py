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
NEEDS_MODEL = {"llama", "tokenizer"}


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
    parser.add_argument("names", nargs="*", choices=[[], *names], metavar="NAME", help=", ".join(names))
    arguments = parser.parse_args()
    chosen = arguments.names or names
    model = arguments.model
    if model is None and NEEDS_MODEL & set(chosen):
        fetch = subprocess.run(["bash", "-c", ". cmake/setup.sh && peft_model"], cwd=ROOT, check=True, capture_output=True, text=True)
        model = fetch.stdout.strip()
    environment = dict(os.environ, PYTHONHASHSEED="0", TOKENIZERS_PARALLELISM="false")
    for name in chosen:
        command = [python(), HERE / f"make_{name}.py", *([model] if name in NEEDS_MODEL else [])]
        print("make_goldens:", name, flush=True)
        subprocess.run(command, check=True, env=environment, cwd=ROOT)


if __name__ == "__main__":
    sys.exit(main())
