"""Saved state of `wamtune train`, from which a new process can resume: `checkpoints/state` of a run folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rewards.errors import UserError
from rl.policies.api import names_of_today
from rl.ppo.buffer import Samples
from rl.rounds.evaluate import EpisodeResult
from rl.rounds.gate import Verdict
from rl.rounds.guard import TaskPairs
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


TYPES = (Run, Outcome, PhaseResult, Verdict, TaskPairs, EpisodeResult, Episode, Context, Samples)
"""The only dataclasses that a state may hold: a file cannot make the loader build anything else."""

VERSION = 3
"""3: the weights of a policy have the names that `ChainPolicy` gives them. 2: observations are features by name; in
version 1, which has no number in its file, they are one state vector."""


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
    if version not in range(1, VERSION + 1):
        raise UserError(f"{path}: state_version {version}, known up to {VERSION}; upgrade wamtune")
    types: dict[str, Callable[..., Any]] = {of.__name__: of for of in TYPES}
    older: dict[str, Callable[..., Any]] = {
        "Episode": _episode,
        "Outcome": _outcome,
        "Part": _part,
        "PhaseResult": _phase_result,
        "Samples": _samples,
    }
    state = load_training_state(path, types | older)
    if version == 1 and "post" in state:
        _name_features(folder, state["post"])
    if version < 3 and "post" in state:
        run = state["post"]["run"]
        run["champion"] = names_of_today(run["champion"])
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


def _part(place: str, **saved: Any) -> PhaseResult:
    """Build what is called a part in older states, and has a `place`."""
    return _phase_result(phase=place, **saved)


def _phase_result(champion: dict[str, Any], **saved: Any) -> PhaseResult:
    """Build the result of a phase, whose champion has the names of that version."""
    return PhaseResult(champion=names_of_today(champion), **saved)


def _samples(**saved: Any) -> Samples:
    """Build samples; in older states what belongs to the reference policy is called `reference_means`."""
    return Samples(reference=saved.pop("reference_means" if "reference_means" in saved else "reference"), **saved)


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
