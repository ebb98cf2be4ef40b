"""A run that is stopped anywhere and continued ends with the same bits, the same lines and the same table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rl import cli
from rl.verbs import train
from world_model.checkpoint import load_checkpoint


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def stop_after_a_save(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the next saved state of a part be the last thing that a process does."""
    save_state = train.save_state

    def save(folder: Path, state: dict[str, Any]) -> None:
        save_state(folder, state)
        if "post" in state:
            raise KeyboardInterrupt

    monkeypatch.setattr(train, "save_state", save)


def folder_of(name: str) -> Path:
    (folder,) = Path("runs", name).iterdir()
    return folder


def everything(folder: Path) -> dict[str, Any]:
    """What a finished run leaves, but for clocks."""
    config, tensors = load_checkpoint(folder / "checkpoints" / "last")
    events = EventAccumulator(str(folder))
    events.Reload()
    return {
        "config": config | {"config": ""},
        "weights": tensors,
        "metrics": (folder / "metrics.jsonl").read_text(),
        "eval": (folder / "eval.jsonl").read_text().replace(folder.parent.name, "NAME"),
        "curves": {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]},
    }


def same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for name, value in one["weights"].items():
        assert torch.equal(value, other["weights"][name]), name
    for key in one.keys() - {"weights"}:
        assert one[key] == other[key], key


def test_a_run_stopped_at_every_safe_point_ends_as_if_it_had_not_been(
    tiny: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*tiny, "save_minutes=0", "env.max_steps=40", "env.obs_noise=0.001", "eval.n_paired=2"]
    words += ["dream.max_expected_error=0.1", "dream.n_episodes=2", "ppo.critic_warmup_steps=2"]
    words += ["controls=[filtered_bc]"]
    assert cli.main(["train", "mix", *words, "name=whole"]) == 0, capsys.readouterr().err
    first, n_stops = ["train", "mix", *words, "name=pieces"], 0
    with monkeypatch.context() as patch:
        stop_after_a_save(patch)
        while (code := cli.main(first)) == 130:
            n_stops, first = n_stops + 1, ["train", str(folder_of("pieces"))]
    assert code == 0, capsys.readouterr().err
    assert n_stops >= 8
    same(everything(folder_of("whole")), everything(folder_of("pieces")))

    out = capsys.readouterr().out
    assert f"interrupted; to go on: wamtune train {folder_of('pieces')}" in out
    assert cli.main(["train", str(folder_of("pieces"))]) == 0  # there is nothing left but to show it again
    again = capsys.readouterr().out
    assert again.splitlines()[2:] == out.splitlines()[-len(again.splitlines()) + 2 :]
    same(everything(folder_of("whole")), everything(folder_of("pieces")))


def test_a_run_goes_on_with_its_own_config(tiny: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    Path("runs/x/1").mkdir(parents=True)
    Path("runs/x/1/config.yaml").write_text("name: x\n")
    assert cli.main(["train", "runs/x/1", "seed=3"]) == 2
    line = capsys.readouterr().err
    assert "'seed=3': a run goes on with its own config" in line
    assert line.endswith("begin anew: wamtune train runs/x/1/config.yaml seed=3\n")
