"""What a run leaves behind: `runs/<name>/<time>-s<seed>/` with config, metrics, episodes, checkpoints and videos."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import SummaryWriter

from rewards.errors import UserError
from world_model.files import cannot_write, lock, open_file, open_log, read_file, remove, write_atomically

METRICS, EVAL = LINES = ("metrics.jsonl", "eval.jsonl")


class RunFolder:
    """Write metrics twice, as JSON lines and as TensorBoard events, so that both can be read while the run goes on.

    Use `create` or `open`; it is a context manager that closes its files. No other process can open it meanwhile. What
    is logged under the name of one of the `controls`, such as `anchor/train/ref_kl`, is a run of its own in
    TensorBoard, in `controls/anchor`, where it has the key `train/ref_kl`.
    """

    def __init__(self, path: Path, lock: TextIO | None = None, controls: Collection[str] = ()) -> None:
        self.path, self.controls = path, controls
        self._lock, self._kept = lock or lock_run(path), False
        self.checkpoints, self.videos = path / "checkpoints", path / "videos"
        for folder in (self.checkpoints, self.videos):
            folder.mkdir(parents=True, exist_ok=True)
        self._metrics, self._eval = open_log(path / METRICS), open_log(path / EVAL)
        self._writers = {"": SummaryWriter(str(path))}  # control -> its own, made when it is first heard of

    @classmethod
    def create(
        cls, root: str | Path, name: str, seed: int, config_yaml: str = "", controls: Collection[str] = ()
    ) -> RunFolder:
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
        write_atomically(path / "config.yaml", config_yaml.encode())
        return cls(path, controls=controls)

    @classmethod
    def open(
        cls,
        path: str | Path,
        mark: Mapping[str, int] | None = None,
        lock: TextIO | None = None,
        controls: Collection[str] = (),
    ) -> RunFolder:
        """Go on with a run from what it had written at `mark`, from its end by default.

        Later lines, and one that a crash cut short, are dropped; TensorBoard's events are written anew from the rest.
        `lock` is what `lock_run` gave, where the caller had to look into the folder first.
        """
        path = Path(path)
        if not (path / "config.yaml").is_file():
            raise UserError(f"{str(path)!r} is not a run folder: it has no config.yaml; expected runs/NAME/TIME-s0")
        lock = lock or lock_run(path)
        for name in LINES:
            if (file := path / name).is_file():
                written = read_file(file, LOG_BYTES)
                end = len(written) if mark is None else mark.get(name, 0)
                write_atomically(file, written[: written.rfind(b"\n", 0, end) + 1])
        # What is written anew, and what a crash left of a checkpoint that was being written.
        events = "events.out.tfevents.*"
        for leftover in (*path.glob(events), *path.glob(f"controls/*/{events}"), *path.glob("checkpoints/.*.tmp")):
            remove(leftover)
        run = cls(path, lock, controls)
        run._kept = True  # it was there before this run, and so may be files of others
        for row in rows_of(path / METRICS, LOG_BYTES):
            numbers = {key: value for key, value in row.items() if type(value) in (int, float)}
            run._draw(int(numbers.pop("step", 0)), numbers)
        return run

    def mark(self) -> dict[str, int]:
        """Say how much has been written, for `open` to go on from here."""
        return {name: (self.path / name).stat().st_size for name in LINES}

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Write scalars at `step` (updates, of pretrain and tune optimizer steps). What is not finite becomes null."""
        numbers = {key: _finite(value) for key, value in values.items()}
        _write_row(self._metrics, {"step": step, **numbers})
        self._draw(step, numbers)
        for writer in self._writers.values():
            writer.flush()

    def eval_row(self, row: Mapping[str, Any]) -> None:
        """Write one evaluated episode."""
        _write_row(self._eval, {key: _finite(v) if isinstance(v, float) else v for key, v in row.items()})

    def film(self, title: str, step: int, gif: bytes) -> None:
        """Write a film to `videos/`, and show it in TensorBoard among the pictures, where it moves."""
        name = "".join(c if c.isalnum() else "-" for c in title.lower())
        write_atomically(self.videos / f"{name}.gif", gif)
        image = Summary.Image(encoded_image_string=gif, colorspace=3)
        writer = self._writers[""]
        writer.file_writer.add_summary(Summary(value=[Summary.Value(tag=f"films/{name}", image=image)]), step)
        writer.flush()

    def keep(self, name: str, data: bytes) -> None:
        """Write a file into the folder, whole or not at all; from then on the folder stays, whatever happens."""
        write_atomically(self.path / name, data)
        self._kept = True

    def close(self) -> None:
        """Close the files."""
        for file in (self._metrics, self._eval, *self._writers.values(), self._lock):
            file.close()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close()
        # Bad input that shows before anything is measured leaves nothing behind.
        if kind is not None and issubclass(kind, UserError) and not self._holds_anything():
            shutil.rmtree(self.path)
            with suppress(OSError):  # other runs are in it
                self.path.parent.rmdir()
                self.path.parent.parent.rmdir()

    def _draw(self, step: int, numbers: Mapping[str, float | None]) -> None:
        for key, number in numbers.items():
            control, _, tag = key.partition("/")
            if control not in self.controls:
                control, tag = "", key
            if control not in self._writers:
                self._writers[control] = SummaryWriter(str(self.path / "controls" / control))
            if number is not None:
                self._writers[control].add_scalar(tag, number, step)

    def _holds_anything(self) -> bool:
        metrics = (self.path / METRICS).stat().st_size > 0
        return metrics or self._kept or any(self.checkpoints.iterdir()) or (self.path / "episodes").exists()


ROWS_BYTES, MOST_ROWS, LOG_BYTES = 32_000_000, 100_000, 4_000_000_000
"""Largest file of lines that is read at once, with its rows, and the largest that is read line by line."""


def read_rows(file: str | Path) -> list[dict[str, Any]]:
    """Return the rows of a JSON-lines file; none where it is missing. A line cut short by a crash is left out."""
    rows = list(islice(rows_of(Path(file), ROWS_BYTES), MOST_ROWS + 1))
    if len(rows) > MOST_ROWS:
        raise UserError(f"{file}: it has more than {MOST_ROWS:,} lines, which is more than is shown; shorten it")
    return rows


def rows_of(file: Path, limit: int) -> Iterator[dict[str, Any]]:
    """Yield the rows of a JSON-lines file of at most `limit` bytes, see `read_rows`."""
    try:
        lines = open_file(file, limit)
    except FileNotFoundError:
        return
    with lines:
        while line := lines.readline(ROWS_BYTES):
            try:
                row = json.loads(line.decode("utf-8", errors="replace"))
            except (ValueError, RecursionError):
                continue
            if isinstance(row, dict):
                yield row


def lock_run(path: Path) -> TextIO:
    """Hold the lock of a run folder, see `lock`."""
    return lock(path, called="this run")


def _finite(value: Any) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None


def _write_row(file: TextIO, row: Mapping[str, Any]) -> None:
    try:
        file.write(json.dumps(row) + "\n")
        file.flush()
    except OSError as error:
        raise cannot_write(Path(file.name), error) from error
