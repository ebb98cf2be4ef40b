"""How a verb that makes a run folder begins: with a new run of a preset, or with one that was interrupted."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from rewards.errors import UserError
from rl.compose import compose, to_yaml
from rl.config import TrainConfig
from rl.runs.folder import RunFolder, lock_run
from rl.stages.config import PretrainConfig, TuneConfig
from world_model.checkpoint import find_checkpoint
from world_model.runs import find_run, newest_runs

C = TypeVar("C", TrainConfig, PretrainConfig, TuneConfig)
State = dict[str, Any]
"""What a run had saved; `mark` is how much it had written by then, and is missing where it was finished."""


def begin(
    verb: str, words: Sequence[str], schema: type[C], load: Callable[[Path], State | None]
) -> tuple[C, RunFolder, State | None]:
    """Make a run folder for `words` (preset, then overrides), or open the one that the first word names.

    `load` returns the state of a run folder, None where it had come to none; it is returned beside config and folder.
    """
    folder = find_run(words[0])
    if folder is None:
        config = _pinned(compose(words[0], words[1:], schema))
        text = f"# {shlex.join(['wamtune', verb, *words])}\n{to_yaml(config)}"
        return config, RunFolder.create("runs", config.name, config.seed, text, _controls(config)), None
    if words[1:]:
        anew = shlex.join(["wamtune", verb, str(folder / "config.yaml"), words[1]])
        raise UserError(f"{words[1]!r}: a run goes on with its own config; leave it out, or begin anew: {anew}")
    lock = lock_run(folder)  # before the state is read: another process may be writing it
    try:
        config, state = compose(folder, [], schema), load(folder)
        mark = {} if state is None else state.get("mark")
        return config, RunFolder.open(folder, mark, lock, _controls(config)), state
    except BaseException:
        lock.close()
        raise


def _pinned(config: C) -> C:
    """Name the run that a folder of runs stands for now: when a run goes on, another may be the newest of them."""
    if isinstance(config, PretrainConfig) or (isinstance(config, TrainConfig) and config.policy == "gaussian"):
        return config
    folders = newest_runs(config.checkpoint)
    if not folders:  # the name is that of a run or a checkpoint
        return config
    chosen = find_checkpoint(config.checkpoint).resolve().parents[1]
    return replace(config, checkpoint=next(str(folder) for folder in folders if folder.resolve() == chosen))


def _controls(config: object) -> tuple[str, ...]:
    return getattr(config, "controls", ())
