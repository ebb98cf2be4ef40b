"""Kill a robot session while it records, and check that every finished episode is on disk.

    python benchmarks/robot_kills.py [N] [SEED]
    python benchmarks/robot_kills.py cameras READER [N] [SEED]

A session of the built-in checkpoint on the simulated arm (without real time) is killed (-9) N times (200 by default) at
random moments and started again, always recording to the same folder. An episode counts as finished when the session
has printed its line. The exit code is 1 if one is missing, a shard cannot be read, or a session could not start.

With `cameras` the policy reads images, the arm has two cameras, and the session records to a LeRobot dataset with
videos as well. After each kill LeRobot's own reader opens the dataset and decodes the first and the last frame of every
episode that is new; READER is a Python that has lerobot, such as .venv-lerobot/bin/python.
"""

from __future__ import annotations

import os
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

WITH_CAMERAS = (
    "deploy metaworld-pixels-tuned run robot-sim-pixels params.paced=false max_steps=4 n_episodes=100000 "
    "episodes=recorded dataset=dataset"
)

READ = """
import sys
from lerobot.datasets.lerobot_dataset import LeRobotDataset
read = 0
for line in sys.stdin:
    dataset = LeRobotDataset("robot/kills", root=line.strip(), video_backend="pyav")
    for episode in range(read, dataset.num_episodes):
        row = dataset.meta.episodes[episode]
        for i in (row["dataset_from_index"], row["dataset_to_index"] - 1):
            frame = dataset[i]
            assert frame["episode_index"] == episode, (frame["episode_index"], episode)
            assert all(frame["observation.images." + name].shape == (3, 96, 96) for name in ("front", "side"))
    read = dataset.num_episodes
    print("read", read, flush=True)
"""
"""Run by READER: opens the dataset in each folder that it is given, and prints how many episodes it has."""


def main() -> None:
    with_cameras = sys.argv[1:2] == ["cameras"]
    if with_cameras and not sys.argv[2:]:
        raise SystemExit("cameras needs a Python with lerobot, such as .venv-lerobot/bin/python")
    reader = Reader(sys.argv[2]) if with_cameras else None
    n, seed = (int(word) for word in (*sys.argv[3 if with_cameras else 1 :], "200", "0")[:2])
    draw, ended, lost, writing, unseen = random.Random(seed), 0, 0, 0, 0
    with tempfile.TemporaryDirectory() as folder, Progress("kill") as progress:
        store = EpisodeStore(Path(folder) / "recorded")
        for i in range(n):
            before, told = len(store), session(folder, draw, WITH_CAMERAS if reader else WORDS)
            # There may be one episode more than was printed: the kill came after it was written.
            ended, lost = ended + told, lost + max(told - (len(store) - before), 0)
            files = [*Path(folder).rglob(".*.tmp")]  # half-written at the kill
            writing += bool(files)
            if reader is not None:
                unseen = max(unseen, ended - reader.n_episodes(Path(folder) / "dataset"))
            for file in files:
                file.unlink()
            progress.update(i + 1, n, ended=ended, on_disk=len(store))
        found = store.load()
    print(f"{n} kills, {writing} while an episode was being written: {ended} had ended, {len(found)} are on disk")
    print(f"lost: {lost}; written, and killed before it was said: {len(found) - ended + lost}")
    if reader is not None:
        print(f"LeRobot read the dataset after each kill; most episodes that had ended and were not in it: {unseen}")
    sys.exit(lost > 0 or unseen > 0)


class Reader:
    """LeRobot's reader, in a process of its own.

    Args:
        python: that has lerobot.
    """

    def __init__(self, python: str) -> None:
        env = {**os.environ, "HF_HUB_OFFLINE": "1"}
        pipe = subprocess.PIPE
        self._process = subprocess.Popen([python, "-c", READ], stdin=pipe, stdout=pipe, text=True, bufsize=1, env=env)

    def n_episodes(self, dataset: Path) -> int:
        """Return the count of episodes of a dataset, after decoding images of the new ones; exit if that fails."""
        assert self._process.stdin is not None and self._process.stdout is not None
        print(dataset, file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline().split()
        if answer[:1] != ["read"]:
            raise SystemExit(f"LeRobot cannot read {dataset}")
        return int(answer[1])


def session(folder: str, draw: random.Random, words: str) -> int:
    """Start a session, kill it up to half a second after its first episode; return how many episodes it printed."""
    command = [sys.executable, "-m", "rl.cli", *words.split()]
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
