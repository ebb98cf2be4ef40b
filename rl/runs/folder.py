"""The folder of a run: `runs/<name>/<time>-s<seed>/` with config, metrics, episodes, checkpoints and videos."""

from __future__ import annotations

import itertools
import json
import math
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import SummaryWriter

from rewards.errors import UserError
from rl.runs.trackers import Tracker
from world_model.files import cannot_write, lock, open_file, open_log, read_file, remove, write_atomically

METRICS, EVAL = "metrics.jsonl", "eval.jsonl"

LINES = (METRICS, EVAL)
"""The files of a run folder that grow line by line."""


class RunFolder:
    """Write metrics as JSON lines and as TensorBoard events; both can be read while the run goes on.

    Get one from `create` or `open`. It is a context manager that closes its files, and it locks the folder against
    other processes. Keys that begin with the name of a control, such as `anchor/train/ref_kl`, go to a TensorBoard run
    of their own in `controls/anchor`, under the key `train/ref_kl`.
    """

    def __init__(self, path: Path, lock: TextIO | None = None, controls: Collection[str] = ()) -> None:
        self.path, self.controls = path, controls
        self._lock, self._kept = lock or lock_run(path), False
        self.checkpoints, self.videos = path / "checkpoints", path / "videos"
        for folder in (self.checkpoints, self.videos):
            folder.mkdir(parents=True, exist_ok=True)
        self._metrics, self._eval = open_log(path / METRICS), open_log(path / EVAL)
        self._writers = {"": SummaryWriter(str(path))}  # by control; those of controls are made at their first value
        self.tracker: Tracker | None = None  # gets what is logged from now on, under its whole key

    @classmethod
    def create(
        cls, root: str | Path, name: str, seed: int, config_yaml: str = "", controls: Collection[str] = ()
    ) -> RunFolder:
        """Make a new folder `<root>/<name>/<YYYYmmdd-HHMMSS>-s<seed>/` and write its config.yaml.

        Raises:
            UserError: `name` is not a valid folder name, or the folder cannot be created.
        """
        if not name or name in (".", "..") or any(c in name for c in '/\\:*?"<>|\0'):
            raise UserError(f"name={name!r}: expected the name of a folder, letters, digits, '-' and '_'")
        path = new_folder(Path(root) / name, f"-s{seed}")
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
        """Open the folder of an earlier run to continue it.

        Args:
            path: of the run folder.
            mark: log sizes of `mark()`, to continue from there; later lines are dropped. Default: keep all lines.
            lock: of `lock_run`, if the caller already holds it.
            controls: names of the controls of the run.

        A line that a crash cut short is dropped. The TensorBoard events are written again from the remaining lines.

        Raises:
            UserError: `path` is not a run folder, or another process has it open.
        """
        path = Path(path)
        if not (path / "config.yaml").is_file():
            raise UserError(f"{str(path)!r} is not a run folder: it has no config.yaml; expected runs/NAME/TIME-s0")
        lock = lock or lock_run(path)
        for name in LINES:
            if (file := path / name).is_file():
                written = read_file(file, LOG_BYTES)
                end = len(written) if mark is None else mark.get(name, 0)
                # Keep whole lines only: cut after the last newline before `end`.
                write_atomically(file, written[: written.rfind(b"\n", 0, end) + 1])
        for unfinished in path.glob("checkpoints/.*.tmp"):  # of a checkpoint that a crash interrupted
            remove(unfinished)
        run = cls(path, lock, controls)
        run._kept = True  # never delete a folder that existed before: it may hold other files
        run._draw_again()
        return run

    def mark(self) -> dict[str, int]:
        """Return the current sizes of the logs in bytes, from which `open` can continue."""
        return {name: (self.path / name).stat().st_size for name in LINES}

    def go_back(self, mark: Mapping[str, int]) -> None:
        """Drop the lines after `mark`, and write the TensorBoard events again from the others."""
        for name, file in ((METRICS, self._metrics), (EVAL, self._eval)):
            file.truncate(mark[name])
        self._draw_again()

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Write scalars at `step`: updates in train, optimizer steps in pretrain and tune. NaN and inf become null."""
        numbers = {key: _finite(value) for key, value in values.items()}
        _write_row(self._metrics, {"step": step, **numbers})
        self._draw(step, numbers)
        for writer in self._writers.values():
            writer.flush()
        if self.tracker is not None:
            self.tracker.log(step, {key: number for key, number in numbers.items() if number is not None})

    def eval_row(self, row: Mapping[str, Any]) -> None:
        """Write one evaluated episode."""
        _write_row(self._eval, {key: _finite(v) if isinstance(v, float) else v for key, v in row.items()})

    def write_video(self, title: str, step: int, gif: bytes) -> None:
        """Write a GIF to `videos/` and to TensorBoard, which plays it among its images."""
        name = "".join(c if c.isalnum() else "-" for c in title.lower())
        write_atomically(self.videos / f"{name}.gif", gif)
        image = Summary.Image(encoded_image_string=gif, colorspace=3)
        writer = self._writers[""]
        writer.file_writer.add_summary(Summary(value=[Summary.Value(tag=f"videos/{name}", image=image)]), step)
        writer.flush()

    def keep(self, name: str, data: bytes) -> None:
        """Write a file into the folder atomically; afterwards the folder is kept even if the run fails."""
        write_atomically(self.path / name, data)
        self._kept = True

    def close(self) -> None:
        """Close the files, and finish the run of the tracker."""
        if self.tracker is not None:
            self.tracker.close()
        for file in (self._metrics, self._eval, *self._writers.values(), self._lock):
            file.close()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close()
        # If bad input ends the run before anything was measured, remove the folder.
        if kind is not None and issubclass(kind, UserError) and not self._holds_anything():
            shutil.rmtree(self.path)
            with suppress(OSError):  # not empty: other runs are in it
                self.path.parent.rmdir()
                self.path.parent.parent.rmdir()

    def _draw_again(self) -> None:
        """Replace all TensorBoard events by those of the lines of the metrics."""
        for writer in self._writers.values():
            writer.close()
        events = "events.out.tfevents.*"
        for old in (*self.path.glob(events), *self.path.glob(f"controls/*/{events}")):
            remove(old)
        self._writers = {"": SummaryWriter(str(self.path))}
        for row in rows_of(self.path / METRICS, LOG_BYTES):
            numbers = {key: value for key, value in row.items() if type(value) in (int, float)}
            self._draw(int(numbers.pop("step", 0)), numbers)

    def _draw(self, step: int, numbers: Mapping[str, float | None]) -> None:
        """Write scalars to TensorBoard, each to the run of its control."""
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


class OtherFolder(RunFolder):
    """The run folder as the other processes of a run see it: it has a path, and nothing is written to it."""

    def __init__(self, path: Path) -> None:
        self.path, self.checkpoints, self.videos = path, path / "checkpoints", path / "videos"

    def mark(self) -> dict[str, int]:
        """Return no sizes."""
        return {}

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Write nothing."""

    def eval_row(self, row: Mapping[str, Any]) -> None:
        """Write nothing."""

    def write_video(self, title: str, step: int, gif: bytes) -> None:
        """Write nothing."""

    def keep(self, name: str, data: bytes) -> None:
        """Write nothing."""

    def __exit__(self, *_: object) -> None:
        """Nothing is open."""


ROWS_BYTES, MOST_ROWS, LOG_BYTES = 32_000_000, 100_000, 4_000_000_000
"""Limits of JSON-lines files: bytes and rows of one that is read at once, bytes of one that is read line by line."""


def read_rows(file: str | Path) -> list[dict[str, Any]]:
    """Return the rows of a JSON-lines file, [] if it is missing. Lines that are not valid JSON objects are skipped.

    Raises:
        UserError: it has more than `MOST_ROWS` rows or `ROWS_BYTES` bytes.
    """
    rows = list(itertools.islice(rows_of(Path(file), ROWS_BYTES), MOST_ROWS + 1))
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


def new_folder(parent: Path, ending: str = "") -> Path:
    """Make the folder `<parent>/<YYYYmmdd-HHMMSS><ending>`, with a number behind it if there is one from this second.

    Raises:
        UserError: it cannot be created.
    """
    stem = f"{datetime.now():%Y%m%d-%H%M%S}{ending}"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        for attempt in itertools.count(1):
            path = parent / (stem if attempt == 1 else f"{stem}-{attempt}")
            with suppress(FileExistsError):  # another one was made within the same second
                path.mkdir()
                return path
    except OSError as error:
        raise UserError(f"cannot create the folder {error.filename}: {error.strerror}") from None
    raise AssertionError


def lock_run(path: Path) -> TextIO:
    """Lock a run folder against other processes and return the open lock file, see `lock`."""
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
