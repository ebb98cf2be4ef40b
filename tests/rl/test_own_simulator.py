"""An own simulator from a file: PPO, evaluation and a world model on it, with no file of ours changed."""

from __future__ import annotations

import shutil
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from rewards.errors import UserError
from rl import cli
from rl.build import build_simulator, find_simulator
from rl.config import SimulatorConfig
from rl.envs.simulator import Simulator
from rl.report.data import read_results
from rl.stages.collect import collect_from
from rl.statistics import success_rate
from world_model.data.episodes import EpisodeStore
from world_model.spec import Feature, Spec
from world_model.wam.config import ModelConfig
from world_model.wam.model import WorldActionModel
from world_model.wam.store import save_model

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "own_simulator.py"
SIMULATOR = "examples/own_simulator.py:PointSim"
WORDS = [f"env.simulator={SIMULATOR}", "threads=1"]
COMMON: dict[str, Any] = {"n_context_frames": 2, "max_steps": 30}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in a folder that holds nothing but the example."""
    (tmp_path / "examples").mkdir()
    shutil.copy(EXAMPLE, tmp_path / "examples")
    monkeypatch.chdir(tmp_path)


def point(n_envs: int, options: dict[str, Any] | None = None, **common: Any) -> Simulator:
    env = SimulatorConfig(SIMULATOR, options=options or {})
    return build_simulator(env, ["reach"], n_envs, model=None, known_tasks=["reach"], **COMMON | common)


def test_ppo_on_it_learns_to_reach(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["env.max_steps=40", "rewards.success.weight=1", "total_timesteps=20_000", "eval.n_episodes=40"]
    assert cli.main(["train", "gaussian", *WORDS, *words]) == 0
    (run,) = Path("runs/gaussian").iterdir()
    results = read_results(run, "gaussian")
    before, after = success_rate(results["before"]), success_rate(results["after"])
    assert before < 0.2 and after > 0.8
    assert next((run / "plugins").iterdir()).name.endswith("own_simulator.py")  # kept beside the run
    capsys.readouterr()
    assert cli.main(["eval", str(run), "n_episodes=20"]) == 0
    assert "PointSim" in capsys.readouterr().out


def test_a_world_model_is_pretrained_and_tuned_on_it(capsys: pytest.CaptureFixture[str]) -> None:
    small = ["trust_steps=20", "stage.n_steps=10", "stage.batch_size=16"]
    counts = ["n_expert=8", "n_noisy=4", "n_random=2", "n_heldout=6"]
    pretrain = [
        "pretrain",
        "own-pretrained",
        "name=world",
        *WORDS,
        "env.tasks=reach",
        *small,
        *counts,
        "model.width=40",
    ]
    assert cli.main(pretrain) == 0
    store = EpisodeStore("runs/episodes/world")
    episodes = store.load()
    assert Counter(e.source for e in episodes) == {"expert": 8, "noisy": 4, "random": 2}
    assert all(e.is_success for e in episodes if e.source == "expert")
    tune = ["tune", "own-tuned", "name=acts", *WORDS, "checkpoint=runs/world", "episodes=runs/episodes/world", *small]
    tune += ["demonstrations.sources=expert", "n_policy=4", "n_policy_heldout=2", "n_eval=4", "eval_noise=0.01"]
    assert cli.main([*tune, "refit.n_steps=5", "refit.batch_size=16"]) == 0
    assert "| reach | " in capsys.readouterr().out  # a row of the success table
    assert cli.main(["eval", "runs/acts", WORDS[0], "place=both", "n_episodes=2", "max_steps=16"]) == 0
    assert cli.main(["dream", "runs/acts", WORDS[0], "n_chunks=1"]) == 0 and Path("dream.png").is_file()
    assert "point_pos dream, cm" in " ".join(capsys.readouterr().out.split())


def test_a_seed_names_an_episode_and_delayed_actions_are_recorded_as_executed() -> None:
    env = point(3, action_delay=1)
    episodes = collect_from(env, 1, "expert", 3, seed=5)
    again = collect_from(point(1, action_delay=1), 1, "expert", 3, seed=5)
    assert [e.seed for e in episodes] == [5, 6, 7]
    for one, other in zip(episodes, again, strict=True):
        assert torch.equal(one.state, other.state)
    env.set_episode_seeds([5, 6, 7])
    obs = env.reset()
    env.record(True)
    env.step_chunk(torch.ones(3, 30, 2))
    first = env.record(False)[0]
    assert torch.equal(first.action[0], torch.zeros(2)) and torch.equal(first.action[1], torch.ones(2))
    assert torch.equal(first.state[0], obs["state"][0, -1])
    torch.testing.assert_close(first.state[2] - first.state[1], torch.tensor([0.1, 0.1, 0.0, 0.0]))  # 1 m/s, 0.1 s


def test_its_options_are_the_arguments_of_its_class() -> None:
    assert point(1, {"radius": 0.5}).radius == 0.5  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=r"unknown key 'env\.options\.radus' of simulator PointSim; did you mean 'rad"):
        point(1, {"radus": 0.5})
    Path("late.py").write_text(
        "from examples.own_simulator import PointSim\n"
        "class Late(PointSim):\n"
        "    def __init__(self, id, tasks, known_tasks, n_envs, speed=1.0, **common):\n"
        "        self.speed = float(speed)\n"
        "        super().__init__(id, tasks, known_tasks, n_envs, **common)\n"
    )
    with pytest.raises(UserError, match=r"simulator Late raised ValueError: could not convert.*; see .*late\.py:4$"):
        build_simulator(
            SimulatorConfig("late.py:Late", options={"speed": "fast"}), [], 1, model=None, known_tasks=[], **COMMON
        )


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("metawrold", "env.simulator=metawrold: unknown env.simulator 'metawrold'; did you mean 'metaworld'?"),
        ("no.py:Sim", "env.simulator=no.py:Sim: there is no file no.py"),
        (
            "examples/own_simulator.py:PoinSim",
            "env.simulator=examples/own_simulator.py:PoinSim: examples/own_simulator",
        ),
        ("no_module:Sim", "env.simulator=no_module:Sim: cannot import 'no_module'"),
        (
            "world_model.spec:Spec",
            "env.simulator=world_model.spec:Spec: expected a subclass of rl.envs.simulator.Simul",
        ),
    ],
)
def test_what_is_no_simulator_is_one_line(name: str, line: str) -> None:
    with pytest.raises(UserError) as error:
        find_simulator(SimulatorConfig(name))
    assert str(error.value).startswith(line) and "\n" not in str(error.value)


def test_a_task_has_the_number_that_the_checkpoint_learned() -> None:
    Path("wrong.py").write_text(
        "from examples.own_simulator import PointSim\n"
        "class Wrong(PointSim):\n"
        "    def __init__(self, id, tasks, known_tasks, n_envs, **common):\n"
        "        super().__init__(id, tasks, tasks, n_envs, **common)\n"
    )
    spec = Spec({"state": Feature((4,))}, (-1.0,) * 2, (1.0,) * 2, ("rest", "reach"), 10.0)
    model = WorldActionModel(ModelConfig(width=40), spec)
    right, wrong = SimulatorConfig(SIMULATOR), SimulatorConfig("wrong.py:Wrong")
    assert build_simulator(right, ["reach"], 1, model=model, known_tasks=spec.tasks, **COMMON).spec.tasks == spec.tasks
    with pytest.raises(UserError, match=r"its spec names the tasks reach, the checkpoint rest, reach; build the spec"):
        build_simulator(wrong, ["reach"], 1, model=model, known_tasks=spec.tasks, **COMMON)
    with pytest.raises(UserError, match=r"task 'fly' is unknown to the checkpoint; known: rest, reach"):
        build_simulator(right, ["fly"], 1, model=model, known_tasks=spec.tasks, **COMMON)


@pytest.mark.skipif(find_spec("isaaclab") is not None, reason="Isaac Lab is installed")
def test_a_dream_of_a_task_of_isaac_lab_is_compared_there(capsys: pytest.CaptureFixture[str]) -> None:
    state = Feature((4,), slices={"hand_pos": (0, 2), "object_pos": (2, 4)})
    spec = Spec({"state": state}, (-1.0,) * 2, (1.0,) * 2, ("Isaac-Push-Puck",), 10.0)
    save_model("puck", WorldActionModel(ModelConfig(width=40), spec), "tune")
    for words in (["dream", "puck", "task=Isaac-Push-Puck"], ["dream", "puck"], ["eval", "puck"]):
        assert cli.main(words) == 2
        line = capsys.readouterr().err
        assert line.startswith("wamtune: env.id=Isaac-Push-Puck needs Isaac Lab (") and line.count("\n") == 1
