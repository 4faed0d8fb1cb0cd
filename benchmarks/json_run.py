"""What a program or a script of peers/ says: the JSON on its last line."""

import json
import os
import subprocess
import sys


def result_of(command, **environment):
    """Runs `command` with `environment` added; ends this script with the command's last words where it fails."""
    words = [str(part) for part in command]
    done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, **environment})
    if done.returncode != 0:
        sys.exit(f"{os.path.basename(sys.argv[0])}: {' '.join(words)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])
