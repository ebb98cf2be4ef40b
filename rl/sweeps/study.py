"""The trials of a sweep, in a file that several processes share: taking one up, finishing it, and the table of all.

A worker holds the lock of its trial while it trains; the lock ends with the process. So a trial that is called running
and whose lock is free was left by a worker that has died, and the next worker takes it up where it was saved.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from rewards.errors import UserError
from rl.sweeps.space import Choice, Scalar, Space
from world_model.extras import import_extra
from world_model.files import lock

STORAGE, STUDY = "study.journal", "sweep"
"""File of the trials in the folder of a sweep, and their name in it."""

MOST_ATTEMPTS = 3
"""How many workers may die with a trial before it counts as failed."""

ATTEMPTS, REASON = "attempts", "reason"
"""User attributes of a trial: how often it was taken up, and why it failed."""

LOCK_WAIT_S = 60.0


@dataclass(frozen=True)
class Row:
    """A trial as the table shows it."""

    number: int
    state: str  # complete, pruned, failed, running
    value: float | None  # what is compared, the highest is best; of a pruned trial the last one
    params: dict[str, Scalar]
    seconds: float | None
    reason: str = ""  # why it failed


class Study:
    """The trials of the sweep in `folder`.

    Args:
        folder: of the sweep.
        space: what is searched.
        n_trials: trials in all.
        prune: whether a trial that is worse than the median of the others at the same gate ends early.
        seed: of the proposals.

    Raises:
        UserError: optuna is missing.
    """

    def __init__(self, folder: Path, space: Space, n_trials: int, prune: bool, seed: int) -> None:
        self.folder, self.n_trials = folder, n_trials
        self._optuna = optuna = load_optuna()
        self._seed = seed
        self._distributions = {key: _distribution(optuna, of) for key, of in space.items()}
        self._storage = optuna.storages.JournalStorage(
            optuna.storages.journal.JournalFileBackend(str(folder / STORAGE))
        )
        # The first trials have nothing to be compared with.
        pruner = optuna.pruners.MedianPruner(n_startup_trials=4) if prune else optuna.pruners.NopPruner()
        self._study = optuna.create_study(
            storage=self._storage, study_name=STUDY, direction="maximize", load_if_exists=True, pruner=pruner
        )

    def take(self) -> Taken | None:
        """Take up a trial: one that a dead worker has left, else a new one; None: there is none to take."""
        with self._choosing():
            study = self._study
            trials = study.get_trials(deepcopy=False)
            for trial in trials:
                if trial.state.name == "RUNNING" and (held := _free(self._place(trial.number))) is not None:
                    attempts = int(trial.user_attrs.get(ATTEMPTS, 1))
                    if attempts < MOST_ATTEMPTS:
                        return self._taken(trial.number, held, attempts + 1)
                    self.fail(trial.number, f"its worker died {attempts} times")
                    held.close()
            if len(trials) >= self.n_trials:
                return None
            # Another seed for each proposal, so that workers do not propose the same.
            study.sampler = self._optuna.samplers.TPESampler(seed=self._seed + len(trials), constant_liar=True)
            number = study.ask(self._distributions).number
            return self._taken(number, lock(self._place(number)), 1)

    def finish(self, number: int, value: float) -> None:
        """Record the value of a trial that has ended."""
        self._study.tell(number, value)

    def fail(self, number: int, reason: str) -> None:
        """Record that a trial has failed."""
        self._storage.set_trial_user_attr(self._id(number), REASON, reason)
        self._study.tell(number, state=self._optuna.trial.TrialState.FAIL)

    def prune(self, number: int) -> None:
        """Record that a trial was ended early."""
        self._study.tell(number, state=self._optuna.trial.TrialState.PRUNED)

    def rows(self) -> list[Row]:
        """Return all trials, the best one first, then pruned, running and failed ones."""
        order = {"complete": 0, "pruned": 1, "running": 2, "failed": 3}
        rows = [self._row(trial) for trial in self._study.get_trials(deepcopy=False)]
        return sorted(rows, key=lambda row: (order[row.state], -(row.value or 0.0), row.number))

    @property
    def n_open(self) -> int:
        """Trials that have not ended, or not begun."""
        rows = self.rows()
        return sum(row.state == "running" for row in rows) + max(self.n_trials - len(rows), 0)

    def _row(self, trial: Any) -> Row:
        state = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}.get(trial.state.name, "running")
        last = trial.intermediate_values.get(trial.last_step) if trial.last_step is not None else None
        value = trial.value if state == "complete" else last
        seconds = None if trial.duration is None else trial.duration.total_seconds()
        return Row(trial.number, state, value, dict(trial.params), seconds, trial.user_attrs.get(REASON, ""))

    def _taken(self, number: int, held: TextIO, attempts: int) -> Taken:
        trial = self._optuna.trial.Trial(self._study, self._id(number))
        trial.set_user_attr(ATTEMPTS, attempts)
        return Taken(number, dict(trial.params), trial, held)

    def _id(self, number: int) -> int:
        study_id = self._storage.get_study_id_from_name(STUDY)
        return int(self._storage.get_trial_id_from_study_id_trial_number(study_id, number))

    def _place(self, number: int) -> Path:
        return self.folder / name_of(number)

    @contextmanager
    def _choosing(self) -> Iterator[None]:
        """Let no other process choose a trial at the same time."""
        held = lock(self.folder, LOCK_WAIT_S, "this sweep")
        try:
            yield
        finally:
            held.close()


@dataclass(frozen=True)
class Taken:
    """A trial that this process works on; close it in the end."""

    number: int
    params: dict[str, Scalar]
    trial: Any  # of optuna
    held: TextIO  # its lock

    def is_hopeless(self, step: int, value: float) -> bool:
        """Report the value after gate number `step`; return whether the trial should end now."""
        self.trial.report(value, step)
        return bool(self.trial.should_prune())

    def close(self) -> None:
        """Release the trial."""
        self.held.close()


def name_of(number: int) -> str:
    """Return the name of a trial, which is also that of its folder."""
    return f"trial-{number:03d}"


def _free(place: Path) -> TextIO | None:
    """Lock the folder of a trial; None: another process has it."""
    try:
        return lock(place)
    except UserError:
        return None


def _distribution(optuna: Any, of: Any) -> Any:
    if isinstance(of, Choice):
        return optuna.distributions.CategoricalDistribution(of.values)
    if of.is_int:
        return optuna.distributions.IntDistribution(of.low, of.high, log=of.log)
    return optuna.distributions.FloatDistribution(float(of.low), float(of.high), log=of.log)


def load_optuna() -> Any:
    """Import optuna, and let it print warnings alone.

    Raises:
        UserError: it is missing.
    """
    optuna = import_extra("optuna", "sweep", "sweep: it needs the package optuna")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
