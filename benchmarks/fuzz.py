"""Fuzz every file reader with crafted files: count how many are refused, crash, hang or take too much memory.

    python benchmarks/fuzz.py [N] [SEED] [READER ...]

N is the total number of inputs (2,200), see `crafted/`. Worker processes read them. A process is ended if it computes
for more than 10 s, waits for ten minutes or needs more than 4 GB. Prints a table. The exit code is 1 if a reader did
anything else than read an input or refuse it in one line (`UserError`), or took more than 1 GB. Seconds are CPU time,
so a busy machine gives the same table.
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

SECONDS, WAITED_S, BYTES, MOST_BYTES = 10, 600, 1_000_000_000, 4_000_000_000
GOOD = "read", "refused"


def main() -> int:
    """Run the readers named on the command line, all by default; return the exit code."""
    numbers = [int(word) for word in sys.argv[1:] if word.isdigit()]
    total, seed = (*numbers, *(2200, 0)[len(numbers) :])
    from benchmarks.crafted.readers import READERS

    names = [word for word in sys.argv[1:] if not word.isdigit()] or list(READERS)
    print("| reader | inputs | read | refused | anything else | longest, s | memory, MB |\n| --- |" + " ---: |" * 6)
    failed, done, shares = 0, 0, sum(READERS[name].share for name in names)
    for name in names:
        n = -(-total * READERS[name].share // shares)
        found: Counter[str] = Counter()
        slowest, most = 0.0, 0
        for row in fuzz(name, n, seed):
            word = row["word"]
            found[word if word in GOOD else "else"] += 1
            slowest, most = max(slowest, row["seconds"]), max(most, row["bytes"])
            if word not in GOOD:
                print(f"{name} {row['i']} ({row['way']}): {word}", file=sys.stderr, flush=True)
        failed, done = failed + found["else"], done + n
        counts = " | ".join(str(found[word]) for word in (*GOOD, "else"))
        print(f"| {name} | {n} | {counts} | {slowest:.1f} | {most / 1e6:.0f} |", flush=True)
    print(f"\n{done:,} inputs, {failed} failures")
    return int(failed > 0)


def fuzz(name: str, n: int, seed: int) -> list[dict[str, Any]]:
    """Return the results of `n` inputs of a reader; if the process ends, start another one."""
    rows: list[dict[str, Any]] = []
    while len(rows) < n:
        command = [sys.executable, __file__, "--worker", name, str(n), str(seed), str(len(rows))]
        worker = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert worker.stdout is not None
        begun: dict[str, Any] = {}
        for line in worker.stdout:
            row = json.loads(line)
            if "word" in row:
                rows.append(row)
                begun = {}
            else:
                begun = row
        code = worker.wait()
        if len(rows) < n:
            hung = code in (-signal.SIGALRM, -signal.SIGPROF)
            word = "hung" if hung else f"ended the process with {code}"
            if not begun:
                raise RuntimeError(f"the worker of {name} ended with {code} between two inputs")
            rows.append({**begun, "word": word, "seconds": float(SECONDS), "bytes": 0})
    return rows


def work(name: str, n: int, seed: int, first: int) -> None:
    """Read the inputs from `first` on; print a line before and after each."""
    from benchmarks.crafted.readers import READERS
    from benchmarks.crafted.spoil import VICTIM
    from rewards.errors import UserError

    out, reader = os.fdopen(os.dup(1), "w"), READERS[name]
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # hide the progress that readers print
    resource.setrlimit(resource.RLIMIT_DATA, (MOST_BYTES, MOST_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with tempfile.TemporaryDirectory() as root:
        good, folder, victim = Path(root) / "good", Path(root) / "input", Path(root) / VICTIM
        reader.make(good)
        for i in range(first, n):
            rng = random.Random(f"{name} {seed} {i}")
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(good, folder)
            victim.write_text("whole")
            way = rng.choice(reader.ways)
            way(folder, rng)
            row = {"i": i, "way": getattr(way, "__name__", "json")}
            print(json.dumps(row), file=out, flush=True)
            forget_peak()
            begun, word = time.process_time(), "read"
            signal.alarm(WAITED_S)
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            try:
                reader.read(folder)
            except UserError as error:
                word = "refused" if len(str(error)) < 2000 else "refused in a long line"
            except BaseException as error:
                word = f"{type(error).__name__}: {error}"[:300]
            signal.alarm(0)
            signal.setitimer(signal.ITIMER_PROF, 0)
            seconds, taken = time.process_time() - begun, peak()
            word = word if taken <= BYTES else f"took {taken:,} bytes ({word})"
            word = word if victim.read_text() == "whole" else "wrote through a link"
            word = f"let markup through ({word})" if lets_markup_through(folder) else word
            print(json.dumps({**row, "word": word, "seconds": seconds, "bytes": taken}), file=out, flush=True)


def lets_markup_through(folder: Path) -> bool:
    """Return whether a written page contains the markup of an input without escaping."""
    from benchmarks.crafted.spoil import MARK

    page = folder / "report.html"
    return page.is_file() and not page.is_symlink() and MARK.encode() in page.read_bytes()


def forget_peak() -> None:
    """Reset the memory peak of this process, if the system can."""
    if os.path.exists("/proc/self/clear_refs"):
        Path("/proc/self/clear_refs").write_text("5")


def peak() -> int:
    """Return the peak resident memory of this process and its children, in bytes."""
    children = 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    status = Path("/proc/self/status")
    if not status.exists():
        return max(children, 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    own = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return max(children, 1024 * int(own.split()[1]))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    if sys.argv[1:2] == ["--worker"]:
        work(sys.argv[2], *(int(word) for word in sys.argv[3:6]))
    else:
        sys.exit(main())
