"""Saved state of `wamtune train`, from which a new process can resume: `checkpoints/state` of a run folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rewards.errors import UserError
from rl.ppo.buffer import Samples
from rl.rounds.evaluate import EpisodeResult
from rl.rounds.gate import Verdict
from rl.rounds.outcome import Outcome, PhaseResult
from world_model.api import Context
from world_model.checkpoint import load_checkpoint, load_training_state, pack_training_state, save_checkpoint
from world_model.data.episodes import Episode
from world_model.files import existing_folder
from world_model.spec import STATE


@dataclass
class Run:
    """A finished run, of RL or of a control, and its outcome."""

    name: str
    outcome: Outcome
    minutes: float


TYPES = (Run, Outcome, PhaseResult, Verdict, EpisodeResult, Episode, Context, Samples)
"""The only dataclasses that a state may hold: a file cannot make the loader build anything else."""

VERSION = 2
"""2: observations are features by name. In version 1, which has no number in its file, they are one state vector."""


def save_state(folder: Path, state: dict[str, Any]) -> None:
    """Replace the state of a run folder atomically."""
    files = pack_training_state(state)
    save_checkpoint(folder / "checkpoints" / "state", {"state_version": VERSION}, {}, "# State of a run\n", files)


def load_state(folder: Path) -> dict[str, Any] | None:
    """Return the state of a run folder, None if it has none.

    Raises:
        UserError: the state is damaged, of a newer version, or of an older one with images.
    """
    path = existing_folder(folder / "checkpoints" / "state")
    if not path.is_dir():
        return None
    version = load_checkpoint(path)[0].get("state_version", 1)
    if version not in (1, VERSION):
        raise UserError(f"{path}: state_version {version}, known up to {VERSION}; upgrade wamtune")
    types: dict[str, Callable[..., Any]] = {of.__name__: of for of in TYPES}
    state = load_training_state(path, types | {"Episode": _episode, "Outcome": _outcome, "Part": _phase_result})
    if version == 1 and "post" in state:
        _name_features(folder, state["post"])
    return state


def _episode(**saved: Any) -> Episode:
    """Build an episode; in version 1 it has a state vector, and `picture_every`, which only runs with images need."""
    if "state" in saved:
        saved.pop("picture_every", None)
        saved["obs"] = {STATE: saved.pop("state")}
    return Episode(**saved)


def _outcome(**saved: Any) -> Outcome:
    """Build an outcome; an older one has `parts`, as the phases of a round were called."""
    return Outcome(results=saved.pop("parts" if "parts" in saved else "results"), **saved)


def _phase_result(place: str, **saved: Any) -> PhaseResult:
    """Build what is called a part in older states, and has a `place`."""
    return PhaseResult(phase=place, **saved)


def _name_features(folder: Path, post: dict[str, Any]) -> None:
    """Convert the state of a training of version 1, in place.

    Raises:
        UserError: the model reads images: the state has their codes, and the simulator now returns images.
    """
    if any(name.startswith("model.pictures.") for name in post["weights"]):
        raise UserError(
            f"{folder}: an older version of wamtune saved the state of this run, whose model reads images; finish the "
            f"run with that version, or begin a new one: wamtune train {folder / 'config.yaml'} (the weights in "
            f"checkpoints/ stay usable: checkpoint={folder})"
        )
    sim = post["sim"]
    if sim is None:
        return
    sim["context"] = {STATE: sim["context"]}
    if recorder := sim.get("recorder"):
        for number, chunks in recorder["open"].items():
            recorder["open"][number] = [(actions, success, {STATE: frames}) for frames, actions, success in chunks]
