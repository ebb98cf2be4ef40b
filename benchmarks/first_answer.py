"""Seconds of CPU, user and system, that a command takes to answer: help, and what cannot be.

    python benchmarks/first_answer.py

The best of five. What help costs has to stay below 0.3 s; an import of torch alone takes three times that.
"""

from __future__ import annotations

import os
import subprocess
import sys

MOST_SECONDS = 0.3
HELP = (["--help"], ["train", "--help"], ["deploy", "--help"])
MISTAKES = (["trian"], ["train", "demo", "sed=1"], ["train", "metaworld-tuned"], ["eval", "demo"])


def cpu_seconds(words: list[str]) -> float:
    """Return what one call of wamtune takes in a process of its own."""
    before = os.times()
    subprocess.run([sys.executable, "-m", "rl.cli", *words], capture_output=True)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def main() -> int:
    """Print a line a command; return 1 where help takes too long."""
    took = {" ".join(words): min(cpu_seconds(words) for _ in range(5)) for words in (*HELP, *MISTAKES)}
    for words, seconds in took.items():
        print(f"wamtune {words:<24} {seconds:.2f} s")
    return int(max(took[" ".join(words)] for words in HELP) > MOST_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
