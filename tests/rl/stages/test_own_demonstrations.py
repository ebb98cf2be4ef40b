"""From a dataset of somebody else, without a simulator, to a policy that was tuned and post-trained."""

from __future__ import annotations

import json
import re
import shlex
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
from rl.compose import compose
from rl.runs.folder import RunFolder, read_rows
from rl.stages.config import PretrainConfig, TuneConfig
from rl.stages.episodes import checked_early, demonstrations
from rl.stages.recorded import HELDOUT_EVERY, import_dataset, load_split, split
from rl.stages.run import pretrain, tune
from world_model.data.columns_config import ColumnsConfig
from world_model.data.episodes import Episode, EpisodeStore
from world_model.data.images import encode_png
from world_model.data.lerobot import import_lerobot
from world_model.spec import Feature, Spec
from world_model.wam import modes
from world_model.wam.metrics import imitation_metrics
from world_model.wam.store import load_model, load_model_and_config

torch.set_num_threads(1)
PAGE = Path(__file__).resolve().parents[3] / "docs" / "your_own_demonstrations.md"
TASKS = ("Reach the red block, then stop.", 'Push it aside: "slowly" | gently')

SMALLER = {
    "pretrain": [
        "model={width: 32, world_width: 48, action_width: 32, n_layers: 2, n_heads: 2}",
        *"threads=1 trust_steps=20 stage.n_steps=100 stage.batch_size=64 stage.warmup_steps=10".split(),
        *"stage.save_every=50 stage.log_every=50".split(),
    ],
    "tune": [
        *"threads=1 trust_steps=20 stage.n_steps=200 stage.batch_size=64 stage.learning_rate=3.0e-3".split(),
        *"stage.warmup_steps=10 refit.n_steps=20 refit.batch_size=32".split(),
    ],
    "train": [
        *"threads=1 n_rounds=1 env.n_envs=4 eval.n_episodes=4 gate.n_episodes=4 gate.max_episodes=4".split(),
        *"dream.n_envs=8 dream.n_updates=1 dream.n_starts=4 dream.horizon=2 dream.refit_steps=2".split(),
        *"ppo.n_steps=4 ppo.batch_size=16 ppo.n_epochs=1 ppo.critic_warmup_steps=0 ppo.bc_batch_size=8".split(),
        "ppo.imitation_steps=5",
    ],
}
"""Overrides of each verb that make its run a matter of seconds."""


def move(task: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Let an arm that counts in degrees and millimetres go to a block: frames (T, 9), actions (T, 7)."""
    hand, block = rng.uniform(-300, 300, 3), rng.uniform(-60, 60, 3)
    goal = block + (0, 80 * task, 0)
    frames, actions = [], []
    for _ in range(rng.integers(36, 44)):
        frames.append([hand[0] / 5, hand[1] / 5, hand.sum() / 10, *hand, *block])
        gripper = 100.0 if np.linalg.norm(goal - hand) < 40 else 0.0
        actions.append([*np.clip(2 * (goal - hand), -150, 150), 0, 0, 0, gripper])  # the wrist never turns
        hand = hand + np.array(actions[-1][:3]) / 10
    return np.array(frames, np.float32), np.array(actions, np.float32)


def lists(values: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])


FRONT = "observation.images.front"


def photos(state: np.ndarray) -> pa.Array:
    """Images (48, 64, 3) of an arm as a bright square, by its position: of a camera that films the table from above."""
    rows = []
    for x, y in np.clip(12 + state[:, 3:5] / 25, 0, 40).astype(int):
        image = torch.zeros(48, 64, 3, dtype=torch.uint8)
        image[x : x + 8, 8 + y : 16 + y] = torch.tensor([250, 200, 100], dtype=torch.uint8)
        rows.append({"bytes": encode_png(image), "path": None})
    return pa.array(rows)


def write_dataset(
    folder: Path,
    n: int = 40,
    frames: dict[str, Any] | None = None,
    rows: dict[str, Any] | None = None,
    with_images: bool = False,
) -> None:
    """Write what LeRobot writes of `n` episodes; more columns of frames and of episodes, or None to leave one out."""
    rng = np.random.default_rng(0)
    parts = [move(i % 2, rng) for i in range(n)]
    lengths = [len(actions) for _, actions in parts]
    state, action = (np.concatenate(column) for column in zip(*parts, strict=True))
    columns = {
        "observation.state": lists(state),
        "action": lists(action),
        "timestamp": np.concatenate([np.arange(length) / 10 for length in lengths]).astype(np.float32),
        "frame_index": np.concatenate([np.arange(length) for length in lengths]),
        "episode_index": np.repeat(np.arange(n), lengths),
        "index": np.arange(len(state)),
        "task_index": np.repeat(np.arange(n) % 2, lengths),
        **({FRONT: photos(state)} if with_images else {}),
    }
    episodes = {"episode_index": np.arange(n), "tasks": [[TASKS[i % 2]] for i in range(n)], "length": lengths}
    for name, part, more in (("data", columns, frames), ("meta/episodes", episodes, rows)):
        kept = {key: value for key, value in (part | (more or {})).items() if value is not None}
        (folder / name / "chunk-000").mkdir(parents=True)
        pq.write_table(pa.table(kept), folder / name / "chunk-000" / "file-000.parquet")
    pq.write_table(pa.table({"task_index": [0, 1], "task": list(TASKS)}), folder / "meta" / "tasks.parquet")
    motors = [f"joint_{i}.deg" for i in range(3)] + [f"hand.{x}" for x in "xyz"] + [f"block.{x}" for x in "xyz"]
    feature = {"dtype": "float32", "shape": [9], "names": {"motors": motors}}
    features: dict[str, Any] = {"observation.state": feature}
    if with_images:
        features[FRONT] = {"dtype": "image", "shape": [48, 64, 3], "names": ["height", "width", "channels"]}
    info = {"codebase_version": "v3.0", "robot_type": "theirs", "fps": 10, "features": features}
    (folder / "meta" / "info.json").write_text(json.dumps(info))


def commands(heading: str = "# From your own") -> list[list[str]]:
    """Words of the commands in the first block below a heading of the page, without the name of the program."""
    block = PAGE.read_text().partition(heading)[2].partition("```bash\n")[2].partition("```")[0]
    words = [shlex.split(line, comments=True) for line in block.replace("\\\n", " ").splitlines()]
    assert all(line[0] == ".venv/bin/wamtune" for line in words)
    return [line[1:] for line in words]


SMALLER_IMAGES = {
    "pretrain": [
        *"columns.image_size=32 model.image_size=32 model.patch_dim=4 trust_steps=0 stage.n_steps=20".split(),
        "codec={n_steps: 20, batch_size: 16, log_every: 10, save_every: 10}",
    ],
    "tune": ["trust_steps=0", "stage.n_steps=20", "refit.n_steps=5"],
    "train": [],
}
"""Overrides of each verb, after those of `SMALLER`, for a model with images."""


@pytest.fixture(scope="module")
def image_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the commands of the section on cameras were run on a foreign dataset with images."""
    place = tmp_path_factory.mktemp("image_data")
    write_dataset(place / "datasets" / "mine", 12, with_images=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        for words in commands("## Cameras"):
            assert cli.main([*words, *SMALLER[words[0]], *SMALLER_IMAGES[words[0]]]) == 0
    return place


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the commands of the page were run on a foreign dataset."""
    place = tmp_path_factory.mktemp("own")
    write_dataset(place / "datasets" / "mine")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        for words in commands():
            assert cli.main([*words, *SMALLER[words[0]]]) == 0
    return place


def last(place: Path, name: str) -> Path:
    (run,) = (place / "runs" / name).iterdir()
    return run / "checkpoints" / "last"


def heldout_of(place: Path) -> list[Episode]:
    return load_split(EpisodeStore(place / "runs" / "episodes" / "own-pretrained"), TASKS, 8)[1]


def test_the_page_has_three_commands() -> None:
    assert [words[0] for words in commands()] == ["pretrain", "tune", "train"]


def test_what_is_imported_fits_the_dataset(walked: Path) -> None:
    spec = EpisodeStore(walked / "runs" / "episodes" / "own-pretrained").spec
    assert (spec.state_dim, spec.action_dim, spec.control_hz, spec.tasks) == (9, 7, 10.0, TASKS)
    assert spec.action_high[0] == pytest.approx(150, abs=1) and spec.action_high[6] == 100
    assert spec.action_low[3] < 0 < spec.action_high[3]  # never moved
    trained = load_model(last(walked, "own-pretrained")).spec
    assert trained == spec and trained.features["state"].names[:4] == (
        "joint_0.deg",
        "joint_1.deg",
        "joint_2.deg",
        "hand.x",
    )


def test_the_tuned_policy_does_what_was_shown(walked: Path) -> None:
    model, config = load_model_and_config(last(walked, "own-tuned"))
    heldout = heldout_of(walked)
    assert {e.task for e in heldout} == set(TASKS) and len(heldout) == 8
    error = imitation_metrics(model, model.windows(heldout))["imitation_error"]
    assert error < 0.5  # the mean action has 1
    assert config["metrics"]["imitation_error"] == pytest.approx(error, rel=0.01)
    assert config["demonstrations"] == dict.fromkeys(TASKS, 16) and config["episodes"] == {"import": 32}
    demos = EpisodeStore(last(walked, "own-tuned")).load()
    assert not {e.seed for e in demos} & {e.seed for e in heldout}


def test_without_a_simulator_success_is_not_measured(walked: Path) -> None:
    config = load_model_and_config(last(walked, "own-tuned"))[1]
    assert "success" not in config["metrics"] and config["simulator"] is False
    card = (last(walked, "own-tuned") / "README.md").read_text()
    assert "there was no simulator: its success has not been measured" in card
    assert '"Reach the red block, then stop." 16, "Push it aside: "slowly" \\| gently" 16' in card
    assert len({line.count("|") - line.count("\\|") for line in card.splitlines() if line.startswith("| ")}) == 1


def test_the_post_trained_policy_loads_and_keeps_its_bounds(walked: Path) -> None:
    model, config = load_model_and_config(last(walked, "own"))
    assert config["stage"] == "rl" and config["parent"].startswith("runs/own-tuned/")
    batch = model.windows(heldout_of(walked)).sample(64, torch.Generator().manual_seed(0))
    with torch.inference_mode():
        context = model.observe(batch.obs)
        actions = modes.policy(model, context, modes.action_noise(model, 64, torch.Generator().manual_seed(0)), 2)
    low, high = torch.tensor(model.spec.action_low), torch.tensor(model.spec.action_high)
    assert ((actions >= low) & (actions <= high)).all() and actions.std() > 1
    report = (last(walked, "own").parents[1] / "report.html").read_text()
    assert "a dream of what was recorded" in report


@pytest.mark.parametrize("words", [["eval", "runs/own"], ["rank", "runs/own", "runs/own-tuned"], ["dream", "runs/own"]])
def test_a_verb_that_needs_a_simulator_asks_for_one(
    words: list[str], walked: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(walked)
    assert cli.main(words) == 2
    line = capsys.readouterr().err
    assert line.startswith(f"wamtune: runs/own: its task {TASKS[0]!r} is none of Meta-World's; name the simulator")
    assert line.count("\n") == 1


def test_sentences_are_names_of_curves(walked: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = last(walked, "own-tuned").parents[1]
    names = [f"heldout/trust/{task}/rho" for task in TASKS]
    assert any(names[0] in row for row in read_rows(run / "metrics.jsonl"))
    events = EventAccumulator(str(run))
    events.Reload()
    assert set(names) <= set(events.Tags()["scalars"])


def test_the_dataset_is_imported_once(walked: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(walked)
    folder = "runs/episodes/own-pretrained"
    again = compose("own-pretrained", ["dataset=datasets/mine", "columns.success=all"], PretrainConfig)
    before = EpisodeStore(folder).shards
    import_dataset(again, EpisodeStore(folder))
    assert EpisodeStore(folder).shards == before
    assert cli.main(["pretrain", "own-pretrained", "dataset=datasets/mine", "columns.success=none"]) == 2
    line = capsys.readouterr().err
    assert f"{folder} holds other episodes than dataset=datasets/mine gives now; delete that folder" in line
    assert len(list((walked / "runs" / "own-pretrained").iterdir())) == 1  # the refused run left nothing


def test_a_dataset_must_say_what_succeeded(tmp_path: Path) -> None:
    """Otherwise the model learns that nothing ever succeeds, and `tune` finds nothing to imitate."""
    write_dataset(tmp_path / "d", 4)
    words = [f"dataset={tmp_path}/d", f"episodes={tmp_path}/e"]

    def imported(*more: str) -> list[bool]:
        import_dataset(compose("own-pretrained", [*words, *more], PretrainConfig), EpisodeStore(tmp_path / "e"))
        return [e.is_success for e in EpisodeStore(tmp_path / "e").load()]

    with pytest.raises(UserError) as error:
        imported()
    assert str(error.value) == (
        f"dataset={tmp_path}/d: it marks no step as a success in next.success; add columns.success=all if every "
        "episode was one, none if no episode was, or the name of a column"
    )
    assert not EpisodeStore(tmp_path / "e").shards
    assert imported("columns.success=none") == [False] * 4


def test_the_task_of_an_environment_is_its_id() -> None:
    words = ["env.simulator=gymnasium", "env.id=Pendulum-v1"]
    config = checked_early(compose("own-pretrained", words, PretrainConfig))
    assert config.env.tasks == ("Pendulum-v1",)


def test_an_interrupted_run_needs_no_dataset(walked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(walked)
    words = ["dataset=datasets/mine", "columns.success=all", *SMALLER["pretrain"], "name=again"]
    words += ["episodes=runs/episodes/own-pretrained"]
    with monkeypatch.context() as patch:
        patch.setattr("rl.stages.run.calibrate_trust", interrupt)
        assert cli.main(["pretrain", "own-pretrained", *words]) == 130
    (run,) = Path("runs/again").iterdir()
    Path("datasets/mine").rename("datasets/away")
    try:
        assert cli.main(["pretrain", str(run)]) == 0
    finally:
        Path("datasets/away").rename("datasets/mine")
    weights = [
        (folder / "model.safetensors").read_bytes()
        for folder in (last(walked, "again"), last(walked, "own-pretrained"))
    ]
    assert weights[0] == weights[1]


def interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def episode(task: str, seed: int, source: str = "import", success: bool = True, length: int = 10) -> Episode:
    hits = torch.zeros(length, dtype=torch.bool)
    hits[-1] = success
    obs = {"state": torch.full((length + 1, 2), float(seed))}
    return Episode(obs, torch.zeros(length, 1), hits, task, source, seed)


SPEC = Spec({"state": Feature((2,))}, (-1.0,), (1.0,), ("a", "b", "c"), 10.0)


def test_held_out_are_the_same_ones_after_more_was_recorded() -> None:
    recorded = [episode("ab"[i % 2], i) for i in range(24)]
    learned, heldout = split(recorded)
    assert [e.seed for e in heldout] == [0, 1, 2 * HELDOUT_EVERY, 2 * HELDOUT_EVERY + 1, 20, 21]
    assert sorted(e.seed for e in learned + heldout) == list(range(24))
    assert split(recorded[:4])[1] == heldout[:2]
    assert split([*recorded, episode("c", 99)])[1] == heldout  # a lone one is learned from


def test_held_out_that_were_recorded_apart_stay_apart(tmp_path: Path) -> None:
    store = EpisodeStore(tmp_path)
    store.append([episode("a", i) for i in range(6)], SPEC)
    assert [len(part) for part in load_split(store, ["a"], 8)] == [4, 2]
    assert [len(part) for part in load_split(store, ["a"], 8)] == [4, 2]
    EpisodeStore(tmp_path / "heldout").append([episode("a", 7)], SPEC)
    assert [len(part) for part in load_split(store, ["a"], 8)] == [6, 1]
    with pytest.raises(UserError, match=r"0 episodes of 11 steps or more; expected two of one task"):
        (tmp_path / "heldout" / "episodes-000000.safetensors").unlink()
        load_split(store, ["a"], 11)


def test_images_are_not_taken_for_a_state(tmp_path: Path) -> None:
    write_dataset(tmp_path, 2, with_images=True)
    with pytest.raises(UserError, match=rf"{FRONT} holds images, .* columns\.images\.front={FRONT}$"):
        import_lerobot(tmp_path, ColumnsConfig(state=(FRONT,)))


def test_arrays_of_numpy_become_episodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The code of the page, on arrays as numpy makes them; an action beyond the bounds is named."""
    monkeypatch.chdir(tmp_path)
    Path("recordings").mkdir()
    rng = np.random.default_rng(0)
    for i, length in enumerate((9, 12)):
        state, action = rng.normal(size=(length + 1, 3)), rng.uniform(-1, 1, (length, 2))
        np.savez(f"recordings/{i}.npz", state=state, action=action, success=np.arange(length) == length - 1)
    (code,) = re.findall(r"^```python\n# to_episodes.py\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    exec(code, {})
    store = EpisodeStore("runs/episodes/mine")
    (learned,), (heldout,) = load_split(store, ["reach"], 8)
    assert (heldout.length, learned.length) == (9, 12) and learned.is_success
    np.testing.assert_allclose(learned.state, state, rtol=1e-6)
    np.testing.assert_allclose(learned.action, action, rtol=1e-6)
    store.append([replace(learned, action=learned.action * 0 + torch.tensor([0.5, 1.5]))], store.spec)
    with pytest.raises(UserError, match=r"episode 2 has 1.5 as action 1 at step 0, the bounds of its spec are -1 and"):
        load_split(store, ["reach"], 8)


def chosen(episodes: list[Episode], *overrides: str, tasks: tuple[str, ...] = ("a",)) -> list[int]:
    config = compose("own-tuned", overrides, TuneConfig)
    return [e.seed for e in demonstrations(config, episodes, tasks)]


def test_demonstrations_are_what_the_user_says() -> None:
    episodes = [episode("a", 3), episode("a", 1, success=False), episode("a", 2, "teleop"), episode("a", 0, "policy")]
    assert chosen(episodes) == [0, 2, 3]
    assert chosen(episodes, "demonstrations.sources=[import,teleop]") == [2, 3]
    assert chosen(episodes, "demonstrations.success_only=false") == [0, 1, 2, 3]
    assert chosen(episodes, "n_demos=2") == [0, 2]
    assert chosen(episodes, "n_demos=2", "demos={a: 3}") == [0, 2, 3]


def test_fewer_demonstrations_than_asked_for() -> None:
    episodes = [episode(TASKS[0], i) for i in range(3)] + [episode("b", 9, success=False)]
    sentence = "demos={" + json.dumps(TASKS[0]) + ": 4}"
    assert chosen(episodes, "n_demos=10", tasks=TASKS[:1]) == [0, 1, 2]  # the default takes what is there
    with pytest.raises(UserError, match=re.escape(f"demos.{TASKS[0]}=4, but runs/episodes/own-pretrained has 3 ")):
        chosen(episodes, sentence, tasks=TASKS[:1])
    with pytest.raises(UserError, match=r"task 'b': .* 0 successful episodes .*1 of source import, 0 successful"):
        chosen(episodes, tasks=("b",))
    with pytest.raises(UserError, match=r"0 successful episodes of source expert .*there are 3 of source import"):
        chosen(episodes, "demonstrations.sources=[expert]", tasks=TASKS[:1])


def test_demonstrations_from_a_folder_of_their_own(walked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(walked)
    store = EpisodeStore("runs/episodes/own-pretrained")
    EpisodeStore("teleop").append([e for e in store.load() if e.task == TASKS[0]][:3], store.spec)
    words = [*SMALLER["tune"], "name=teleop", "demonstrations.episodes=teleop", "stage.n_steps=1", "refit.n_steps=0"]
    with pytest.raises(UserError, match=r"teleop has 0 successful episodes of this task"):
        tuned(words)
    about = tuned([*words, "tasks=[" + json.dumps(TASKS[0]) + "]"])
    assert about["demonstrations"] == {TASKS[0]: 2} and about["episodes"] == {"import": 32}


def tuned(words: list[str]) -> dict[str, Any]:
    config = compose("own-tuned", words, TuneConfig)
    with RunFolder.create("runs", config.name, 0) as run:
        return tune(config, run)


def test_what_the_dataset_calls_things(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    lengths = [len(move(i % 2, rng)[1]) for i in range(4)]
    n, where = sum(lengths), np.cumsum(lengths)
    extra = {"theirs.pose": lists(np.arange(2.0 * n).reshape(n, 2)), "is_there": np.isin(np.arange(n), where[:2] - 5)}
    named = {"grip": np.arange(n), "note": ["x"] * n, "late": np.where(np.arange(n) == n - 1, np.nan, 0.0)}
    write_dataset(tmp_path / "d", 4, extra | named, {"solved": [1, 0, 0, 1]})

    def read(**columns: Any) -> list[Episode]:
        return import_lerobot(tmp_path / "d", ColumnsConfig(**columns))[0]

    whole = read()
    assert not any(e.is_success for e in whole)  # nothing was said of it
    both = read(state=("theirs.pose", "observation.state"), action=("action", "grip"))
    assert (both[0].state.shape[1], both[0].action.shape[1]) == (11, 8)
    assert torch.equal(both[0].state[:, 2:], whole[0].state) and both[1].action[0, 7] == lengths[0]
    assert [int(e.success.sum()) for e in read(success="all", success_steps=5)] == [4] * 4  # the last frame is dropped
    assert [e.is_success for e in read(success="solved")] == [True, False, False, True]
    assert [e.success.nonzero().flatten().tolist() for e in read(success="is_there")[:2]] == [
        [length - 5] for length in lengths[:2]
    ]
    assert not any(e.is_success for e in read(success="none"))
    for columns, message in (
        ({"state": ("pose",)}, "the dataset has no pose; it has action, episode_index"),
        ({"success": "done"}, "success=done is no column; the dataset has action,"),
        ({"success": "note"}, "column note holds no numbers"),
        ({"state": ("note",)}, "column note holds no numbers"),
        ({"success": "late"}, "column late is not finite everywhere"),
    ):
        with pytest.raises(UserError, match=re.escape(message)):
            read(**columns)


def test_cp_takes_the_same_keys(tmp_path: Path, capsys: Any) -> None:
    write_dataset(tmp_path / "d", 4, rows={"solved": [1, 0, 0, 1]})
    assert cli.main(["cp", str(tmp_path / "d"), str(tmp_path / "e"), "success=solved"]) == 0
    assert EpisodeStore(tmp_path / "e").count()[TASKS[0], "import", True] == 1
    capsys.readouterr()
    for words, line in (
        ([str(tmp_path / "d"), str(tmp_path / "f"), "sucess=all"], "unknown key 'sucess'"),
        ([str(tmp_path / "e"), str(tmp_path / "f"), "success=all"], "unknown key 'success'"),
        (
            ["metaworld-tuned", str(tmp_path / "f"), "success=all"],
            "only a LeRobot dataset, a folder of episodes and an upload have keys; leave it out",
        ),
        ([str(tmp_path / "d"), str(tmp_path / "f"), "state=[]"], "state=[]: expected at least one column"),
    ):
        assert cli.main(["cp", *words]) == 2
        assert line in capsys.readouterr().err and not (tmp_path / "f").exists()


def refuse(*overrides: str) -> str:
    with pytest.raises(UserError) as error:
        config = compose("own-pretrained", overrides, PretrainConfig)
        with RunFolder.create("runs", config.name, 0) as run:
            pretrain(config, run)
    assert "\n" not in str(error.value) and not list(Path("runs").glob("own-pretrained/*"))
    return str(error.value)


def test_what_cannot_be_learned_from_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_dataset(tmp_path / "d", 4)
    assert "episodes=runs/episodes/own-pretrained: no episodes here" in refuse()
    assert "d: a LeRobot dataset, not a folder of episodes; dataset=d imports it" in refuse("episodes=d")
    assert "dataset=d: env.simulator=metaworld collects its own episodes; set env.simulator=recorded" in refuse(
        "dataset=d", "id=metaworld", "tasks=[push]"
    )
    images = [f"columns.images.front={FRONT}", "columns.image_size=32"]
    write_dataset(Path("seen"), 4, with_images=True)
    assert "model.views.front: no images of this camera are imported; name their column, columns.images.front=" in (
        refuse("dataset=seen", "model.views={front: {}}")
    )
    assert "model.image_size=64: the images of camera front are imported with 32 x 32 pixels" in refuse(
        "dataset=seen", "model.views={front: {}}", *images
    )
    assert "image of 48 x 64 pixels (height x width), which cannot be scaled up to 64 x 64" in refuse(
        "dataset=seen", images[0]
    )
    assert not Path("runs/episodes").exists()  # nothing was imported
    assert "env.tasks: 'fly' is none of those in runs/episodes/own-pretrained: 'R" in refuse(
        "dataset=d", "columns.success=none", "tasks=[fly]"
    )


def test_another_robot_is_refused(walked: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(walked)
    EpisodeStore(tmp_path).append([episode("a", i) for i in range(6)], SPEC)
    with pytest.raises(UserError, match=r"recorded with other features, bounds or rate than the checkpoint's"):
        tuned(["name=other", f"episodes={tmp_path}"])


def test_a_model_with_cameras_learns_from_recorded_images(image_data: Path) -> None:
    store = EpisodeStore(image_data / "runs" / "episodes" / "seen-pretrained")
    assert store.spec.features["images.front"] == Feature((32, 32, 3), dtype="uint8")
    assert store.spec.instructions == {task: task for task in TASKS}
    episode = store.load()[0]
    assert episode.obs["images.front"].shape == (episode.length + 1, 32, 32, 3)
    for name, stage in (("seen-pretrained", "pretrain"), ("seen-tuned", "tune"), ("seen", "rl")):
        model, config = load_model_and_config(last(image_data, name))
        assert config["stage"] == stage and model.spec.images == ("images.front",)
        assert model.spec.state_dim == 9 and model.spec.instructions == store.spec.instructions
    metrics = load_model_and_config(last(image_data, "seen-tuned"))[1]["metrics"]
    assert metrics["images"]["mean"]["psnr"] > 0 and metrics["imitation_error"] > 0
    demos = EpisodeStore(last(image_data, "seen-tuned")).load()
    assert demos[0].obs.keys() == {"state", "latents"}


def test_a_model_without_cameras_leaves_the_images_out(
    image_data: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [f"episodes={image_data / 'runs/episodes/seen-pretrained'}", *SMALLER["pretrain"], "stage.n_steps=20"]
    assert cli.main(["pretrain", "own-pretrained", "name=blind", *words]) == 0
    words = ["checkpoint=runs/blind", words[0], *SMALLER["tune"], *SMALLER_IMAGES["tune"]]
    assert cli.main(["tune", "own-tuned", "name=blind-tuned", *words]) == 0
    model = load_model(last(tmp_path, "blind-tuned"))
    assert model.spec.images == () and EpisodeStore(last(tmp_path, "blind-tuned")).load()[0].obs.keys() == {"state"}


def test_cp_carries_images_to_a_dataset_and_back(image_data: Path, tmp_path: Path) -> None:
    store = EpisodeStore(image_data / "runs" / "episodes" / "seen-pretrained")
    assert cli.main(["cp", str(store.folder), str(tmp_path / "d")]) == 0
    assert cli.main(["cp", str(tmp_path / "d"), str(tmp_path / "e"), f"images.front={FRONT}"]) == 0
    back = EpisodeStore(tmp_path / "e")
    assert back.spec == store.spec and back.spec.instructions == store.spec.instructions
    for got, expected in zip(back.load(), store.load(), strict=True):
        assert all(torch.equal(got.obs[name], expected.obs[name]) for name in ("state", "images.front"))
