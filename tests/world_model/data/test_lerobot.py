"""LeRobot v3.0 datasets: ours come back exactly, those from elsewhere by the stated rules."""

import json
import os
import sys
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from rewards.errors import UserError
from rl import cli
from world_model.data.columns_config import ColumnsConfig
from world_model.data.episodes import Episode, EpisodeStore
from world_model.data.images import encode_png
from world_model.data.lerobot import export_lerobot, import_lerobot, writing
from world_model.extras import pip_line
from world_model.spec import Feature, Spec

SPEC = Spec({"state": Feature((5,), "m", {"object_pos": (2, 5)})}, (-1.0,) * 2, (1.0,) * 2, ("pick", "push"), 80.0)


FRONT, WRIST = "observation.images.front", "observation.images.wrist"
SEEING = replace(
    SPEC,
    features={
        **SPEC.features,
        "images.front": Feature((16, 16, 3), dtype="uint8"),
        "images.wrist": Feature((6, 10, 3), dtype="uint8", every=4),
        "latents": Feature((7,), "codes", every=4),
    },
    instructions={"push": "Push it - slowly.", "pick": "Push it - slowly."},
)
BOTH = ColumnsConfig(images={"front": FRONT, "wrist": WRIST})


def seeing_episodes() -> list[Episode]:
    """Episodes of `make_episodes` with an image in each frame, and one image and latents every four steps."""
    generator = torch.Generator().manual_seed(1)
    episodes = []
    for episode in make_episodes():
        n_rows = {"images.front": episode.length + 1, "images.wrist": -(-episode.length // 4) + 1}
        images = {
            name: torch.randint(256, (n, *SEEING.features[name].shape), generator=generator, dtype=torch.uint8)
            for name, n in n_rows.items()
        }
        latents = torch.randn(n_rows["images.wrist"], 7, generator=generator)
        obs = {**episode.obs, **images, "latents": latents}
        episodes.append(replace(episode, obs=obs, every={"images.wrist": 4, "latents": 4}))
    return episodes


def make_episodes(spec: Spec = SPEC) -> list[Episode]:
    generator = torch.Generator().manual_seed(0)
    return [
        Episode(
            obs={"state": torch.randn(length + 1, spec.state_dim, generator=generator)},
            action=torch.rand(length, spec.action_dim, generator=generator),
            success=torch.arange(length) == length - 1,
            task=spec.tasks[length % 2],
            source="noisy",
            seed=2**40 + length,
            task_reward=torch.rand(length, generator=generator) if length != 3 else None,
        )
        for length in (3, 1, 4)
    ]


def assert_equal(got: list[Episode], expected: list[Episode]) -> None:
    for mine, theirs in zip(got, expected, strict=True):
        assert mine.obs.keys() == theirs.obs.keys()
        pairs = {name: (mine.obs[name], theirs.obs[name]) for name in theirs.obs}
        pairs |= {name: (getattr(mine, name), getattr(theirs, name)) for name in ("action", "success", "task_reward")}
        for name, (a, b) in pairs.items():
            assert (a is None) == (b is None), name
            assert b is None or (a.dtype == b.dtype and torch.equal(a, b)), name
        for name in ("task", "source", "seed", "every"):
            assert getattr(mine, name) == getattr(theirs, name), name


@pytest.mark.parametrize("size", [1, 2, 5])
def test_round_trip_is_exact_the_final_frame_included(tmp_path, size: int) -> None:
    spec = Spec({"state": Feature((size,))}, (-1.0,) * size, (1.0,) * size, ("pick", "push"), 12.5)
    export_lerobot(make_episodes(spec), spec, tmp_path / "d")
    episodes, got = import_lerobot(tmp_path / "d")
    assert got == spec
    assert_equal(episodes, make_episodes(spec))
    assert os.listdir(tmp_path) == ["d"]


def test_the_files_say_what_lerobot_expects(tmp_path) -> None:
    export_lerobot(make_episodes(), SPEC, tmp_path)
    info = json.loads((tmp_path / "meta/info.json").read_text())
    assert (info["codebase_version"], info["fps"], info["splits"]) == ("v3.0", 80, {"train": "0:3"})
    assert (info["total_episodes"], info["total_frames"], info["total_tasks"]) == (3, 8, 2)
    state = info["features"]["observation.state"]
    assert (state["dtype"], state["shape"]) == ("float32", [5])
    assert state["names"] == ["state_0", "state_1", "object_pos_0", "object_pos_1", "object_pos_2"]
    data = pq.read_table(tmp_path / info["data_path"].format(chunk_index=0, file_index=0))
    assert set(data.column_names) == set(info["features"])
    kinds = {"float32": pa.float32(), "int64": pa.int64(), "bool": pa.bool_()}
    for name, feature in info["features"].items():
        kind, (size,) = kinds[feature["dtype"]], feature["shape"]
        assert data.schema.field(name).type == (kind if size == 1 else pa.list_(kind, size))
    columns = data.to_pydict()
    assert columns["index"] == list(range(8))
    assert columns["episode_index"] == [0, 0, 0, 1, 2, 2, 2, 2]
    assert columns["frame_index"] == [0, 1, 2, 0, 0, 1, 2, 3]
    assert columns["timestamp"] == pytest.approx([0, 1 / 80, 2 / 80, 0, 0, 1 / 80, 2 / 80, 3 / 80])
    assert columns["task_index"] == [1, 1, 1, 1, 0, 0, 0, 0]
    assert columns["next.done"] == columns["next.success"] == [False, False, True, True, False, False, False, True]
    assert columns["next.reward"][:3] == [0.0, 0.0, 1.0]  # no task reward: success instead


def test_offsets_and_statistics(tmp_path) -> None:
    export_lerobot(make_episodes(), SPEC, tmp_path)
    rows = pq.read_table(tmp_path / "meta/episodes/chunk-000/file-000.parquet").to_pydict()
    assert (rows["dataset_from_index"], rows["dataset_to_index"]) == ([0, 3, 4], [3, 4, 8])
    assert (rows["length"], rows["tasks"]) == ([3, 1, 4], [["push"], ["push"], ["pick"]])
    actions = [episode.action.double().numpy() for episode in make_episodes()]
    stats = json.loads((tmp_path / "meta/stats.json").read_text())["action"]
    together = np.concatenate(actions)
    assert stats["count"] == [8]
    for name, value in {"min": together.min(0), "mean": together.mean(0), "std": together.std(0)}.items():
        assert stats[name] == pytest.approx(value.tolist())
    assert rows["stats/action/max"][2] == pytest.approx(actions[2].max(0).tolist())


def test_tasks_are_the_index_of_their_table(tmp_path) -> None:
    export_lerobot(make_episodes(), SPEC, tmp_path)
    table = pq.read_table(tmp_path / "meta/tasks.parquet")
    assert table.to_pydict() == {"task_index": [0, 1], "task": ["pick", "push"]}
    assert table.schema.pandas_metadata["index_columns"] == ["task"]


def foreign(folder: Path, episodes: list[Episode] | None = None, spec: Spec = SPEC, drop: tuple[str, ...] = ()) -> None:
    """Turn an export into what others write: several files in any order, float64, nothing of ours."""
    export_lerobot(make_episodes() if episodes is None else episodes, spec, folder)
    (folder / "meta/wamtune.json").unlink()
    path = folder / "meta/episodes/chunk-000/file-000.parquet"
    rows = pq.read_table(path)
    added = ("final.", "every.", "task_name", "source", "seed", "has_task_reward")
    pq.write_table(rows.drop_columns([name for name in rows.column_names if name.startswith(added)]), path)
    path = folder / "data/chunk-000/file-000.parquet"
    table = pq.read_table(path).drop_columns(list(drop))
    table = table.set_column(table.column_names.index("action"), "action", table["action"].cast(pa.list_(pa.float64())))
    pq.write_table(table.slice(4), path)
    pq.write_table(table.slice(0, 4), folder / "data/chunk-000/file-001.parquet")


MOTORS = ["waist.pos", "elbow.pos", "wrist.pos", "finger.pos", "finger.load"]


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (MOTORS, tuple(MOTORS)),
        ({"motors": MOTORS}, tuple(MOTORS)),  # of an older version of LeRobot
        (None, ()),
        (MOTORS[:4], ()),
        (["a"] * 5, ()),
        ([1, 2, 3, 4, 5], ()),
        ({"a": MOTORS, "b": MOTORS}, ()),
    ],
)
def test_names_of_motors_are_kept(given: Any, found: tuple[str, ...], tmp_path: Path) -> None:
    foreign(tmp_path / "theirs")
    path = tmp_path / "theirs/meta/info.json"
    info = json.loads(path.read_text())
    info["features"]["observation.state"]["names"] = given
    info["features"]["action"]["names"] = [f"{joint}.goal" for joint in "ab"]
    path.write_text(json.dumps(info))
    episodes, spec = import_lerobot(tmp_path / "theirs")
    assert spec.features["state"].names == found and spec.action_names == ("a.goal", "b.goal")
    export_lerobot(episodes, spec, tmp_path / "ours")
    again = import_lerobot(tmp_path / "ours")[1]
    assert (again.features["state"].names, again.action_names) == (found, spec.action_names)
    if found:  # others read them there
        exported = json.loads((tmp_path / "ours/meta/info.json").read_text())["features"]
        assert exported["observation.state"]["names"] == MOTORS and exported["action"]["names"] == ["a.goal", "b.goal"]


def test_images_and_instructions_come_back_exactly(tmp_path: Path) -> None:
    export_lerobot(seeing_episodes(), SEEING, tmp_path)
    episodes, spec = import_lerobot(tmp_path, BOTH)
    assert spec == SEEING and spec.instructions == SEEING.instructions
    assert_equal(episodes, seeing_episodes())
    # Images are read on request, and a camera may get another name.
    episodes, spec = import_lerobot(tmp_path)
    assert spec.features.keys() == episodes[0].obs.keys() == {"state", "latents"}
    episodes, spec = import_lerobot(tmp_path, ColumnsConfig(images={"hand": WRIST}))
    assert spec.features["images.hand"] == SEEING.features["images.wrist"]
    assert torch.equal(episodes[0].obs["images.hand"], seeing_episodes()[0].obs["images.wrist"])
    assert episodes[0].every == {"images.hand": 4, "latents": 4}
    (episode, *_), _ = import_lerobot(tmp_path, ColumnsConfig(images={"front": WRIST, "wrist": FRONT}))
    assert episode.every == {"images.front": 4, "latents": 4}
    assert torch.equal(episode.obs["images.wrist"], seeing_episodes()[0].obs["images.front"])


def test_images_alone_are_a_dataset_as_well(tmp_path: Path) -> None:
    spec = replace(SEEING, features={"state": Feature((0,)), "images.front": SEEING.features["images.front"]})
    expected = [
        replace(e, obs={"state": torch.zeros(e.length + 1, 0), "images.front": e.obs["images.front"]}, every={})
        for e in seeing_episodes()
    ]
    export_lerobot(expected, spec, tmp_path)
    assert_equal(import_lerobot(tmp_path, ColumnsConfig(images={"front": FRONT}))[0], expected)


def test_images_are_stored_as_lerobot_stores_them(tmp_path: Path) -> None:
    """A struct of PNG bytes and path; statistics by channel, as `compute_stats` of LeRobot 0.4.4 returns them."""
    export_lerobot(seeing_episodes(), SEEING, tmp_path)
    info = json.loads((tmp_path / "meta/info.json").read_text())
    assert info["features"][WRIST] == {
        "dtype": "image",
        "shape": [6, 10, 3],
        "names": ["height", "width", "channels"],
    }
    assert info["total_tasks"] == 1
    assert pq.read_table(tmp_path / "meta/tasks.parquet")["task"].to_pylist() == ["Push it - slowly."]
    rows = pq.read_table(tmp_path / "meta/episodes/chunk-000/file-000.parquet").to_pydict()
    assert rows["tasks"] == [["Push it - slowly."]] * 3
    data = pq.read_table(tmp_path / "data/chunk-000/file-000.parquet")
    assert set(data.column_names) == set(info["features"])
    assert data.schema.field(WRIST).type == pa.struct({"bytes": pa.binary(), "path": pa.string()})
    stored = data[WRIST].to_pylist()
    last = seeing_episodes()[2]
    assert [row["bytes"] for row in stored[4:]] == [encode_png(last.obs["images.wrist"][0])] * 4  # repeated

    frames = torch.cat([e.obs["images.front"][:-1] for e in seeing_episodes()]).double().reshape(-1, 3).numpy() / 255
    stats = json.loads((tmp_path / "meta/stats.json").read_text())[FRONT]
    assert stats["count"] == [8] and all(np.shape(stats[name]) == (3, 1, 1) for name in stats if name != "count")
    expected = {"min": frames.min(0), "max": frames.max(0), "mean": frames.mean(0), "std": frames.std(0)}
    expected |= {"q01": np.quantile(frames, 0.01, axis=0), "q90": np.quantile(frames, 0.9, axis=0)}
    for name, value in expected.items():
        np.testing.assert_allclose(np.ravel(stats[name]), value, atol=1 / 255 if name.startswith("q") else 1e-9)
    assert np.shape(rows[f"stats/{WRIST}/mean"][1]) == (3, 1, 1)


def test_a_large_export_has_several_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "DATA_BYTES", 6000)
    export_lerobot(seeing_episodes(), SEEING, tmp_path)
    names = sorted(path.name for path in (tmp_path / "data/chunk-000").iterdir())
    assert names == ["file-000.parquet", "file-001.parquet"]
    rows = pq.read_table(tmp_path / "meta/episodes/chunk-000/file-000.parquet").to_pydict()
    assert rows["data/file_index"] == [0, 0, 1]
    assert_equal(import_lerobot(tmp_path, BOTH)[0], seeing_episodes())


def test_an_export_from_before_latents_were_a_feature(tmp_path: Path) -> None:
    """Latents were the end of the state, once per frame; the period of the camera was the column `picture_every`."""
    new = replace(SPEC, features={**SPEC.features, "latents": Feature((2,), "codes")})
    expected = [replace(e, obs={"state": e.state[:, :3], "latents": e.state[:, 3:]}) for e in make_episodes()]
    old = replace(SPEC, features={"state": Feature((5,), "m; image: codes", {"image": (3, 5)})})
    export_lerobot(make_episodes(), old, tmp_path)
    episodes, spec = import_lerobot(tmp_path)
    assert spec.features["state"].shape == (3,) and spec.features["latents"] == new.features["latents"]
    assert_equal(episodes, expected)
    path = tmp_path / "meta/episodes/chunk-000/file-000.parquet"
    pq.write_table(pq.read_table(path).append_column("picture_every", pa.array([2, 2, 2])), path)
    (episode, *_), _ = import_lerobot(tmp_path)
    assert episode.every == {"latents": 2}
    assert torch.equal(episode.obs["latents"], expected[0].obs["latents"][[0, 2, 3]])


def test_a_foreign_dataset_gives_its_last_frame_as_last_observation(tmp_path) -> None:
    foreign(tmp_path)
    episodes, spec = import_lerobot(tmp_path)
    first, _, third = make_episodes()  # the second has one frame: no step is left of it
    assert [e.length for e in episodes] == [2, 3]
    for got, whole in zip(episodes, (first, third), strict=True):
        assert torch.equal(got.state, whole.state[:-1]) and torch.equal(got.action, whole.action[:-1])
        assert got.success.tolist() == [False] * (whole.length - 2) + [True]
    assert torch.equal(episodes[1].task_reward, third.task_reward[:-1])
    assert [(e.task, e.source, e.seed) for e in episodes] == [("push", "import", 0), ("pick", "import", 2)]
    every_action = torch.cat([e.action for e in make_episodes()])
    assert spec.action_low == tuple(every_action.min(0).values.tolist())
    assert (spec.tasks, spec.control_hz, spec.state_dim) == (("push", "pick"), 80.0, 5)


def test_tables_may_be_written_in_pieces(tmp_path) -> None:
    """LeRobot 0.4 writes ten rows of meta/episodes at a time, each as a row group."""
    foreign(tmp_path)
    expected = import_lerobot(tmp_path)[0]
    for path in tmp_path.glob("*/**/*.parquet"):
        pq.write_table(pq.read_table(path), path, row_group_size=1)
    assert_equal(import_lerobot(tmp_path)[0], expected)


def test_images_of_a_foreign_dataset_are_squares_of_the_size_asked_for(tmp_path: Path) -> None:
    foreign(tmp_path, seeing_episodes(), SEEING)
    episodes, spec = import_lerobot(tmp_path, ColumnsConfig(images={"front": FRONT, "wrist": WRIST}, image_size=4))
    assert spec.features["images.wrist"] == Feature((4, 4, 3), dtype="uint8")
    assert spec.tasks == ("Push it - slowly.",) and spec.instruction(spec.tasks[0]) == "Push it - slowly."
    first, _, third = seeing_episodes()
    for got, whole in zip(episodes, (first, third), strict=True):
        assert got.every == {} and {len(rows) for rows in got.obs.values()} == {whole.length}
        blocks = whole.obs["images.front"][:-1].float().unflatten(2, (4, 4)).unflatten(1, (4, 4)).mean((2, 4))
        torch.testing.assert_close(got.obs["images.front"].float(), blocks, atol=0.5, rtol=0)
        # The square in the middle of 6 x 6 pixels; it is repeated in all frames. Areas begin at rows 0, 1, 3 and 4.
        middle, wrist = whole.obs["images.wrist"][0, :, 2:8].float(), got.obs["images.wrist"].float()
        areas = {(0, 0): middle[0, 0], (1, 0): middle[1:3, 0].mean(0), (3, 1): middle[4:6, 1:3].mean((0, 1))}
        for (row, column), expected in areas.items():
            here = wrist[:, row, column]
            torch.testing.assert_close(here, expected.expand_as(here), atol=0.5, rtol=0)


def test_a_foreign_dataset_without_success_and_reward(tmp_path) -> None:
    foreign(tmp_path, drop=("next.success", "next.reward"))
    episodes, _ = import_lerobot(tmp_path)
    assert not any(e.is_success for e in episodes) and episodes[0].task_reward is None


def test_an_action_that_never_moves_has_narrow_bounds(tmp_path) -> None:
    foreign(tmp_path / "dataset")
    for path in (tmp_path / "dataset/data/chunk-000").iterdir():
        table = pq.read_table(path)
        still = pa.array([[a, 0.5] for a, _ in table["action"].to_pylist()], pa.list_(pa.float64()))
        pq.write_table(table.set_column(1, "action", still), path)
    assert cli.main(["cp", str(tmp_path / "dataset"), str(tmp_path / "store")]) == 0
    spec = EpisodeStore(tmp_path / "store").spec
    assert spec is not None and (spec.action_low[1], spec.action_high[1]) == pytest.approx((0.4995, 0.5005))


def test_episodes_of_several_tasks_keep_the_first(tmp_path) -> None:
    foreign(tmp_path)
    path = tmp_path / "meta/episodes/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    tasks = pa.array([["push"], ["push"], ["pick", "push", "lift", "pull"]])  # six names in three rows
    pq.write_table(table.set_column(table.column_names.index("tasks"), "tasks", tasks), path)
    assert [e.task for e in import_lerobot(tmp_path)[0]] == ["push", "pick"]
    pq.write_table(table.drop_columns(["tasks"]), path)
    assert "meta/episodes has no tasks; it has " in line(import_lerobot, tmp_path)


def line(call, *args) -> str:
    with pytest.raises(UserError) as error:
        call(*args)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_bad_datasets_are_one_line(tmp_path) -> None:
    assert line(import_lerobot, tmp_path) == (
        f"{tmp_path}: no meta/info.json in it; name the folder of a LeRobot v3.0 dataset"
    )
    export_lerobot(make_episodes(), SPEC, tmp_path)
    data, info = tmp_path / "data/chunk-000/file-000.parquet", tmp_path / "meta/info.json"
    whole = pq.read_table(data)
    pq.write_table(whole.drop_columns(["action"]), data)
    assert "the dataset has no action; it has episode_index, " in line(import_lerobot, tmp_path)
    pq.write_table(whole.slice(0, 6), data)
    assert "episode 2 has 2 frames, meta/episodes says 4" in line(import_lerobot, tmp_path)
    data.write_bytes(b"PAR1")
    assert line(import_lerobot, tmp_path) == f"{data}: the file is damaged; download the dataset again"
    data.unlink()
    assert "data: no parquet files in it" in line(import_lerobot, tmp_path)
    info.write_text(info.read_text().replace("v3.0", "v2.1"))
    assert "version v2.1, expected v3.0" in line(import_lerobot, tmp_path)


def test_bad_images_are_one_line(tmp_path: Path) -> None:
    foreign(tmp_path, seeing_episodes(), SEEING)
    data = tmp_path / "data/chunk-000/file-000.parquet"  # of the third episode
    wanted = ColumnsConfig(images={"front": FRONT}, image_size=16)
    whole = pq.read_table(data)

    def refused(*images: object) -> str:
        pngs = [row["bytes"] for row in whole[FRONT].to_pylist()]
        pngs[1 : 1 + len(images)] = images
        column = pa.array([{"bytes": png, "path": None} for png in pngs])
        pq.write_table(whole.set_column(whole.column_names.index(FRONT), FRONT, column), data)
        return line(import_lerobot, tmp_path, wanted)

    good = encode_png(seeing_episodes()[0].obs["images.front"][0])
    where = f"{data}: row 1 of {FRONT}: "
    assert refused(good[: len(good) // 2]) == where + "the image cannot be read (OSError); download the dataset again"
    assert "row 2 of " in refused(good, b"GIF89a") and "UnidentifiedImageError" in refused(good, b"GIF89a")
    assert refused(None) == where + "it holds no PNG or JPEG bytes; convert the dataset with LeRobot first"
    huge = bytearray(good)
    huge[16:24] = (4097).to_bytes(4, "big") + (4096).to_bytes(4, "big")  # width and height in the header,
    huge[29:33] = zlib.crc32(huge[12:29]).to_bytes(4, "big")  # and its checksum
    assert refused(bytes(huge)) == where + "an image of 4096 x 4097 pixels, at most 4096 x 4096 are read"
    small = encode_png(torch.zeros(15, 20, 3, dtype=torch.uint8))
    assert "an image of 15 x 20 pixels (height x width), which cannot be scaled up to 16 x 16" in refused(small)
    pq.write_table(whole.drop_columns([FRONT]), data)
    assert line(import_lerobot, tmp_path, wanted) == f"{data}: it has no column {FRONT}; download the dataset again"
    other = ColumnsConfig(images={"front": "observation.images.side"})
    assert f"no images observation.images.side; it has {FRONT}, {WRIST}; name others" in line(
        import_lerobot, tmp_path, other
    )


def test_own_images_keep_their_size(tmp_path: Path) -> None:
    export_lerobot(seeing_episodes(), SEEING, tmp_path)
    asked = ColumnsConfig(images={"front": FRONT}, image_size=8)
    assert "wamtune exported it, so its images keep their size; leave image_size out" in line(
        import_lerobot, tmp_path, asked
    )


def test_export_writes_into_a_new_folder_only(tmp_path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    assert "exists already; choose a new folder" in line(export_lerobot, make_episodes(), SPEC, tmp_path)
    assert "no episodes to export" in line(export_lerobot, [], SPEC, tmp_path / "d")
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_without_pyarrow_the_line_names_the_extra(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert line(export_lerobot, make_episodes(), SPEC, tmp_path / "d").endswith(pip_line("data"))
    assert os.listdir(tmp_path) == []


def test_the_command_carries_episodes_there_and_back(tmp_path, capsys) -> None:
    EpisodeStore(tmp_path / "recorded").append(make_episodes(), SPEC)
    recorded, dataset, back = (str(tmp_path / name) for name in ("recorded", "dataset", "back"))
    assert cli.main(["cp", recorded, dataset]) == cli.main(["cp", dataset, back]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"3 episodes of {recorded} are now a LeRobot dataset in {dataset}",
        f"the LeRobot dataset {dataset} is now 3 episodes in {back}",
    ]
    assert_equal(EpisodeStore(back).load(), make_episodes())
    assert EpisodeStore(back).spec == SPEC
    for source in (recorded, dataset):
        assert cli.main(["cp", source, back]) == 2
        line = f"wamtune: {back} is there already and was not touched; choose another destination\n"
        assert capsys.readouterr().err == line


def test_who_acted_comes_back_and_an_episode_that_does_not_say_was_the_policys(tmp_path: Path) -> None:
    one, other, *_ = make_episodes()
    who = torch.arange(one.length).remainder(3).to(torch.uint8)
    export_lerobot([replace(one, control=who), other], SPEC, tmp_path / "marked")
    (first, second), _ = import_lerobot(tmp_path / "marked")
    assert first.control is not None and torch.equal(first.control, who)
    assert second.control is not None and not second.control.any()
    with pytest.raises(UserError, match="says who acted in each step, and those before it do not; move their shards"):
        export_lerobot([other, replace(one, control=who)], SPEC, tmp_path / "mixed")
    assert not (tmp_path / "mixed").exists()


def test_the_marks_of_lerobot_are_a_persons_steps(tmp_path: Path) -> None:
    """Another dataset has the column `intervention` alone; its last frame is no step."""
    one = make_episodes()[0]
    export_lerobot([replace(one, control=torch.ones(one.length, dtype=torch.uint8))], SPEC, tmp_path / "theirs")
    (tmp_path / "theirs" / "meta/wamtune.json").unlink()
    for file in ("data/chunk-000/file-000.parquet", "meta/episodes/chunk-000/file-000.parquet"):
        table = pq.read_table(tmp_path / "theirs" / file)
        ours = [name for name in table.column_names if name.startswith(("control", "final.", "every."))]
        pq.write_table(table.drop_columns(ours), tmp_path / "theirs" / file)
    (found,), _ = import_lerobot(tmp_path / "theirs")
    assert found.control is not None and found.control.tolist() == [1] * (one.length - 1)
