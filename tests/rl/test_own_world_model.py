"""An own world model from a file is the dream that PPO trains in: with each kind of policy, saved and resumed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rl import cli
from rl.build import build_simulator
from rl.compose import compose
from rl.config import DreamConfig, SimulatorConfig, TrainConfig
from rl.stages.collect import collect_from
from rl.verbs import train
from rl.world_models import make_world_model
from world_model.data.episodes import EpisodeStore
from world_model.replays import agreement, error_ratio, replay_episodes

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SIMULATOR = "examples/own_simulator.py:PointSim"
OWN = "examples/own_world_model.py:OwnWorldModel"
CHOSEN = "{func: " + OWN + ", params: {episodes: recorded, n_steps: 30, width: 32}}"
WORLD = f"dream.world_model={CHOSEN}"
POINT = [f"env.simulator={SIMULATOR}", "env.tasks=reach", "env.max_steps=24"]
SMALL = "threads=1 n_rounds=1 env.n_envs=8 eval.n_episodes=4 eval.n_paired=4 gate.enabled=false".split()
SMALL += "dream.n_envs=8 dream.n_updates=2 dream.n_starts=8 dream.horizon=2 dream.refit_steps=5".split()
SMALL += "dream.n_episodes=2 ppo.batch_size=16 ppo.n_epochs=1 ppo.critic_warmup_steps=0 ppo.bc_batch_size=8".split()


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in a folder that holds the examples, and recorded episodes of the simulator."""
    (tmp_path / "examples").mkdir()
    for name in ("own_policy.py", "own_simulator.py", "own_world_model.py"):
        shutil.copy(EXAMPLES / name, tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    env = build_simulator(
        SimulatorConfig(SIMULATOR),
        ["reach"],
        16,
        model=None,
        known_tasks=(),
        n_context_frames=1,
        max_steps=40,
        terminate_on_success=False,
    )
    for folder, seed in (("recorded", 5), ("held", 500)):
        for source in ("noisy", "random"):
            EpisodeStore(folder).append(collect_from(env, 1, source, 32, seed=seed), env.spec)


def folder_of(name: str) -> Path:
    (folder,) = Path("runs", name).iterdir()
    return folder


def test_the_example_is_short_and_learns() -> None:
    assert len((EXAMPLES / "own_world_model.py").read_text().splitlines()) <= 60
    held = EpisodeStore("held").load()
    found = []
    for n_steps in (1, 800):
        chosen = {"func": OWN, "params": {"episodes": "recorded", "n_steps": n_steps}}
        lines: list[str] = []
        model = make_world_model(DreamConfig(world_model=chosen), seed=0, device="cpu", say=lines.append)
        assert model is not None and lines == [f"dream.world_model={OWN}: pretrains"]
        replays = replay_episodes(model, held)
        found.append((error_ratio(model, held, part="point_pos"), agreement(replays.success, replays.real_success)))
    (before, _), (after, phi) = found
    assert before is not None and after is not None and after < 0.5 < before and phi > 0.4


def test_a_gaussian_policy_is_trained_in_it_saved_resumed_and_evaluated(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "dream", "policy=gaussian", WORLD, *POINT, *SMALL, "save_minutes=0", "dream.redream=true"]
    assert cli.main([*words, "name=whole"]) == 0, capsys.readouterr().err
    # Stopped at each saved state, and continued in another process.
    save_state, n_stops, first = train.save_state, 0, [*words, "name=pieces"]

    def save(folder: Path, state: dict) -> None:
        save_state(folder, state)
        if "post" in state:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train, "save_state", save)
        while (code := cli.main(first)) == 130:
            n_stops, first = n_stops + 1, ["train", str(folder_of("pieces"))]
    assert code == 0 and n_stops >= 1, capsys.readouterr().err
    whole, pieces = (folder_of(name) for name in ("whole", "pieces"))
    for part in ("last", "last-world-model"):
        one, other = (load_file(run / "checkpoints" / part / "model.safetensors") for run in (whole, pieces))
        assert one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())
    assert (whole / "metrics.jsonl").read_text() == (pieces / "metrics.jsonl").read_text()

    # It was refitted, and the report shows what it can: no expected error, no video.
    about = json.loads((whole / "checkpoints/last-world-model/wamtune.json").read_text())
    assert about["world_model"]["func"] == OWN
    rows = (whole / "metrics.jsonl").read_text()
    assert "rollout/dream_success" in rows and "train/value_loss" in rows
    pairs, page = json.loads((whole / "pairs.json").read_text()), (whole / "report.html").read_text()
    assert pairs["unit"] == "units of the state" and pairs["trust"] is None and pairs["summary"]["n"] == 4
    assert "Can the dream be believed?" in page and "Does the model know its own error?" not in page
    assert next((whole / "plugins").glob("*own_world_model.py"))

    # Its saved weights fit a model with the same params alone.
    other = CHOSEN.replace("width: 32", "width: 16")
    assert cli.main(["eval", str(whole), "place=both", "n_episodes=4", f"world_model={other}"]) == 2
    said = capsys.readouterr().err
    assert "do not fit it; give it the params of the run, {episodes: recorded, n_steps: 30, width: 32}" in said

    # Its saved weights are loaded, and nothing is trained. A new policy has no such weights.
    capsys.readouterr()
    file = Path("examples/own_world_model.py")
    source, begin = file.read_text(), "        windows ="
    file.write_text(source.replace(begin, f"        raise RuntimeError('it trains')\n{begin}"))
    assert cli.main(["eval", str(whole), "place=both", "n_episodes=4", f"world_model={CHOSEN}"]) == 0
    assert "gap" in capsys.readouterr().out
    assert cli.main(["eval", str(whole), "place=dream", "n_episodes=4"]) == 2
    assert "place=dream: a policy has no dream of its own" in capsys.readouterr().err
    policy = "policy={func: examples/own_policy.py:OwnPolicy, params: {state_dim: 4, action_dim: 2}}"
    assert cli.main(["eval", "new", policy, "place=dream", f"world_model={CHOSEN}", *POINT[:2]]) == 2
    assert "raised RuntimeError: it trains" in capsys.readouterr().err
    assert cli.main(["train", str(whole)]) == 2
    assert f"dream.world_model: {file.resolve()} has changed since the run began" in capsys.readouterr().err


def test_a_policy_of_ones_own_is_trained_in_it(capsys: pytest.CaptureFixture[str]) -> None:
    policy = "policy={func: examples/own_policy.py:OwnPolicy, params: {state_dim: 4, action_dim: 2}}"
    words = [policy, WORLD, *POINT, *SMALL, "demonstrations=recorded", "ppo.imitation_steps=5"]
    assert cli.main(["train", "mix", *words, "total_timesteps=128", "dream.n_rounds=null", "ppo.n_steps=2"]) == 0, (
        capsys.readouterr().err
    )
    last = folder_of("mix") / "checkpoints"
    assert (last / "last" / "wamtune.json").is_file() and (last / "last-world-model" / "wamtune.json").is_file()
    words = [*POINT[:2], policy, f"world_model={CHOSEN}", "place=both", "max_steps=16", "n_episodes=2"]
    assert cli.main(["eval", str(folder_of("mix")), *words]) == 0, capsys.readouterr().err


def test_the_policy_of_a_checkpoint_is_trained_in_it(
    tiny: list[str], checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = CHOSEN.replace("recorded", str(checkpoint))
    words = [*tiny, f"dream.world_model={chosen}", "dream.n_episodes=2", "eval.n_paired=2", "ppo.imitation_steps=2"]
    assert cli.main(["train", "dream", *words]) == 0, capsys.readouterr().err
    last = folder_of("dream") / "checkpoints" / "last"
    ours, trained = (load_file(folder / "model.safetensors") for folder in (checkpoint, last))
    moved = {name.partition(".")[0] for name, value in trained.items() if not torch.equal(value, ours[name])}
    assert "action" in moved and not moved & {"world", "encoder", "codec", "read_out"}  # another model dreamed
    words = ["env.tasks=button-press-topdown", "place=both", "max_steps=16", "n_episodes=2", f"world_model={chosen}"]
    assert cli.main(["eval", str(folder_of("dream")), *words]) == 0, capsys.readouterr().err
    assert cli.main(["check", "dream", *tiny, f"dream.world_model={chosen}"]) == 0, capsys.readouterr().err


BAD = """
import torch
from dataclasses import replace
from examples_own import OwnWorldModel

class Far(OwnWorldModel):
    def __init__(self, **params):
        super().__init__("recorded", n_steps=1)
        self.spec = replace(self.spec, action_high=(1.0, 2.0), action_low=(-1.0, -2.0))

class Narrow(OwnWorldModel):
    def __init__(self):
        super().__init__("recorded", n_steps=1)
        self.spec = replace(self.spec, action_high=(1.0, 0.5))

class Lost(OwnWorldModel):
    def predict(self, session, actions):
        session, prediction = super().predict(session, actions)
        prediction.frames["state"][0] = torch.nan
        return session, prediction

class Nothing:
    pass

from world_model.api import WorldModel
class Half(WorldModel):
    def begin(self, history, seed): ...
"""


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("Far", "action 1 of the world model is from -2 to 2, the environment clips it to -1 to 1; widen the bounds"),
        ("Narrow", "action 1 of the world model is from -1 to 0.5, that of the environment from -1 to 1; a dream must"),
        ("Nothing", "dream.world_model=bad.py:Nothing: expected a world_model.api.WorldModel, got <"),
        ("Half", "dream.world_model=bad.py:Half raised TypeError: Can't instantiate abstract class Half with"),
        ("Lots", "dream.world_model=bad.py:Lots: bad.py has no 'Lots'; did you mean 'Lost'?"),
        ("Lost", "dream.world_model=bad.py:Lost returned frames['state'] with nan in row 0, step 0 of the chunk; "),
    ],
)
def test_what_does_not_fit_is_one_line_before_anything_is_measured(
    name: str, line: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(EXAMPLES / "own_world_model.py", tmp_path / "examples_own.py")
    Path("bad.py").write_text(BAD)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("rl.rounds.loop.PostTraining.evaluate", lambda self: pytest.fail("it was evaluated first"))
    params = ", params: {episodes: recorded, n_steps: 1}" if name == "Lost" else ""
    chosen = "dream.world_model={func: bad.py:" + name + params + "}"
    assert cli.main(["train", "dream", "policy=gaussian", chosen, *POINT, *SMALL]) == 2
    said = capsys.readouterr().err
    assert line in said and said.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["dream.world_model=3"], "dream.world_model=3 on the command line: expected text"),
        (["dream.world_model={params: {a: 1}}"], "dream.world_model: func is missing; write world_model={func: FILE"),
        (["dream.world_model={fun: a}"], "unknown key 'dream.world_model.fun' on the command line; did you mean"),
    ],
)
def test_a_wrong_config_is_one_line(words: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "dream", *words]) == 2
    assert line in capsys.readouterr().err


def test_the_name_wam_stands_for_the_checkpoint() -> None:
    for word in ("", "wam", "{func: wam}"):
        config = compose("dream", [f"dream.world_model={word}" if word else "seed=0"], TrainConfig)
        assert config.dream.brought is None and config.uses_model


def test_a_world_model_that_expects_no_error_is_not_asked_for_one(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["policy=gaussian", WORLD, *POINT, *SMALL, "dream.weigh_by_trust=true"]
    assert cli.main(["train", "dream", *words]) == 2
    assert f"dream.trust: dream.world_model={OWN} estimates no error; give its predictions" in capsys.readouterr().err


def test_a_policy_needs_the_features_and_frames_of_the_dream(
    tiny: list[str], checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = (EXAMPLES / "own_world_model.py").read_text().replace("2 * self.spec", "self.n_context_frames * self.spec")
    Path("blind.py").write_text(source.replace("chunk_size = 2, 8", "chunk_size = 1, 8"))
    chosen = "{func: blind.py:OwnWorldModel, params: {episodes: " + str(checkpoint) + ", n_steps: 1}}"
    assert cli.main(["train", "dream", *tiny, f"dream.world_model={chosen}"]) == 2
    assert "the policy reads 2 frames, and a dream has as many as the world model reads, 1" in capsys.readouterr().err
    chosen = CHOSEN  # of the point, not of the two tasks
    assert cli.main(["train", "dream", *tiny, f"dream.world_model={chosen}"]) == 2
    assert "the world model knows the tasks reach, the policy of the checkpoint button-press-topdown, push" in (
        capsys.readouterr().err
    )
