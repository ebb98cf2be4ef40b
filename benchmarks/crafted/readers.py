"""All readers, with what spoils their files."""

from __future__ import annotations

import random
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.crafted.checkpoints import (
    hostile_header,
    hostile_sizes,
    hostile_weights,
    make_checkpoint,
    read_checkpoint,
    signed,
)
from benchmarks.crafted.exports import hostile_graph, make_export, read_export
from benchmarks.crafted.lerobot import foreign, hostile_images, hostile_parquet, make_images, make_lerobot, read_both
from benchmarks.crafted.presets import hostile_override, hostile_yaml, make_config, read_config
from benchmarks.crafted.runs import hostile_name, hostile_rows, linked_page, make_run
from benchmarks.crafted.shards import hostile_shard, make_shards, read_shards
from benchmarks.crafted.spoil import damaged, json_value, other_kind
from benchmarks.crafted.videos import dark_video, hostile_video, make_videos, video_dataset
from rl.deploy.contract import CONTRACT
from rl.report.data import PAIRS
from rl.report.page import write_report
from rl.report.results import RESULTS
from rl.stages.videos import read_videos
from world_model.checkpoint import CONFIG, MANIFEST
from world_model.data.lerobot import INFO, OURS, import_lerobot


@dataclass
class Reader:
    """One reader: `make` writes good files into a folder, each of `ways` spoils them there, `read` reads them."""

    make: Callable[[Path], None]
    ways: tuple[Callable[[Path, random.Random], None], ...]
    read: Callable[[Path], object]
    share: int = 3  # relative number of inputs in a run; smaller for slow readers


@contextmanager
def at_most(n_bytes: int) -> Iterator[None]:
    """Limit the memory of the process to its present amount plus a margin, if the system reports that amount.

    The present amount depends on the libraries: torch with CUDA alone takes gigabytes of address space.
    """
    status = Path("/proc/self/status")
    if not status.exists():
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    now = next(row for row in status.read_text().splitlines() if row.startswith("VmData"))
    resource.setrlimit(resource.RLIMIT_DATA, (1024 * int(now.split()[1]) + n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


ANY = damaged, other_kind

VIDEOS: Callable[[Path], object] = lambda folder: read_videos(folder, ("push",), 32, 10.0)  # noqa: E731

WEIGHTS = hostile_weights, hostile_header, hostile_sizes

RUN = hostile_rows, hostile_rows, linked_page, hostile_name

READERS: dict[str, Reader] = {
    "checkpoint": Reader(
        make_checkpoint, (*ANY, *WEIGHTS, json_value(CONFIG, signed), json_value(MANIFEST)), read_checkpoint
    ),
    "shard": Reader(make_shards, (*ANY, hostile_shard, hostile_shard), read_shards),
    "LeRobot": Reader(
        make_lerobot, (*ANY, foreign, foreign, hostile_parquet, json_value(INFO), json_value(OURS)), import_lerobot
    ),
    "LeRobot images": Reader(
        make_images,
        (
            *ANY,
            hostile_images,
            hostile_images,
            hostile_images,
            json_value(f"images/{INFO}"),
            json_value(f"videos/{INFO}"),
        ),
        read_both,
    ),
    "MP4": Reader(make_videos, (*ANY, hostile_video, hostile_video, hostile_video, dark_video, video_dataset), VIDEOS),
    "ONNX": Reader(make_export, (*ANY, hostile_graph, hostile_graph), read_export, 1),
    "contract": Reader(make_export, (json_value(CONTRACT),), read_export),
    "metrics": Reader(make_run, (*ANY, *RUN), write_report, 1),
    "pairs": Reader(
        make_run, (json_value(PAIRS), json_value(PAIRS), json_value(RESULTS), linked_page), write_report, 1
    ),
    "YAML": Reader(make_config, (*ANY, hostile_yaml, hostile_yaml, hostile_override), read_config),
}
