"""`wamtune report`: the report of a run, written again from what its folder holds."""

from __future__ import annotations

from rewards.errors import UserError
from rl.report.page import write_report
from world_model.runs import find_run


def run(words: list[str]) -> None:
    """Write the report of the run folder `words[0]`."""
    if len(words) != 1:
        raise UserError("report needs one run folder: wamtune report runs/NAME/TIME-s0")
    print(f"report: {write_report(find_run(words[0]) or words[0])}")
