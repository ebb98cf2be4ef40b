"""The calibration of a read-out of success: from which probability on a session takes a frame as a success."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from rewards.errors import UserError
from world_model.files import JSON_BYTES, parse_json, read_file, write_atomically


@dataclass(frozen=True)
class Calibration:
    """What was found for one task of one checkpoint."""

    threshold: float  # probability from which on a frame counts as a success, between 0 and 1
    read_out: str  # what it was found for, see `ModelPilot.read_out_id`
    n_solved: int  # labelled episodes that it was found with
    n_failed: int

    def check(self) -> None:
        """Raise `ValueError` for values that `save_calibration` never writes."""
        counts = (self.n_solved, self.n_failed)
        if type(self.threshold) is not float or not 0 < self.threshold < 1:
            raise ValueError("threshold is not between 0 and 1")
        if type(self.read_out) is not str or any(type(n) is not int or n < 0 for n in counts):
            raise ValueError("read_out is not text, or a count is not one")


def load_calibration(path: str | Path, task: str) -> Calibration:
    """Return the calibration of a task from a file of `save_calibration`.

    Raises:
        UserError: there is no such file, it is damaged, or it has other tasks.
    """
    found = _read(Path(path))
    if task not in found:
        raise UserError(f"calibration={path}: it has no task {task}, it has {', '.join(found)}; calibrate this one too")
    return found[task]


def save_calibration(path: str | Path, task: str, calibration: Calibration) -> None:
    """Write the calibration of a task to a file, which keeps those of other tasks.

    Raises:
        UserError: the file that is there is damaged, or it cannot be written.
    """
    path = Path(path)
    found = (_read(path) if path.exists() else {}) | {task: calibration}
    rows = {name: asdict(of) for name, of in found.items()}
    write_atomically(path, (json.dumps(rows, indent=1) + "\n").encode())


def _read(path: Path) -> dict[str, Calibration]:
    """Return task -> calibration."""
    data = read_file(path, JSON_BYTES)
    try:
        found = {str(task): Calibration(**row) for task, row in parse_json(data).items()}
        for of in found.values():
            of.check()
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: it is no calibration of a read-out; expected a file that wamtune deploy CHECKPOINT calibrate "
            "EPISODES wrote; move it away"
        ) from error
    return found
