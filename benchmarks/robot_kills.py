"""Kill a robot session while it records, and count the episodes that had ended: is each of them on disk?

    python benchmarks/robot_kills.py [N] [SEED]

A session of the built-in checkpoint on the simulated arm, which waits for its commands, is killed (-9) N times (200 by
default) at random moments and begun anew, always recording to one folder. An episode counts as ended when the session
has said so. The exit code is 1 where one is missing, a shard cannot be read, or a session could not begin.
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
            # One more than was said may be there: killed after it was written.
            ended, lost = ended + told, lost + max(told - (len(store) - before), 0)
            writing += len([*store.folder.glob(".*.tmp")])  # what the kill caught half-written
            progress.update(i + 1, n, ended=ended, on_disk=len(store))
        found = store.load()
    print(f"{n} kills, {writing} while an episode was being written: {ended} had ended, {len(found)} are on disk")
    print(f"lost: {lost}; written, and killed before it was said: {len(found) - ended + lost}")
    sys.exit(lost > 0)


def session(folder: str, draw: random.Random) -> int:
    """Begin a session, kill it up to half a second after its first episode; returns how many it said had ended."""
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
    reader.join()  # what it had said is counted, whenever it is read
    return ended


if __name__ == "__main__":
    main()
