"""Processes of one machine add their numbers in memory that they share, and through all_reduce where they cannot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.usefixtures("elsewhere")

START = """
import os
import time

import torch

from rl.ppo import sums
from rl.ppo.distributed import Distributed
from rl.ppo.sums import ReducedSums, SharedSums, new_sums

CPU = torch.device("cpu")


def added(found):
    with group._exchange():
        return found.total()


with Distributed.join() as group, group.together():
    generator = torch.Generator().manual_seed(group.rank)
"""


def run(torchrun: Any, text: str, n: int) -> None:
    Path("program.py").write_text(START + text)
    done = torchrun("program.py", n=n)
    assert done.returncode == 0, done.stderr


SHARED = """
    shared, reduced = new_sums(group, 1000, torch.float32, CPU), ReducedSums(1000, torch.float32, CPU)
    assert isinstance(shared, SharedSums)
    for step in range(3):
        numbers = torch.randn(1000, generator=generator)
        shared.own.copy_(numbers)
        reduced.own.copy_(numbers)
        total = added(shared)
        torch.testing.assert_close(total, added(reduced), atol=1e-5, rtol=1e-5)
        assert len(set(group.gather([total.numpy().tobytes()]))) == 1  # the same to the bit in each process
    assert new_sums(group, 3, torch.float64, CPU).own.dtype == torch.float64
"""


def test_shared_sums_are_those_of_all_reduce(torchrun: Any) -> None:
    run(torchrun, SHARED, n=3)


SLOW = """
    found = new_sums(group, 2, torch.float32, CPU)
    for step in range(6):
        found.own.fill_(10.0 ** group.rank * step)
        with group._exchange():
            if group.rank == step % 2:
                time.sleep(0.2)  # the other one is writing its next numbers by now
            assert found.total().tolist() == [11.0 * step] * 2
"""


def test_a_slow_process_reads_the_sum_and_not_the_next_numbers(torchrun: Any) -> None:
    run(torchrun, SLOW, n=2)


UNSEEN = """
    if group.is_first:
        del os.memfd_create  # as on another system than Linux
    found = new_sums(group, 2, torch.float32, CPU)
    assert isinstance(found, ReducedSums)
    found.own.fill_(1.0 + group.rank)
    assert added(found).tolist() == [3.0, 3.0]
    sums.MOST_NUMBERS = 9
    assert isinstance(new_sums(group, 10, torch.float32, CPU), ReducedSums)
    group.n_local = 1  # the other process is on another machine
    assert isinstance(new_sums(group, 2, torch.float32, CPU), ReducedSums)
"""


def test_without_shared_memory_sums_go_through_all_reduce(torchrun: Any) -> None:
    run(torchrun, UNSEEN, n=2)
