"""Find the folder of a run by what people call it: its path, `runs/NAME` for the newest of a name, or `latest`."""

from __future__ import annotations

from pathlib import Path

LATEST = "latest"
"""Stands for the newest of all runs below `runs/`, unless there is a file or folder of that name."""


def newest_runs(name_or_path: str | Path) -> list[Path]:
    """Return the run folders that a folder of runs (`runs/NAME`) or `latest` stands for, the newest first."""
    path = Path(name_or_path)
    found = Path("runs").glob("*/[0-9]*") if str(path) == LATEST and not path.exists() else path.glob("[0-9]*")
    # The name of a run begins with the time at which it began.
    return sorted((folder for folder in found if folder.is_dir()), key=lambda folder: folder.name, reverse=True)


def find_run(name_or_path: str | Path) -> Path | None:
    """Return the run folder, the one with `config.yaml`, that a path or name stands for; None if there is none."""
    for folder in (Path(name_or_path), *newest_runs(name_or_path)):
        if (folder / "config.yaml").is_file():
            return folder
    return None
