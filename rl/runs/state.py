"""Saved state of `wamtune train`, from which a new process can resume: `checkpoints/state` of a run folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rl.ppo.buffer import Samples
from rl.rounds.evaluate import EpisodeResult
from rl.rounds.gate import Verdict
from rl.rounds.outcome import Outcome, PhaseResult
from world_model.checkpoint import load_training_state, pack_training_state, save_checkpoint
from world_model.data.episodes import Episode
from world_model.files import existing_folder
from world_model.api import Context


@dataclass
class Run:
    """A finished run, of RL or of a control, and its outcome."""

    name: str
    outcome: Outcome
    minutes: float


class _Older:
    """Types that load what older versions saved under other names, when the phases of a round were called parts."""

    class Part:
        """What is a `PhaseResult` now."""

        def __new__(cls, place: str, **saved: Any) -> Any:
            """Build a `PhaseResult`; `place` is its `phase`."""
            return PhaseResult(phase=place, **saved)

    class Outcome:
        """An `Outcome` of this or an older version."""

        def __new__(cls, **saved: Any) -> Any:
            """Build an `Outcome`; `parts` are its `results`."""
            return Outcome(results=saved.pop("parts" if "parts" in saved else "results"), **saved)


TYPES = (Run, _Older.Outcome, PhaseResult, _Older.Part, Verdict, EpisodeResult, Episode, Context, Samples)
"""The only types that a state may hold, by their names: a file cannot make the loader build anything else."""


def save_state(folder: Path, state: dict[str, Any]) -> None:
    """Replace the state of a run folder atomically."""
    save_checkpoint(folder / "checkpoints" / "state", {}, {}, "# State of a run\n", pack_training_state(state))


def load_state(folder: Path) -> dict[str, Any] | None:
    """Return the state of a run folder, None if it has none.

    Raises:
        UserError: the state is damaged, or of another version.
    """
    path = existing_folder(folder / "checkpoints" / "state")
    return load_training_state(path, TYPES) if path.is_dir() else None
