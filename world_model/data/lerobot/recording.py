"""A LeRobot v3.0 dataset with videos that grows by an episode at a time, for a robot that records.

Each episode has files of its own, and `info.json` is written last: it says how many episodes there are, and readers
ignore files beyond. So the dataset can be read whenever the program is killed, and every episode whose `append` has
returned is in it. Files that an interrupted `append` left are replaced by the next one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rewards.errors import UserError
from world_model.data.columns import Columns
from world_model.data.episodes import Episode
from world_model.data.images import count_levels, encode_png
from world_model.data.lerobot.layout import FINAL, INFO, OURS, STATS, TASKS, VERSION, read_info
from world_model.data.lerobot.tables import (
    CHUNK_FILES,
    DATA_PATH,
    combine_stats,
    features_of,
    frames_of,
    json_bytes,
    path_of,
    row_of,
    stats_of,
    tasks_parquet,
)
from world_model.data.parquet import import_pyarrow, read_parquet, to_parquet
from world_model.data.shards import OBSERVATION
from world_model.data.videos import CODEC, encode_video, import_av, pixel_format
from world_model.files import JSON_BYTES, lock, parse_json, read_file, write_atomically
from world_model.spec import IMAGES, Spec

VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
EPISODES_PATH = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"

Shapes = Mapping[str, tuple[int, ...]]
"""Camera -> (height, width, 3)."""


class Recording:
    """The dataset in a folder; use it within `writer`.

    Args:
        folder: of the dataset; made if it is missing.
        spec: of the episodes; its images are left out, `cameras` take their place.
        cameras: the cameras of the robot, as it gives their images.
        robot: name of the robot, for people.
    """

    def __init__(self, folder: str | Path, spec: Spec, cameras: Shapes, robot: str = "") -> None:
        self.folder, self.cameras, self.robot = Path(folder), dict(cameras), robot
        self.spec = replace(spec, features={name: spec.features[name] for name in spec.vectors})
        self.fps: float = int(spec.control_hz) if spec.control_hz.is_integer() else spec.control_hz
        self.n_episodes = self.n_frames = 0
        self._sentences: list[str] = []
        self._stats: dict[str, Any] = {}
        self._features: dict[str, Any] = {}

    @contextmanager
    def writer(self) -> Iterator[None]:
        """Hold the write lock of the folder, after checking that these episodes can be appended to it.

        Raises:
            UserError: av or pyarrow is missing, another process writes to the folder, it cannot be written, or it is a
                dataset with other features or another rate.
        """
        import_pyarrow()
        import_av(str(self.folder))
        with lock(self.folder):
            if (self.folder / INFO).is_file():
                self._read()
            elif others := [path.name for path in self.folder.iterdir() if path.name not in _OURS]:
                raise UserError(f"{self.folder}: it has {min(others)} and is no dataset; choose another folder")
            yield

    def append(self, episode: Episode, images: Sequence[Mapping[str, np.ndarray]]) -> None:
        """Add an episode; when this returns, it is on disk.

        Args:
            episode: must fit the spec.
            images: of each of its T + 1 frames, the image of each camera (height, width, 3) uint8.

        Raises:
            UserError: the episode does not fit, or the folder cannot be written.
        """
        episode = episode.only(self.spec.features)
        episode.check_fits(self.spec, f"{self.folder}: episode {self.n_episodes} (task {episode.task})")
        sentences = [*dict.fromkeys((*self._sentences, self.spec.instruction(episode.task)))]
        frames = frames_of(episode, self.n_episodes, self.n_frames, self.spec, sentences, self.fps)
        features = features_of(frames, self.spec) | self._camera_features()
        if self._features and features != self._features:
            raise UserError(f"{self.folder}: its episodes have other features; choose another folder with dataset=...")
        videos = {camera: [views[camera] for views in images] for camera in self.cameras}
        levels = {_column(camera): _levels(video[:-1]) for camera, video in videos.items()}
        stats = stats_of(frames, levels, episode.length)
        combined = combine_stats(self._stats, stats) if self._stats else stats
        number, n_frames = self.n_episodes, self.n_frames + episode.length
        row = row_of(episode, number, number, n_frames, self.spec, stats)
        # The order matters, see the top of this file. A row that an interrupted `append` left comes out first, since it
        # describes another episode than the files that are written now.
        (self.folder / path_of(EPISODES_PATH, number)).unlink(missing_ok=True)
        self._write(TASKS, tasks_parquet(sentences))
        for camera, video in videos.items():
            row |= self._video_row(camera, video[-1], episode.length)
            path = path_of(VIDEO_PATH, number, video_key=_column(camera))
            self._write(path, encode_video(video[:-1], self.fps))
        self._write(path_of(DATA_PATH, number), to_parquet(frames))
        self._write(path_of(EPISODES_PATH, number), to_parquet({name: [value] for name, value in row.items()}))
        self._write(STATS, json_bytes(combined))
        self._write(OURS, json_bytes({"schema_version": 2, "spec": self.spec.to_dict()}))
        self._write(INFO, json_bytes(self._info(number + 1, n_frames, len(sentences), features)))
        self.n_episodes, self.n_frames = number + 1, n_frames
        self._sentences, self._stats, self._features = sentences, combined, features

    def _read(self) -> None:
        """Continue the dataset in the folder."""
        info = read_info(self.folder)
        try:
            self.n_episodes, self.n_frames = int(info["total_episodes"]), int(info["total_frames"])
            self._features = dict(info["features"])
            stats = parse_json(read_file(self.folder / STATS, JSON_BYTES))
            rows = read_parquet(self.folder, "meta/episodes")
            begun = [str(tasks[0]) for tasks in rows["tasks"][np.argsort(rows["episode_index"])][: self.n_episodes]]
        except (OSError, LookupError, TypeError, ValueError) as error:
            raise UserError(f"{self.folder}: it cannot be continued ({error!r:.80}); choose another folder") from error
        videos = {name: feature for name, feature in self._features.items() if feature.get("dtype") == "video"}
        if float(info["fps"]) != float(self.fps) or videos != self._camera_features():
            raise UserError(f"{self.folder}: its episodes have other cameras or another rate; choose another folder")
        # Tasks are numbered as they first appear. A kill between two files leaves statistics with an episode too many,
        # which is recorded again: they are slightly off then.
        self._sentences, self._stats = [*dict.fromkeys(begun)], stats

    def _write(self, name: str, data: bytes) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, data)

    def _video_row(self, camera: str, last: np.ndarray, length: int) -> Columns:
        """Return what `meta/episodes` says of the video of an episode, and its last image, which has no frame."""
        key, number = _column(camera), self.n_episodes
        place: dict[str, float] = {"chunk_index": number // CHUNK_FILES, "file_index": number % CHUNK_FILES}
        place |= {"from_timestamp": 0.0, "to_timestamp": length / self.fps}
        columns: dict[str, Any] = {f"videos/{key}/{name}": value for name, value in place.items()}
        return columns | {FINAL + key: encode_png(torch.from_numpy(last))}

    def _camera_features(self) -> dict[str, Any]:
        """Return the `features` of info.json that are videos."""
        found = {}
        for camera, shape in self.cameras.items():
            about = {
                "video.height": shape[0],
                "video.width": shape[1],
                "video.codec": CODEC,
                "video.pix_fmt": pixel_format(shape),
                "video.is_depth_map": False,
                "video.fps": self.fps,
                "video.channels": 3,
                "has_audio": False,
            }
            names = ["height", "width", "channels"]
            found[_column(camera)] = {"dtype": "video", "shape": list(shape), "names": names, "info": about}
        return found

    def _info(self, n_episodes: int, n_frames: int, n_tasks: int, features: dict[str, Any]) -> dict[str, Any]:
        return {
            "codebase_version": VERSION,
            "robot_type": self.robot or None,
            "total_episodes": n_episodes,
            "total_frames": n_frames,
            "total_tasks": n_tasks,
            "chunks_size": CHUNK_FILES,
            "data_files_size_in_mb": 100,
            "video_files_size_in_mb": 500,
            "fps": self.fps,
            "splits": {"train": f"0:{n_episodes}"},
            "data_path": DATA_PATH,
            "video_path": VIDEO_PATH if self.cameras else None,
            "features": features,
        }


_OURS = (".lock", "data", "videos", "meta")
"""What is in a folder in which the first episode was not finished."""


def _levels(images: Sequence[np.ndarray]) -> np.ndarray:
    """Count the levels of images one after another, since together they may take much memory. Shape: (3, 256)."""
    return np.sum([count_levels(torch.from_numpy(image)) for image in images], axis=0)


def _column(camera: str) -> str:
    return OBSERVATION + IMAGES + camera
