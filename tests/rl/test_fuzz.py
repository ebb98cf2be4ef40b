"""A few dozen crafted inputs for every reader of files; `benchmarks/fuzz.py` runs thousands, and measures memory."""

from __future__ import annotations

import random
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import pytest

from benchmarks.crafted.readers import READERS, at_most
from benchmarks.crafted.spoil import MARK, VICTIM
from rewards.errors import UserError

N = {"ONNX": 10, "contract": 25, "MP4": 25, "metrics": 5, "pairs": 10}
"""Inputs of a reader, 40 by default; a graph is tried in its own process and a report is drawn: that takes long."""

SLOW = ("dark_video", "hostile_sizes")
"""Ways that take seconds, left to the benchmark and to tests of their own."""


class Hung(BaseException):
    """What ends a reader that waits for a pipe."""


def hang(number: int, frame: FrameType | None) -> None:
    raise Hung


@pytest.fixture(autouse=True)
def limits() -> Iterator[None]:
    """Let nothing fill the memory of the machine, or wait for ever."""
    before = signal.signal(signal.SIGALRM, hang)
    with at_most(6 * 10**9):
        yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("name", READERS)
def test_a_reader_reads_or_refuses_in_one_line(name: str, tmp_path: Path) -> None:
    reader, victim = READERS[name], tmp_path / VICTIM
    reader.make(tmp_path / "good")
    reader.read(shutil.copytree(tmp_path / "good", tmp_path / "input"))
    ways = [way for way in reader.ways if getattr(way, "__name__", "") not in SLOW]
    wrong, n_refused = [], 0
    for i in range(N.get(name, 40)):
        rng = random.Random(f"{name} test {i}")
        folder = tmp_path / "input"
        shutil.rmtree(folder)
        shutil.copytree(tmp_path / "good", folder)
        victim.write_text("whole")
        way = ways[i % len(ways)]
        way(folder, rng)
        signal.alarm(60)
        try:
            reader.read(folder)
        except UserError as error:
            n_refused += 1
            if len(str(error)) > 2000:
                wrong.append(f"{i} {way.__name__}: a line of {len(str(error))} letters")
        except (Exception, Hung) as error:
            wrong.append(f"{i} {way.__name__}: {error!r:.200}")
        signal.alarm(0)
        if victim.read_text() != "whole":
            wrong.append(f"{i} {way.__name__}: wrote through a link")
        page = folder / "report.html"
        if page.is_file() and not page.is_symlink() and MARK in page.read_text(encoding="utf-8"):
            wrong.append(f"{i} {way.__name__}: let markup through")
    assert not wrong, "\n".join(wrong)
    assert n_refused > 0
