"""All benchmarks, one after the other: ``make bench``. An hour of a quiet machine."""

import subprocess
import sys
from pathlib import Path

SCRIPTS = (
    "train",
    "ranks",
    "determinism",
    "prepare",
    "many_files",
    "text",
    "infer",
    "memory",
    "start",
    "course",
)

if __name__ == "__main__":
    for name in SCRIPTS:
        print(f"\n## {name}", flush=True)
        subprocess.run([sys.executable, str(Path(__file__).with_name(f"{name}.py"))], check=True)
