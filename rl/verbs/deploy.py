"""`wamtune deploy`: a policy as files that a robot can run, and a robot that it runs."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rewards.errors import UserError
from rl.cli import keys_of
from rl.compose import compose
from rl.deploy.compare import compare
from rl.deploy.contract import CONTRACT, ONNX
from rl.deploy.export import MAX_DIFFERENCE, N_PARITY, export_policy
from rl.deploy.pilots import load_pilot
from rl.deploy.robot_config import RobotConfig
from rl.deploy.session import run_session
from rl.deploy.stops import KEYS, has_terminal

ACTIONS = ("export", "run", "compare")


@dataclass(frozen=True)
class Options:
    """The keys of `wamtune deploy ... export`."""

    out: str = ""  # the folder; empty: exported/ in the run folder, or here for a checkpoint
    n_denoising_steps: int = 0  # of the policy; 0: as in the run that trained it, else 2
    n_action_steps: int = 0  # executed of a chunk; 0: as in the run that trained it, else all of it
    episodes: str = ""  # recorded ones to compare on; empty: those beside the checkpoint, else random states

    def check(self) -> None:
        """Refuse counts that mean nothing."""
        for name in ("n_denoising_steps", "n_action_steps"):
            if getattr(self, name) < 0:
                raise UserError(f"{name}={getattr(self, name)}: expected at least 0")


HELP = f"""wamtune deploy CHECKPOINT | RUN_FOLDER export [key=value ...]
wamtune deploy CHECKPOINT | RUN_FOLDER run PRESET [key=value ...]
wamtune deploy CHECKPOINT | RUN_FOLDER compare CHALLENGER PRESET [key=value ...]

`export` writes the policy of a checkpoint as {ONNX}, with everything between a state and bounded actions inside, beside
{CONTRACT}: inputs, outputs, units, bounds, tasks, rate, the time that a call may take, and the sha256 of what it is.
Before anything is written, onnxruntime must give the actions of torch on {N_PARITY} observations; prints the largest
difference. Needs the extra `export`: pip install 'wamtune[export]'. `run` takes the folder of an export as well.

`run` runs the policy on a robot: anything with the members of LeRobot's Robot, one behind rosbridge, or the simulated
one of the preset robot-sim. Nothing is sent before limits are given and the robot is what the policy expects. It is
stopped by {KEYS}, by a file, Ctrl-C or a signal; the exit code is then 2. Each
episode that ends is recorded; the next run goes on with the next scene.

`compare` runs two policies in pairs, who goes first drawn by lot, until it is clear which is better or n_episodes pairs
are done; it says how many more it would take, and goes on from there when it is called again.

Keys of export:
{keys_of(Options)}

Keys of run and compare:
{keys_of(RobotConfig)}

Examples:
  wamtune deploy metaworld-tuned run robot-sim dry_run=true
  wamtune deploy metaworld-tuned compare runs/mix/20250101-120000-s0 robot-sim n_episodes=30
"""


def run(words: list[str]) -> None:
    """Export and print what was written, or run a robot and print what happened."""
    if not words or "=" in words[0] or words[0] in ACTIONS:
        raise UserError("deploy needs a checkpoint or a run folder: wamtune deploy metaworld-tuned export")
    name, action = words[0], words[1] if len(words) > 1 else ""
    if action not in ACTIONS:
        raise UserError(f"deploy {name} {action!r}: expected {', '.join(ACTIONS)}, as in wamtune deploy {name} export")
    {"export": _export, "run": _run, "compare": _compare}[action](name, words)


def _run(name: str, words: list[str]) -> None:
    if len(words) < 3 or "=" in words[2]:
        raise UserError(f"deploy {name} run needs a preset that names a robot and its limits, such as robot-sim")
    config = _robot_config(words[2:])
    lived = run_session(load_pilot(name, config.n_denoising_steps), config, keys=has_terminal())
    periods = sorted(p for one in lived for p in one.periods)
    solved = sum(any(one.success) for one in lived)
    print(f"{solved} of {len(lived)} episodes reported success")
    if periods:
        middle, most = periods[len(periods) // 2], periods[int(0.99 * (len(periods) - 1))]
        print(f"period: median {1000 * middle:.1f} ms, 99 % below {1000 * most:.1f} ms")
    if lived[-1].stopped:
        raise UserError(f"the robot was stopped: {lived[-1].reason}")


def _compare(name: str, words: list[str]) -> None:
    if len(words) < 4 or any("=" in word for word in words[2:4]):
        raise UserError(f"deploy {name} compare needs a challenger and a preset of a robot, such as robot-sim")
    config = _robot_config(words[3:])
    champion, challenger = (load_pilot(n, config.n_denoising_steps) for n in (name, words[2]))
    score = compare(champion, challenger, (name, words[2]), config, keys=has_terminal())
    print(score.verdict(config.alpha))
    if score.stopped:
        raise UserError(f"the robot was stopped: {score.stopped}; the same command goes on from here")


def _robot_config(words: list[str]) -> RobotConfig:
    torch.set_num_threads(1)  # more would only wait for each other beside the loop
    config = compose(words[0], words[1:], RobotConfig)
    if config.success == "key" and not has_terminal():
        raise UserError("success=key: expected a terminal to type s in; run it in one, or choose robot or read_out")
    return config


def _export(name: str, words: list[str]) -> None:
    options = compose(None, words[2:], Options)
    folder = Path(options.out) if options.out else default_folder(name)
    command = shlex.join(["wamtune", "deploy", *words])
    contract = export_policy(name, folder, options.n_denoising_steps, options.n_action_steps, command, options.episodes)
    print(f"policy: {folder / ONNX}, {(folder / ONNX).stat().st_size / 1e6:.1f} MB")
    print(f"contract: {folder / CONTRACT}, {_pace(contract)}")
    print(
        f"parity: onnxruntime and torch differ by at most {contract['largest_difference']:.1e} in an action on "
        f"{contract['compared_on']}; {MAX_DIFFERENCE:.0e} is allowed"
    )


def default_folder(name: str) -> Path:
    """Return `exported/` in the run folder `name`, or in the current folder for any other checkpoint."""
    run = Path(name)
    return (run if (run / "config.yaml").is_file() else Path()) / "exported"


def _pace(contract: dict[str, Any]) -> str:
    executed, hz, budget = (contract[key] for key in ("n_action_steps", "control_hz", "latency_budget_s"))
    return f"{executed} actions a call at {hz:g} Hz: a call may take {budget:g} s"
