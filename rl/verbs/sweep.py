"""`wamtune sweep`: many trainings that differ in a few keys; which of them was best, by its gates.

The folder of a sweep, `sweeps/PRESET/TIME`, holds the words of the command, the trials in one file, and a folder for
each trial with its run. Every worker is a process of its own that takes one trial after the other, here or on another
machine that sees the folder: `wamtune sweep FOLDER n_workers=1`.
"""

from __future__ import annotations

import csv
import io
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.table import Table

from rewards.errors import UserError, closest_or_known
from rl.compose import compose
from rl.config import TrainConfig
from rl.runs.folder import METRICS, new_folder, read_rows
from rl.runs.progress import show
from rl.runs.verdict import read_verdict
from rl.sweeps.space import Scalar, Space, read_space, written
from rl.sweeps.study import MOST_ATTEMPTS, Row, Study, Taken, load_optuna, name_of
from rl.verbs.options import SweepOptions
from rl.verbs.train import train
from rl.verbs.words import sweep_words
from world_model.files import JSON_BYTES, parse_json, read_file, write_atomically
from world_model.runs import find_run

SWEEP, RESULTS = "sweep.json", "trials.csv"
"""Files in the folder of a sweep: the words of its command, and the table of its trials."""

GATE = "gate"
"""Value of `metric`: the success of the champion at its last gate, on episodes that are the same in every trial."""

MAY_CHANGE = ("n_trials", "n_workers")
"""Keys that may be other ones when a sweep goes on."""

LOOK_S = 1.0
"""Seconds between two looks at the workers."""


def run(words: list[str]) -> None:
    """Make the folder of a sweep, or open it; train until all trials have ended, and print the table."""
    sweep = open_sweep(words)
    print(f"sweep folder: {sweep.folder}", flush=True)
    if sweep.options.n_workers == 0:
        print(f"a worker, here or on another machine: wamtune sweep {sweep.folder} n_workers=1")
        return
    if sweep.options.n_workers == 1:
        work(sweep)
    else:
        _employ(sweep)
    rows = sweep.study.rows()
    write_atomically(sweep.folder / RESULTS, _csv(rows, list(sweep.space)).encode())
    show(_table(rows, list(sweep.space)))
    print(f"table: {sweep.folder / RESULTS}")
    if rows and rows[0].state == "complete":
        print(_about_best(sweep, rows[0]))
    elif not sweep.study.n_open:
        raise UserError(f"sweep: no trial has ended well; the first one: {_reason(rows)}")


class Sweep:
    """An open sweep.

    Args:
        folder: of the sweep.
        words: preset and `key=value`, of the command that made it.
        changed: own keys that are other ones now.
    """

    def __init__(self, folder: Path, words: Sequence[str], changed: Sequence[str] = ()) -> None:
        self.folder, self.preset = folder, words[0]
        own, self.words = sweep_words(words[1:])
        self.options = compose(None, [*own, *changed], SweepOptions)
        self.space: Space = read_space(self.options.space)

    @cached_property
    def study(self) -> Study:
        """The trials; their file is made if it is missing."""
        options = self.options
        return Study(self.folder, self.space, options.n_trials, options.prune, options.sampler_seed)

    def train_words(self, params: Mapping[str, Scalar]) -> list[str]:
        """Return the words of `wamtune train` with these values: preset, keys of the sweep, searched keys."""
        return [self.preset, *self.words, *(f"{key}={written(value)}" for key, value in params.items())]

    def measured(self, row: Mapping[str, Any]) -> float | None:
        """Return the value by which a run is compared, from a row of its log; None if it is not in this row."""
        if self.options.metric != GATE:
            return row.get(self.options.metric)
        accepted = row.get("gate/accepted")
        return None if accepted is None else row["gate/challenger" if accepted else "gate/champion"]

    def all_measured(self, run_folder: Path) -> list[float]:
        """Return these values of all rows so far, one after each gate."""
        found = (self.measured(row) for row in read_rows(run_folder / METRICS))
        return [value for value in found if value is not None]

    def check(self) -> None:
        """Compose the config with every end of the space, so that a mistake is found before the first trial.

        Raises:
            UserError: a key is wrong, a value does not fit, or nothing can be compared.
        """
        first = {key: of.examples[0] for key, of in self.space.items()}
        for key, of in self.space.items():
            for value in of.examples:
                config = compose(self.preset, self.train_words(first | {key: value})[1:], TrainConfig)
        if self.options.metric != GATE and "/" not in self.options.metric and not config.callbacks:
            raise UserError(
                f"metric={self.options.metric}: expected gate, or a key of the log such as rollout/sim_reward; see "
                "docs/logged_keys.md"
            )
        if self.options.metric == GATE and config.n_gates(can_imitate=True) == 0:
            raise UserError(
                "metric=gate: the run has no gates, by which its trials could be compared; set gate.enabled=true, or "
                "metric to a key of the log, such as rollout/sim_reward"
            )


def open_sweep(words: Sequence[str]) -> Sweep:
    """Make the folder of a sweep for preset and keys, or open the one that the first word names.

    Raises:
        UserError: a key is wrong, or a sweep that goes on is given another key than `MAY_CHANGE`.
    """
    folder = Path(words[0])
    if (folder / SWEEP).is_file():
        for word in words[1:]:
            if word.partition("=")[0] not in MAY_CHANGE:
                raise UserError(f"{word!r}: a sweep goes on with its own keys; only {', '.join(MAY_CHANGE)} may change")
        return Sweep(folder, _saved_words(folder / SWEEP), words[1:])
    load_optuna()
    Sweep(folder, words).check()
    folder = new_folder(Path("sweeps") / Path(words[0]).stem)
    write_atomically(folder / SWEEP, json.dumps({"words": list(words)}, indent=2).encode())
    return Sweep(folder, words)


def work(sweep: Sweep) -> None:
    """Train one trial after the other until there is none to take up."""
    _check_comparable(sweep.study.rows())
    while (taken := sweep.study.take()) is not None:
        try:
            _train(sweep, taken)
        finally:
            taken.close()
        _check_comparable(sweep.study.rows())


class _Hopeless(Exception):
    """A trial is below the median of the others, and ends."""


def _train(sweep: Sweep, taken: Taken) -> None:
    """Train a trial, or go on with the run that a dead worker has left, and record how it ended."""
    name = name_of(taken.number)
    n_seen: int | None = None  # values that the run has logged

    def watch(folder: Path, values: dict[str, float]) -> None:
        nonlocal n_seen
        value = sweep.measured(values)
        if value is None:
            return
        # The log of a run that goes on has earlier values; this one is in it already.
        n_seen = len(sweep.all_measured(folder)) if n_seen is None else n_seen + 1
        if taken.is_hopeless(n_seen, value):
            raise _Hopeless

    begun = find_run(sweep.folder / name)
    # Controls are no part of a comparison of trials; a key of the command can ask for them.
    words = [sweep.preset, "controls=[]", *sweep.train_words(taken.params)[1:], f"name={name}"]
    try:
        done = train([str(begun)] if begun else words, sweep.folder, watch)
    except _Hopeless:
        sweep.study.prune(taken.number)
        return
    except UserError as error:
        sweep.study.fail(taken.number, str(error))
        return
    measured = sweep.all_measured(done.folder)
    if measured:
        sweep.study.finish(taken.number, measured[-1])
        return
    sweep.study.fail(taken.number, _nothing_to_compare(sweep.options.metric, done.folder))


NOT_LOGGED = "its run has not logged "
"""Beginning of the reason of a trial without a value to compare."""


def _nothing_to_compare(metric: str, run_folder: Path) -> str:
    """Return why a finished run has no value of `metric`, with the closest key that it has logged."""
    logged = sorted({key for row in read_rows(run_folder / METRICS) for key in row if "/" in key})
    if metric == GATE or not logged:
        return f"{NOT_LOGGED}metric={metric}"
    return f"{NOT_LOGGED}metric={metric}; {closest_or_known(metric, logged)}"


def _check_comparable(rows: list[Row]) -> None:
    """End the sweep after a trial without a value to compare, unless others have one.

    Raises:
        UserError: no trial has a value.
    """
    nothing = [row.reason for row in rows if row.reason.startswith(NOT_LOGGED)]
    if nothing and not any(row.value is not None for row in rows):
        raise UserError(f"sweep: the first trial ended without a value: {nothing[0]}")


def _employ(sweep: Sweep) -> None:
    """Start workers until all trials have ended; one that dies is replaced, and its trial is taken up again.

    Raises:
        UserError: workers die and no trial ends.
    """
    n_workers = sweep.options.n_workers
    workers: list[subprocess.Popen[bytes]] = []
    shown: set[int] = set()
    n_started = n_died = 0
    try:
        while n_open := sweep.study.n_open:
            _check_comparable(sweep.study.rows())
            for worker in [worker for worker in workers if worker.poll() is not None]:
                workers.remove(worker)
                if worker.returncode != 0:
                    n_died += 1
                    print(f"a worker ended with code {worker.returncode}; its trial is taken up again", flush=True)
            if n_died > MOST_ATTEMPTS * n_workers:
                raise UserError(f"sweep: {n_died} workers died and no trial ended; see {sweep.folder / 'worker-1.log'}")
            while len(workers) < min(n_workers, n_open):
                n_started += 1
                workers.append(_worker(sweep, n_started))
            time.sleep(LOOK_S)
            n_died = 0 if _show_ended(sweep.study.rows(), shown) else n_died
        _show_ended(sweep.study.rows(), shown)
    finally:
        for worker in workers:
            worker.terminate()  # like Ctrl-C: a trial under way can be taken up again
        for worker in workers:
            worker.wait()


def _worker(sweep: Sweep, number: int) -> subprocess.Popen[bytes]:
    """Start a process that takes trials; it prints to a file in the folder of the sweep."""
    n_threads = max(1, (os.cpu_count() or 1) // sweep.options.n_workers)
    command = [sys.executable, "-m", "rl.cli", "sweep", str(sweep.folder), "n_workers=1"]
    command.append(f"n_trials={sweep.options.n_trials}")
    with (sweep.folder / f"worker-{number}.log").open("ab") as log:
        env = {"OMP_NUM_THREADS": str(n_threads), **os.environ}
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=env)


def _show_ended(rows: list[Row], shown: set[int]) -> bool:
    """Print a line for each trial that has ended since the last call; return whether there were any."""
    ended = [row for row in rows if row.state != "running" and row.number not in shown]
    for row in sorted(ended, key=lambda row: row.number):
        shown.add(row.number)
        params = "  ".join(f"{key}={written(value)}" for key, value in row.params.items())
        print(f"{name_of(row.number)}  {row.state}  {_shown(row.value)}  {params}  {row.reason}".rstrip(), flush=True)
    return bool(ended)


def _table(rows: list[Row], keys: list[str]) -> Table:
    table = Table("trial", "state")
    table.add_column("value", justify="right")
    for key in (*keys, "minutes"):
        table.add_column(key, justify="right")
    for row in rows:
        params = (written(row.params[key]) if key in row.params else "" for key in keys)
        minutes = "" if row.seconds is None else f"{row.seconds / 60:.1f}"
        table.add_row(str(row.number), row.state, _shown(row.value), *params, minutes)
    return table


def _csv(rows: list[Row], keys: list[str]) -> str:
    """Return the table as comma-separated values."""
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(["trial", "state", "value", *keys, "seconds", "reason"])
    for row in rows:
        params = [written(row.params[key]) if key in row.params else "" for key in keys]
        lines.writerow([row.number, row.state, row.value, *params, row.seconds, row.reason])
    return text.getvalue()


def _about_best(sweep: Sweep, best: Row) -> str:
    """Return where the best trial is, what its own evaluation says, and the command that repeats it."""
    folder = find_run(sweep.folder / name_of(best.number))
    verdict = None if folder is None else read_verdict(folder)
    fresh = "" if verdict is None else f"on episodes that chose nothing: {verdict.sentence}\n"
    command = shlex.join(["wamtune", "train", *sweep.train_words(best.params)])
    return f"\nbest: {name_of(best.number)}, {folder}\n{fresh}again: {command}"


def _reason(rows: list[Row]) -> str:
    return next((row.reason for row in rows if row.reason), "none has a value")


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _saved_words(file: Path) -> list[str]:
    """Return the words of the command that made a sweep.

    Raises:
        UserError: the file is damaged.
    """
    try:
        saved = parse_json(read_file(file, JSON_BYTES))
        words = [str(word) for word in saved["words"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: it does not hold the words of a sweep; begin a new one") from error
    return words or [""]
