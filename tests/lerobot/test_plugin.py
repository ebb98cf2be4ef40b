"""The plug-in `lerobot_policy_wamtune`, installed from its wheel, in LeRobot's own programs."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from rewards.errors import UserError
from rl.envs.cameras import CameraUse
from rl.envs.sim import SimEnv
from rl.envs.workers import Group
from rl.policies.wam import flow_policy
from rl.verbs import cp
from tests.conftest import CONFIG
from world_model.files import write_folder
from world_model.view import View
from world_model.wam.config import TextConfig
from world_model.wam.lerobot import lerobot_files
from world_model.wam.model import WorldActionModel
from world_model.wam.store import load_model

pytest.importorskip("lerobot", reason="LeRobot needs an environment of its own")

ROOT = Path(__file__).resolve().parents[2]
NAME = "lerobot_policy_wamtune"
SEEDS = [3, 70_000_000]  # the second one is not exact in float32


def opengl() -> bool:
    try:
        Group("metaworld", ["push"], {}, {"images.front": CameraUse(View(), 16, 16)}).reset({0: 1})
    except UserError:
        return False
    return True


@pytest.fixture(scope="session", autouse=True)
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """The classes of the plug-in, as LeRobot finds them by the metadata of the installed wheel."""
    dist, site = tmp_path_factory.mktemp("dist"), tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(dist), str(ROOT / NAME)]
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = dist.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(site)
    from lerobot.policies.factory import get_policy_class
    from lerobot.utils.import_utils import register_third_party_plugins

    sys.path.insert(0, str(site))
    assert importlib.metadata.metadata(NAME)["Name"] == NAME
    register_third_party_plugins()
    found = sys.modules[NAME]
    assert Path(str(found.__file__)).is_relative_to(site)
    yield SimpleNamespace(
        Policy=get_policy_class("wamtune"),
        Env=found.WamtuneEnv,
        make_processors=found.make_wamtune_pre_post_processors,
        TaskEnv=sys.modules[f"{NAME}.env"].TaskEnv,
    )
    sys.path.remove(str(site))


@pytest.fixture(scope="session")
def state_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in policy that reads a state, as a folder for LeRobot."""
    folder = tmp_path_factory.mktemp("policies") / "state"
    cp.run(["metaworld-tuned", str(folder), "format=lerobot"])
    return folder


@pytest.fixture
def point(model: WorldActionModel, tmp_path: Path) -> Path:
    """A tiny policy with tasks reach and rest, as a folder for LeRobot."""
    write_folder(tmp_path / "point", lerobot_files(model, n_denoising_steps=2, n_action_steps=4))
    return tmp_path / "point"


def run(monkeypatch: pytest.MonkeyPatch, program: str, *words: str) -> None:
    """Run one of LeRobot's programs in this process."""
    module = importlib.import_module(f"lerobot.scripts.{program}")
    monkeypatch.setattr(sys, "argv", [program, *words])
    module.main()


def acted(plugin: SimpleNamespace, folder: Path, config: Any, n_steps: int) -> torch.Tensor:
    """Step the environments of `config` with the policy, as `lerobot-eval` does. Shape: (n, n_steps, action_dim)."""
    from lerobot.envs import preprocess_observation
    from lerobot.policies.factory import make_pre_post_processors

    policy = plugin.Policy.from_pretrained(folder)
    before, after = make_pre_post_processors(policy.config, pretrained_path=str(folder))
    ((env,),) = [tuple(of_task.values()) for of_task in config.create_envs(len(SEEDS)).values()]
    obs, _ = env.reset(seed=SEEDS)
    actions = []
    for _ in range(n_steps):
        batch = preprocess_observation(obs) | {"task": list(env.call("task_description"))}
        actions.append(after(policy.select_action(before(batch))))
        obs, *_ = env.step(actions[-1].numpy())
    env.close()
    return torch.stack(actions, dim=1)


def acted_by_us(model: WorldActionModel, task: str, n_chunks: int) -> torch.Tensor:
    """The actions of the same episodes in `wamtune eval`."""
    env = SimEnv(
        "metaworld",
        len(SEEDS),
        [task],
        n_context_frames=2,
        task_names=model.spec.tasks,
        features=model.spec.features,
        cameras=model.cameras,
    )
    policy = flow_policy(model, env)
    env.set_episode_seeds(SEEDS)
    obs, actions = env.reset(), []
    for _ in range(n_chunks):
        with torch.inference_mode():
            actions.append(policy.decide(policy.encode(obs), env.episode_seed, env.elapsed))
        obs = env.step_chunk(actions[-1]).obs
    env.close()
    return torch.cat(actions, dim=1)


def test_it_acts_as_our_own_policy(plugin: SimpleNamespace, state_folder: Path) -> None:
    config = plugin.Env(task="drawer-open")
    ours = acted_by_us(load_model("metaworld-tuned"), "drawer-open", n_chunks=3)
    assert torch.equal(acted(plugin, state_folder, config, n_steps=24), ours)


@pytest.mark.skipif(not opengl(), reason="no OpenGL")
def test_it_acts_from_images_as_our_own_policy(plugin: SimpleNamespace, tmp_path: Path) -> None:
    cp.run(["metaworld-pixels-tuned", str(tmp_path / "pixels"), "format=lerobot"])
    config = plugin.Env(task="push", obs_type="pixels_agent_pos")
    ours = acted_by_us(load_model("metaworld-pixels-tuned"), "push", n_chunks=3)
    assert torch.equal(acted(plugin, tmp_path / "pixels", config, n_steps=24), ours)


@pytest.mark.skipif(not opengl(), reason="no OpenGL")
def test_lerobot_eval_runs_it(state_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--env.type=wamtune", "--env.task=drawer-open,push", "--env.episode_length=12", "--eval.n_episodes=2"]
    words += ["--eval.batch_size=2", "--eval.use_async_envs=false", "--seed=5"]
    run(monkeypatch, "lerobot_eval", f"--policy.path={state_folder}", *words, f"--output_dir={tmp_path}")
    info = json.loads((tmp_path / "eval_info.json").read_text())
    assert {name: group["n_episodes"] for name, group in info["per_group"].items()} == {"drawer-open": 2, "push": 2}
    assert len(list(tmp_path.rglob("*.mp4"))) == 4


ROBOT = """
from dataclasses import dataclass

from lerobot.robots import Robot, RobotConfig


@RobotConfig.register_subclass("points")
@dataclass
class PointsConfig(RobotConfig):
    pass


class Points(Robot):
    config_class, name = PointsConfig, "points"
    observation_features = {f"s{i}.pos": float for i in range(4)}
    action_features = {f"a{i}.pos": float for i in range(2)}
    is_connected = is_calibrated = True
    sent = []

    def connect(self, calibrate=True):
        self.sent.clear()

    def calibrate(self):
        pass

    def configure(self):
        pass

    def get_observation(self):
        return dict.fromkeys(self.observation_features, 0.1)

    def send_action(self, action):
        self.sent.append(action)
        return action

    def disconnect(self):
        pass
"""


def test_lerobot_rollout_runs_it(point: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "points.py").write_text(ROBOT)
    monkeypatch.syspath_prepend(tmp_path)
    robot = importlib.import_module("points")
    words = ["--robot.type=points", "--task=rest", "--fps=50", "--duration=1", "--play_sounds=false", "--device=cpu"]
    run(monkeypatch, "lerobot_rollout", f"--policy.path={point}", *words, "--return_to_initial_position=false")
    assert len(robot.Points.sent) > 4 and robot.Points.sent[0].keys() == {"a0.pos", "a1.pos"}


def test_a_wrong_key_is_one_line(
    point: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for word, line in (
        ("--env.task=hamer", "`env`: task 'hamer' is unknown to Meta-World; did you mean 'hammer'?"),
        ("--policy.n_denoising_steps=0", "`policy`: n_denoising_steps=0: expected at least 1"),
    ):
        with pytest.raises(SystemExit) as stop:
            run(monkeypatch, "lerobot_eval", f"--policy.path={point}", "--env.type=wamtune", word)
        assert stop.value.code == 1 and capsys.readouterr().err.splitlines()[-1] == f"error: {line}"


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ({"task": " , "}, "`env`: task= , : expected names such as hammer,drawer-open"),
        ({"task": "push,Pendulum-v1"}, "`env`: task=push,Pendulum-v1: Pendulum-v1 has other sizes than push; name"),
        ({"obs_type": "pixels"}, "`env`: obs_type=pixels: expected one of state, pixels_agent_pos, environment_state_"),
        (
            {"task": "Pendulum-v1", "obs_type": "environment_state_agent_pos"},
            "`env`: obs_type=environment_state_agent_pos: Pendulum-v1 does not say which part of its state",
        ),
        ({"image_size": 0}, "`env`: image_size=0: expected at least 1"),
    ],
)
def test_a_wrong_environment_is_refused(plugin: SimpleNamespace, keys: dict[str, Any], line: str) -> None:
    with pytest.raises(Exception, match=f"^{line}") as error:
        plugin.Env(**keys)
    assert type(error.value).__name__ == "DecodingError"


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"n_action_steps": 9}, "`policy`: n_action_steps=9: expected 1 to 4, the actions of a chunk, or 0 for all"),
        ({"model": {}}, "`policy`: type=wamtune alone has no weights; write a folder with `wamtune cp CHECKPOINT"),
        ({"model": {"a": 1}}, "`policy`: its config.json does not describe a model of wamtune: "),
    ],
)
def test_a_wrong_config_is_refused(plugin: SimpleNamespace, point: Path, changes: dict[str, Any], line: str) -> None:
    config = json.loads((point / "config.json").read_text()) | changes
    (point / "config.json").write_text(json.dumps(config))
    with pytest.raises(Exception, match=f"^{line}") as error:
        plugin.Policy.from_pretrained(point)
    assert type(error.value).__name__ == "DecodingError"


def test_processors_in_the_folder_are_those_of_the_plugin(plugin: SimpleNamespace, point: Path, tmp_path: Path) -> None:
    policy = plugin.Policy.from_pretrained(point)
    for processor, name in zip(plugin.make_processors(policy.config), ("pre", "post"), strict=True):
        processor.save_pretrained(tmp_path / "made")
        file = f"policy_{name}processor.json"
        assert json.loads((tmp_path / "made" / file).read_text()) == json.loads((point / file).read_text())


def test_what_lerobot_saves_is_loaded_again(plugin: SimpleNamespace, point: Path, tmp_path: Path) -> None:
    policy = plugin.Policy.from_pretrained(point)
    policy.save_pretrained(tmp_path / "saved")
    again = plugin.Policy.from_pretrained(tmp_path / "saved")
    assert again.spec == policy.spec and again.config == policy.config
    assert all(torch.equal(a, b) for a, b in zip(policy.parameters(), again.parameters(), strict=True))


def batch_of(n: int, task: Any = "reach", **others: torch.Tensor) -> dict[str, Any]:
    state = torch.linspace(-0.4, 0.4, 4 * n).view(n, 4)
    return {"observation.state": state, "task": task} | {f"observation.{k}": v for k, v in others.items()}


def test_noise_without_the_seed_of_an_episode_is_that_of_row_and_step(plugin: SimpleNamespace, point: Path) -> None:
    policy = plugin.Policy.from_pretrained(point)
    first = policy.predict_action_chunk(batch_of(2))
    assert first.shape == (2, 4, 2)
    later = policy.predict_action_chunk(batch_of(2))
    policy.reset()
    seeds = torch.tensor([[0.0, 0.0], [0.0, 1.0]])
    assert torch.equal(policy.predict_action_chunk(batch_of(2, episode_seed=seeds)), first)
    policy.reset()
    assert not torch.equal(policy.predict_action_chunk(batch_of(2, episode_seed=seeds + 1)), first)
    assert not torch.equal(later, first)


def test_a_chunk_is_executed_before_the_next_one_is_predicted(plugin: SimpleNamespace, point: Path) -> None:
    policy = plugin.Policy.from_pretrained(point)
    chunk = policy.predict_action_chunk(batch_of(1))
    policy.reset()
    actions = [policy.select_action(batch_of(1)) for _ in range(5)]
    assert torch.equal(torch.stack(actions[:4], dim=1), chunk)
    assert not torch.equal(actions[4], actions[0])
    policy.reset()
    policy.predict_action_chunk(batch_of(1))
    later = [policy.select_action(batch_of(1)) for _ in range(2)]  # from the first row of the second chunk
    policy.reset()
    policy.predict_action_chunk(batch_of(1))
    assert torch.equal(torch.stack(later, dim=1), policy.predict_action_chunk(batch_of(1))[:, :2])


def test_a_task_is_known_by_its_name_or_its_sentence(plugin: SimpleNamespace, point: Path) -> None:
    policy = plugin.Policy.from_pretrained(point)
    assert policy._task(["rest", "reach"], 2).tolist() == [1, 0]
    assert policy._task("rest", 2).tolist() == [1, 1]
    with pytest.raises(UserError, match=r"^task 'reech' is unknown to the policy; did you mean 'reach'\?$"):
        policy.select_action(batch_of(1, task=["reech"]))


def test_a_policy_that_reads_sentences_takes_any(
    plugin: SimpleNamespace, model: WorldActionModel, tmp_path: Path
) -> None:
    """Each row has its own, by the text encoder alone: names and places of tasks change nothing."""
    torch.manual_seed(0)
    config = replace(CONFIG, task_conditioning="text", text=TextConfig(n_buckets=256, width=32, n_layers=1, n_heads=2))
    reads, sentences = WorldActionModel(config, model.spec), {"reach": "Push it.", "rest": "Stay there."}
    reads.codec.load_state_dict(model.codec.state_dict())
    reads.action_codec.load_state_dict(model.action_codec.state_dict())
    for name, tasks, of in (
        ("one", ("reach", "rest"), sentences),
        ("permuted", ("rest", "x", "reach"), {"reach": "Stay there.", "rest": "Push it."}),
        ("told", ("reach", "rest"), sentences | {"reach": "Shove it!"}),
    ):
        other = WorldActionModel(config, replace(model.spec, tasks=tasks, instructions=of))
        other.load_state_dict(reads.state_dict())
        write_folder(tmp_path / name, lerobot_files(other, n_denoising_steps=2, n_action_steps=4))
    one, permuted, told = (plugin.Policy.from_pretrained(tmp_path / name) for name in ("one", "permuted", "told"))
    new = one.predict_action_chunk(batch_of(1, task="Shove it!"))
    assert torch.equal(new, told.predict_action_chunk(batch_of(1, task="reach")))  # as `instruction=` gives it
    assert torch.equal(new, permuted.predict_action_chunk(batch_of(1, task=["Shove it!"])))
    for policy in (one, permuted, told):
        policy.reset()
    mixed = ["Shove it!", "Stay there.", "Push it."]
    chunks = one.predict_action_chunk(batch_of(3, task=mixed))
    assert torch.equal(chunks, permuted.predict_action_chunk(batch_of(3, task=mixed))) and len(one._told) == 3
    one.reset()
    assert torch.equal(chunks, one.predict_action_chunk(batch_of(3, task=["Shove it!", "rest", "reach"])))  # by name
    for i in range(20):
        one.predict_action_chunk(batch_of(3, task=f"Sentence {i}."))
    assert [*one._told] == ["Sentence 19."]  # no memory of the others
    with pytest.raises(UserError, match=r"^task '' is unknown to the policy; known: reach, rest$"):
        one.predict_action_chunk(batch_of(3, task=None))


def test_the_sentence_of_the_environment_is_known_beside_that_of_the_checkpoint(
    plugin: SimpleNamespace, point: Path
) -> None:
    config = json.loads((point / "config.json").read_text())
    config["spec"] |= {"tasks": ["drawer-open", "push"], "instructions": {"push": "shove the puck"}}
    (point / "config.json").write_text(json.dumps(config))
    policy = plugin.Policy.from_pretrained(point)
    given = ["shove the puck", plugin.TaskEnv("push", plugin.Env()).task_description, "drawer open"]
    assert policy._task(given, 3).tolist() == [1, 1, 0]


def test_larger_images_are_scaled_down(plugin: SimpleNamespace, point: Path) -> None:
    policy = plugin.Policy.from_pretrained(point)
    colour = torch.arange(3).view(1, 3, 1, 1).expand(1, 3, 8, 12) / 255
    assert policy._images(colour, 4, 4).tolist() == np.broadcast_to(np.arange(3), (1, 4, 4, 3)).tolist()
    every = torch.arange(256).view(1, 1, 16, 16).expand(1, 3, 16, 16)  # each value of uint8 comes back
    assert torch.equal(torch.from_numpy(policy._images(every / 255, 16, 16)).movedim(3, 1), every.byte())


def test_a_bad_observation_is_one_line(plugin: SimpleNamespace, point: Path) -> None:
    policy = plugin.Policy.from_pretrained(point)
    with pytest.raises(UserError, match=r"^'observation.state' has the shape \[5\], the policy expects \[4\]; for"):
        policy.select_action({"observation.state": torch.zeros(1, 5), "task": "reach"})
    with pytest.raises(UserError, match=r"^the policy reads 'observation.state', the observation has observation.x;"):
        policy.select_action({"observation.x": torch.zeros(1, 4), "task": "reach"})
    policy.select_action(batch_of(1))
    with pytest.raises(UserError, match=r"^the number of rows has changed within an episode; call reset"):
        policy.select_action(batch_of(2))


def test_training_names_our_own_verbs(plugin: SimpleNamespace, point: Path) -> None:
    policy = plugin.Policy.from_pretrained(point)
    for train in (lambda: policy.forward({}), policy.get_optim_params, policy.config.get_optimizer_preset):
        with pytest.raises(UserError, match=r"^LeRobot runs this policy and does not train it: .*`wamtune train`"):
            train()


def test_weights_that_do_not_fit_are_refused(plugin: SimpleNamespace, point: Path) -> None:
    weights = load_file(point / "model.safetensors")
    name = min(weights)
    save_file({key: value for key, value in weights.items() if key != name}, point / "model.safetensors")
    with pytest.raises(UserError, match=r"model.safetensors does not fit .*config.json; write the folder again"):
        plugin.Policy.from_pretrained(point)
    save_file(weights | {name: torch.full_like(weights[name], torch.nan)}, point / "model.safetensors")
    with pytest.raises(UserError, match="holds a value that is not finite"):
        plugin.Policy.from_pretrained(point)
    (point / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"model.safetensors does not fit"):
        plugin.Policy.from_pretrained(point)


def test_states_of_an_environment(plugin: SimpleNamespace) -> None:
    whole = plugin.TaskEnv("push", plugin.Env()).reset(seed=3)[0]["agent_pos"]
    parts = plugin.TaskEnv("push", plugin.Env(obs_type="environment_state_agent_pos")).reset(seed=3)[0]
    assert np.array_equal(np.concatenate([parts["agent_pos"], parts["environment_state"]]), whole)
    assert parts["agent_pos"].shape == (4,)
    config = plugin.Env(obs_type="environment_state_agent_pos")
    assert {config.features_map[name]: feature.shape for name, feature in config.features.items()} == {
        "observation.state": (4,),
        "observation.environment_state": (17,),
        "action": (4,),
    }


def test_an_episode_ends_at_its_length_or_by_success(plugin: SimpleNamespace) -> None:
    env = plugin.TaskEnv("push", plugin.Env(episode_length=3))
    env.reset(seed=3)
    ends = [env.step(np.full(4, 9.0))[2:4] for _ in range(3)]  # clipped to the bounds
    assert ends == [(False, False), (False, False), (False, True)]
    with pytest.raises(UserError, match="is not finite; nothing was executed"):
        env.step(np.full(4, np.nan))
    env.close()


def test_an_id_of_gymnasium_is_a_task(plugin: SimpleNamespace) -> None:
    config = plugin.Env(task="Pendulum-v1")
    ((env,),) = [tuple(of_task.values()) for of_task in config.create_envs(2).values()]
    obs, _ = env.reset(seed=[1, 2])
    assert obs["agent_pos"].shape == (2, 3) and config.features["action"].shape == (1,)
    assert env.step(env.action_space.sample())[0]["agent_pos"].shape == (2, 3)
    env.close()
