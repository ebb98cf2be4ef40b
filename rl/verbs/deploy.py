"""`wamtune deploy`: export a policy to files, run a policy on a robot, or compare two policies on it."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import torch

from rewards.errors import UserError
from rl.compose import compose
from rl.deploy.compare import compare
from rl.deploy.contract import CONTRACT, ONNX
from rl.deploy.export import MAX_DIFFERENCE, export_policy
from rl.deploy.pilots import load_pilot
from rl.deploy.robot_config import RobotConfig
from rl.deploy.session import run_session
from rl.deploy.stops import has_terminal
from rl.verbs.options import ExportOptions
from world_model.runs import find_run

ACTIONS = ("export", "run", "compare")


def run(words: list[str]) -> None:
    """Run the action that `words[1]` names for the checkpoint `words[0]`, and print its results."""
    if not words or "=" in words[0] or words[0] in ACTIONS:
        raise UserError("deploy needs a checkpoint or a run folder: wamtune deploy metaworld-tuned export")
    name, action = words[0], words[1] if len(words) > 1 else ""
    if action not in ACTIONS:
        raise UserError(f"deploy {name} {action!r}: expected {', '.join(ACTIONS)}, as in wamtune deploy {name} export")
    {"export": _export, "run": _run, "compare": _compare}[action](name, words)


def _run(name: str, words: list[str]) -> None:
    if len(words) < 3:
        raise UserError(
            f"deploy {name} run needs a robot and its limits: a preset such as robot-sim, or robot=... limits.low=..."
        )
    config = _robot_config(words[2:])
    episodes = run_session(load_pilot(name, config.n_denoising_steps), config, keys=has_terminal())
    periods = sorted(period for episode in episodes for period in episode.periods)
    solved = sum(any(episode.success) for episode in episodes)
    print(f"{solved} of {len(episodes)} episodes reported success")
    if periods:
        middle, most = periods[len(periods) // 2], periods[int(0.99 * (len(periods) - 1))]
        print(f"period: median {1000 * middle:.1f} ms, 99 % below {1000 * most:.1f} ms")
    if episodes[-1].stopped:
        raise UserError(f"the robot was stopped: {episodes[-1].reason}")


def _compare(name: str, words: list[str]) -> None:
    if len(words) < 4 or "=" in words[2]:
        raise UserError(
            f"deploy {name} compare needs a challenger and a robot: a preset such as robot-sim, or robot=..."
        )
    config = _robot_config(words[3:])
    champion, challenger = (load_pilot(n, config.n_denoising_steps) for n in (name, words[2]))
    score = compare(champion, challenger, (name, words[2]), config, keys=has_terminal())
    print(score.verdict(config.alpha))
    if score.stopped:
        raise UserError(f"the robot was stopped: {score.stopped}; the same command goes on from here")


def _robot_config(words: list[str]) -> RobotConfig:
    torch.set_num_threads(1)  # for a small network, more threads cost more in waiting than they gain
    preset, words = (None, words) if "=" in words[0] else (words[0], words[1:])
    config = compose(preset, words, RobotConfig)
    if config.success == "key" and not has_terminal():
        raise UserError("success=key: expected a terminal to type s in; run it in one, or choose robot or read_out")
    return config


def _export(name: str, words: list[str]) -> None:
    options = compose(None, words[2:], ExportOptions)
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
    """Return `exported/` in the run folder `name`, or in the current folder if `name` is not a run."""
    return (find_run(name) or Path()) / "exported"


def _pace(contract: dict[str, Any]) -> str:
    executed, hz, budget = (contract[key] for key in ("n_action_steps", "control_hz", "latency_budget_s"))
    return f"{executed} actions a call at {hz:g} Hz: a call may take {budget:g} s"
