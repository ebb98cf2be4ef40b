"""`wamtune cp EPISODES DATASET` with keys: the state in two parts, rendered images, sentences."""

from __future__ import annotations

import io
import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from rewards.errors import UserError
from rl import cli
from rl.compose import compose
from rl.envs.cameras import CameraUse
from rl.envs.sim import SimEnv
from rl.verbs.dataset import dataset_of
from rl.verbs.options import DatasetOptions
from world_model.data.columns_config import ColumnsConfig
from world_model.data.episodes import Episode, EpisodeStore
from world_model.data.lerobot import export_lerobot, import_lerobot, writing
from world_model.spec import Feature
from world_model.view import View

TASKS = ("push", "drawer-open")
FRONT = CameraUse(View(), 24, 32)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a short episode of each task, with random actions."""
    env = SimEnv("metaworld", 2, TASKS, max_steps=6)
    env.reset(seed=1)
    env.record(True)
    env.step_chunk(torch.rand(2, 6, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1)
    folder = tmp_path_factory.mktemp("episodes") / "two"
    EpisodeStore(folder).append(env.record(False), env.spec)
    return folder


@pytest.fixture
def opengl(recorded: Path) -> None:
    try:
        SimEnv.replay(id="", episode=EpisodeStore(recorded).load()[0], cameras={"images.front": FRONT})
    except UserError as error:
        pytest.skip(str(error))


def frames_of(dataset: Path) -> dict[str, list]:
    return pq.read_table(dataset / "data/chunk-000/file-000.parquet").to_pydict()


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line of an export that must fail and leave nothing."""
    assert cli.main(["cp", *words]) == 2
    line = capsys.readouterr().err
    folder = Path(words[1])
    assert line.count("\n") == 1 and not folder.exists() and not (folder.parent / f".{folder.name}.tmp").exists()
    return line.removeprefix("wamtune: ").strip()


def test_state_in_two_parts_and_sentences(recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sentence = "instructions={push: Shove the puck.}"
    assert cli.main(["cp", str(recorded), str(tmp_path / "d"), "state=split", sentence]) == 0
    assert capsys.readouterr().out == f"2 episodes of {recorded} are now a LeRobot dataset in {tmp_path / 'd'}\n"
    episodes, columns = EpisodeStore(recorded).load(), frames_of(tmp_path / "d")
    whole = torch.cat([episode.state[:-1] for episode in episodes]).numpy()
    assert np.array_equal(np.array(columns["observation.state"], np.float32), whole[:, :4])
    assert np.array_equal(np.array(columns["observation.environment_state"], np.float32), whole[:, 4:])
    info = json.loads((tmp_path / "d/meta/info.json").read_text())["features"]
    assert info["observation.state"]["names"] == ["hand_pos_0", "hand_pos_1", "hand_pos_2", "gripper_0"]
    names = info["observation.environment_state"]["names"]
    assert (len(names), names[0], names[-1]) == (17, "object_pos_0", "goal_pos_2")
    stats = json.loads((tmp_path / "d/meta/stats.json").read_text())
    assert stats["observation.environment_state"]["mean"] == pytest.approx(whole[:, 4:].mean(0).tolist(), abs=1e-6)
    tasks = pq.read_table(tmp_path / "d/meta/tasks.parquet").to_pydict()
    assert tasks["task"] == ["Shove the puck.", "Pull the drawer open by its handle."]
    again, spec = import_lerobot(tmp_path / "d")
    assert spec.vector_slices == EpisodeStore(recorded).spec.slices
    for mine, theirs in zip(again, episodes, strict=True):
        assert torch.equal(torch.cat([mine.state, mine.obs["environment_state"]], dim=1), theirs.state)


@pytest.mark.usefixtures("opengl")
def test_the_commands_of_the_docs_make_a_dataset_as_they_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(cli.__file__).parents[1] / "docs" / "your_own_demonstrations.md").read_text("utf-8")
    (block,) = re.findall(r"test_dataset\.py runs these commands.*?```bash\n(.*?)```", page, re.DOTALL)
    commands = [shlex.split(line)[1:] for line in block.splitlines()]
    assert [words[0] for words in commands] == ["collect", "cp"]
    monkeypatch.chdir(tmp_path)
    for words in commands:
        assert cli.main([word.replace("n_episodes=25", "n_episodes=1") for word in words]) == 0
    features = json.loads((tmp_path / "datasets/push/meta/info.json").read_text())["features"]
    columns = re.findall(r"^\| `(observation\S+)` \|", page, re.MULTILINE)
    assert [name for name in features if name.startswith("observation")] == columns
    assert features["observation.images.front"]["shape"] == [96, 96, 3]


def test_one_task_of_several(recorded: Path, tmp_path: Path) -> None:
    assert cli.main(["cp", str(recorded), str(tmp_path / "d"), "env.tasks=drawer-open"]) == 0
    (episode,), spec = import_lerobot(tmp_path / "d")
    assert episode.task == "drawer-open" and spec.tasks == ("drawer-open",)


@pytest.mark.usefixtures("opengl")
def test_every_frame_is_rendered_by_each_camera(recorded: Path, tmp_path: Path) -> None:
    words = ["state=split", "cameras={front: {}, wrist: {camera: gripperPOV}}", "image_size=24,32"]
    assert cli.main(["cp", str(recorded), str(tmp_path / "d"), *words]) == 0
    columns, number = frames_of(tmp_path / "d"), 0
    for episode in EpisodeStore(recorded).load():
        cameras = {"images.front": FRONT, "images.wrist": replace(FRONT, view=View(camera="gripperPOV"))}
        images, _ = SimEnv.replay(id="", episode=episode, cameras=cameras)
        for step in range(episode.length):
            for name in cameras:
                data = columns[f"observation.{name}"][number]["bytes"]
                assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), images[name][step].numpy())
            number += 1
    info = json.loads((tmp_path / "d/meta/info.json").read_text())["features"]
    assert (info["observation.images.front"]["dtype"], info["observation.images.front"]["shape"]) == (
        "image",
        [24, 32, 3],
    )
    stats = json.loads((tmp_path / "d/meta/stats.json").read_text())["observation.images.wrist"]
    assert np.shape(stats["mean"]) == (3, 1, 1) and 0 <= np.min(stats["min"]) < np.max(stats["max"]) <= 1
    names = ColumnsConfig(images={"front": "observation.images.front"})
    again, spec = import_lerobot(tmp_path / "d", names)
    assert spec.features["images.front"] == Feature((24, 32, 3), dtype="uint8")
    assert again[-1].obs["images.front"].shape == (7, 24, 32, 3)  # the last observation has an image as well
    assert torch.equal(again[-1].obs["images.front"], images["images.front"])


@pytest.mark.usefixtures("opengl")
@pytest.mark.parametrize("kept", [slice(None), slice(0, 4)])  # the whole state, or the robot's alone
def test_an_episode_that_does_not_run_as_recorded_is_refused(
    recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kept: slice
) -> None:
    store = EpisodeStore(recorded)
    first, second = store.load()
    spec = SimEnv("metaworld", 1, TASKS, features={"state": Feature((len(range(21)[kept]),))}).spec
    first, second = (replace(e, obs={"state": e.state[:, kept].clone()}) for e in (first, second))
    second.action[2, 0] += 0.2  # another motion than the one that was recorded
    EpisodeStore(tmp_path / "e").append([first, second], spec)
    line = refused(capsys, str(tmp_path / "e"), str(tmp_path / "d"), "cameras={front: {}}", "image_size=16")
    assert line == (
        f"{tmp_path / 'e'}: the episode of seed {second.seed} (drawer-open) does not run as it was recorded, so images "
        "would not show it; collect episodes without env.options, or leave `cameras` out"
    )


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("image_size=0", "image_size=0: expected one number of pixels, or height,width, each from 1 to 4096"),
        ("image_size=1,2,3", "image_size=1,2,3: expected one number of pixels, or height,width, each from 1 to 4096"),
        ("cameras={a/b: {}}", "cameras.a/b: expected a name of letters, digits, _ and -"),
        ("cameras.front.side=3", "unknown key 'cameras.front.side' on the command line; did you mean "
         "'cameras.front.distance'?"),
        ("env.tasks=puhs", "env.tasks: {folder} has no episodes of 'puhs'; did you mean 'push'?"),
        ("instructions.hammer=Hit.", "env.instructions: {folder} has no episodes of 'hammer'; known: push, "
         "drawer-open"),
        ("env.options.events={}", "env.options: episodes run again as the simulator is without options; leave "
         "them out"),
        ("split=true", "unknown key 'split' on the command line; known: env, cameras, image_size, state"),
    ],
)  # fmt: skip
def test_wrong_keys_are_one_line(
    word: str, line: str, recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refused(capsys, str(recorded), str(tmp_path / "d"), word) == line.format(folder=recorded)


def test_a_state_that_cannot_be_split_or_rendered(
    recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = EpisodeStore(recorded)
    unnamed = replace(store.spec, features={"state": Feature((5,))})
    cut = [replace(e, obs={"state": e.state[:, :5].clone()}) for e in store.load()]
    EpisodeStore(tmp_path / "e").append(cut, unnamed)
    words = str(tmp_path / "e"), str(tmp_path / "d")
    assert refused(capsys, *words, "state=split") == (
        f"state=split: the state of {tmp_path / 'e'} has none of the parts that a robot measures itself "
        "(hand_pos, gripper); set state=whole"
    )
    assert refused(capsys, *words, "cameras={front: {}}") == (
        "env.simulator=metaworld: the episodes have state of 5 numbers, which this simulator does not have as such; "
        "name the simulator in which they were recorded"
    )
    robot = SimEnv("metaworld", 1, TASKS, features={"state": Feature((4,))}).spec
    alone = [replace(e, obs={"state": e.state[:, :4].clone()}) for e in store.load()]
    EpisodeStore(tmp_path / "r").append(alone, robot)
    assert refused(capsys, str(tmp_path / "r"), str(tmp_path / "d"), "state=split") == (
        f"state=split: the state of {tmp_path / 'r'} has nothing but parts that a robot measures itself "
        "(hand_pos, gripper); set state=whole"
    )


def test_a_camera_that_was_recorded_is_not_rendered_over(tmp_path: Path, recorded: Path) -> None:
    store = EpisodeStore(recorded)
    spec = replace(store.spec, features=store.spec.features | {"images.front": Feature((2, 2, 3), dtype="uint8")})
    images = torch.zeros(7, 2, 2, 3, dtype=torch.uint8)
    other = EpisodeStore(tmp_path)
    other.append([replace(e, obs=e.obs | {"images.front": images}) for e in store.load()], spec)
    with pytest.raises(UserError, match=r"^cameras\.front: .* has recorded images of that name; choose another$"):
        dataset_of(other, compose(None, ["cameras={front: {}}"], DatasetOptions))
    kept, _ = dataset_of(other, compose(None, ["state=split"], DatasetOptions))
    assert list(kept.features) == ["state", "environment_state", "images.front"]


def test_episodes_are_made_one_by_one(recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = EpisodeStore(recorded)
    (episode, _), spec = store.load(), store.spec
    monkeypatch.setattr(writing, "DATA_BYTES", 1)  # a data file for each episode
    there: list[int] = []

    def made(fails: bool) -> Iterator[Episode]:
        for i in range(4):
            there.append(len(list(tmp_path.glob(".d.tmp/data/*/*.parquet"))))
            yield replace(episode, seed=i)
        if fails:
            raise UserError("no more")

    with pytest.raises(UserError, match="no more"):
        export_lerobot(made(fails=True), spec, tmp_path / "d")
    assert there == [0, 0, 1, 2] and list(tmp_path.iterdir()) == []
    assert export_lerobot(made(fails=False), spec, tmp_path / "d") == 4
    assert [e.seed for e in import_lerobot(tmp_path / "d")[0]] == [0, 1, 2, 3]
    with pytest.raises(UserError, match="there are no episodes to export; collect some first"):
        export_lerobot(iter(()), spec, tmp_path / "none")
    assert not (tmp_path / "none").exists()
