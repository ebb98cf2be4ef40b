"""Measure the CPU seconds (user and system) until a command answers: with help, and with an error.

    python benchmarks/first_answer.py

It takes the best of five calls. Help must take less than 0.3 s; importing torch alone takes three times that.
"""

from __future__ import annotations

import os
import subprocess
import sys

MOST_SECONDS = 0.3
HELP = (["--help"], ["train", "--help"], ["deploy", "--help"])
MISTAKES = (["trian"], ["train", "demo", "sed=1"], ["train", "metaworld-tuned"], ["eval", "demo"])


def cpu_seconds(words: list[str]) -> float:
    """Return the CPU seconds of one call of wamtune, in a new process."""
    before = os.times()
    subprocess.run([sys.executable, "-m", "rl.cli", *words], capture_output=True)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def main() -> int:
    """Print one line per command; return 1 if help takes too long."""
    took = {" ".join(words): min(cpu_seconds(words) for _ in range(5)) for words in (*HELP, *MISTAKES)}
    for words, seconds in took.items():
        print(f"wamtune {words:<24} {seconds:.2f} s")
    return int(max(took[" ".join(words)] for words in HELP) > MOST_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
