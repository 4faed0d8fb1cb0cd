"""python3 expect_findings.py FINDINGS.txt -- COMMAND...: the command must end with 1 and print a line for each regular expression
of the file, and no finding besides. What needs cuobjdump (lines that begin with "sass ") is expected only where it was there."""

import pathlib
import re
import subprocess
import sys


def main(path, command):
    done = subprocess.run(command, capture_output=True, text=True)
    print(done.stdout + done.stderr)
    lines = done.stdout.splitlines()
    disassembled = "NOT checked: instructions" not in done.stdout
    problems = [] if done.returncode == 1 else [f"ended with {done.returncode}; expected 1"]
    expected = 0
    for line in pathlib.Path(path).read_text(encoding="utf-8").splitlines():
        if line.startswith("sass ") and not disassembled:
            continue
        pattern = line.removeprefix("sass ")
        expected += 1
        if not any(re.fullmatch(pattern, text) for text in lines):
            problems.append(f"not found: {pattern}")
    if f"{expected} findings" not in lines:
        problems.append(f"expected {expected} findings and no other")
    print("\n".join(problems))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[3:]))
