"""The verdict on a run as its folder keeps it, for the report and for `wamtune` without words. It needs no torch."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

from rewards.errors import UserError
from world_model.files import parse_json, read_file, write_atomically

VERDICT = "verdict.json"
"""File of a run folder with its verdict."""

Kind = Literal[
    "gain",
    "control",
    "loss",
    "dream",
    "unchanged",
    "unclear",
    "unsolved",
    "no_success",
    "unfinished",
    "stopped",
]

LABELS: dict[Kind, str] = {
    "gain": "Gain",
    "control": "No more than a control",
    "loss": "Loss",
    "dream": "The dream was too optimistic",
    "unchanged": "No change",
    "unclear": "Too few episodes to say",
    "unsolved": "No episode succeeded",
    "no_success": "No success in this environment",
    "unfinished": "Not finished",
    "stopped": "Stopped by bad numbers",
}
"""Verdict -> the same in a few words."""

MOST_BYTES, MOST_LETTERS = 100_000, 2_000
"""Largest accepted size of the file, and length of a text in it."""


@dataclass(frozen=True)
class RunVerdict:
    """What a run has shown."""

    kind: Kind
    sentence: str
    next_command: str  # that is worth a try after it

    @property
    def label(self) -> str:
        """The verdict in a few words, for a heading."""
        return LABELS[self.kind]

    def __str__(self) -> str:
        return f"{self.label}. {self.sentence}"


def save_verdict(folder: Path, verdict: RunVerdict) -> None:
    """Write the verdict into a run folder."""
    write_atomically(folder / VERDICT, f"{json.dumps(asdict(verdict), indent=2)}\n".encode())


def read_verdict(folder: Path) -> RunVerdict | None:
    """Return the verdict in a run folder; None if there is none, or the file is damaged."""
    try:
        found = parse_json(read_file(folder / VERDICT, MOST_BYTES))
        kind, *texts = (found[key] for key in ("kind", "sentence", "next_command"))
    except (OSError, UserError, ValueError, KeyError, TypeError, RecursionError):
        return None
    if kind not in get_args(Kind) or not all(_is_line(text) for text in texts):
        return None
    return RunVerdict(kind, *texts)


def _is_line(text: object) -> bool:
    return isinstance(text, str) and len(text) <= MOST_LETTERS and text.isprintable()
