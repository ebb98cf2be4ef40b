"""How a verb that makes a run folder begins: with a new run of a preset, or with one that was interrupted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from rewards.errors import UserError
from rl.compose import compose, to_yaml
from rl.config import TrainConfig
from rl.stage_config import PretrainConfig, TuneConfig
from rl.verbs.run_folder import RunFolder, lock_run
from world_model.checkpoint import find_checkpoint

C = TypeVar("C", TrainConfig, PretrainConfig, TuneConfig)
State = dict[str, Any]
"""What a run had saved; `mark` is how much it had written by then, and is missing where it was finished."""


def begin(
    verb: str, words: Sequence[str], schema: type[C], load: Callable[[Path], State | None]
) -> tuple[C, RunFolder, State | None]:
    """Make a run folder for `words` (preset, then overrides), or open the one that the first word names.

    `load` returns the state of a run folder, None where it had come to none; it is returned beside config and folder.
    """
    if not words or "=" in words[0]:
        raise UserError(f"{verb} needs a preset or a run folder as its first word; `wamtune ls presets` shows them")
    folder = Path(words[0])
    if not (folder / "config.yaml").is_file():
        config = _pinned(compose(words[0], words[1:], schema))
        text = f"# wamtune {verb} {' '.join(words)}\n{to_yaml(config)}"
        return config, RunFolder.create("runs", config.name, config.seed, text, _controls(config)), None
    if words[1:]:
        anew = f"wamtune {verb} {folder / 'config.yaml'} {words[1]}"
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
    name = config.checkpoint
    run = find_checkpoint(name).resolve().parents[1]
    return replace(config, checkpoint=str(Path(name) / run.name)) if run.parent == Path(name).resolve() else config


def _controls(config: object) -> tuple[str, ...]:
    return getattr(config, "controls", ())
