"""`wamtune deploy`: export a policy, run one on a robot, compare two on it, or calibrate how one judges success."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import torch

from rewards.errors import UserError
from rl.build import is_policy
from rl.compose import compose
from rl.deploy.brought import fit_to_robot
from rl.deploy.compare import compare
from rl.deploy.contract import CONTRACT, ONNX
from rl.deploy.export import MAX_DIFFERENCE, export_policy
from rl.deploy.pilots import OnnxPilot, Pilot, load_pilot, reads_sentences
from rl.deploy.remote_pilot import RemotePilot
from rl.deploy.robot_config import RobotConfig
from rl.deploy.session import run_session
from rl.deploy.stops import has_terminal
from rl.envs.simulator import usable_device
from rl.instructions import tell
from rl.policies.api import Denoiser
from rl.policies.wam import ModelPilot
from rl.robots.api import Robot, make_robot
from rl.verbs.acting import is_of_own_class, load_brought, refuse_own_class
from rl.verbs.options import ExportOptions
from rl.verbs.words import ACTIONS
from world_model.data.episodes import PERSON
from world_model.runs import find_run


def run(words: list[str]) -> None:
    """Run the action that `words[1]` names for the checkpoint `words[0]`, and print its results."""
    if not words or "=" in words[0] or words[0] in ACTIONS:
        raise UserError("deploy needs a checkpoint or a run folder: wamtune deploy metaworld-tuned export")
    name, action = words[0], words[1] if len(words) > 1 else ""
    if action not in ACTIONS:
        raise UserError(f"deploy {name} {action!r}: expected {', '.join(ACTIONS)}, as in wamtune deploy {name} export")
    {"export": _export, "run": _run, "compare": _compare, "calibrate": _calibrate}[action](name, words)


def _run(name: str, words: list[str]) -> None:
    if len(words) < 3:
        raise UserError(
            f"deploy {name} run needs a robot and its limits: a preset such as robot-sim, or robot=... limits.low=..."
        )
    (pilot,), config, robot = _fitted([name], _robot_config(words[2:]))
    if isinstance(pilot, RemotePilot):
        budget = pilot.latency_budget_s
        print(f"{pilot}; a plan takes {1000 * pilot.latency_s():.0f} ms, the budget is {1000 * budget:.0f} ms")
    lived = run_session(pilot, config, keys=has_terminal(), robot=robot)
    episodes = [episode for episode in lived if episode.ended or episode.stopped]  # not those that the person discarded
    periods = sorted(period for episode in episodes for period in episode.periods)
    solved = [episode for episode in episodes if any(episode.success)]
    helped = sum(PERSON in episode.control for episode in solved)
    note = f", {helped} of them with a person" if config.person else ""
    print(f"{len(solved)} of {len(episodes)} episodes reported success{note}")
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
    if config.person:
        raise UserError(f"person={config.person}: a comparison is of the policies alone; leave it out")
    (champion, challenger), config, robot = _fitted([name, words[2]], config)
    score = compare(champion, challenger, (name, words[2]), config, keys=has_terminal(), robot=robot)
    print(score.verdict(config.alpha))
    if score.stopped:
        raise UserError(f"the robot was stopped: {score.stopped}; the same command goes on from here")


def _calibrate(name: str, words: list[str]) -> None:
    from rl.verbs.calibrate import calibrate_read_out  # imported here: a robot needs no scipy

    calibrate_read_out(name, words[2:])


def _robot_config(words: list[str]) -> RobotConfig:
    torch.set_num_threads(1)  # for a small network, more threads cost more in waiting than they gain
    preset, words = (None, words) if "=" in words[0] else (words[0], words[1:])
    config = compose(preset, words, RobotConfig)
    if config.success == "key" and not has_terminal():
        raise UserError("success=key: expected a terminal to type s in; run it in one, or choose robot or read_out")
    return config


def _fitted(names: list[str], config: RobotConfig) -> tuple[list[Pilot], RobotConfig, Robot | None]:
    """Load policies for one session.

    Returns:
        The policies; the config; and the robot if a policy had to be fitted to it, with a config that says so.
    """
    brought = {name: _load_brought(name, config) for name in names if config.policy or is_policy(name)}
    robot = make_robot(config.robot, config.params, config.task) if brought else None
    pilots: list[Pilot] = []
    fitted = config
    for name in names:
        if robot is not None and name in brought:
            fit, fitted = fit_to_robot(brought[name], name, config, robot)
            print(f"{name}: task {config.task}, {fit.spec.instruction(config.task)!r}, {fitted.hz:g} Hz")
            pilots.append(fit)
            continue
        refuse_own_class(name)
        pilot = load_pilot(name, config.n_denoising_steps)
        if config.instruction and (not brought or _can_be_told(pilot)):
            _tell(pilot, name, config)
        pilots.append(pilot)
    return pilots, fitted, robot


def _tell(pilot: Pilot, name: str, config: RobotConfig) -> None:
    """Give a checkpoint that reads sentences the instruction of the config, for its task.

    Raises:
        UserError: it reads none; an export has the sentences that it was made with.
    """
    task, known = config.task, pilot.spec.tasks
    if not _can_be_told(pilot):
        remedy = "leave it out"
        if isinstance(pilot, OnnxPilot):
            remedy += ", or name the checkpoint that was exported, if that reads sentences"
        raise UserError(f"instruction: {name} knows its tasks by name and reads no sentence; {remedy}")
    if not task and len(known) > 1:
        raise UserError(f"instruction={config.instruction!r:.80}: it is for one task; name that with task=...")
    given = {task or known[0]: config.instruction}
    if isinstance(pilot, RemotePilot):
        if config.text_encoder:
            raise UserError("text_encoder: the server reads the sentence; name it there, with wamtune serve")
        pilot.tell(task or known[0], config.instruction)
        print(f"{name}: task {task or known[0]}, {config.instruction!r}", flush=True)
        return
    assert isinstance(pilot, ModelPilot)
    for line in tell(pilot.model, tuple(given), given, given, config.instruction, config.text_encoder):
        print(line, flush=True)
    pilot.spec = pilot.model.spec


def _can_be_told(pilot: Pilot) -> bool:
    """Whether a policy, here or on a server, takes any sentence."""
    return reads_sentences(pilot) or (isinstance(pilot, RemotePilot) and pilot.reads_sentences)


def _load_brought(name: str, config: RobotConfig) -> Denoiser:
    # Images are recorded once a plan, which is how often they are read.
    return load_brought(name, config.policy, usable_device("device", config.device), config.n_action_steps)


def _export(name: str, words: list[str]) -> None:
    options = compose(None, words[2:], ExportOptions)
    if is_policy(name) or is_of_own_class(name):
        raise UserError(
            f"deploy {name} export: only wamtune's own policies are exported; this one runs from its checkpoint, with "
            f"wamtune deploy {name} run, or on another computer with wamtune serve {name}"
        )
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
