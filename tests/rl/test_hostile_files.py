"""Files made to fill the memory, to hang a reader or to write elsewhere: each is one line, and costs nothing."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import FrameType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.crafted.checkpoints import SIZES, SPEC, make_checkpoint, signed
from benchmarks.crafted.exports import graph, make_export, write_export
from benchmarks.crafted.lerobot import make_lerobot
from benchmarks.crafted.readers import at_most
from benchmarks.crafted.runs import make_run
from benchmarks.crafted.shards import episodes, make_shards
from benchmarks.crafted.spoil import MARK
from rewards.errors import UserError
from rl import cli
from rl.compose import compose
from rl.config import TrainConfig
from rl.deploy.pilots import OnnxPilot
from rl.report.data import PAIRS
from rl.report.page import write_report
from rl.report.plots import draw_before_after
from rl.report.videos import write_video
from rl.rounds.evaluate import EpisodeResult
from rl.runs.folder import RunFolder
from rl.stages.config import PretrainConfig
from rl.stages.videos import read_videos
from world_model.checkpoint import CONFIG, MANIFEST, MODEL
from world_model.data import videos
from world_model.data.episodes import EpisodeStore
from world_model.data.lerobot import INFO, export_lerobot, fill_template, import_lerobot
from world_model.files import open_file, read_file, write_atomically
from world_model.spec import Spec
from world_model.wam.config import ModelConfig
from world_model.wam.model import WorldActionModel
from world_model.wam.store import load_model, save_model


class Hung(BaseException):
    """What ends a reader that waits."""


@pytest.fixture(autouse=True)
def limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let nothing fill the memory of the machine, or wait for ever."""

    def hang(number: int, frame: FrameType | None) -> None:
        raise Hung

    monkeypatch.chdir(tmp_path)
    before = signal.signal(signal.SIGALRM, hang)
    signal.alarm(120)
    with at_most(3 * 10**9):
        yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def line(call: Callable[[], object]) -> str:
    with pytest.raises(UserError) as error:
        call()
    assert "\n" not in str(error.value) and len(str(error.value)) < 1000
    return str(error.value)


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line of a command that must fail."""
    code = cli.main(words)
    err = capsys.readouterr().err
    assert code == 2 and err.count("\n") == 1 and "this is a bug" not in err, err
    return err


# What is opened at all.


def test_only_files_of_a_sensible_size_are_opened(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"12345")
    assert read_file(path, 5) == b"12345"
    assert "it has 5 bytes, at most 4 are read" in line(lambda: open_file(path, 4))
    (tmp_path / "link").symlink_to(path)
    assert read_file(tmp_path / "link", 5) == b"12345"
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "endless").symlink_to("/dev/zero")
    (tmp_path / "circle").symlink_to("circle")
    for name, found in (("pipe", "it is a pipe"), ("endless", "it is a device"), (".", "it is a folder")):
        assert f"{found}, expected a file" in line(lambda name=name: open_file(tmp_path / name, 5))  # type: ignore[misc]
    assert "cannot read it" in line(lambda: open_file(tmp_path / "circle", 5))
    with pytest.raises(FileNotFoundError):
        open_file(tmp_path / "nowhere", 5)


def test_what_is_written_follows_no_link(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("whole")
    for name in ("page", ".page.tmp"):
        (tmp_path / name).symlink_to("victim")
    write_atomically(tmp_path / "page", b"new")
    assert (tmp_path / "victim").read_text() == "whole" and not (tmp_path / "page").is_symlink()
    assert (tmp_path / "page").read_bytes() == b"new"


def test_a_run_folder_appends_to_no_link(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("name: x\n")
    (tmp_path / "run" / "metrics.jsonl").symlink_to(tmp_path / "nowhere")
    assert "cannot write it" in line(lambda: RunFolder.open(tmp_path / "run"))
    assert not (tmp_path / "nowhere").exists()


# Checkpoints.


def test_a_readme_that_is_an_endless_device_is_refused(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "c")
    (tmp_path / "c" / "README.md").unlink()
    (tmp_path / "c" / "README.md").symlink_to("/dev/zero")
    assert "README.md: it is a device, expected a file" in line(lambda: load_model(tmp_path / "c"))


def test_a_large_file_is_not_taken_into_memory_before_its_checksum_is_right(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "c")
    size = 1_900_000_000  # of nothing but zeros, which take no place on the disk
    with (tmp_path / "c" / MODEL).open("r+b") as file:
        file.truncate(size)
    manifest = json.loads((tmp_path / "c" / MANIFEST).read_text())
    manifest["files"][MODEL]["size"] = size
    (tmp_path / "c" / MANIFEST).write_text(json.dumps(manifest))
    with at_most(300_000_000):
        assert "its sha256 is not the one in manifest.json" in line(lambda: load_model(tmp_path / "c"))


@pytest.mark.parametrize("value", [1e300, float("nan"), float("inf")])
def test_weights_are_finite_in_the_precision_in_which_they_live(value: float, tmp_path: Path) -> None:
    model = WorldActionModel(SIZES, SPEC)
    wide = {name: v.double() for name, v in model.state_dict().items() if v.is_floating_point()}
    wide["action.out.bias"][0] = value
    model.state_dict = lambda: model.__class__.state_dict(model) | wide  # type: ignore[method-assign]
    save_model(tmp_path / "c", model, "tune")
    assert "'action.out.bias' holds a value that is not finite" in line(lambda: load_model(tmp_path / "c"))


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ({"n_layers": 8192}, "model.n_layers=8192: expected a whole number from 1 to 128"),
        (
            {"width": 8192, "world_width": 8192, "n_heads": 8, "n_layers": 64},
            "at most 2,000,000,000; lower widths or n_layers",
        ),
        ({"bfloat16": "x"}, "expected bfloat16 true or false"),
    ],
)
def test_a_model_that_is_far_too_large_is_refused(sizes: dict[str, object], expected: str, tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "c")
    config = json.loads((tmp_path / "c" / CONFIG).read_text())
    config["model"] |= sizes
    (tmp_path / "c" / CONFIG).write_text(json.dumps(config))
    signed(tmp_path / "c")
    assert expected in line(lambda: load_model(tmp_path / "c"))
    assert expected in line(ModelConfig(**{**config["model"], "views": {}}).check)


def test_cp_carries_no_target_of_a_link_away(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_checkpoint(tmp_path / "c")
    (tmp_path / "secret").write_text("hunter2")
    (tmp_path / "c" / "notes.txt").symlink_to(tmp_path / "secret")
    signed(tmp_path / "c")
    assert "notes.txt: it is a link to a file outside" in refused(capsys, "cp", "c", "copy")
    assert not Path("copy").exists()


# Shards of episodes.


def test_an_entry_of_a_shard_without_an_end_is_refused(tmp_path: Path) -> None:
    make_shards(tmp_path / "s")
    path = tmp_path / "s" / "episodes-000000.safetensors"
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header["action"]["data_offsets"] = [0]
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])
    assert "the file is damaged" in line(lambda: EpisodeStore(tmp_path / "s").count())


def test_an_endless_name_of_a_task_is_cut(tmp_path: Path) -> None:
    task = "long " * 2000
    (first, *_) = episodes(1)
    EpisodeStore(tmp_path).append([replace(first, task=task)], replace(SPEC, tasks=(task,)))
    (found,) = EpisodeStore(tmp_path).load()
    assert "is unknown; the known tasks are a, b" in line(lambda: found.check_fits(SPEC, "here"))
    many = replace(SPEC, tasks=(task,) * 3)
    assert "task 'a' is unknown" in line(lambda: first.check_fits(many, "here"))
    assert "spec.tasks" in line(lambda: Spec.from_dict(SPEC.to_dict() | {"tasks": task}))


# LeRobot datasets and videos.


@pytest.mark.parametrize("fps", [0, -1, "1e999", 1e9, None, '"30"'])
def test_a_rate_that_no_robot_has(fps: object, tmp_path: Path) -> None:
    make_lerobot(tmp_path / "d")
    info = (tmp_path / "d" / INFO).read_text()
    (tmp_path / "d" / INFO).write_text(info.replace('"fps": 20', f'"fps": {fps if fps is not None else "null"}'))
    assert INFO in line(lambda: import_lerobot(tmp_path / "d"))


TEMPLATES = (
    "/etc/{chunk_index:03d} ../{file_index}.mp4 {chunk_index:0999999999d} {video_key.__class__} {0} { {a} ..".split()
)


@pytest.mark.parametrize("template", [*TEMPLATES, None, 3])
def test_paths_of_a_dataset_stay_in_it(template: object, tmp_path: Path) -> None:
    fields = {"video_key": "front", "chunk_index": 1, "file_index": 2}
    assert "leads out of the dataset or has other fields" in line(lambda: fill_template(tmp_path, template, **fields))
    good = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
    assert fill_template(tmp_path, good, **fields) == tmp_path / "videos/front/chunk-001/file-002.mp4"
    assert "leads out" in line(lambda: fill_template(tmp_path, good, **fields | {"video_key": "../.."}))


@pytest.mark.parametrize("kind", ["numbers", "texts"])
def test_a_parquet_that_unfolds_is_refused(kind: str, tmp_path: Path) -> None:
    export_lerobot(episodes(), SPEC, tmp_path / "d")
    path = tmp_path / "d" / "data" / "chunk-000" / "file-000.parquet"
    ones = pa.array(np.zeros(20_000_000, np.int8))
    column = (
        ones.cast(pa.int64()) if kind == "numbers" else pa.DictionaryArray.from_arrays(ones, pa.array(["x" * 10**6]))
    )
    pq.write_table(pa.table({"action": column}), path)
    assert path.stat().st_size < 2_000_000
    assert "bytes of memory, at most" in line(lambda: import_lerobot(tmp_path / "d"))


def test_ragged_columns_are_one_line(tmp_path: Path) -> None:
    export_lerobot(episodes(), SPEC, tmp_path / "d")
    path = tmp_path / "d" / "data" / "chunk-000" / "file-000.parquet"
    table = pq.read_table(path)
    ragged = pa.array([[1.0] * (i % 3) for i in range(len(table))])
    pq.write_table(table.set_column(table.column_names.index("action"), "action", ragged), path)
    assert "column action holds no numbers, or not as many in each row" in line(lambda: import_lerobot(tmp_path / "d"))


def test_a_video_takes_the_memory_of_its_images_and_not_of_its_frames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "push").mkdir()
    write_video([np.zeros((720, 1280, 3), np.uint8)] * 200, tmp_path / "push" / "a.mp4", 30)
    with at_most(300_000_000):  # the frames are 550 MB
        ((_, images),) = read_videos(tmp_path, ("push",), 32, 10.0)
    assert images.shape == (66, 1, 32, 32, 3)
    monkeypatch.setattr(videos, "FREE_PIXELS", 100 * 720 * 1280)
    monkeypatch.setattr(videos, "PIXELS_PER_BYTE", 1)
    assert "pixels, the most for a file of its size" in line(lambda: read_videos(tmp_path, ("push",), 32, 10.0))


def test_an_mp4_is_an_mp4_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "push").mkdir()
    text = "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n"
    (tmp_path / "push" / "a.mp4").write_text(text + "a=rtpmap:96 H264/90000\n")
    assert "the video cannot be read" in line(lambda: read_videos(tmp_path, ("push",), 32, 10.0))
    (tmp_path / "push" / "a.mp4").unlink()
    os.mkfifo(tmp_path / "push" / "a.mp4")
    assert "it is a pipe, expected a file" in line(lambda: read_videos(tmp_path, ("push",), 32, 10.0))


# Exports.


@pytest.mark.parametrize("op", ["ConstantOfShape", "Loop", "Nonsense", "Shape"])
def test_a_graph_that_fills_memory_or_never_ends_is_refused(op: str, tmp_path: Path) -> None:
    write_export(tmp_path / "e", graph(op))
    assert "policy.onnx: the graph cannot be run" in line(lambda: OnnxPilot(tmp_path / "e"))


@pytest.mark.parametrize(("name", "shape"), [("noise", [100_000, 100_000]), ("state", [2, 7]), ("held", [9, 2])])
def test_sizes_of_a_contract_are_bounded_and_fit(name: str, shape: list[int], tmp_path: Path) -> None:
    make_export(tmp_path / "e")
    path = tmp_path / "e" / "contract.json"
    contract = json.loads(path.read_text())
    next(port for port in contract["inputs"] if port["name"] == name)["shape"] = ["batch", *shape]
    path.write_text(json.dumps(contract))
    assert "contract" in line(lambda: OnnxPilot(tmp_path / "e"))


# Reports.


@pytest.mark.parametrize("way", [("summary", "n"), ("examples", 0, "seed"), ("trust", "rho"), ("examples", 0, "film")])
@pytest.mark.parametrize("value", [MARK, None, [1]])
def test_markup_is_no_number(value: object, way: tuple[str | int, ...], tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    pairs = node = json.loads((tmp_path / "run" / PAIRS).read_text())
    for key in way[:-1]:
        node = node[key]
    node[way[-1]] = value
    (tmp_path / "run" / PAIRS).write_text(json.dumps(pairs))
    where = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in way)[1:]
    assert f"{PAIRS}: {where}={value!r}, expected a" in line(lambda: write_report(tmp_path / "run"))


def test_half_a_pairs_json_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path / "run")
    text = (tmp_path / "run" / PAIRS).read_text()
    (tmp_path / "run" / PAIRS).write_text(text[: len(text) // 2])
    assert "it is not valid JSON; delete it to write the report without it" in refused(capsys, "report", "run")


def test_a_report_is_not_written_through_a_link(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    (tmp_path / "victim").write_text("whole")
    (tmp_path / "run" / "report.html").symlink_to("../victim")
    write_report(tmp_path / "run")
    assert (tmp_path / "victim").read_text() == "whole"
    assert "passed their gate" in (tmp_path / "run" / "report.html").read_text()


def test_a_name_that_looks_like_a_formula_is_drawn(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    path = tmp_path / "run" / "config.yaml"
    path.write_text(path.read_text().replace("name: mix", "name: $x^$"))
    (tmp_path / "run" / "metrics.jsonl").write_text('{"eval/success": 0.5, "train/value_loss": 1}\n' * 2)
    assert "$x^$" in write_report(tmp_path / "run").read_text()
    results = [EpisodeResult("push", 0, True, 5, 0.0)]
    draw_before_after({"$x^$": (results, results)}, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 0


# Configs and commands.


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("seed=18446744073709551616", "seed=18446744073709551616 on the command line: expected at most 2,147,483,647"),
        ("env.n_envs=1000000000", "expected at most 65,536"),
        ("threads=1000000", "expected at most 1,024"),
        ("n_rounds=1000000000000", "expected at most 10,000,000"),
    ],
)
def test_sizes_that_cannot_be_meant(override: str, expected: str) -> None:
    assert expected in line(lambda: compose("sim", [override], TrainConfig))


def test_a_model_of_too_many_layers_is_not_trained() -> None:
    words = ["name=x", "tasks=[push]", "model.n_layers=8192"]
    assert "model.n_layers=8192: expected" in line(lambda: compose(None, words, PretrainConfig))


@pytest.mark.parametrize("words", [["cp", "demo"], ["cp", "c"], ["cp", "d"]])
@pytest.mark.parametrize("place", ["/proc/nowhere/x.yaml", "taken/x.yaml", "n" * 300 + ".yaml"])
def test_a_place_that_cannot_be_written_is_one_line(
    words: list[str], place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_checkpoint(tmp_path / "c")
    make_lerobot(tmp_path / "d")
    Path("taken").write_text("a file")
    refused(capsys, *words, place)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: 4 bytes")])
def test_full_memory_is_one_line(
    error: Exception, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(words: list[str]) -> None:
        raise error

    monkeypatch.setattr(cli, "_dispatch", fail)
    assert "out of memory; lower n_envs" in refused(capsys, "train", "sim")
