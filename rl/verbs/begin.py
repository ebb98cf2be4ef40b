"""How a verb that makes a run folder begins: with a new run of a preset, or with one that was interrupted."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from rewards.errors import UserError
from rl.compose import compose, to_yaml
from rl.config import TrainConfig
from rl.stage_config import PretrainConfig, TuneConfig
from rl.verbs.run_folder import RunFolder
from world_model.runs import find_run

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
        config = compose(words[0], words[1:], schema)
        text = f"# {shlex.join(['wamtune', verb, *words])}\n{to_yaml(config)}"
        return config, RunFolder.create("runs", config.name, config.seed, text), None
    if words[1:]:
        anew = shlex.join(["wamtune", verb, str(folder / "config.yaml"), words[1]])
        raise UserError(f"{words[1]!r}: a run goes on with its own config; leave it out, or begin anew: {anew}")
    state = load(folder)
    return compose(folder, [], schema), RunFolder.open(folder, {} if state is None else state.get("mark")), state
