"""Find the folder of a run from its path, from `runs/NAME` (the newest run of that name) or from `latest`."""

from __future__ import annotations

from pathlib import Path

from rewards.errors import UserError
from world_model.files import JSON_BYTES, read_file

LATEST = "latest"
"""Name for the newest of all runs below `runs/`, unless a file or folder is called so."""


def newest_runs(name_or_path: str | Path) -> list[Path]:
    """Return all runs in a folder of runs (`runs/NAME`), or all runs for `latest`, the newest first."""
    path = Path(name_or_path)
    found = Path("runs").glob("*/[0-9]*") if str(path) == LATEST and not path.exists() else path.glob("[0-9]*")
    # The name of a run folder begins with its start time, so sorting by name sorts by time.
    return sorted((folder for folder in found if folder.is_dir()), key=lambda folder: folder.name, reverse=True)


def find_run(name_or_path: str | Path) -> Path | None:
    """Return the run folder (with a `config.yaml`) at a path, else the newest one of a name; None if there is none."""
    for folder in (Path(name_or_path), *newest_runs(name_or_path)):
        if (folder / "config.yaml").is_file():
            return folder
    return None


def named_runs() -> list[str]:
    """Return `runs/NAME` for each name that a run here has, sorted."""
    return sorted({str(folder.parent) for folder in Path("runs").glob("*/[0-9]*")})


def verb_of(run: Path) -> str:
    """Return the verb of a run (pretrain, tune or train), which the first line of its config names."""
    try:
        first = read_file(run / "config.yaml", JSON_BYTES).decode(errors="replace").partition("\n")[0]
    except (OSError, UserError):
        return "train"
    found = [verb for verb in ("pretrain", "tune") if first.startswith(f"# wamtune {verb} ")]
    return found[0] if found else "train"
