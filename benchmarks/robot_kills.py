"""Kill a robot session while it records, and check that every finished episode is on disk.

    python benchmarks/robot_kills.py [N] [SEED]

A session of the built-in checkpoint on the simulated arm (without real time) is killed (-9) N times (200 by default) at
random moments and started again, always recording to the same folder. An episode counts as finished when the session
has printed its line. The exit code is 1 if one is missing, a shard cannot be read, or a session could not start.
"""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from rl.runs.progress import Progress
from world_model.data.episodes import EpisodeStore

WORDS = "deploy metaworld-tuned run robot-sim params.paced=false max_steps=4 n_episodes=100000 episodes=recorded"


def main() -> None:
    n, seed = (int(word) for word in (*sys.argv[1:], "200", "0")[:2])
    draw, ended, lost, writing = random.Random(seed), 0, 0, 0
    with tempfile.TemporaryDirectory() as folder, Progress("kill") as progress:
        store = EpisodeStore(Path(folder) / "recorded")
        for i in range(n):
            before, told = len(store), session(folder, draw)
            # There may be one episode more than was printed: the kill came after it was written.
            ended, lost = ended + told, lost + max(told - (len(store) - before), 0)
            writing += len([*store.folder.glob(".*.tmp")])  # files that were half-written at the kill
            progress.update(i + 1, n, ended=ended, on_disk=len(store))
        found = store.load()
    print(f"{n} kills, {writing} while an episode was being written: {ended} had ended, {len(found)} are on disk")
    print(f"lost: {lost}; written, and killed before it was said: {len(found) - ended + lost}")
    sys.exit(lost > 0)


def session(folder: str, draw: random.Random) -> int:
    """Start a session, kill it up to half a second after its first episode; return how many episodes it printed."""
    command = [sys.executable, "-m", "rl.cli", *WORDS.split()]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True, bufsize=1)
    ended = 0
    first = threading.Event()

    def count() -> None:
        nonlocal ended
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("episode") and line.endswith("in time\n"):
                ended += 1
                first.set()

    reader = threading.Thread(target=count)
    reader.start()
    if not first.wait(timeout=120):
        process.kill()
        raise SystemExit("a session did not come to the end of its first episode within two minutes")
    time.sleep(draw.random() / 2)
    process.kill()
    process.wait()
    reader.join()  # count all lines that it had printed before the kill
    return ended


if __name__ == "__main__":
    main()
