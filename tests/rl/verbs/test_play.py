"""`wamtune play` as a user meets it: what it refuses, what it prints, and how it ends."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest

from rl import cli
from rl.compose import compose
from rl.play.controls import Message
from rl.verbs import play
from rl.verbs.options import PlayOptions
from rl.verbs.play import load_session
from world_model.extras import pip_line


def said(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Return the one line with which the command refuses."""
    assert cli.main(["play", *words]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("wamtune: ")
    return err.removeprefix("wamtune: ")


def test_bad_values_are_refused_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for word, expected in (
        ("place=sim", "place"),
        ("speed=0", "more than 0 and at most 1"),
        ("speed=1.5", "more than 0 and at most 1"),
        ("frames_per_s=0", "more than 0 and at most 60"),
        ("port=70000", "0 to 65535"),
        ("seed=-1", "seed=-1"),
        ("host=0.0.0.0", "unknown key 'host'"),
    ):
        assert expected in said(capsys, "metaworld-tuned", word), word
    assert "is a preset" in said(capsys, "demo")
    assert "no-such" in said(capsys, "no-such")


def test_a_model_without_images_needs_the_simulator(capsys: pytest.CaptureFixture[str]) -> None:
    line = said(capsys, "metaworld-tuned", "place=dream")
    assert "metaworld-tuned: it has no images" in line and "metaworld-pixels-tuned" in line


def test_an_unknown_task_and_no_episodes_are_named(
    capsys: pytest.CaptureFixture[str], checkpoint: Path, tmp_path: Path
) -> None:
    assert "did you mean 'push'" in said(capsys, str(checkpoint), "task=pusch")
    (tmp_path / "none").mkdir()
    assert "no recorded episodes" in said(capsys, str(checkpoint), f"episodes={tmp_path / 'none'}")


def test_without_websockets_the_extra_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "websockets.asyncio.server", None)
    assert said(capsys, "metaworld-tuned") == f"wamtune play needs websockets; install it with {pip_line('serve')}\n"


def test_a_state_model_is_drawn_beside_the_simulator(checkpoint: Path) -> None:
    """The tiny checkpoint of Meta-World: both hands move, and its policy drives."""
    session = load_session(str(checkpoint), compose(None, ["task=push"], PlayOptions))
    try:
        before = session.status()["hands"]
        session.handle(Message(held=(0.0, 1.0, 0.0, 0.0)))
        for _ in range(3):
            session.tick()
        after = session.status()["hands"]
        assert after["sim"][0] < before["sim"][0] - 0.02  # away from the camera is along -x
        assert session.panes.sim().shape == session.panes.dream().shape == (256, 256, 3)  # type: ignore[union-attr]
        session.handle(Message(press="policy"))
        assert session.tick() and session.status()["chunk"] == 4
        frames = session.twin.sim.context["state"].clone()  # type: ignore[union-attr]
        session.twin.rewind(4)  # the simulator repeats what it did
        assert (session.twin.sim.context["state"] == frames).all()  # type: ignore[union-attr]
    finally:
        session.twin.close()


def test_the_address_is_printed_and_ctrl_c_ends_it(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []

    def interrupted(session: Any, hub: Any, frames_per_s: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(play, "play", interrupted)
    monkeypatch.setattr(play.webbrowser, "open", opened.append)
    for word in ("open=false", "open=true"):
        assert cli.main(["play", str(checkpoint), "task=push", word]) == 0
        out, err = capsys.readouterr()
        found = re.search(r"^http://127\.0\.0\.1:\d+/\?token=[\w-]{32}$", out, re.M)
        assert found is not None and err == "" and out.count("\n") == 2
        assert opened == ([found[0]] if word == "open=true" else [])
