"""Kill runs of every kind, resume them, and compare their results with those of an uninterrupted run.

    python benchmarks/kills.py [N] [SEED]

The kinds of runs take turns: a run is started or resumed in a new process and killed (-9), alternately at a random
moment and while it writes a checkpoint. If a run ends before the kill, its weights, metrics and evaluated episodes are
compared byte for byte with the uninterrupted run, and a new run starts. After N kills, all unfinished runs are
completed. The exit code is 1 if anything differs or a run could not be resumed.
"""

from __future__ import annotations

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

TASK = "drawer-open"
TINY = "model.width=32 model.world_width=48 model.action_width=32 model.n_layers=1 model.n_heads=2 trust_steps=20"
STAGE = "n_steps=60 batch_size=16 log_every=7 save_every=10"  # a save falls between two lines of the log
TRAIN = (
    f"checkpoint=runs/tuned env.tasks=[{TASK}] threads=1 total_timesteps=640 n_rounds=2 env.n_envs=4 env.max_steps=40 "
    "save_minutes=0 eval.n_episodes=4 eval.n_paired=2 gate.n_episodes=4 gate.max_episodes=4 dream.n_envs=8 "
    "dream.n_updates=1 dream.n_starts=4 dream.horizon=2 dream.refit_steps=20 dream.n_episodes=2 dream.n_rounds=1 "
    "dream.max_expected_error=0.1 ppo.n_steps=4 ppo.batch_size=16 ppo.imitation_steps=5 ppo.critic_warmup_steps=5 "
    "ppo.bc_batch_size=8 controls=filtered_bc"
)
KINDS = {
    "pretrain": f"pretrain metaworld-pretrained tasks=[{TASK}] threads=1 episodes=episodes n_expert=4 n_noisy=4 "
    f"n_random=2 n_heldout=6 {TINY} " + " ".join(f"stage.{word}" for word in STAGE.split()),
    "tune": "tune tune.yaml checkpoint=runs/pretrained episodes=episodes threads=1 n_demos=2 "
    "n_policy=2 n_policy_heldout=1 n_eval=2 trust_steps=20 "
    + " ".join(f"{stage}.{word}" for stage in ("stage", "refit") for word in STAGE.split()),
    "sim": f"train sim {TRAIN}",
    "dream": f"train dream {TRAIN}",
    "mix": f"train mix {TRAIN}",
    "gaussian": "train gaussian threads=1 total_timesteps=2048 n_rounds=4 env.n_envs=4 env.max_steps=50 ppo.n_steps=64 "
    "ppo.batch_size=64 save_minutes=0 eval.n_episodes=4 gate.n_episodes=4 gate.max_episodes=4",
}
"""The kinds of runs, starting with `pretrain`; each stage takes the checkpoint of the previous one."""

COMPARED = ("checkpoints/last/model.safetensors", "metrics.jsonl", "eval.jsonl")


@dataclass
class Kind:
    """One kind of run: its expected result, and its current run."""

    name: str
    words: list[str]
    seconds: float = 0.0  # duration of an uninterrupted run
    expected: dict[str, bytes] = field(default_factory=dict)
    number: int = 0  # of the current run
    kills: int = 0
    in_save: int = 0  # kills while a checkpoint was being written
    finished: int = 0
    different: int = 0
    lost: int = 0

    @property
    def run_name(self) -> str:
        """Name of the current run."""
        return f"{self.name}-{self.number}"

    @property
    def folder(self) -> Path | None:
        """Folder of the current run; None if it was killed before it made one."""
        return next((path.parent for path in Path("runs").glob(f"{self.run_name}/*/config.yaml")), None)

    def start(self) -> subprocess.Popen[bytes]:
        """Start or resume the run."""
        verb, preset, *overrides = self.words
        begin = [verb, preset, *overrides, f"name={self.run_name}"]
        words = begin if self.folder is None else [verb, str(self.folder)]
        with Path("log.txt").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "rl.cli", *words], stdout=log, stderr=log, start_new_session=True
            )

    def outcome(self) -> dict[str, bytes]:
        """Return the results of the finished run."""
        assert self.folder is not None
        return {name: (self.folder / name).read_bytes().replace(self.run_name.encode(), b"RUN") for name in COMPARED}

    def check(self, code: int) -> None:
        """Compare a finished run with the expected result, and make a new run the current one."""
        self.lost += code != 0
        self.finished += code == 0
        self.different += code == 0 and self.outcome() != self.expected
        self.number += 1


def main() -> int:
    n, seed = (int(word) for word in (*sys.argv[1:], *("100", "0")[len(sys.argv) - 1 :]))
    root, rng = Path(__file__).resolve().parent.parent, random.Random(seed)
    os.environ["PYTHONPATH"], os.environ["OMP_NUM_THREADS"] = str(root), "1"
    with tempfile.TemporaryDirectory() as name:
        os.chdir(name)
        Path("tune.yaml").write_text("# The built-in preset names tasks that are not learned here.\nname: tune\n")
        kinds = [Kind(name, words.split()) for name, words in KINDS.items()]
        for kind in kinds:
            leave_alone(kind)
        done = 0
        with Progress("kills", every=60.0) as progress:
            while done < n:
                kind = kinds[done % len(kinds)]
                done += kill_one(kind, rng, in_save=done // len(kinds) % 2 == 1)
                progress.update(done, n, ended=sum(kind.finished for kind in kinds))
        for kind in kinds:
            if kind.folder is not None:
                kind.check(kind.start().wait())
        print(table(kinds))
        broken = any(kind.lost or kind.different for kind in kinds)
        if broken:
            print(Path("log.txt").read_text()[-3000:])
        os.chdir(root)
    return int(broken)


def leave_alone(kind: Kind) -> None:
    """Let one run finish without a kill, and keep its results."""
    begun = time.monotonic()
    if kind.start().wait() != 0:
        raise SystemExit(Path("log.txt").read_text())
    kind.seconds, kind.expected = time.monotonic() - begun, kind.outcome()
    assert kind.folder is not None
    if kind.name in ("pretrain", "tune"):
        Path("runs", {"pretrain": "pretrained", "tune": "tuned"}[kind.name]).symlink_to(kind.folder.resolve())
    kind.number += 1


def kill_one(kind: Kind, rng: random.Random, in_save: bool) -> bool:
    """Start a run and kill it; return False if it ended before that."""
    process, patience = kind.start(), rng.uniform(0, kind.seconds)
    begun, n_saves = time.monotonic(), rng.randrange(4)
    seen = False
    while process.poll() is None:
        saving = in_save and kind.folder is not None and any(kind.folder.glob("checkpoints/.*.tmp"))
        n_saves -= saving and not seen
        seen = saving
        if (saving and n_saves < 0) or (not in_save and time.monotonic() - begun > patience):
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            kind.kills, kind.in_save = kind.kills + 1, kind.in_save + saving
            return True
        time.sleep(0.001)
    kind.check(process.returncode)
    return False


def table(kinds: list[Kind]) -> str:
    """Return a Markdown table with a line for each kind of run."""
    lines = [
        "| run | killed | while saving | brought to an end | different | could not go on |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for k in kinds:
        lines.append(f"| {k.name} | {k.kills} | {k.in_save} | {k.finished} | {k.different} | {k.lost} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
