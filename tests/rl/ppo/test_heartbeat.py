"""A process that does not count any more is named, one that has left is not, and one that hangs is late."""

from __future__ import annotations

import threading

import pytest
from torch.distributed import HashStore

from rl.ppo import heartbeat
from rl.ppo.heartbeat import Heartbeat


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "BEAT", 0.01)
    monkeypatch.setattr(heartbeat, "GLANCE", 1.0)


def test_processes_that_stand_still_are_named() -> None:
    store = HashStore()
    one, other = Heartbeat(store, 0, 3), Heartbeat(store, 1, 3)
    assert one.missing().startswith("process 2 does not answer any more: it was killed or stopped")
    store.add("heartbeat/2", heartbeat.ENDED)
    assert one.missing() == other.missing() == ""
    one.end()
    other.end()
    assert other.missing() == ""


def test_a_process_that_hangs_is_late() -> None:
    store = HashStore()
    one, other = Heartbeat(store, 0, 2), Heartbeat(store, 1, 2)
    assert one.late() == ""
    one.n_exchanges = 5
    assert one.missing() == "" and one.late() == "process 1 did not come to an exchange in time; it may hang"
    other.n_exchanges = 5
    assert one.missing() == one.late() == ""  # the first of them waits for the next count
    for of in (one, other):
        of.end()


def test_only_the_first_process_ends_with_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "PATIENCE", 0.5)
    gave_up, found = threading.Event(), []

    def give_up(self: Heartbeat, lost: int) -> None:
        found.append((self.rank, lost, self.is_first_to_end()))
        self.end()
        gave_up.set()

    monkeypatch.setattr(Heartbeat, "_give_up", give_up)
    store = HashStore()
    store.add("heartbeat/1", 7)  # it counted, and then stopped
    one = Heartbeat(store, 0, 2)
    assert gave_up.wait(60) and found == [(0, 1, True)]
    assert not one.is_first_to_end()
