"""`wamtune report`: the report of a run, written again from what its folder holds."""

from __future__ import annotations

from rewards.errors import UserError
from rl.report import write_report

HELP = """wamtune report RUN_FOLDER

Write report.html into the folder of a training run: success before and after with its controls, every gate, what the
dream promised and what the simulator gave, the same episodes in both, three of them as curves, and the command to
repeat it. One file, no network. `wamtune train` writes it by itself at its end; a run under way can be looked at too.

Examples:
  wamtune report runs/demo/20250101-120000-s0
  wamtune report runs/mix/20250101-120000-s1
"""


def run(words: list[str]) -> None:
    """Write the report of the run folder `words[0]`."""
    if len(words) != 1:
        raise UserError("report needs one run folder: wamtune report runs/NAME/TIME-s0")
    print(f"report: {write_report(words[0])}")
