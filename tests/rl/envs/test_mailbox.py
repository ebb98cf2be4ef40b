"""A mailbox between processes: whole arrays, and nothing before the first."""

from __future__ import annotations

import math
import threading
import time
from pathlib import Path

import numpy as np

from rl.envs.mailbox import Mailbox, forget, new_mailbox


def test_a_reader_gets_whole_arrays_with_their_time() -> None:
    address = new_mailbox((40, 50, 3), "uint8")
    writer, reader = Mailbox(address), Mailbox(address)
    forget(address)
    assert not Path(address.path).exists()
    assert reader.read()[1] == -math.inf
    over = threading.Event()

    def write() -> None:
        t = 0
        while not over.is_set():
            t += 1
            writer.write(np.full((40, 50, 3), t % 256, np.uint8), float(t))

    thread = threading.Thread(target=write)
    thread.start()
    times: list[float] = []
    try:
        end = time.monotonic() + 20
        while len(set(times)) < 20 and time.monotonic() < end:
            values, taken = reader.read()
            if taken > 0:
                assert (values == int(taken) % 256).all()
                times.append(taken)
    finally:
        over.set()
        thread.join()
    assert times == sorted(times) and len(set(times)) == 20
