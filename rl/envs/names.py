"""Find the simulator that a config names, and define the options of the built-in ones.

This module does not import torch, so a command line is checked before the slow imports.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from rewards.errors import UserError
from rewards.plugins import names_file
from rl.compose import typed
from rl.config import SimulatorConfig
from rl.envs.metaworld.events import Event
from rl.envs.metaworld.task_sets import MT50, TASK_SETS

Env = TypeVar("Env", bound=SimulatorConfig)

BUILTIN = {
    "metaworld": "rl.envs.sim:MetaWorldSim",
    "gymnasium": "rl.envs.sim:GymnasiumSim",
    "isaac": "rl.envs.isaac.env:IsaacEnv",
    "recorded": "rl.envs.recorded:Recorded",
}
"""Name in `env.simulator` -> module:class."""


DESCRIBED = {
    "gymnasium": "any registered gymnasium id, or FILE.py:Class of your own",
    "isaac": "any registered task of Isaac Lab, such as Isaac-Cartpole, and Isaac-Push-Puck of our own",
    "recorded": "no simulator: the tasks that were recorded",
}
"""Name of a built-in simulator -> what tasks it has; those of Meta-World are counted."""


def describe_tasks(simulator: str) -> str:
    """Return in one line what tasks a built-in simulator has, for `wamtune ls`."""
    if simulator in DESCRIBED:
        return DESCRIBED[simulator]
    from rl.envs.metaworld.tasks import TASKS  # late: Meta-World takes half a second to import

    return f"{len(TASKS)} tasks: {', '.join(TASKS)}"


@dataclass(frozen=True)
class NoOptions:
    """Options of a simulator without options."""


@dataclass(frozen=True)
class MetaWorldOptions:
    """Options of Meta-World."""

    # domain randomisation, name -> {func, mode, low, high, every, camera}: see docs/sim_to_real.md
    events: dict[str, Event] = field(default_factory=dict)

    def check(self) -> None:
        """Refuse events with invalid ranges."""
        for name, event in self.events.items():
            try:
                event.check()
            except UserError as error:
                raise UserError(f"events.{name}.{error}") from None


@dataclass(frozen=True)
class IsaacOptions:
    """Options of Isaac Lab."""

    groups: tuple[str, ...] = ("policy",)  # observation groups whose vectors form the state
    success: str | None = "success"  # the termination term that counts as success; null: the task has none
    action_bound: float = 1.0  # actions stay within ± this; Isaac Lab declares no bounds
    overrides: tuple[str, ...] = ()  # of the task's own config, such as physics=newton_mjwarp
    device: str = "auto"  # used if the device of the run is auto; auto: the GPU if there is one

    def check(self) -> None:
        """Refuse a bound that is not positive."""
        if self.action_bound <= 0:
            raise UserError(f"action_bound={self.action_bound}: expected more than 0")


OPTIONS: dict[str, type] = {
    "metaworld": MetaWorldOptions,
    "gymnasium": NoOptions,
    "isaac": IsaacOptions,
    "recorded": NoOptions,
}
"""Name of a built-in simulator -> dataclass with its options."""


def simulator_name(env: SimulatorConfig) -> str:
    """Return the simulator of a config: `env.simulator`, or if that is empty the one that `env.id` belongs to."""
    if env.simulator:
        return env.simulator
    if not env.id:
        return "metaworld"
    return "isaac" if env.id.startswith("Isaac-") else "gymnasium"


def env_of_tasks(env: SimulatorConfig, tasks: Sequence[str]) -> SimulatorConfig:
    """Return `env`; if it names neither simulator nor id, take the id from the `tasks` of a checkpoint or of episodes.

    A task of gymnasium or Isaac Lab has the name of its id, such as Pendulum-v1 or Isaac-Cartpole. All other tasks
    belong to Meta-World, which needs no id. A file of code that a task names is never run: only `env.id` names one.
    """
    is_id = len(tasks) == 1 and (tasks[0].startswith("Isaac-") or "-v" in tasks[0]) and not names_file(tasks[0])
    return replace(env, id=tasks[0]) if is_id and not (env.simulator or env.id) else env


def check_has_simulator(env: SimulatorConfig, tasks: Sequence[str], who: str) -> None:
    """Refuse to look for the tasks of `who`, a checkpoint or a world model, in Meta-World where none is of Meta-World.

    Args:
        env: as `env_of_tasks` returned it.
        tasks: all that it knows.
        who: its name, which begins the message.

    Raises:
        UserError: `env` names no simulator, and none of the tasks is of Meta-World.
    """
    if env.simulator or env.id or set(tasks) & set(MT50):
        return
    raise UserError(
        f"{who}: its task {tasks[0]!r:.80} is none of Meta-World's; name the simulator that has it, "
        "env.simulator=FILE.py:Class or env.id=FILE.py:Class; without any, policies are compared on the robot "
        "(wamtune deploy ... compare)"
    )


def task_of_id(id: str, known: Sequence[str] = ()) -> str:
    """Return the task of a gymnasium environment: its id, or of FILE.py:Class the name of the class alone.

    In checkpoints and episodes of older versions the task has the whole id. If it is so `known` there, it stays so.
    """
    return id.rpartition(":")[2] if names_file(id) and id not in known else id


def with_task_sets(env: Env) -> Env:
    """Return `env` with each name of a set in `env.tasks` replaced by its tasks.

    Meta-World has the sets mt50, ml45 and ml45-test; `all` is replaced by none, which means those of the policy.

    Raises:
        UserError: `all` stands beside other tasks.
    """
    if "all" in env.tasks:
        if len(env.tasks) > 1:
            raise UserError(f"env.tasks={list(env.tasks)}: all means all tasks of the checkpoint; leave the others out")
        return replace(env, tasks=())
    if simulator_name(env) != "metaworld" or not set(env.tasks) & set(TASK_SETS):
        return env
    tasks = (task for name in env.tasks for task in TASK_SETS.get(name, (name,)))
    return replace(env, tasks=tuple(dict.fromkeys(tasks)))


def shown_name(env: SimulatorConfig) -> str:
    """Return how messages name the simulator of a config: by its id if it has one."""
    return f"env.id={env.id}" if env.id else f"env.simulator={simulator_name(env)}"


def check_builtin_options(env: SimulatorConfig) -> None:
    """Check `env.options` of a built-in simulator; other simulators check theirs in their class.

    Raises:
        UserError: an option is unknown, or its value does not fit; or recorded episodes are given an id.
    """
    name = simulator_name(env)
    if name == "recorded" and env.id:  # a preset says recorded, and the command an environment, which would never run
        other = "isaac" if env.id.startswith("Isaac-") else "gymnasium"
        raise UserError(
            f"env.id={env.id}: env.simulator=recorded runs none; leave it out, or add env.simulator={other}"
        )
    if name in OPTIONS:
        typed_options(name, env.options, OPTIONS[name])


def typed_options(name: str, options: Mapping[str, Any], schema: type) -> Any:
    """Return the options of simulator `name` as an instance of the dataclass `schema`.

    Raises:
        UserError: an option is unknown, or its value does not fit.
    """
    remedy = f"; env.simulator={name} on the command line drops the options of a preset"
    return typed(options, schema, "env.options", f"of simulator {name}", remedy)
