"""Kill or stop random processes of runs under torchrun, and compare the results with those of an uninterrupted run.

    python benchmarks/process_kills.py [N] [SEED]

A run of two processes is started, and after a random time one of them gets SIGKILL or SIGSTOP, in turns. In every
second pair of faults torchrun may restart the processes, and the run must finish by itself. In the others it must end
with one line, and is started again with its folder. The table has the longest time from a fault to the end of torchrun,
or to the restart. The exit code is 1 if a result differs, a run could not go on, there was not exactly one line, or
more than a minute has passed.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from rl.runs.progress import Progress

WORDS = (
    "train mix env.tasks=[drawer-open] threads=1 total_timesteps=640 n_rounds=2 env.n_envs=4 env.max_steps=40 "
    "save_minutes=0 eval.n_episodes=4 eval.n_paired=0 gate.n_episodes=4 gate.max_episodes=4 dream.n_envs=8 "
    "dream.n_updates=1 dream.n_starts=4 dream.horizon=2 dream.refit_steps=20 dream.n_episodes=2 dream.n_rounds=1 "
    "ppo.n_steps=4 ppo.batch_size=16 ppo.imitation_steps=5 ppo.critic_warmup_steps=5 ppo.bc_batch_size=8"
).split()
COMPARED = ("checkpoints/last/model.safetensors", "metrics.jsonl", "eval.jsonl")
N_PROCESSES, MOST_SECONDS = 2, 60.0


@dataclass
class Fault:
    """The faults of one kind, and what became of them."""

    name: str
    signal: signal.Signals
    restarts: int
    n: int = 0
    resumed: int = 0  # finished in the end with the expected result
    different: int = 0
    lost: int = 0  # could not go on
    wrong_lines: int = 0
    seconds: list[float] = field(default_factory=list)


@dataclass
class Run:
    """One run under torchrun; its output goes to a file."""

    name: str
    begun: bool = False

    @property
    def folder(self) -> Path | None:
        """Folder of the run; None until process 0 has made it."""
        return next((path.parent for path in Path("runs").glob(f"{self.name}/*/config.yaml")), None)

    @property
    def is_finished(self) -> bool:
        """Whether everything of it is written."""
        return self.folder is not None and (self.folder / "results.json").exists()

    def start(self, restarts: int) -> subprocess.Popen[bytes]:
        """Start or resume the run."""
        words = [*WORDS, f"name={self.name}"] if self.folder is None else ["train", str(self.folder)]
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={N_PROCESSES}"]
        with Path("log.txt").open("wb") as log:
            return subprocess.Popen(
                [*command, f"--max-restarts={restarts}", "-m", "rl.cli", *words], stdout=log, stderr=log
            )

    def outcome(self) -> dict[str, bytes]:
        """Return the results of the finished run."""
        assert self.folder is not None
        return {name: (self.folder / name).read_bytes().replace(self.name.encode(), b"RUN") for name in COMPARED}


def main() -> int:
    n, seed = (int(word) for word in (*sys.argv[1:], *("30", "0")[len(sys.argv) - 1 :]))
    root, rng = Path(__file__).resolve().parent.parent, random.Random(seed)
    os.environ["PYTHONPATH"], os.environ["OMP_NUM_THREADS"] = str(root), "1"
    faults = [
        Fault("killed, no restarts", signal.SIGKILL, 0),
        Fault("stopped, no restarts", signal.SIGSTOP, 0),
        Fault("killed, --max-restarts=1", signal.SIGKILL, 1),
        Fault("stopped, --max-restarts=1", signal.SIGSTOP, 1),
    ]
    with tempfile.TemporaryDirectory() as name, Progress("faults", every=60.0) as progress:
        os.chdir(name)
        begun, whole = time.monotonic(), Run("whole")
        if whole.start(0).wait() != 0:
            raise SystemExit(Path("log.txt").read_text())
        length, expected = time.monotonic() - begun, whole.outcome()
        for i in itertools.count():
            if (done := sum(fault.n for fault in faults)) == n:
                break
            rarest = min(faults, key=lambda fault: fault.n)
            one_fault(rarest, Run(f"run-{i}"), rng, length, expected)
            progress.update(done, n)
        os.chdir(root)
    print(table(faults))
    broken = any(f.different or f.lost or f.wrong_lines or max(f.seconds, default=0) > MOST_SECONDS for f in faults)
    return int(broken)


def one_fault(fault: Fault, run: Run, rng: random.Random, length: float, expected: dict[str, bytes]) -> None:
    """Start a run, let one process fail, and bring the run to its end."""
    torchrun, begun = run.start(fault.restarts), time.monotonic()
    while run.folder is None and torchrun.poll() is None:  # all processes have joined by then
        time.sleep(0.1)
    time.sleep(rng.uniform(0, 0.6 * length))
    pids = children(torchrun.pid)
    # It was faster. A process that is killed while it only leaves the group can lose nothing, and nobody misses it.
    if torchrun.poll() is not None or len(pids) < N_PROCESSES or run.is_finished:
        torchrun.wait()
        return
    fault.n += 1
    os.kill(rng.choice(pids), fault.signal)
    at = time.monotonic()
    if fault.restarts:
        while torchrun.poll() is None and not set(children(torchrun.pid)) - set(pids):
            time.sleep(0.1)
    else:
        torchrun.wait()
    fault.seconds.append(time.monotonic() - at)
    code = torchrun.wait()
    said = Path("log.txt").read_text()
    lines = [line for line in said.splitlines() if line.startswith("wamtune: ")]
    if len(lines) != 1 or "process " not in lines[0]:
        fault.wrong_lines += 1
        print(f"{fault.name}, {at - begun:.1f} s after the run began: {len(lines)} lines in\n{said[-3000:]}")
    if not fault.restarts:
        code = run.start(0).wait()
    if code != 0:
        fault.lost += 1
        print(Path("log.txt").read_text()[-3000:])
    elif run.outcome() == expected:
        fault.resumed += 1
    else:
        fault.different += 1


def children(pid: int) -> list[int]:
    """Return the processes of a run: the Python children of torchrun."""
    found = []
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        command = Path(f"/proc/{child}/cmdline").read_bytes() if Path(f"/proc/{child}").exists() else b""
        found += [int(child)] if b"rl.cli" in command else []
    return found


def table(faults: list[Fault]) -> str:
    """Return a Markdown table with a line for each kind of fault."""
    lines = [
        "| fault | n | finished, equal to the bit | different | could not go on | not one line | longest, s |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for f in faults:
        longest = f"{max(f.seconds, default=0.0):.0f}"
        lines.append(f"| {f.name} | {f.n} | {f.resumed} | {f.different} | {f.lost} | {f.wrong_lines} | {longest} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
