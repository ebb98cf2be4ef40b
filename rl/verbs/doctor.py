"""`wamtune doctor`: check that this installation is complete, or say what training a model of some size would take."""

from __future__ import annotations

import platform
import re
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, requires, version

import numpy as np

from rewards.errors import UserError
from rl.compose import compose
from rl.shadow import foreign_package
from rl.stages.config import PretrainConfig
from rl.verbs.words import DOCTOR_PRESET


def run(words: list[str]) -> None:
    """Print a line for every check; with words of `wamtune pretrain`, memory and time of that training.

    Raises:
        UserError: a necessary check failed, or a word is wrong.
    """
    if words:
        from rl.stages.cost import training_cost  # imported here: the checks must run without torch as well

        preset, overrides = (DOCTOR_PRESET, words) if "=" in words[0] else (words[0], words[1:])
        print(training_cost(compose(preset, overrides, PretrainConfig)))
        return
    failed = []
    for name, check, remedy, needed in _checks():
        try:
            print(f"ok       {name}: {check()}")
        except Exception as error:  # any error fails this check alone; the others must still run
            reason = " ".join(str(error).split()) or type(error).__name__
            print(f"{'missing ' if needed else 'optional'} {name}: {reason}; {remedy}")
            failed += [name] if needed else []
    if failed:
        raise UserError(f"missing: {', '.join(failed)}; the lines above say what to do")


def _checks() -> Iterator[tuple[str, Callable[[], str], str, bool]]:
    """Yield (name, check, remedy, whether it is necessary); a check returns a description or raises an exception."""
    yield "python", _python, "", True
    yield "torch", _torch, "pip install torch", True
    for name in _packages():
        yield name, lambda name=name: version(name), f"pip install {name}", True  # type: ignore[misc]
    yield "cuda", _cuda, "not needed: everything runs on the processor", False
    yield "own packages", _own, "see there", True
    yield "meta-world", _metaworld, "pip install 'metaworld==3.1.*'", True
    yield "checkpoints", _checkpoints, "install wamtune again", True
    yield "OpenGL", _opengl, "needed for images of the simulator only", False


def _packages() -> list[str]:
    """Return the names of the required packages, except torch."""
    try:
        lines = [line for line in requires("wamtune") or [] if "extra ==" not in line]
    except PackageNotFoundError:  # run from a checkout that was not installed
        return ["stable-baselines3", "gymnasium", "omegaconf", "safetensors", "metaworld", "mujoco", "rich", "numpy"]
    return [name for line in lines if (name := re.split(r"[<>=!~\[; ]", line)[0]) != "torch"]


def _python() -> str:
    return f"{platform.python_version()} on {platform.system()}, {platform.machine()}"


def _torch() -> str:
    import torch

    return f"{torch.__version__}, {torch.get_num_threads()} threads"


def _cuda() -> str:
    import torch

    if not torch.cuda.is_available():
        raise RuntimeError("no CUDA device")
    return torch.cuda.get_device_name(0)


def _own() -> str:
    hidden = foreign_package()
    if hidden is not None:
        raise RuntimeError(hidden)
    return "rl, world_model and rewards are wamtune's own"


def _metaworld() -> str:
    import torch

    from rl.build import build_simulator
    from rl.config import SimulatorConfig

    env = build_simulator(SimulatorConfig(), ["push"], 1, model=None, known_tasks=(), n_context_frames=1, max_steps=2)
    env.reset()
    env.step(torch.zeros(1, 4))
    env.close()
    return "one step of push"


def _checkpoints() -> str:
    from world_model.checkpoint import builtin_checkpoints
    from world_model.wam.store import load_model

    names = builtin_checkpoints()
    if not names:
        raise RuntimeError("no built-in checkpoint")
    for name in names:
        load_model(name)
    return f"{', '.join(names)} loaded and verified"


def _opengl() -> str:
    from rl.envs.cameras import CameraUse
    from rl.envs.metaworld.tasks import MetaWorldTask
    from world_model.view import View

    task = MetaWorldTask("push", looked_at=True)
    task.reset(0)
    if len(np.unique(task.images({"images.main": CameraUse(View(), 64, 64)})["images.main"])) < 10:
        raise RuntimeError("the rendered image is empty")
    return "an image of push"
