"""Check the words after a verb before the verb and torch are imported, so that a typo is reported at once."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from rewards.errors import UserError
from rl.compose import compose, list_presets
from rl.config import TrainConfig
from rl.deploy.robot_config import RobotConfig
from rl.envs.names import check_builtin_options
from rl.stages.config import PretrainConfig, TuneConfig
from rl.verbs.first_screen import preset_for
from rl.verbs.options import (
    CalibrateOptions,
    CollectOptions,
    DreamOptions,
    EvalOptions,
    ExportOptions,
    FitOptions,
    PlayOptions,
    RankOptions,
    ServeOptions,
    SweepOptions,
)
from world_model.hub import PREFIX, is_hub_name, parse_hub_name
from world_model.runs import find_run

PRESETS: dict[str, type] = {
    "pretrain": PretrainConfig,
    "tune": TuneConfig,
    "train": TrainConfig,
    "check": TrainConfig,
    "sweep": TrainConfig,
}
"""Schema of each verb whose first word is a preset; `check` also works without one."""

OPTIONS: dict[str, type] = {"eval": EvalOptions, "dream": DreamOptions, "fit": FitOptions}
"""Schema of each verb whose first word is a checkpoint or a folder."""

ACTIONS = {"export": 2, "run": 2, "compare": 3, "calibrate": 3}
"""Actions of `deploy` -> number of words before the preset or the keys."""

NEEDS = dict.fromkeys(("pretrain", "tune", "train"), "a preset or a run folder: see `wamtune ls presets`") | {
    "sweep": "a preset or the folder of a sweep: wamtune sweep dream space.ppo.learning_rate=log:1e-5..1e-3",
    "eval": "a checkpoint or a run folder: wamtune eval metaworld-tuned; see `wamtune ls`",
    "rank": "two checkpoints or run folders at least: wamtune rank metaworld-tuned runs/demo; see `wamtune ls`",
    "dream": "a checkpoint or a run folder: wamtune dream metaworld-tuned; see `wamtune ls`",
    "serve": "a checkpoint or a run folder: wamtune serve metaworld-tuned; see `wamtune ls`",
    "collect": "a new folder: wamtune collect runs/episodes/push env.tasks=push",
    "fit": "a folder of recorded episodes: wamtune fit runs/robot/sim",
}
"""Verb -> what its first word must be, for the error message."""

DOCTOR_PRESET = "metaworld-pretrained"
"""Preset of `wamtune pretrain` that `wamtune doctor key=value` takes if none is named."""

BUILTIN = Path(__file__).resolve().parents[2] / "world_model" / "builtin"


def check_words(verb: str, words: Sequence[str]) -> None:
    """Raise a `UserError` for every mistake that `words` alone reveal; the composed config is discarded."""
    name = words[0] if words and "=" not in words[0] else None
    if name is None and verb in NEEDS:
        raise UserError(f"{verb} needs {NEEDS[verb]}")
    if verb == "sweep":
        if not (Path(str(name)) / "sweep.json").is_file():
            own, others = sweep_words(words[1:])
            compose(None, own, SweepOptions)
            _check_preset(verb, name, others)
    elif verb in PRESETS:
        if name is None or verb == "check" or find_run(name) is None:  # a resumed run has its own config
            _check_preset(verb, name, words[name is not None :])
    elif verb == "doctor" and words:
        _check_preset("pretrain", name or DOCTOR_PRESET, words[name is not None :])
    elif verb == "collect":
        check_builtin_options(compose(None, words[1:], CollectOptions).env)
    elif verb == "rank":
        names = leading_names(words)
        if len(names) < 2:
            raise UserError(f"rank needs {NEEDS[verb]}")
        if len(set(names)) < len(names):
            raise UserError(f"rank {' '.join(names)}: a checkpoint is named twice; expected different ones")
        for other in names:
            _check_checkpoint(verb, other)
        check_builtin_options(compose(None, words[len(names) :], RankOptions).env)
    elif verb == "play":
        if name is not None:
            _check_checkpoint(verb, name)
        check_builtin_options(compose(None, words[name is not None :], PlayOptions).env)
    elif verb == "serve":
        _check_checkpoint(verb, str(name))
        compose(None, words[1:], ServeOptions)
    elif verb in OPTIONS:
        _check_checkpoint(verb, str(name))
        check_builtin_options(compose(None, words[1:], OPTIONS[verb]).env)
    elif verb == "deploy" and len(words) > 1 and words[1] in ACTIONS:
        _check_checkpoint(verb, words[0])
        rest = words[ACTIONS[words[1]] :]
        if words[1] == "export":
            compose(None, rest, ExportOptions)
        elif words[1] == "calibrate":
            compose(None, rest, CalibrateOptions)
        elif rest and "=" not in rest[0]:
            compose(rest[0], rest[1:], RobotConfig)


def presets_of(verb: str) -> list[str]:
    """Return the presets that a verb takes; `deploy` takes those of robots."""
    schema = PRESETS.get(verb, RobotConfig if verb == "deploy" else None)
    return [name for name, _ in list_presets() if schema is not None and _composes(name, schema)]


def sweep_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the `key=value` words of `wamtune sweep` in two parts: its own keys, and those of `wamtune train`."""
    own = {field.name for field in fields(SweepOptions)}
    return (
        [word for word in words if word.partition("=")[0].partition(".")[0] in own],
        [word for word in words if word.partition("=")[0].partition(".")[0] not in own],
    )


def leading_names(words: Sequence[str]) -> list[str]:
    """Return the words before the first key=value."""
    return list(itertools.takewhile(lambda word: "=" not in word, words))


def _check_preset(verb: str, name: str | None, overrides: Sequence[str]) -> None:
    """Refuse a name that is not a preset of this verb, and say what it is and how to use it."""
    if name is None or name.endswith((".yaml", ".yml")) or _composes(name, PRESETS[verb]):
        config: Any = compose(name, overrides, PRESETS[verb])
        check_builtin_options(config.env)
        _check_hub_name(getattr(config, "checkpoint", ""))
        return
    builtin = _builtin_config(name)
    folder = BUILTIN / name if builtin else Path(name)
    if builtin.get("stage") == "pretrain":
        own = preset_for("tune", folder)
        what = f"a checkpoint that only predicts; wamtune tune {own} checkpoint={name} teaches it to act"
    elif builtin or name.startswith(PREFIX) or (folder / "manifest.json").is_file():
        own = preset_for("train", folder)
        what = f"a checkpoint; train it with wamtune train {own} checkpoint={name}, measure it with wamtune eval {name}"
    elif verbs := [of for of, schema in PRESETS.items() if of not in (verb, "check") and _composes(name, schema)]:
        what = f"a preset of another verb: wamtune {verbs[0]} {name}"
    elif _composes(name, RobotConfig):
        what = f"a preset of another verb: wamtune deploy metaworld-tuned run {name}"
    elif name in _builtin_config("metaworld-tuned")["spec"]["tasks"]:
        what = f"a task; name a preset before it: wamtune {verb} mix env.tasks={name}"
    else:
        compose(name, overrides, PRESETS[verb])
        return
    raise UserError(f"{verb} {name}: expected a preset of wamtune {verb}, and {name} is {what}")


def _check_checkpoint(verb: str, name: str) -> None:
    if name in dict(list_presets()) and not _builtin_config(name) and not Path(name).exists():
        raise UserError(f"{verb} {name}: {name} is a preset; expected a checkpoint or a run, such as metaworld-tuned")
    _check_hub_name(name)


def _check_hub_name(checkpoint: str) -> None:
    """Refuse a malformed name on the Hub; whether there is such a repository is not asked here."""
    if is_hub_name(checkpoint):
        parse_hub_name(checkpoint)


def _composes(preset: str, schema: type) -> bool:
    try:
        compose(preset, [], schema)
    except UserError:
        return False
    return True


def _builtin_config(name: str) -> dict[str, Any]:
    """Return the config of a built-in checkpoint, {} if there is none of this name."""
    path = BUILTIN / Path(name).name / "config.json"
    if len(Path(name).parts) != 1 or not path.is_file():
        return {}
    config: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return config
