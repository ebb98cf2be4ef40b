"""What a run leaves behind: `runs/<name>/<time>-s<seed>/` with config, metrics, episodes, checkpoints and videos."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

from torch.utils.tensorboard import SummaryWriter

from rewards.errors import UserError


class RunFolder:
    """Write metrics twice, as JSON lines and as TensorBoard events, so that both can be read while the run goes on.

    Use `create` or `open`; it is a context manager that closes its files.
    """

    def __init__(self, path: Path, purge_step: int | None = None) -> None:
        self.path = path
        self.checkpoints, self.videos = path / "checkpoints", path / "videos"
        for folder in (self.checkpoints, self.videos):
            folder.mkdir(parents=True, exist_ok=True)
        self._metrics = (path / "metrics.jsonl").open("a", encoding="utf-8")
        self._eval = (path / "eval.jsonl").open("a", encoding="utf-8")
        self._writer = SummaryWriter(str(path), purge_step=purge_step)

    @classmethod
    def create(cls, root: str | Path, name: str, seed: int, config_yaml: str = "") -> RunFolder:
        """Make `<root>/<name>/<YYYYmmdd-HHMMSS>-s<seed>/`, a new one always, and write its config.yaml."""
        if not name or name in (".", "..") or any(c in name for c in '/\\:*?"<>|\0'):
            raise UserError(f"name={name!r}: expected the name of a folder, letters, digits, '-' and '_'")
        stem = f"{datetime.now():%Y%m%d-%H%M%S}-s{seed}"
        attempt = 1
        while True:
            path = Path(root) / name / (stem if attempt == 1 else f"{stem}-{attempt}")
            try:
                path.mkdir(parents=True)
                break
            except FileExistsError:  # two runs within a second
                attempt += 1
            except OSError as error:
                raise UserError(f"cannot create the run folder {path}: {error.strerror}") from None
        _write_atomically(path / "config.yaml", config_yaml)
        return cls(path)

    @classmethod
    def open(cls, path: str | Path, step: int) -> RunFolder:
        """Continue a run from `step`: lines after it, and lines cut short by a crash, are dropped."""
        path = Path(path)
        if not (path / "config.yaml").is_file():
            raise UserError(f"{str(path)!r} is not a run folder: it has no config.yaml; expected runs/NAME/TIME-s0")
        for file in (path / "metrics.jsonl", path / "eval.jsonl"):
            kept = [row for row in read_rows(file) if row.get("step", 0) <= step]
            _write_atomically(file, "".join(json.dumps(row) + "\n" for row in kept))
        return cls(path, purge_step=step + 1)

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Write scalars at `step` (executed simulator steps). What is not finite becomes null, not a crash."""
        numbers = {key: _finite(value) for key, value in values.items()}
        _write_row(self._metrics, {"step": step, **numbers})
        for key, number in numbers.items():
            if number is not None:
                self._writer.add_scalar(key, number, step)
        self._writer.flush()

    def eval_row(self, row: Mapping[str, Any]) -> None:
        """Write one evaluated episode; a `step` in it is where `open` cuts."""
        _write_row(self._eval, {key: _finite(v) if isinstance(v, float) else v for key, v in row.items()})

    def close(self) -> None:
        """Close the files."""
        for file in (self._metrics, self._eval, self._writer):
            file.close()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close()
        # Bad input that shows before anything is measured leaves nothing behind.
        if kind is not None and issubclass(kind, UserError) and not self._holds_anything():
            shutil.rmtree(self.path)

    def _holds_anything(self) -> bool:
        metrics = (self.path / "metrics.jsonl").stat().st_size > 0
        return metrics or any(self.checkpoints.iterdir()) or (self.path / "episodes").exists()


def read_rows(file: str | Path) -> list[dict[str, Any]]:
    """Return the rows of a JSON-lines file; none where it is missing. A line cut short by a crash is left out."""
    rows = []
    try:
        lines = Path(file).read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    for line in lines:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def _finite(value: Any) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None


def _write_row(file: TextIO, row: Mapping[str, Any]) -> None:
    file.write(json.dumps(row) + "\n")
    file.flush()


def _write_atomically(file: Path, text: str) -> None:
    temporary = file.with_suffix(".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, file)
