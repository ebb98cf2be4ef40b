"""`wamtune report`: write the report of a run from the files in its folder."""

from __future__ import annotations

from pathlib import Path

from rewards.errors import UserError
from rl.report.page import write_report
from rl.runs.verdict import read_verdict
from world_model.runs import find_run


def run(words: list[str]) -> None:
    """Write the report of the run folder `words[0]`."""
    if len(words) != 1:
        raise UserError("report needs one run folder: wamtune report runs/NAME/TIME-s0")
    folder = Path(find_run(words[0]) or words[0])
    report = write_report(folder)
    if (verdict := read_verdict(folder)) is not None:
        print(verdict)
    print(f"report: {report}")
