"""`wamtune` without words: what to do next in this folder. It imports no torch, so that it answers at once."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from rewards.errors import UserError
from rl.compose import list_presets
from rl.runs.verdict import read_verdict
from world_model.files import JSON_BYTES, parse_json, read_file
from world_model.runs import LATEST, newest_runs, verb_of
from world_model.spec import IMAGES

FRESH = """There are no runs in this folder yet. The demo post-trains the built-in policy on one task of a simulated arm
and says whether it helped; it takes about 10 minutes on two cores:

  wamtune train demo"""

OTHERS = """Also:
  wamtune ls          checkpoints, presets, reward terms and tasks
  wamtune doctor      is everything installed?
  wamtune --help      all commands"""

PRESETS = {"tune": ("metaworld-tuned", "metaworld-pixels-tuned"), "train": ("mix", "pixels")}
"""Verb -> its preset for a checkpoint without cameras, and for one with cameras."""


def screen() -> str:
    """Return the text: the demo for a fresh folder, else the last run, its verdict and the next command."""
    runs = [folder for folder in newest_runs(LATEST) if (folder / "config.yaml").is_file()]
    return f"{_last(runs[0]) if runs else FRESH}\n\n{OTHERS}"


def preset_for(verb: str, checkpoint: Path) -> str:
    """Return the preset of `tune` or `train` for a checkpoint folder for which none was made."""
    return PRESETS[verb][_reads_images(checkpoint)]


def _last(run: Path) -> str:
    """Return what the newest run has shown and what to do after it."""
    verb = verb_of(run)
    lines = [f"The last run: {run} (wamtune {verb})", ""]
    if verb != "train":
        if _is_measured(run):
            return "\n".join([*lines, "It has finished. Next:", "", _command(*_next_stage(run), f"checkpoint={run}")])
        return "\n".join([*lines, "It has not finished. To go on:", "", _command(verb, str(run))])
    verdict = read_verdict(run)
    if verdict is None:
        return "\n".join([*lines, "It has not finished. To go on, or to see a report of what is there:", ""]) + (
            f"\n{_command('train', str(run))}\n{_command('report', str(run))}"
        )
    if (run / "report.html").is_file():
        lines[1:] = [f"Its report:   {run / 'report.html'}", ""]
    return "\n".join([*lines, str(verdict), "", "Next:", "", f"  {verdict.next_command}"])


def _next_stage(run: Path) -> tuple[str, str]:
    """Return verb and preset of the stage after a run of pretrain or tune.

    `wamtune tune X-tuned` follows `wamtune pretrain X-pretrained`, and `wamtune train X` follows that, as far as there
    are such presets, which the first line of the run's config names: recorded episodes, images and Isaac Lab have some.
    """
    verb, preset = read_file(run / "config.yaml", JSON_BYTES).decode(errors="replace").split(maxsplit=4)[2:4]
    following, end = {"pretrain": ("tune", "-tuned"), "tune": ("train", "")}[verb]
    own = re.sub("-(pretrained|tuned)$", end, preset)
    if own == preset or own not in dict(list_presets()):
        own = preset_for(following, _checkpoint(run))
    return following, own


def _reads_images(checkpoint: Path) -> bool:
    """Whether the model in a checkpoint folder has cameras; False where its config cannot be read."""
    try:
        features = parse_json(read_file(checkpoint / "config.json", JSON_BYTES))["spec"]["features"]
        return any(name.startswith(IMAGES) for name in features)
    except (OSError, UserError, ValueError, TypeError, KeyError, AttributeError):
        return False


def _is_measured(run: Path) -> bool:
    """Whether a run of pretrain or tune has finished: then its checkpoint has measurements."""
    try:
        return "metrics" in parse_json(read_file(_checkpoint(run) / "config.json", JSON_BYTES))
    except (OSError, UserError, ValueError, TypeError):
        return False


def _checkpoint(run: Path) -> Path:
    return run / "checkpoints" / "last"


def _command(*words: str) -> str:
    return f"  {shlex.join(['wamtune', *words])}"
