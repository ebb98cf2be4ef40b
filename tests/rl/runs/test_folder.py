"""What a run leaves behind can be read, continued without double lines, and survives numbers that are none."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rewards.errors import UserError
from rl.runs.folder import RunFolder, read_rows
from rl.runs.progress import Progress


def scalars(path: Path, tag: str) -> list[tuple[int, float]]:
    """(step, value) of a TensorBoard tag, as TensorBoard itself would show it."""
    events = EventAccumulator(str(path))
    events.Reload()
    return [(event.step, round(event.value, 6)) for event in events.Scalars(tag)]


def test_layout(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path, "demo", seed=3, config_yaml="name: demo\n") as run:
        assert run.path.parent == tmp_path / "demo"
        assert run.path.name.endswith("-s3") and len(run.path.name) == len("20250101-000000-s3")
        names = {p.name for p in run.path.iterdir() if not p.name.startswith("events")}
        assert names == {"config.yaml", "metrics.jsonl", "eval.jsonl", "checkpoints", "videos", ".lock"}
        assert (run.path / "config.yaml").read_text() == "name: demo\n"


def test_two_runs_in_a_second_do_not_share_a_folder(tmp_path: Path) -> None:
    paths = set()
    for _ in range(3):
        with RunFolder.create(tmp_path, "demo", seed=0) as run:
            paths.add(run.path)
    assert len(paths) == 3


def test_a_link_to_nothing_in_the_place_of_its_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "demo").symlink_to("nowhere")
    with pytest.raises(UserError, match="demo: File exists"):
        RunFolder.create(tmp_path, "demo", seed=0)


@pytest.mark.parametrize("name", ["", "..", "a/b", "a\\b"])
def test_name_must_be_one_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="name="):
        RunFolder.create(tmp_path, name, seed=0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("steps", [0, 1])
def test_bad_input_leaves_a_folder_only_where_something_was_measured(tmp_path: Path, steps: int) -> None:
    with pytest.raises(UserError), RunFolder.create(tmp_path, "demo", seed=3) as run:
        for step in range(steps):
            run.log(step, {"train/loss": 1.0})
        raise UserError("checkpoint='nowhere': not found")
    assert run.path.exists() == bool(steps)


def test_log_writes_json_lines_and_tensorboard(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path, "demo", seed=0) as run:
        run.log(8, {"train/loss": torch.tensor(0.5), "rollout/success_rate": 0.25})
        first = read_rows(run.path / "metrics.jsonl")  # readable while the run goes on
        run.log(16, {"train/loss": 0.125})
    assert first == [{"step": 8, "train/loss": 0.5, "rollout/success_rate": 0.25}]
    assert scalars(run.path, "train/loss") == [(8, 0.5), (16, 0.125)]


def test_a_control_is_a_run_of_its_own_in_tensorboard(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path, "demo", seed=0, controls=["anchor"]) as run:
        run.log(1, {"train/loss": 0.5})
        run.log(1, {"anchor/train/loss": 0.25})
    with RunFolder.open(run.path, controls=["anchor"]) as again:  # events are written anew
        again.log(2, {"anchor/train/loss": 0.125})
    assert scalars(run.path, "train/loss") == [(1, 0.5)]
    assert scalars(run.path / "controls" / "anchor", "train/loss") == [(1, 0.25), (2, 0.125)]
    assert read_rows(run.path / "metrics.jsonl")[1] == {"step": 1, "anchor/train/loss": 0.25}


def test_numbers_that_are_not_finite_become_null(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path, "demo", seed=0) as run:
        run.log(1, {"a": float("nan"), "b": torch.tensor(float("inf")), "c": 1.0})
        run.eval_row({"step": 1, "task": "push", "return": float("-inf"), "is_success": False})
    line = (run.path / "metrics.jsonl").read_text()
    row = json.loads(line, parse_constant=lambda name: pytest.fail(name))
    assert row == {"step": 1, "a": None, "b": None, "c": 1.0}
    assert read_rows(run.path / "eval.jsonl") == [{"step": 1, "task": "push", "return": None, "is_success": False}]


def test_open_continues_without_double_lines(tmp_path: Path) -> None:
    marks = []
    with RunFolder.create(tmp_path, "demo", seed=0) as run:
        for step in (8, 16, 16, 16):  # several rows of one step, of which the mark keeps two
            run.log(step, {"x": step / 8})
            run.eval_row({"step": step, "episode": 0})
            marks.append(run.mark())
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 32, "x"')  # the crash came here
    with RunFolder.open(run.path, marks[1]) as again:
        again.log(24, {"x": -3.0})
    rows = read_rows(run.path / "metrics.jsonl")
    assert [(row["step"], row["x"]) for row in rows] == [(8, 1.0), (16, 2.0), (24, -3.0)]
    assert [row["step"] for row in read_rows(run.path / "eval.jsonl")] == [8, 16]
    assert scalars(run.path, "x") == [(8, 1.0), (16, 2.0), (24, -3.0)]


def test_going_back_drops_the_lines_since_the_mark(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path, "push", seed=0) as run:
        run.log(1, {"train/ref_kl": 0.1})
        mark = run.mark()
        run.log(2, {"train/ref_kl": 0.2})
        run.eval_row({"step": 2, "success": True})
        run.go_back(mark)
        run.log(2, {"train/ref_kl": 0.3})
    assert [row["train/ref_kl"] for row in read_rows(run.path / "metrics.jsonl")] == [0.1, 0.3]
    assert read_rows(run.path / "eval.jsonl") == []
    assert scalars(run.path, "train/ref_kl") == [(1, pytest.approx(0.1)), (2, pytest.approx(0.3))]


def test_open_refuses_another_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a run folder"):
        RunFolder.open(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_bad_input_takes_no_folder_that_was_there_before(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("name: mine")
    (tmp_path / "notes.txt").write_text("a year of work")
    with pytest.raises(UserError, match="nowhere"), RunFolder.open(tmp_path):
        raise UserError("checkpoint='nowhere': not found")
    assert (tmp_path / "notes.txt").read_text() == "a year of work"


def test_open_at_the_end_keeps_every_whole_line(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path, "demo", seed=0) as run:
        run.log(8, {"x": 1.0})
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 32, "x"')
    (run.checkpoints / ".last.tmp").mkdir()
    with RunFolder.open(run.path):
        pass
    assert list(run.checkpoints.iterdir()) == []  # what the crash left
    assert read_rows(run.path / "metrics.jsonl") == [{"step": 8, "x": 1.0}]
    assert scalars(run.path, "x") == [(8, 1.0)]


def test_a_second_writer_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path, "demo", seed=0) as run:
        run.log(8, {"x": 1.0})
        with pytest.raises(UserError, match="another process is writing to this run; wait for it"):
            RunFolder.open(run.path, {})
        run.log(16, {"x": 2.0})
    with RunFolder.open(run.path):  # closed, it is free again
        pass
    assert scalars(run.path, "x") == [(8, 1.0), (16, 2.0)]


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path, "demo", seed=0) as run:
        run.log(8, {"x": 1.0})
        run._metrics = Path("/dev/full").open("w")
        with pytest.raises(UserError, match=r"cannot write it \(No space left on device\); free the disk"):
            run.log(16, {"x": 2.0})
        run._metrics = (run.path / "metrics.jsonl").open("a")
    assert read_rows(run.path / "metrics.jsonl") == [{"step": 8, "x": 1.0}]


def test_time_left_counts_what_this_run_did() -> None:
    """Going on at 1,000 of 8,000, 10 a second: 690 seconds are left after the next 100, not 63."""
    clock, out = iter([0.0, 10.0]), StringIO()
    console = Console(file=out, width=80)
    with Progress("pretrain", every=0.0, console=console, clock=lambda: next(clock)) as progress:
        progress.update(1000, 8000)
        progress.update(1100, 8000)
    lines = out.getvalue().splitlines()
    assert "?:??" in lines[0] and "11:30 left" in lines[1]


def test_progress_prints_first_and_last_line_without_terminal() -> None:
    out = StringIO()
    with Progress("train [demo]", every=1e9, console=Console(file=out, width=40)) as progress:
        for done in range(1, 101):
            progress.update(done, 100, loss=1.0 / done, task="push")
        progress.note("accepted [1/2]")
    lines = out.getvalue().splitlines()
    assert lines[0].startswith("train [demo]  1/100 (1 %)") and lines[0].endswith("loss=1  task=push")
    assert lines[1] == "accepted [1/2]"
    assert lines[2].startswith("train [demo]  100/100 (100 %)  0:00 left") and lines[2].endswith("loss=0.01  task=push")
    assert len(lines) == 3


def test_progress_draws_a_panel_on_a_terminal() -> None:
    out = StringIO()
    with Progress("train", console=Console(file=out, force_terminal=True, width=80)) as progress:
        progress.update(0, 0)
        progress.update(50, 200, success_rate=0.512345)
    assert "50/200" in out.getvalue() and "success_rate" in out.getvalue() and "0.512" in out.getvalue()
