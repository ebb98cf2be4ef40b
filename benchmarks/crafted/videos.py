"""Video files, and datasets that name them."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.crafted.spoil import files
from rl.report.videos import write_video
from world_model.data.lerobot import INFO


def make_videos(folder: Path) -> None:
    """Write two short video files."""
    (folder / "push").mkdir(parents=True)
    for name in ("a", "b"):
        write_video([np.full((64, 96, 3), 8 * i, np.uint8) for i in range(20)], folder / "push" / f"{name}.mp4", 30)


def hostile_video(folder: Path, rng: random.Random) -> None:
    """Write another format under the same name, or wrong sizes in the tables of the container."""
    path = rng.choice(files(folder))
    texts = (
        b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n"
        b"m=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
        b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:9/x.ts\n",
        b"ffconcat version 1.0\nfile /etc/hostname\n",
        b"RIFF" + rng.randbytes(60),
        b"GIF89a" + rng.randbytes(60),
    )
    data = bytearray(path.read_bytes())
    if rng.random() < 0.3:
        path.write_bytes(rng.choice(texts))
        return
    for _ in range(rng.randint(1, 3)):
        at = data.find(rng.choice([b"stsz", b"stsc", b"stts", b"stco", b"mdhd", b"tkhd", b"avc1", b"mvhd", b"trak"]))
        at += rng.choice([-4, 4, 8, 12, 16, 20, 24, 28, 32, 76, 80])
        data[at : at + 4] = rng.choice([0, 1, 2**16, 10**8, 2**31 - 1, 2**32 - 1]).to_bytes(4, "big")
    path.write_bytes(data)


def dark_video(folder: Path, rng: random.Random) -> None:
    """Write an almost endless video of black frames in very few bytes."""
    kept = folder.parent / "dark.mp4"
    if not kept.exists():
        write_video([np.zeros((1088, 1920, 3), np.uint8)] * 200, kept, 30)
    (folder / "push" / "a.mp4").write_bytes(kept.read_bytes())


def video_dataset(folder: Path, rng: random.Random) -> None:
    """Write a LeRobot dataset with wrong paths and times."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    key = rng.choice(["front", "front", "../..", "/etc"])
    paths = (
        "videos/{video_key}-{chunk_index:03d}.mp4",
        "{chunk_index:0999999999d}.mp4",
        "/etc/hostname",
        "../push/a.mp4",
    )
    more = "{video_key.__class__}", "{0}", "{", "push/a.mp4", "{file_index:9d}", "x" * 5000, "a\0b", "{chunk_index!r}"
    template: Any = rng.choice([*paths, *more, None, 7])
    features = rng.choice([{key: {"dtype": "video"}}] * 5 + [{key: None}, [], None])  # type: ignore[list-item]
    info = {"codebase_version": "v3.0", "fps": rng.choice([30, 30, 30, 0, -1, "x"]), "features": features}
    (folder / "meta" / "episodes" / "chunk-000").mkdir(parents=True)
    (folder / INFO).write_text(json.dumps(info | {"video_path": template}))
    times = [0.0, 0.5, 1e9, float("nan"), -1.0, float("inf")]
    rows = {"episode_index": [0, 1], "tasks": rng.choice([[["push"], ["push"]], [["push"], []], ["push", "push"]])}
    rows |= {f"videos/{key}/{name}": [0, rng.choice([0, -1, 2**40])] for name in ("chunk_index", "file_index")}
    rows |= {f"videos/{key}/from_timestamp": [0.0, rng.choice(times)]}
    rows |= {f"videos/{key}/to_timestamp": [rng.choice(times), 0.6]}
    pq.write_table(pa.table(rows), folder / "meta" / "episodes" / "chunk-000" / "file-000.parquet")
