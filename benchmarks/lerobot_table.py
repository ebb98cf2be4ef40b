"""Print what PPO gave policies of LeRobot, from the run folders of `wamtune train lerobot ... controls=...`.

    python benchmarks/lerobot_table.py runs/state-*/* runs/see-*/*

A row is a task of one kind of run, over its seeds: success before, of the champion, and of those of both controls.
The gain over a control is paired on the same episodes.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from rl.compose import compose
from rl.config import TrainConfig
from rl.statistics import paired_gain, wilson


@dataclass(frozen=True)
class Ended:
    """The end of an episode."""

    success: bool


Results = dict[tuple[str, str], list[Ended]]
"""(run, phase) -> episodes in the order of their seeds."""


def main(folders: list[str]) -> None:
    """Print the table in Markdown."""
    groups: dict[tuple[str, str], list[tuple[TrainConfig, Results]]] = defaultdict(list)
    for folder in map(Path, folders):
        if (folder / "report.html").exists():  # the run has ended
            config = compose(folder, [], TrainConfig)
            groups[config.name, ", ".join(config.env.tasks)].append((config, _results(folder)))
    print("| run | task | seeds | before | champion | anchor | filtered BC | over anchor | over filtered BC |")
    print("|---|---|--:|--:|--:|--:|--:|--:|--:|")
    for (name, task), runs in sorted(groups.items()):
        all_of = _joined([results for _, results in runs])
        main_run = next(run for run, phase in all_of if run not in ("anchor", "filtered_bc"))
        champion = all_of[main_run, "after"]
        cells = [_share(all_of[main_run, "before"]), _share(champion)]
        controls = [all_of.get((control, "after")) for control in ("anchor", "filtered_bc")]
        cells += ["" if of is None else _share(of) for of in controls]
        cells += ["" if of is None else _gain(of, champion) for of in controls]
        seeds = ", ".join(str(config.seed) for config, _ in runs)
        print(f"| {name} | {task} | {seeds} | {' | '.join(cells)} |")


def _results(folder: Path) -> Results:
    rows = [json.loads(line) for line in (folder / "eval.jsonl").read_text().splitlines()]
    found: dict[tuple[str, str], dict[int, Ended]] = defaultdict(dict)
    for row in rows:
        if row.get("place") == "sim":
            found[row["run"], row["phase"]][row["seed"]] = Ended(row["success"])
    return {key: [of[seed] for seed in sorted(of)] for key, of in found.items()}


def _joined(results: list[Results]) -> Results:
    """Concatenate the episodes of all seeds of training, of the runs that all of them have."""
    keys = set.intersection(*(set(of) for of in results))
    return {key: [episode for of in results for episode in of[key]] for key in keys}


def _share(episodes: list[Ended]) -> str:
    hits, n = sum(episode.success for episode in episodes), len(episodes)
    low, high = wilson(hits, n)
    return f"{100 * hits / n:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


def _gain(before: list[Ended], after: list[Ended]) -> str:
    gain, low, high = (100 * value for value in paired_gain(before, after))
    return f"{gain:+.1f} [{low:+.1f}, {high:+.1f}]"


if __name__ == "__main__":
    main(sys.argv[1:])
