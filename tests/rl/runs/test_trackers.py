"""Trackers: what a run sends, and that one that is missing or fails does no harm; backends where they are installed."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from rewards.errors import UserError
from rl import cli
from rl.runs import trackers
from rl.runs.folder import RunFolder, read_rows
from rl.runs.trackers import Guarded, check_tracker, flat, make_tracker


@dataclass(frozen=True)
class Inner:
    learning_rate: float = 1e-3


@dataclass(frozen=True)
class Config:
    name: str = "push"
    ppo: Inner = field(default_factory=Inner)


class Notebook:
    """Keeps what it gets, and fails from the `n`-th call on."""

    def __init__(self, n: int = 1000) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.n, self.is_closed = n, False

    def log(self, step: int, values: Mapping[str, float]) -> None:
        if len(self.rows) == self.n:
            raise ConnectionError("no route\nto host")
        self.rows.append((step, dict(values)))

    def close(self) -> None:
        self.is_closed = True


def test_a_run_folder_sends_finite_values_under_their_whole_keys(tmp_path: Path) -> None:
    seen = Notebook()
    with RunFolder.create(tmp_path, "push", 0, "name: push\n", controls=["anchor"]) as folder:
        folder.tracker = seen
        folder.log(3, {"train/approx_kl": 0.5, "anchor/train/approx_kl": 0.25, "gate/phi": float("nan")})
    assert seen.rows == [(3, {"train/approx_kl": 0.5, "anchor/train/approx_kl": 0.25})] and seen.is_closed


def test_a_tracker_that_fails_is_left_out_and_the_run_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = Notebook(n=1)
    with RunFolder.create(tmp_path, "push", 0, "name: push\n") as folder:
        folder.tracker = Guarded("wandb", seen)
        for step in range(3):
            folder.log(step, {"x": 1.0})
    assert [step for step, _ in seen.rows] == [0] and not seen.is_closed
    assert capsys.readouterr().out == "tracker=wandb: ConnectionError: no route to host; the run goes on without it\n"
    assert len(read_rows(folder.path / "metrics.jsonl")) == 3


def test_a_missing_package_is_one_line_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    assert cli.main(["train", "sim", "env.tasks=push", "tracker=trackio"]) == 2
    err = capsys.readouterr().err
    assert "tracker=trackio: it needs the package trackio; " in err and "[trackio]" in err and err.count("\n") == 1
    assert not Path("runs").exists()
    check_tracker("tensorboard")
    assert make_tracker("tensorboard", tmp_path, Config()) is None
    assert cli.main(["train", "sim", "tracker=excel"]) == 2
    assert "expected one of tensorboard, wandb, trackio, mlflow" in capsys.readouterr().err


def test_a_tracker_that_cannot_begin_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> Notebook:
        raise RuntimeError("log in first")

    monkeypatch.setitem(trackers.BUILTIN, "wandb", refuse)
    with pytest.raises(UserError, match="tracker=wandb: RuntimeError: log in first; set it up, or leave tracker out"):
        make_tracker("wandb", tmp_path, Config())


def test_nested_keys_are_flat() -> None:
    assert flat({"a": {"b": {"c": 1}}, "d": [2]}) == {"a.b.c": 1, "d": [2]}


def log_twice(kind: str, folder: Path) -> None:
    """A run that is interrupted and goes on."""
    for step in (3, 5):
        tracker = make_tracker(kind, folder, Config())
        assert isinstance(tracker, Guarded)
        tracker.log(step, {"train/approx_kl": 0.5 * step})
        tracker.close()
        assert not tracker.has_failed


def test_wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    folder = tmp_path / "push" / "20260101-000000-s0"
    folder.mkdir(parents=True)
    log_twice("wandb", folder)
    last = time.monotonic() + 60
    while True:  # a process of wandb writes the file, and `finish` does not wait for its end
        kept = list(tmp_path.rglob("run-push-20260101-000000-s0.wandb"))
        if kept and all(b"train/approx_kl" in file.read_bytes() for file in kept):
            return
        assert time.monotonic() < last, kept
        time.sleep(0.2)


def test_trackio_on_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when it is imported
    pytest.importorskip("trackio")
    log_twice("trackio", tmp_path / "push" / "20260101-000000-s0")
    (file,) = (tmp_path / "trackio").glob("wamtune*.db")
    rows = sqlite3.connect(file).execute("select step, metrics from metrics order by step").fetchall()
    assert [row[0] for row in rows] == [3, 5] and "train/approx_kl" in str(rows[0][1])


def test_mlflow_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    log_twice("mlflow", tmp_path / "push" / "20260101-000000-s0")
    client = mlflow.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("wamtune").experiment_id])
    history = client.get_metric_history(run.info.run_id, "train/approx_kl")
    assert [(of.step, of.value) for of in history] == [(3, 1.5), (5, 2.5)]
    assert run.data.params["ppo.learning_rate"] == "0.001" and run.info.status == "FINISHED"
