"""Experiment trackers: the values that a run logs also go to wandb, trackio or mlflow, as one run there.

TensorBoard's files and `metrics.jsonl` are always written, so a tracker is one more copy: if it fails in the middle of
a run, one line says so and the run goes on. Each is configured by its own environment variables, such as
`WANDB_MODE=offline`, `TRACKIO_DIR` and `MLFLOW_TRACKING_URI`; nothing is sent anywhere unless the config names one.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from rewards.errors import UserError
from world_model.extras import pip_line

PROJECT = "wamtune"
"""Project, or experiment, that collects the runs; `WANDB_PROJECT` and `MLFLOW_EXPERIMENT_NAME` name another."""


class Tracker(Protocol):
    """One run of a tracker."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add values at `step`, the number of updates."""

    def close(self) -> None:
        """Finish the run there."""


class Wandb:
    """A run of Weights & Biases; `run_id` continues the run of this id."""

    def __init__(self, run_id: str, name: str, folder: Path, config: dict[str, Any]) -> None:
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=run_id,
            name=name,
            dir=str(folder),
            config=config,
            resume="allow",
            settings=wandb.Settings(silent=True),
        )
        # A step axis of its own: wandb's must grow, and after a resume some steps are logged again.
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add values at `step`."""
        self._run.log({**values, "step": step})

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


class Trackio:
    """A run of trackio, in its folder of this machine unless its environment variables name a server."""

    def __init__(self, run_id: str, name: str, folder: Path, config: dict[str, Any]) -> None:
        import trackio

        with contextlib.redirect_stdout(io.StringIO()):  # it prints how to look at the run, with escape codes
            self._run = trackio.init(
                project=PROJECT, name=run_id, config=config, resume="allow", embed=False, auto_log_cpu=False
            )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add values at `step`."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """Finish the run."""
        with contextlib.redirect_stdout(io.StringIO()):
            self._run.finish()


class Mlflow:
    """A run of MLflow; a run of the same name is continued."""

    def __init__(self, run_id: str, name: str, folder: Path, config: dict[str, Any]) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        self._client, self._metric = MlflowClient(), Metric
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        found = self._client.get_experiment_by_name(experiment)
        number = self._client.create_experiment(experiment) if found is None else found.experiment_id
        before = self._client.search_runs([number], filter_string=f"attributes.run_name = '{run_id}'", max_results=1)
        if before:
            self._id = before[0].info.run_id
            return
        self._id = self._client.create_run(number, run_name=run_id, tags={"folder": str(folder)}).info.run_id
        params = [Param(key, str(value)[:500]) for key, value in flat(config).items()]
        for first in range(0, len(params), 100):  # the most that one request may hold
            self._client.log_batch(self._id, params=params[first : first + 100])

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add values at `step`."""
        metrics = [self._metric(key, value, 0, step) for key, value in values.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def close(self) -> None:
        """Finish the run."""
        self._client.set_terminated(self._id)


BUILTIN: dict[str, Callable[[str, str, Path, dict[str, Any]], Tracker]] = {
    "wandb": Wandb,
    "trackio": Trackio,
    "mlflow": Mlflow,
}
"""Value of `tracker`, which is also the name of its package and of the pip extra -> its class."""


class Guarded:
    """A tracker whose failures end the tracking and never the run."""

    def __init__(self, kind: str, tracker: Tracker) -> None:
        self.kind, self._tracker = kind, tracker
        self.has_failed = False

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add values at `step`."""
        self._try(lambda: self._tracker.log(step, values))

    def close(self) -> None:
        """Finish the run there."""
        self._try(self._tracker.close)

    def _try(self, call: Callable[[], None]) -> None:
        if self.has_failed:
            return
        try:
            call()
        except Exception as error:  # whatever a server or a package raises
            self.has_failed = True
            line = " ".join(str(error).split())[:200]
            print(f"tracker={self.kind}: {type(error).__name__}: {line}; the run goes on without it", flush=True)


def check_tracker(kind: str) -> None:
    """Refuse a tracker whose package is missing.

    Raises:
        UserError: it is missing; the pip extra is named.
    """
    if kind in BUILTIN and importlib.util.find_spec(kind) is None:
        raise UserError(f"tracker={kind}: it needs the package {kind}; {pip_line(kind)}")


def make_tracker(kind: str, folder: Path, config: Any) -> Tracker | None:
    """Begin, or continue, the run of a tracker for a run folder `runs/NAME/TIME`; None for `tensorboard`.

    Args:
        kind: `tensorboard`, or a name in `BUILTIN`.
        folder: of the run; its last two names identify the run.
        config: dataclass, shown with the run.

    Raises:
        UserError: the tracker cannot begin, for example because nobody has logged in.
    """
    if kind not in BUILTIN:
        return None
    name = "/".join(folder.parts[-2:])
    try:
        return Guarded(kind, BUILTIN[kind](name.replace("/", "-"), name, folder, asdict(config)))
    except Exception as error:
        line = " ".join(str(error).split())[:300]
        raise UserError(f"tracker={kind}: {type(error).__name__}: {line}; set it up, or leave tracker out") from error


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested groups of a config as one, with dotted keys."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return found
