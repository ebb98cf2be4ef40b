"""LeRobot datasets, with tables alone, with images and with videos."""

from __future__ import annotations

import io
import json
import random
import shutil
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.crafted.checkpoints import SPEC
from benchmarks.crafted.shards import episodes
from benchmarks.crafted.spoil import MARK, damaged, files, json_value
from rl.report.videos import write_video
from world_model.data.columns_config import ColumnsConfig
from world_model.data.episodes import Episode
from world_model.data.lerobot import INFO, OURS, export_lerobot, import_lerobot
from world_model.spec import Feature

FRONT = "observation.images.front"


def make_lerobot(folder: Path) -> None:
    """Write a LeRobot dataset with this project's own fields."""
    export_lerobot(episodes(), SPEC, folder)


def foreign(folder: Path, rng: random.Random) -> None:
    """Remove this project's own fields, and spoil the rest."""
    (folder / OURS).unlink()
    rng.choice([hostile_parquet, json_value(INFO), damaged])(folder, rng)


def hostile_parquet(folder: Path, rng: random.Random) -> None:
    """Write columns of other types, ragged, with nulls, missing, or with far more rows than a small file can hold."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = rng.choice([p for p in files(folder) if p.suffix == ".parquet" and p.name != "tasks.parquet"])
    table = pq.read_table(path)
    i, n = rng.randrange(table.num_columns), len(table)
    name = table.column_names[i]
    if rng.random() < 0.1:  # a decompression bomb: as many rows as a small file can claim
        many = pa.DictionaryArray.from_arrays(pa.array(np.zeros(20_000_000, np.int8)), pa.array([b"x" * 10_000]))
        column = rng.choice([many.indices.cast(pa.int64()), many])
        pq.write_table(pa.table({name: column}), path)
        return
    numbers = [float("nan"), 1e300, -1.0, 2.0**63]
    columns = (
        pa.nulls(n),
        pa.array([[1.0] * rng.randint(0, 3) for _ in range(n)]),
        pa.array([[[1.0]] for _ in range(n)]),
        pa.array([MARK] * n),
        pa.array([rng.choice(numbers) for _ in range(n)]),
        pa.array([[rng.choice(numbers)] * 2 for _ in range(n)]),
        pa.array([None, *range(n - 1)]),
        pa.array([-(2**63)] * n),
        pa.array([2**64 - 1] * n, pa.uint64()),
        pa.array([{"a": 1}] * n),
        pa.array([0] * n, pa.timestamp("s")),
        pa.array([1] * n),
        pa.array([[]] * n, pa.list_(pa.string())),
        pa.array([[None]] * n, pa.list_(pa.string())),
    )
    table = table.drop_columns([name]) if rng.random() < 0.1 else table.set_column(i, name, rng.choice(columns))
    pq.write_table(table, path)


def make_images(folder: Path) -> None:
    """Write a LeRobot dataset with images in its data, and another one with images in a video."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for i in range(2):
        frames = {"state": torch.randn(6, 6, generator=generator)}
        frames["images.front"] = torch.randint(256, (6, 32, 40, 3), generator=generator, dtype=torch.uint8)
        made.append(Episode(frames, torch.rand(5, 2, generator=generator), torch.arange(5) == 4, "a", "noisy", i))
    features = {**SPEC.features, "images.front": Feature((32, 40, 3), dtype="uint8")}
    export_lerobot(made, replace(SPEC, features=features), folder / "images")
    (folder / "images" / OURS).unlink()
    shutil.copytree(folder / "images", folder / "videos")
    as_videos(folder / "videos")


def as_videos(folder: Path) -> None:
    """Let the images of a dataset be those of a video."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path, info = (
        folder / "meta" / "episodes" / "chunk-000" / "file-000.parquet",
        json.loads((folder / INFO).read_text()),
    )
    info["features"][FRONT]["dtype"], info["video_path"] = "video", "videos/{file_index:03d}.mp4"
    (folder / INFO).write_text(json.dumps(info))
    table = pq.read_table(path)
    table = table.drop_columns([name for name in table.column_names if name.startswith("final.")])
    columns = {"chunk_index": [0, 0], "file_index": [0, 0], "from_timestamp": [0.0, 0.25], "to_timestamp": [0.25, 0.5]}
    for name, values in columns.items():
        table = table.append_column(f"videos/{FRONT}/{name}", pa.array(values))
    pq.write_table(table, path)
    write_video([np.full((64, 96, 3), 8 * i, np.uint8) for i in range(10)], folder / "videos" / "000.mp4", 20)


def hostile_images(folder: Path, rng: random.Random) -> None:
    """Write damaged, huge, missing or other images into the data of a dataset."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    def image(kind: str, mode: str, size: tuple[int, int]) -> bytes:
        file = io.BytesIO()
        Image.new(mode, size).save(file, kind)
        return file.getvalue()

    path = folder / "images" / "data" / "chunk-000" / "file-000.parquet"
    table = pq.read_table(path)
    good = table[FRONT][0].as_py()["bytes"]
    damage = bytearray(good)
    for _ in range(rng.randint(1, 20)):
        damage[rng.randrange(len(damage))] ^= 1 << rng.randrange(8)
    header = bytearray(good)
    header[16:24] = rng.randbytes(8)
    header[29:33] = zlib.crc32(header[12:29]).to_bytes(4, "big")
    value = rng.choice(
        (
            bytes(damage),
            bytes(damage),
            bytes(header),
            good[: rng.randrange(len(good))],
            image("PNG", rng.choice(["1", "L", "P", "RGBA", "I;16"]), (40, 40)),
            image("JPEG", rng.choice(["L", "CMYK"]), (40, 40)),
            image("PNG", "1", rng.choice([(4096, 4096), (4097, 4096), (1, 2**20), (2**20, 1)])),
            image(rng.choice(["GIF", "BMP", "TIFF", "WEBP"]), "RGB", (40, 40)),
            rng.randbytes(50),
            b"",
            None,
            "text",
            [1.0],
        )
    )
    column = pa.array([value] * len(table))
    if rng.random() < 0.8:
        column = pa.StructArray.from_arrays([column], ["bytes"])
    pq.write_table(table.set_column(table.column_names.index(FRONT), FRONT, column), path)


def read_both(folder: Path) -> None:
    """Import both datasets with their images."""
    asked = ColumnsConfig(images={"front": FRONT}, image_size=32)
    for name in ("images", "videos"):
        import_lerobot(folder / name, asked)
