"""Every Python script of the tree compiles, and what users start runs up to its first look at the machine with nothing but
the standard library; every row of compare_peers.py names a benchmark and a script that exist.

    python3 -E -s -S check_scripts.py SOURCE_DIR
"""

import pathlib
import re
import subprocess
import sys


def python(root, script, *arguments):
    """Exit status and output of a script that sees the modules beside it, and no installed package."""
    done = subprocess.run([sys.executable, "-E", "-s", "-S", root / script, *arguments], capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def main(root):
    problems = []
    scripts = [path for folder in ("benchmarks", "tests", "test_package", "cmake", "examples")
               for path in sorted((root / folder).rglob("*.py"))] + sorted(root.glob("*.py"))
    for path in scripts:
        try:
            compile(path.read_text(encoding="utf-8"), str(path), "exec")
        except SyntaxError as error:
            problems.append(f"{path}: {error}")
    status, rows = python(root, "benchmarks/compare_peers.py", "--list")
    if status != 0 or len(rows.splitlines()) < 10:
        problems.append(f"compare_peers.py --list ended with {status}: {rows}")
    for script in ("compare_peers.py", "compile_time.py", "method_losses.py", "quantized_losses.py", "routing.py"):
        script = f"benchmarks/{script}"
        status, text = python(root, script, "--help")
        if status != 0:
            problems.append(f"{script} --help ended with {status}: {text}")
    status, text = python(root, "benchmarks/compare_peers.py", "--only", "no-such-row")
    if status != 2 or "no-such-row: expected of" not in text:
        problems.append(f"compare_peers.py --only no-such-row ended with {status}: {text}")
    table = (root / "benchmarks/compare_peers.py").read_text(encoding="utf-8")
    for name in re.findall(r'Script\("([^"]+)"', table):
        if not (root / "benchmarks/peers" / name).exists():
            problems.append(f"compare_peers.py: there is no benchmarks/peers/{name}")
    for program, name in re.findall(r'Bench\("(\w+)", f?"([^"{]+)', table):
        source = root / "benchmarks" / f"{program}.cpp"
        if not source.exists() or f'"{name}' not in source.read_text(encoding="utf-8"):
            problems.append(f"compare_peers.py: {program} has no benchmark {name}")
    print(f"{len(scripts)} scripts")
    print("\n".join(problems))
    return 1 if problems or len(scripts) < 10 else 0


if __name__ == "__main__":
    sys.exit(main(pathlib.Path(sys.argv[1])))
