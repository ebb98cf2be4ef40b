"""Make crafted inputs for every file reader: damaged, hostile, or of another kind. A seed repeats each input exactly.

A reader is tested with a folder of good files, functions that spoil them, and the call that reads them. `fuzz.py` runs
thousands of inputs, the tests run a few dozen per reader.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import resource
import shutil
import socket
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save

from rl.compose import compose, to_yaml
from rl.config import TrainConfig
from rl.deploy.contract import CONTRACT, ONNX, SCHEMA_VERSION
from rl.deploy.pilots import OnnxPilot
from rl.report.data import PAIRS
from rl.report.page import write_report
from rl.report.results import RESULTS
from rl.report.videos import write_video
from rl.stages.config import PretrainConfig
from rl.stages.videos import read_videos
from world_model.checkpoint import CONFIG, MANIFEST, MODEL, checkpoint_files
from world_model.data.columns_config import ColumnsConfig
from world_model.data.episodes import Episode, EpisodeStore
from world_model.data.lerobot import INFO, OURS, export_lerobot, import_lerobot
from world_model.data.shards import digest_of
from world_model.spec import Feature, Spec
from world_model.wam.config import ModelConfig
from world_model.wam.model import WorldActionModel
from world_model.wam.store import load_model, save_model

MARK = "<zz9 onload=x>"
"""Markup that must not appear unescaped in a page."""

VICTIM = "victim.txt"
"""A file next to the folder of an input; no reader may change it."""

VALUES = (
    '0 -1 1 2.5 1e300 1e999 -1e999 NaN 1e12 2147483648 9223372036854775808 18446744073709551616 "" "x" null [] {} true '
    '[[]] [1] [null] {"a":1} "../../x" "/etc/hostname" "1e999" 0.1 "\\ud800" "$x^$" 100000000'
).split() + [
    json.dumps(MARK),
    "1" * 5000,
    "[" * 3000 + "]" * 3000,
    json.dumps("long " * 2000),
    "[" + "0," * 9999 + "0]",
]
"""Values that replace a value in a JSON file."""

SPEC = Spec({"state": Feature((6,), "m", {"object_pos": (0, 3)})}, (-1.0,) * 2, (1.0,) * 2, ("a", "b"), 20.0)
FRONT = "observation.images.front"
SIZES = ModelConfig(width=16, world_width=16, action_width=16, n_layers=1, n_heads=2)


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


def files(folder: Path) -> list[Path]:
    """Return every file of a folder, in order; a hidden one, such as the lock of a store, is never read."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))


# Ways to spoil any file.


def damaged(folder: Path, rng: random.Random) -> None:
    """Flip bits, cut, insert or repeat bytes, or replace the whole file."""
    path = rng.choice(files(folder))
    data = bytearray(path.read_bytes())
    at, n = rng.randrange(len(data) + 1), rng.randint(1, 99)
    for _ in range(rng.randint(1, 8)):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    inserted = data[:at] + rng.randbytes(n) + data[at:]
    path.write_bytes(
        rng.choice([data, data[:at], data[:at] + data[at + n :], inserted, rng.randbytes(n), b"", data * 2])
    )


def other_kind(folder: Path, rng: random.Random) -> None:
    """Replace a file by something else: a pipe, a device, a folder, a link, or an endless file."""
    path = rng.choice(files(folder))
    path.unlink()
    kind = rng.randrange(9)
    if kind == 0:
        os.mkfifo(path)
    elif kind == 1:
        path.mkdir()
    elif kind == 2:
        with socket.socket(socket.AF_UNIX) as server:
            here = Path.cwd()
            os.chdir(path.parent)  # the path of a socket must be short
            server.bind(path.name)
            os.chdir(here)
    elif kind == 3:
        with path.open("wb") as file:
            file.truncate(rng.choice([10**9, 10**11]))
    elif kind < 8:
        path.symlink_to(("/dev/zero", "/dev/stdin", path.name, "nowhere")[kind - 4])


def json_value(name: str, sign: Callable[[Path], None] = lambda folder: None) -> Callable[[Path, random.Random], None]:
    """Return a function that replaces or removes a value in a JSON file; `sign` then corrects the checksums."""

    def spoil(folder: Path, rng: random.Random) -> None:
        path = folder / name
        path.write_text(with_value(json.loads(path.read_text()), rng))
        sign(folder)

    return spoil


def with_value(content: Any, rng: random.Random) -> str:
    """Return JSON with one value replaced or removed."""
    node, parent, key = content, content, next(iter(content))
    while isinstance(node, dict | list) and node and (node is content or rng.random() < 0.8):
        parent, key = node, rng.choice(list(node)) if isinstance(node, dict) else rng.randrange(len(node))
        node = node[key]
    if rng.random() < 0.15:
        del parent[key]
        return json.dumps(content)
    parent[key] = "the value"
    return json.dumps(content).replace('"the value"', rng.choice(VALUES))


# Checkpoints.


def make_checkpoint(folder: Path) -> None:
    """Write a small untrained model."""
    torch.manual_seed(0)
    save_model(folder, WorldActionModel(SIZES, SPEC), "tune")


def signed(folder: Path) -> None:
    """Update the manifest to match the files."""
    found = {p.name: p.read_bytes() for p in files(folder) if p.name != MANIFEST}
    prints = {n: {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)} for n, data in found.items()}
    (folder / MANIFEST).write_text(json.dumps({"files": prints}))


def hostile_weights(folder: Path, rng: random.Random) -> None:
    """Write tensors with other dtypes, non-finite values, other shapes or other names."""
    path = folder / MODEL
    tensors = load(path.read_bytes())
    name = rng.choice(list(tensors))
    value = tensors[name]
    huge = torch.full(value.shape, rng.choice([1e300, float("nan"), float("inf"), 1e30]), dtype=torch.float64)
    kinds = torch.bfloat16, torch.float8_e4m3fn, torch.complex64, torch.int64, torch.uint8, torch.bool
    cast = value.float().to(rng.choice(kinds))
    other = rng.choice([huge, huge, cast, value.flatten(), value[:0] if value.dim() else value, value[None]])
    path.write_bytes(save(tensors | {rng.choice([name, name, name, MARK]): other.contiguous().clone()}))
    signed(folder)


def hostile_header(folder: Path, rng: random.Random) -> None:
    """Write other sizes into the header of the weights."""
    path = folder / MODEL
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    entry = header[rng.choice([name for name in header if name != "__metadata__"])]
    if rng.random() < 0.3:
        entry["shape"] = [rng.choice([0, -1, 10**9, 10**18])] * rng.randint(1, 3)
    elif rng.random() < 0.5:
        entry["data_offsets"] = [rng.choice([0, -1, 10**12]), rng.choice([0, 10**12, 2**63])]
    else:
        entry["dtype"] = rng.choice(["F64", "F4", "E8M0", "I64", "C64", "X", ""])
    text = json.dumps(header).encode()
    claimed = len(text) if rng.random() < 0.8 else rng.choice([2**63, 10**12, 0])
    path.write_bytes(claimed.to_bytes(8, "little") + text + data[8 + size :])
    signed(folder)


def hostile_sizes(folder: Path, rng: random.Random) -> None:
    """Write the config of a model that is far too large, or almost too large."""
    path = folder / CONFIG
    config = json.loads(path.read_text())
    for name in rng.sample(sorted(set(asdict(SIZES)) - {"views", "bfloat16"}), rng.randint(1, 3)):
        config["model"][name] = rng.choice([64, 128, 1024, 8192, 10**9])
    config["spec"]["features"]["state"]["shape"] = rng.choice([[6], [100_000], [10**9]])
    path.write_text(json.dumps(config))
    signed(folder)


def read_checkpoint(folder: Path) -> None:
    """Load the checkpoint, and read everything that copying it would read."""
    load_model(folder)
    checkpoint_files(folder)


# Shards of episodes.


def episodes(n: int = 3) -> list[Episode]:
    """Return short episodes filled with random numbers."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for i in range(n):
        state, action = torch.randn(6, 6, generator=generator), torch.rand(5, 2, generator=generator)
        success, reward = torch.arange(5) == 4, torch.zeros(5)
        made.append(Episode({"state": state}, action, success, SPEC.tasks[i % 2], "noisy", i, reward))
    return made


def make_shards(folder: Path) -> None:
    """Write an episode store with two shards, with images of a camera slower than the control loop."""
    spec = replace(SPEC, features=SPEC.features | {"images.front": Feature((2, 3, 3), dtype="uint8", every=2)})
    for part in (episodes(2), episodes(3)):
        images = torch.arange(4 * 2 * 3 * 3, dtype=torch.uint8).view(4, 2, 3, 3)  # of frames 0, 2, 4 and 5
        every = {"images.front": 2}
        EpisodeStore(folder).append([replace(e, obs=e.obs | {"images.front": images}, every=every) for e in part], spec)


def hostile_shard(folder: Path, rng: random.Random) -> None:
    """Replace a value in the header of a shard or some of its tensors, and correct the checksums."""
    path = rng.choice(sorted(folder.glob("*.safetensors")))
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    tensors, text = load(data), header["__metadata__"]["wamtune"]
    if rng.random() < 0.6:
        text = with_value(json.loads(text), rng)
    else:
        name = rng.choice(list(tensors))
        wrong = torch.tensor([rng.choice([float("nan"), 1e39, 1e300])], dtype=torch.float64).float()
        value = tensors[name]
        tensors[name] = rng.choice([value[:-1], value.flatten(), value.double(), value.long(), value * 0 + wrong])
        if rng.random() < 0.3:
            del tensors[name]
        content = json.loads(text)
        content["sha256"] = digest_of(tensors)
        text = json.dumps(content)
    metadata = {"wamtune": text, "sha256": hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()}
    path.write_bytes(save({name: value.contiguous() for name, value in tensors.items()}, metadata=metadata))


def read_shards(folder: Path) -> None:
    """Read everything that a store offers."""
    store = EpisodeStore(folder)
    store.count()
    assert store.spec is not None
    store.load()
    store.files()


# LeRobot datasets.


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


# Videos.


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


# Exported policies.


def make_export(folder: Path) -> None:
    """Write the export of a policy that returns its held actions."""
    write_export(folder, graph())


def graph(op: str = "Identity", **attributes: Any) -> bytes:
    """Return an ONNX graph with the inputs and outputs of an export; one node computes its actions."""
    from onnx import TensorProto, helper

    shapes = {"state": [2, 6], "task": [], "noise": [1, 16], "held": [8, 2], "n_held": []}
    ports = [
        helper.make_tensor_value_info(
            name, TensorProto.FLOAT if shape else TensorProto.INT64, ["batch", *shape] if shape else ["batch"]
        )
        for name, shape in shapes.items()
    ]
    out = helper.make_tensor_value_info("actions", TensorProto.FLOAT, None)
    nodes, constants = [helper.make_node(op, ["held"], ["actions"], **attributes)], []
    if op == "ConstantOfShape":
        constants = [helper.make_tensor("size", TensorProto.INT64, [2], [100_000, 100_000])]
        nodes = [helper.make_node(op, ["size"], ["actions"])]
    if op == "Loop":
        value = helper.make_tensor_value_info
        body = helper.make_graph(
            [helper.make_node("Identity", ["go"], ["go_on"]), helper.make_node("Identity", ["x"], ["y"])],
            "body",
            [value("i", TensorProto.INT64, []), value("go", TensorProto.BOOL, []), value("x", TensorProto.FLOAT, None)],
            [value("go_on", TensorProto.BOOL, []), value("y", TensorProto.FLOAT, None)],
        )
        constants = [
            helper.make_tensor("n", TensorProto.INT64, [], [2**62]),
            helper.make_tensor("true", TensorProto.BOOL, [], [True]),
        ]
        nodes = [helper.make_node(op, ["n", "true", "held"], ["actions"], body=body)]
    made = helper.make_graph(nodes, "g", ports, [out], initializer=constants)
    data: bytes = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString()
    return data


def write_export(folder: Path, onnx: bytes) -> None:
    """Write a graph with a matching contract."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ONNX).write_bytes(onnx)
    shapes = {"state": [2, 6], "task": [], "noise": [1, 16], "held": [8, 2], "n_held": []}
    port: dict[str, Any] = {"unit": "", "low": None, "high": None}
    inputs = [
        port | {"name": name, "dtype": "float32" if s else "int64", "shape": ["batch", *s], "axes": ["batch"]}
        for name, s in shapes.items()
    ]
    out = port | {"name": "actions", "dtype": "float32", "shape": ["batch", 8, 2], "axes": ["batch"]}
    sizes = {"chunk_size": 8, "n_action_steps": 4, "n_context_frames": 2, "n_denoising_steps": 2, "control_hz": 20.0}
    texts = dict.fromkeys(("checkpoint", "stage", "compared_on", "command", "wamtune_version", "torch_version"), "x")
    contract = {
        **{"schema_version": SCHEMA_VERSION, "policy": "flow", "inputs": inputs, "outputs": [out]},
        **{"spec": SPEC.to_dict(), "tasks": {"a": 0, "b": 1}, "unknown_task": 2, "latency_budget_s": 0.2},
        **{"largest_difference": 0.0, "checkpoint_sha256": "0" * 64, **sizes, **texts},
        "onnx_sha256": hashlib.sha256(onnx).hexdigest(),
    }
    (folder / CONTRACT).write_text(json.dumps(contract))


def hostile_graph(folder: Path, rng: random.Random) -> None:
    """Write a graph that is damaged or computes something else, with a matching contract."""
    data = bytearray((folder / ONNX).read_bytes())
    for _ in range(rng.randint(1, 4)):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    cut = bytes(data[: rng.randrange(len(data))])
    others = [graph("ConstantOfShape"), graph("Loop"), graph("Shape"), graph("Nonsense"), graph("Flatten"), b""]
    write_export(
        folder, rng.choice([bytes(data), bytes(data), bytes(data), cut, rng.randbytes(99), rng.choice(others)])
    )


def read_export(folder: Path) -> None:
    """Load the export and act once."""
    pilot = OnnxPilot(folder)
    chunk, task = torch.zeros(1, pilot.chunk_size, pilot.spec.action_dim), torch.zeros(1, dtype=torch.long)
    obs = {"state": torch.zeros(1, pilot.n_context_frames, pilot.spec.state_dim), "task": task}
    pilot.act(obs, torch.zeros(1, *pilot.noise_shape), chunk, task)


# Reports of run folders.


def make_run(folder: Path) -> None:
    """Write the files of a finished `wamtune train` run."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(to_yaml(compose("mix", ["env.tasks=[push]"], TrainConfig)))
    row = {"step": 1, "train/value_loss": 0.5, "train/ref_kl": 0.1, "train/approx_kl": 0.1, "eval/success": 0.5}
    row |= {"train/explained_variance": 0.2, "gate/accepted": 1, "gate/champion": 0.5, "gate/challenger": 0.6}
    row |= {"gate/gain": 0.1, "gate/gain_low": -0.1, "gate/gain_high": 0.3, "gate/phi": 0.4, "gate/n_episodes": 8}
    row |= {"gate/won": 1, "gate/lost": 0, "rollout/dream_success": 0.3, "dream/error": 0.1, "reward/success": 1.0}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row | {"step": i}) + "\n" for i in range(3)))
    result = {"task": "push", "seed": 1, "success": True, "n_steps": 5, "reward": 0.0, "run": "mix", "place": "sim"}
    lines = [json.dumps(result | {"phase": phase, "seed": i}) for phase in ("before", "after") for i in range(3)]
    (folder / "eval.jsonl").write_text("\n".join(lines) + "\n")
    found = {"rho": 0.1, "low": 0.0, "high": 0.2}
    counts = dict.fromkeys(("n", "n_compared", "both", "sim_only", "dream_only", "neither"), 1)
    shares = dict.fromkeys(("sim", "dream", "retold_recall", "retold_false_success"), 0.5)
    summary = {
        **counts,
        **shares,
        "error_and_success": found,
        "movement_and_success": found,
        "error_by_step": [0.1, 0.2],
    }
    curve = {"simulator": [[0.1, 0.2, 0.3]] * 4, "dream of its actions": [[0.1, 0.2, 0.3]] * 4}
    example = {"title": "A success", "seed": 1, "chunk_size": 2, "parts": {"hand_pos": curve}, "film": ""}
    points = [{"task": "push", "seed": i, "sim": i == 1, "error": 0.1 + i, "movement": 0.2 + i} for i in range(2)]
    pairs = {"summary": summary, "gap": [0.1, 0.0, 0.2], "points": points, "examples": [example]}
    pairs["trust"] = {"n": 2, **found, "expected": [0.1, 0.2], "error": [0.1, 0.3]}
    pairs["film"] = {"title": "push, seed 1", "panels": ["before", "after", "dream"]}
    pairs["film"]["gif"] = "data:image/gif;base64,R0lGODlhAQABAAAAACw="
    (folder / PAIRS).write_text(json.dumps(pairs))
    phases = [{"phase": phase, "accepted": True, "success": 0.5, "rounds": 1.0} for phase in ("imitation", "dream")]
    result = {"name": "mix", "before": 0.4, "phases": phases, "reward": [0.0, 1.0]}
    result |= {"sim_steps": 100, "gate_steps": 10, "minutes": 0.5}
    (folder / RESULTS).write_text(json.dumps([result]))


def hostile_rows(folder: Path, rng: random.Random) -> None:
    """Replace values in lines of metrics and episodes, or write very many lines."""
    path = folder / rng.choice(["metrics.jsonl", "eval.jsonl"])
    lines = path.read_text().splitlines()
    for _ in range(rng.randint(1, 3)):
        i = rng.randrange(len(lines))
        lines[i] = with_value(json.loads(lines[i]), rng) if lines[i].startswith('{"') else lines[i]
    if rng.random() < 0.1:
        lines *= rng.choice([3000, 30_000])
    if rng.random() < 0.1:
        lines = ["{}"] * 5_000_000
    path.write_text("\n".join([*lines, '{"reward/' + MARK + '": 1}', '{"reward/$x^$": 1, "train/value_loss": 2}']))


def linked_page(folder: Path, rng: random.Random) -> None:
    """Replace the page, or the file that it is first written to, by a link to another place."""
    (folder / rng.choice(["report.html", ".report.html.tmp"])).symlink_to(Path("..") / VICTIM)
    if rng.random() < 0.5:
        path = folder / PAIRS
        path.write_text(with_value(json.loads(path.read_text()), rng))


def hostile_name(folder: Path, rng: random.Random) -> None:
    """Give the run a name that is markup or a formula."""
    path = folder / "config.yaml"
    name = rng.choice([MARK, "$x^$", "x" * 5000, "\\u2028", "a\tb", "${oc.env:HOME}"])
    path.write_text(path.read_text().replace("name: mix", f"name: {json.dumps(name)}"))


# Configs.


def make_config(folder: Path) -> None:
    """Write a preset."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "mine.yaml").write_text(
        "name: x\nbase: mix\nenv: {tasks: [push], n_envs: 4}\nppo: {n_steps: 4, batch_size: 16}\n"
    )


def hostile_yaml(folder: Path, rng: random.Random) -> None:
    """Write keys of the schema with values of all kinds, and rare YAML syntax."""
    keys = "seed threads env.n_envs env.n_workers ppo.n_steps dream.horizon total_timesteps n_rounds name".split()
    keys += "env.tasks rewards.x env.isaac env.events.a.low base controls eval.seed gate.alpha ppo policy".split()
    values = [v for v in VALUES if len(v) < 50_000]
    odd = "!!binary aGk= | !!set {a} | 2020-01-01 | 0x1F | 1_000 | 0o17 | 1:30 | ~ | 'a | |-|&a b|*a|<<|? a|- a"
    value = rng.choice([*values, *odd.split("|"), "${oc.env:HOME}", "{a: {b: {c: 1}}}", "\x00", "\ufeff", "%TAG x"])
    key = rng.choice(keys)
    lines = "".join("  " * i + f"{part}:\n" for i, part in enumerate(key.split(".")))[:-1]
    texts = (
        f"name: x\n{lines} {value}\n",
        f"name: x\n{lines}\n{'  ' * 9}- {value}\n- b",
        f"{value}",
        f"name: x\n{key}: {value}\n{key}: 1\n",
        "name: x\nrewards: " + "{a: " * rng.choice([5, 19, 21, 500]) + "1" + "}" * rng.choice([5, 19, 21, 500]),
        "? {a: 1}\n: 2\n",
        f"name: x\nbase: {rng.choice(['mine.yaml', '../..', '/dev/zero', 'nowhere', '[mix]', '.'])}\n",
        "\n".join(f"k{i}: [" + "x, " * 50 + "]" for i in range(400)),
        "".join(rng.choice("[]{}:,&*!|>'\"%@`-?#\n \tab1") for _ in range(200)),
    )
    (folder / "mine.yaml").write_text(rng.choice(texts), encoding="utf-8", errors="surrogatepass")


def hostile_override(folder: Path, rng: random.Random) -> None:
    """Write a value for the command line; `read_config` takes it from the file."""
    keys = "seed threads env.n_envs ppo.n_steps model.n_layers model.width stage.seed env.tasks x " + "a." * 2000 + "b"
    value = rng.choice(
        [v for v in VALUES if len(v) < 50_000] + ["[a", "{", "\n", "a: b", "8192", "18446744073709551616"]
    )
    (folder / "override").write_text(f"{rng.choice(keys.split())}{rng.choice(['=', '==', '', '=='])}{value}")


def read_config(folder: Path) -> None:
    """Compose the file as a training config, and as a pre-training config."""
    override = folder / "override"
    if not override.exists():
        compose(folder / "mine.yaml", [], TrainConfig)
        return
    word = override.read_text(encoding="utf-8")
    schema = PretrainConfig if word.startswith(("model", "stage")) else TrainConfig
    compose(None, ["name=x", "tasks=[push]", word] if schema is PretrainConfig else ["name=x", word], schema)


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
