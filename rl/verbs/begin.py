"""Begin a verb that has a run folder: make one for a new run, or open that of an interrupted run."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from rewards.errors import UserError
from rl.compose import compose, to_yaml
from rl.config import TrainConfig
from rl.envs.names import with_task_sets
from rl.ppo.distributed import Distributed
from rl.runs.folder import OtherFolder, RunFolder, lock_run
from rl.runs.trackers import check_tracker, make_tracker
from rl.stages.config import PretrainConfig, TuneConfig
from world_model.checkpoint import find_checkpoint
from world_model.hub import is_hub_name, parse_hub_name
from world_model.runs import find_run, newest_runs

C = TypeVar("C", TrainConfig, PretrainConfig, TuneConfig)
State = dict[str, Any]
"""Saved state of a run. `mark` holds the sizes of its logs at that time; a finished run has none."""


def begin(
    verb: str,
    words: Sequence[str],
    schema: type[C],
    load: Callable[[Path], State | None],
    root: str | Path = "runs",
) -> tuple[C, RunFolder, State | None]:
    """Make a run folder for `words` (preset, then overrides), or open the one that the first word names.

    Args:
        verb: such as "train"; for the comment in config.yaml and for messages.
        words: of the command line, after the verb.
        schema: of the config.
        load: returns the saved state of a run folder, None if it has none.
        root: folder in which `NAME/TIME` of a new run is made.

    Returns config, run folder and saved state; the state is None for a new run.

    Raises:
        UserError: the config is wrong, overrides are given for an existing run, or another process has it open.
    """
    folder = find_run(words[0])
    if folder is None:
        config = _pinned(compose(words[0], words[1:], schema))
        config = replace(config, env=with_task_sets(config.env))
        check_tracker(config.tracker)
        text = f"# {shlex.join(['wamtune', verb, *words])}\n{to_yaml(config)}"
        opened = RunFolder.create(root, config.name, config.seed, text, _controls(config))
        return config, _tracked(opened, config), None
    if words[1:]:
        anew = shlex.join(["wamtune", verb, str(folder / "config.yaml"), words[1]])
        raise UserError(f"{words[1]!r}: a run goes on with its own config; leave it out, or begin anew: {anew}")
    lock = lock_run(folder)  # lock before reading the state, which another process may be writing
    try:
        config, state = compose(folder, [], schema), load(folder)
        check_tracker(config.tracker)
        mark = {} if state is None else state.get("mark")
        return config, _tracked(RunFolder.open(folder, mark, lock, _controls(config)), config), state
    except BaseException:
        lock.close()
        raise


def begin_together(
    distributed: Distributed,
    verb: str,
    words: Sequence[str],
    schema: type[C],
    load: Callable[[Path], State | None],
    root: str | Path = "runs",
) -> tuple[C, RunFolder, State | None]:
    """Do in process 0 what `begin` does, and give its config and state to the other processes.

    After a fault torchrun starts all processes with the same words again; they then go on with the folder of this run.

    Raises:
        UserError: as in `begin`; all processes raise it.
    """
    if not distributed.is_first:
        begun: Any = distributed.from_first(None)
        config, path, state = begun
        return config, OtherFolder(path), state
    before = distributed.remembered()
    config, folder, state = begin(verb, [before] if before and find_run(before) else words, schema, load, root)
    distributed.remember(str(folder.path))
    distributed.from_first((config, folder.path, state))
    return config, folder, state


@contextmanager
def tells_how_to_go_on(verb: str, folder: Path) -> Iterator[None]:
    """Print the command that continues the run in `folder` if a person or the system interrupts it."""
    try:
        yield
    except KeyboardInterrupt:
        print(f"interrupted; to go on: wamtune {verb} {folder}", flush=True)
        raise


def _pinned(config: C) -> C:
    """Replace a checkpoint such as `latest` or `runs/NAME` by the run that is the newest now, `USER/NAME` by `hf://...`.

    When this run is resumed later, another one may be the newest, and there may be a local folder `USER/NAME`.
    """
    if isinstance(config, PretrainConfig) or (isinstance(config, TrainConfig) and not config.uses_model):
        return config
    if is_hub_name(config.checkpoint):
        return replace(config, checkpoint=str(parse_hub_name(config.checkpoint)))
    folders = newest_runs(config.checkpoint)
    if not folders:  # the name means one run or checkpoint already
        return config
    chosen = find_checkpoint(config.checkpoint).resolve().parents[1]
    return replace(config, checkpoint=next(str(folder) for folder in folders if folder.resolve() == chosen))


def _tracked(folder: RunFolder, config: C) -> RunFolder:
    """Begin the run of the tracker that the config names; without it the folder is closed again.

    Raises:
        UserError: see `make_tracker`.
    """
    try:
        folder.tracker = make_tracker(config.tracker, folder.path, config)
    except UserError as error:
        folder.__exit__(type(error))
        raise
    return folder


def _controls(config: object) -> tuple[str, ...]:
    return getattr(config, "controls", ())
