"""Measure `wamtune play` in a headless Chromium, and take its picture.

python benchmarks/play.py                              # frames a second of both panes, as the page gets them
python benchmarks/play.py --frames-per-s 60            # as many as this computer can
python benchmarks/play.py --picture docs/play.png --seed 2000003

It starts `wamtune play` with one thread of torch, lets the policy drive one task after another, and measures the time
between the frames that the page has painted, the processor time for a frame, of the program and of the browser with all
of its processes, and the load. On a busy computer the processor time says more than the rate (Linux).
"""

from __future__ import annotations

import argparse
import itertools
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.browser import Tab, browser, installed
from rewards.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
TASKS = ("drawer-open", "faucet-open")

WATCH = """
window.painted = [];
const before = describe;
describe = (status) => {
  before(status);
  painted.push(status.frames_per_s === null ? null : performance.now());
};
"""
"""Notes when each frame was painted; null where time stood still."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="metaworld-pixels-tuned")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--starts", type=int, default=3, help="of each task")
    parser.add_argument("--seed", type=int, default=2_000_000, help="of the first start")
    parser.add_argument("--frames-per-s", type=float, default=12.0)
    parser.add_argument("--picture", type=Path, help="write what a window shows while the policy drives, and stop")
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--height", type=int, default=680)
    parser.add_argument("--dark", action="store_true")
    args = parser.parse_args()
    if installed() is None:
        raise UserError("there is no Chromium here; install it, for example apt-get install chromium")
    words = [args.checkpoint, f"env.tasks={','.join(args.tasks)}", f"frames_per_s={args.frames_per_s}"]
    words.append(f"seed={args.seed}")
    with tempfile.TemporaryDirectory() as profile, played(*words) as (address, pid), browser(Path(profile)) as tab:
        tab.open(address)
        tab.until("latest !== null && drives")
        if args.picture:
            picture(tab, args.picture, args.width, args.height, args.dark)
        else:
            measure(tab, pid, args.tasks, args.starts)


def measure(tab: Tab, pid: int, tasks: list[str], starts: int) -> None:
    """Let the policy drive, and print the figures."""
    tab.js(WATCH)
    program, shown, n_chunks, n_solved = -processor_s(pid), -processor_s(tab.pid), 0, 0
    for task in tasks:
        tab.js(f"$('task').value = {task!r}, $('task').dispatchEvent(new Event('change'))")
        tab.until(f"latest.task === {task!r} && latest.chunk === 0")
        for _ in range(starts):
            seed = tab.js("latest.seed")
            tab.press("KeyN")
            tab.until(f"latest.seed === {seed + 1}")
            tab.press("KeyP")
            tab.until("latest.driver === 'policy'")
            tab.until("latest.driver === 'you'")
            n_chunks += tab.js("latest.chunk")
            n_solved += tab.js("latest.solved.dream && latest.solved.sim")
    program += processor_s(pid)
    shown += processor_s(tab.pid)
    times = tab.js("painted")
    gaps = [b - a for a, b in itertools.pairwise(times) if a is not None and b is not None]
    print(f"load of the last minute: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores, niceness {os.nice(0)}")
    print(f"{n_chunks} frames of both panes; solved in both: {n_solved} of {len(tasks) * starts}")
    print(
        f"frames a second, as painted: {1000 * len(gaps) / sum(gaps):.1f} (median {1000 / statistics.median(gaps):.1f})"
    )
    each = [1000 * seconds / n_chunks for seconds in (program, shown)]
    print(f"processor time of a frame: {each[0]:.0f} ms of the program, {each[1]:.0f} ms of the browser")
    assert tab.errors == [], tab.errors


def picture(tab: Tab, out: Path, width: int, height: int, dark: bool) -> None:
    """Let the policy solve the first task, and take the picture, in 256 colours, so that the file is small."""
    tab.press("KeyP")
    tab.until("latest.driver === 'policy'")
    tab.until("latest.driver === 'you'")
    tab.screenshot(out, width, height, dark)
    Image.open(out).convert("RGB").quantize(256, kmeans=8, dither=Image.Dither.NONE).save(out, optimize=True)
    print(f"{out}: {out.stat().st_size / 1000:.0f} kB")


def processor_s(pid: int) -> float:
    """Return the processor time of a process and of all that it has started and that still run, in seconds."""
    found: dict[int, tuple[int, float]] = {}  # process id -> that of its parent, seconds
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended meanwhile
            fields = stat.read_text().rpartition(")")[2].split()
            ticks = int(fields[11]) + int(fields[12])
            found[int(stat.parent.name)] = int(fields[1]), ticks / os.sysconf("SC_CLK_TCK")
    family = {pid}
    while grown := {child for child, (parent, _) in found.items() if parent in family} - family:
        family |= grown
    return sum(found[member][1] for member in family)


@contextmanager
def played(*words: str) -> Iterator[tuple[str, int]]:
    """Run `wamtune play`; yield its address and process id, and end it with Ctrl-C.

    Raises:
        AssertionError: it printed something else, or did not end with exit code 0.
    """
    command = [sys.executable, "-m", "rl.cli", "play", *words]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    try:
        lines = [process.stdout.readline(), process.stdout.readline()]
        found = re.fullmatch(r"(http://127\.0\.0\.1:\d+/\?token=\S+)\n", lines[1])
        assert found is not None, lines
        yield found[1], process.pid
    finally:
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=60)
    assert (process.returncode, rest) == (0, ""), rest


if __name__ == "__main__":
    main()
