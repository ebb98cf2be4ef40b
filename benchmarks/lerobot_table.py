"""Print what PPO gave policies of LeRobot, from the run folders of `wamtune train lerobot ... controls=...`.

    python benchmarks/lerobot_table.py runs/state/* runs/see/*

A row is a task of one kind of run, over its seeds: success before, of the champion, and of those of both controls.
The gain over a control is paired on the same episodes.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path

from rl.compose import compose
from rl.config import TrainConfig
from rl.report.data import read_results
from rl.rounds.evaluate import EpisodeResult
from rl.statistics import describe, describe_gain

CONTROLS = "anchor", "filtered_bc"


def main(folders: list[str]) -> None:
    """Print the table in Markdown."""
    groups: dict[tuple[str, str], list[tuple[TrainConfig, Path]]] = defaultdict(list)
    for folder in map(Path, folders):
        if (folder / "report.html").exists():  # the run has ended
            config = compose(folder, [], TrainConfig)
            groups[config.name, ", ".join(config.env.tasks)].append((config, folder))
    print("| run | task | seeds | before | champion | anchor | filtered BC | over anchor | over filtered BC |")
    print("|---|---|--:|--:|--:|--:|--:|--:|--:|")
    for (name, task), runs in sorted(groups.items()):
        folders_of = [folder for _, folder in runs]
        champion = _episodes(folders_of, name, "after")
        controls = [_episodes(folders_of, control, "after") for control in CONTROLS]
        cells = [describe(_episodes(folders_of, name, "before")), describe(champion)]
        cells += [describe(of) if of else "" for of in controls]
        cells += [describe_gain(of, champion) if of else "" for of in controls]
        seeds = ", ".join(str(config.seed) for config, _ in runs)
        print(f"| {name} | {task} | {seeds} | {' | '.join(cells)} |")


def _episodes(folders: list[Path], run: str, phase: str) -> list[EpisodeResult]:
    """Return the episodes of one run or control in all folders, one after another; [] if a folder has none."""
    of_each = [read_results(folder, run)[phase] for folder in folders]
    return [result for results in of_each for result in results] if all(of_each) else []


if __name__ == "__main__":
    main(sys.argv[1:])
