"""Makes every golden again, with pinned versions, in environments of its own (build/goldens-env; AdapterHub's adapters want
another transformers: build/goldens-env-adapters; bitsandbytes has build/goldens-env-bnb).

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
# Scripts whose versions are not requirements.txt's but requirements-SUFFIX.txt's.
ENVIRONMENTS = {"adamw8bit": "bnb", "adapter": "adapters", "bert_adapters": "adapters", "llama_adapters": "adapters", "nf4": "bnb", "requantize": "bnb"}
# What is fetched for a script: by which function of cmake/setup.sh.
NEEDS = {"llama": "peft_model", "tokenizer": "peft_model", "bert": "peft_encoder", "wordpiece": "peft_encoder"}


def python(suffix):
    """An environment's Python, made on first use and whenever the pinned versions change."""
    environment = ROOT / "build" / f"goldens-env{suffix}"
    requirements = HERE / f"requirements{suffix}.txt"
    executable = environment / "bin" / "python"
    pins = requirements.read_text()
    stamp = environment / "requirements.txt"
    if not stamp.exists() or stamp.read_text() != pins:
        venv.create(environment, with_pip=True, clear=True)
        subprocess.run([executable, "-m", "pip", "install", "-q", "-r", requirements], check=True)
        stamp.write_text(pins)
    return executable


def main():
    names = sorted(path.stem.removeprefix("make_") for path in HERE.glob("make_*.py") if path.stem != "make_goldens")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="GGUF of SmolLM2-135M-Instruct; default: fetched as tests/run.sh does")
    parser.add_argument("--encoder", help="folder of all-MiniLM-L6-v2; default: fetched likewise")
    parser.add_argument("--python", help="Python with the versions of requirements.txt, instead of an environment of its own")
    parser.add_argument("--adapters-python", help="the same of requirements-adapters.txt")
    parser.add_argument("--bnb-python", help="the same of requirements-bnb.txt")
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
        environment_name = ENVIRONMENTS.get(name, "")
        own = {"": arguments.python, "adapters": arguments.adapters_python, "bnb": arguments.bnb_python}[environment_name]
        command = [own or python("-" + environment_name if environment_name else ""), HERE / f"make_{name}.py", *([models[NEEDS[name]]] if name in NEEDS else [])]
        print("make_goldens:", name, flush=True)
        subprocess.run(command, check=True, env=environment, cwd=ROOT)


if __name__ == "__main__":
    sys.exit(main())
