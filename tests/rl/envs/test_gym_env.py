"""Observations of gymnasium environments as features: vectors are the state, images keep their name."""

import inspect
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete
from torch import Tensor

from rewards.errors import BadNumbers, UserError
from rl.envs.sim import SimEnv, make_spec
from rl.envs.workers import Group
from world_model.spec import Feature

HEIGHT, WIDTH = 6, 8


class Counts(gymnasium.Env):
    """Two vectors and an image, which all tell the number of the episode's seed and of the step.

    Gymnasium sorts the keys of a `Dict`: `arm`, `front`, `goal`. An episode ends after 5 steps.
    """

    observation_space = Dict(
        {
            "goal": Box(-np.inf, np.inf, (1,), np.float64),
            "front": Box(0, 255, (HEIGHT, WIDTH, 3), np.uint8),
            "arm": Box(-np.inf, np.inf, (2, 2), np.float32),
        }
    )
    action_space = Box(-1.0, 1.0, (1,))

    def __init__(self):
        self.image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)  # one buffer, written at each step

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.seed, self.t, self.moved = seed % 50, 0, 0.0
        return self._obs(), {}

    def step(self, action):
        self.t, self.moved = self.t + 1, self.moved + float(action[0])
        return self._obs(), 1.0, False, self.t == 5, {}

    def _obs(self):
        self.image[:] = np.arange(WIDTH)[None, :, None] // 4 * 100  # a dark and a bright half
        self.image[..., 2] = 10 * self.t + self.seed
        arm = np.array([[self.t, self.moved], [0.5, -0.5]], np.float32)
        return {"arm": arm, "front": self.image, "goal": np.array([self.seed], np.float64)}


class ImageAlone(Counts):
    observation_space = Counts.observation_space["front"]

    def _obs(self):
        return super()._obs()["front"]


class TwoCameras(Counts):
    observation_space = Dict(dict.fromkeys(("front", "wrist"), Counts.observation_space["front"]))

    def _obs(self):
        front = super()._obs()["front"]
        return {"front": front, "wrist": 255 - front}


class WithMode(Counts):
    observation_space = Dict({"arm": Box(-1, 1, (2,)), "mode": Discrete(3)})


class Nested(Counts):
    observation_space = Dict({"arm": Dict({"joints": Box(-1, 1, (2,))})})


class Broken(Counts):
    """After two steps an observation is what it should not be."""

    kind = "none"

    def _obs(self):
        obs = super()._obs()
        if self.t < 2:
            return obs
        if self.kind == "none":
            return None
        if self.kind == "no arm":
            return {name: value for name, value in obs.items() if name != "arm"}
        return obs | {"front": obs["front"].astype(np.float32)}


for env in (Counts, ImageAlone, TwoCameras, WithMode, Nested, Broken):
    gymnasium.register(f"{env.__name__}-v0", env)


def shown(images: Tensor) -> Tensor:
    """The number that an image shows, (...) for images (..., height, width, 3); all pixels show the same."""
    number = images[..., 2]
    assert (number == number[..., :1, :1]).all()
    return number[..., 0, 0]


def test_vectors_are_the_state_and_an_image_is_a_feature() -> None:
    env = SimEnv("Counts-v0", 2, max_steps=4)
    assert env.spec.state_dim == 5 and env.spec.slices == {"arm": slice(0, 4), "goal": slice(4, 5)}
    assert env.spec.images == ("images.front",)
    assert env.spec.features["images.front"] == Feature((HEIGHT, WIDTH, 3), dtype="uint8")
    env.set_episode_seeds([3, 7, 9, 11])
    obs = env.reset()
    assert obs["state"].dtype == torch.float32 and obs["images.front"].dtype == torch.uint8
    assert obs["state"].shape == (2, 2, 5) and obs["images.front"].shape == (2, 2, HEIGHT, WIDTH, 3)
    assert obs["state"][:, -1].tolist() == [[0, 0, 0.5, -0.5, 3], [0, 0, 0.5, -0.5, 7]]
    assert shown(obs["images.front"]).tolist() == [[3, 3], [7, 7]]
    step = env.step_chunk(torch.full((2, 3, 1), 0.25))
    assert step.frames["state"][0].tolist() == [[t, 0.25 * t, 0.5, -0.5, 3] for t in (1, 2, 3)]
    # Each step has its own image, although the environment writes all into one buffer.
    assert shown(step.frames["images.front"]).tolist() == [[13, 23, 33], [17, 27, 37]]
    assert shown(step.obs["images.front"]).tolist() == [[23, 33], [27, 37]]
    assert step.frames["images.front"][0, 0, 0, :, 0].tolist() == [0] * 4 + [100] * 4
    # The episode ends in the middle of the chunk: its last image is kept, the next episode has its own.
    step = env.step_chunk(torch.zeros(2, 3, 1))
    assert step.truncated.all() and shown(step.final_obs["images.front"]).tolist() == [[33, 43], [37, 47]]
    assert shown(step.frames["images.front"]).tolist() == [[43] * 3, [47] * 3]
    assert shown(step.obs["images.front"]).tolist() == [[9, 9], [11, 11]]


def test_a_slow_camera_repeats_its_image_until_the_next_one_or_the_end() -> None:
    features = make_spec("Counts-v0", None).features
    features["images.front"] = Feature((HEIGHT, WIDTH, 3), dtype="uint8", every=3)
    env = SimEnv("Counts-v0", 1, features=features)
    env.set_episode_seeds([0])
    env.reset()
    first, second = (env.step_chunk(torch.zeros(1, k, 1)) for k in (2, 4))
    assert first.frames["state"][0, :, 0].tolist() == [1, 2] and shown(first.frames["images.front"]).tolist() == [
        [0, 0]
    ]
    assert second.truncated.all()  # by the environment, at step 5
    assert shown(second.frames["images.front"])[0, :3].tolist() == [30, 30, 50]


def test_an_image_alone_leaves_a_state_of_length_0() -> None:
    env = SimEnv("ImageAlone-v0", 1)
    assert env.spec.state_dim == 0 and env.spec.slices == {} and env.spec.images == ("images.main",)
    env.set_episode_seeds([4])
    obs = env.reset()
    assert obs["state"].shape == (1, 2, 0) and shown(obs["images.main"]).tolist() == [[4, 4]]
    step = env.step_chunk(torch.zeros(1, 2, 1))
    assert step.frames["state"].shape == (1, 2, 0) and shown(step.frames["images.main"]).tolist() == [[14, 24]]


@pytest.mark.parametrize(
    ("env_id", "found"), [("WithMode-v0", "mode space is Discrete"), ("Nested-v0", "arm space is Dict")]
)
def test_another_space_in_a_dict_is_refused_in_one_line(env_id: str, found: str) -> None:
    with pytest.raises(UserError, match=rf"environment '{env_id}': its observation {found}, expected Box") as error:
        SimEnv(env_id, 1)
    assert "\n" not in str(error.value)


def test_workers_give_the_same_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A worker does not import this file, so its environment comes from a module; gymnasium's ids may begin with one.
    imports = "import gymnasium\nimport numpy as np\nfrom gymnasium.spaces import Box, Dict\n"
    sizes = f"HEIGHT, WIDTH = {HEIGHT}, {WIDTH}\n"
    register = 'gymnasium.register("Spread-v0", Counts)\n'
    (tmp_path / "spread.py").write_text(imports + sizes + inspect.getsource(Counts) + register)
    monkeypatch.syspath_prepend(tmp_path)
    steps = []
    for n_workers in (0, 2):
        env = SimEnv("spread:Spread-v0", 2, max_steps=4, n_workers=n_workers)
        first = env.reset(seed=4)
        generator = torch.Generator().manual_seed(0)
        chunks = [env.step_chunk(torch.rand(2, 3, 1, generator=generator)) for _ in range(3)]
        env.close()
        steps.append([first, *(part for chunk in chunks for part in (chunk.frames, chunk.obs, chunk.final_obs))])
    for one, other in zip(*steps, strict=True):
        assert one.keys() == other.keys() and {"state", "images.front"} <= one.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


OWN = """
import gymnasium
import numpy as np
from gymnasium.spaces import Box

class Reach(gymnasium.Env):
    observation_space, action_space = Box(-9, 9, (1,)), Box(-1, 1, (1,))

    def __init__(self, step=1.0):
        self.size = step

    def reset(self, *, seed=None, options=None):
        self.x = float(seed)
        return np.array([self.x]), {}

    def step(self, action):
        self.x += self.size * action.item()
        return np.array([self.x]), 0.0, False, False, {"is_success": self.x > [9.0][int(self.x < 0)]}

class Lost(Reach):
    def step(self, action):
        obs, reward, *others = super().step(action)
        return obs, None if self.x >= 4 else reward, *others

def half():
    return Reach(step=0.5)

def other():
    return Reach(steps=1)
"""
FAILING_LINE = 1 + OWN[: OWN.index("return np.array([self.x]), 0.0")].count("\n")


def test_an_environment_of_a_file_needs_no_registration(tmp_path: Path) -> None:
    """A class and a function of a file, here and in workers; what they raise is one line that names theirs."""
    file = tmp_path / "own.py"
    file.write_text(OWN)
    for name, n_workers, moved in (("Reach", 0, 3.0), ("Reach", 2, 3.0), ("half", 0, 2.5)):
        env = SimEnv(f"{file}:{name}", 2, n_context_frames=1, n_workers=n_workers)
        env.set_episode_seeds([2, 2])
        assert env.spec.tasks == (name,) and env.reset()["state"].tolist() == [[[2.0]], [[2.0]]]
        assert env.step_chunk(torch.ones(2, 1, 1)).frames["state"].tolist() == [[[moved]], [[moved]]]
        with pytest.raises(UserError) as error:
            env.step_chunk(-torch.ones(2, 8, 1))
        env.close()
        assert not isinstance(error.value, BadNumbers)
        expected = f"environment '{file}:{name}' raised IndexError: list index out of range; see {file}:{FAILING_LINE}"
        assert str(error.value) == expected
    for name, says in (("Raech", "did you mean 'Reach'?"), ("other", "unexpected keyword argument 'steps'")):
        with pytest.raises(UserError) as error:
            make_spec(f"{file}:{name}", None)
        assert says in str(error.value) and "\n" not in str(error.value)


def test_what_is_wrong_with_the_name_of_an_environment_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text(OWN + "\nclass Needs(Reach):\n    def __init__(self, goal):\n        self.goal = goal\n")
    found = []
    for name in ("own.py:Needs", "own:Reach"):
        with pytest.raises(UserError) as error:
            make_spec(name, None)
        found.append(str(error.value))
    assert found == [
        "environment 'own.py:Needs': missing a required argument: 'goal'; it is made without arguments, so give that "
        "one a default, or write a function that returns the environment: env.id=own.py:make_env",
        "environment 'own:Reach': for the file in this folder write env.id=own.py:Reach",
    ]


SILENT = """
class Silent(Reach):
    def step(self, action):
        return *super().step(action)[:4], {}
"""


@pytest.mark.parametrize("n_workers", [0, 2])
def test_an_environment_without_success_says_so(n_workers: int, tmp_path: Path) -> None:
    """An environment that never succeeds has a success rate of 0; one without `is_success` has none."""
    file = tmp_path / "own.py"
    file.write_text(OWN + SILENT)
    for name, says in (("Silent", False), ("Reach", True)):
        env = SimEnv(f"{file}:{name}", 2, n_context_frames=1, n_workers=n_workers)
        env.set_episode_seeds([1, 2])
        env.reset()
        env.step_chunk(torch.ones(2, 1, 1))
        assert env.reports_success() is says
        env.close()


UNSEEDED = """
class Unseeded(Reach):
    def reset(self, *, seed=None, options=None):
        self.x = np.random.uniform(-1, 1)
        return np.array([self.x]), {}

class Noisy(Reach):
    def reset(self, *, seed=None, options=None):
        obs, info = super().reset(seed=seed)
        return obs + 1e-6 * np.random.uniform(-1, 1), info
"""


def test_an_environment_that_ignores_seeds_is_refused(tmp_path: Path) -> None:
    """The same policy in two "same" episodes would seem better or worse by chance; rounding is no other episode."""
    file = tmp_path / "own.py"
    file.write_text(OWN + UNSEEDED)
    with pytest.raises(UserError) as error:
        make_spec(f"{file}:Unseeded", None)
    assert str(error.value) == (
        f"environment '{file}:Unseeded': reset(seed=...) began two different episodes with the same seed, and policies "
        "are compared on the same ones; call super().reset(seed=seed) in it, and draw from self.np_random"
    )
    assert make_spec(f"{file}:Noisy", None).tasks == ("Noisy",)


STRANGE = """
class OldReset(Reach):
    def reset(self, *, seed=None, options=None):
        return super().reset(seed=seed)[0]

class OldStep(Reach):
    def step(self, action):
        return super().step(action)[:4]

class NoInfo(Reach):
    def step(self, action):
        return *super().step(action)[:4], None

class NoSpaces(gymnasium.Env):
    def step(self, action):
        return super().step(action)
"""


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("OldReset", ": reset returned a ndarray, expected 2 values (observation, info), info a dict; see "),
        ("OldStep", ": step returned 4 values, expected 5 values (observation, reward, terminated, truncated, info), "),
        ("NoInfo", ": step returned a NoneType as info, expected 5 values (observation, reward, terminated, "),
        ("NoSpaces", ": its observation space is not set, expected Box; wrap it or choose another environment"),
    ],
)
def test_an_environment_that_is_not_as_gymnasium_wants_it_is_one_line(name: str, says: str, tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text(OWN + STRANGE)
    with pytest.raises(UserError) as error:
        env = SimEnv(f"{file}:{name}", 1, n_context_frames=1)
        env.reset(seed=0)
        env.step_chunk(torch.ones(1, 1, 1))
    assert str(error.value).startswith(f"environment '{file}:{name}'{says}") and "\n" not in str(error.value)
    line = 1 + (OWN + STRANGE).partition(f"class {name}")[0].count("\n")
    assert name == "NoSpaces" or str(error.value).endswith(f"; see {file}:{line + 1}")


@pytest.mark.parametrize("n_workers", [0, 2])
def test_what_an_environment_returned_is_told_apart_from_errors_of_code(
    n_workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bad numbers name the environment, counted over all workers; a run may go back on them, on nothing else."""
    (tmp_path / "own.py").write_text(OWN)
    env = SimEnv(f"{tmp_path}/own.py:Lost", 2, n_context_frames=1, n_workers=n_workers)
    env.set_episode_seeds([2, 3])
    env.reset()
    with pytest.raises(BadNumbers, match=r"^sim: environment 1: Lost returned None as reward at step 1; expected"):
        env.step_chunk(torch.ones(2, 1, 1))
    if isinstance(env._envs, Group):

        def step(action: Any) -> Any:
            raise ValueError("an error of ours")

        monkeypatch.setattr(env._envs.envs[0], "step", step)
        with pytest.raises(ValueError, match=r"^an error of ours$"):
            env.step_chunk(torch.ones(2, 1, 1))
    env.close()


def test_a_model_of_an_older_version_knows_the_task_of_a_file_by_its_path(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    old = f"{tmp_path}/own.py:Reach"
    for tasks in (None, ["Reach"], [old]):
        env = SimEnv(old, 2, tasks=tasks, task_names=[old, "another"])
        assert env.spec.tasks == (old, "another") and env.reset()["task"].tolist() == [0, 0]
        env.close()
    with pytest.raises(UserError, match=r"'Reach' is unknown to the model; did you mean 'Reach2'"):
        SimEnv(old, 2, task_names=["Reach2"])
    with pytest.raises(UserError, match=r"is its own task, tasks=\['push'\] does not fit; leave it out"):
        SimEnv(old, 2, tasks=["push"])


def test_a_resumed_environment_has_the_same_images() -> None:
    env, other = SimEnv("Counts-v0", 2), SimEnv("Counts-v0", 2)
    env.reset(seed=1)
    env.step_chunk(torch.ones(2, 3, 1))
    other.load_state_dict(env.state_dict())
    ours, theirs = (one.step_chunk(torch.ones(2, 2, 1)).frames for one in (env, other))
    assert torch.equal(ours["state"], theirs["state"]) and torch.equal(ours["images.front"], theirs["images.front"])


def test_a_larger_image_is_cropped_and_scaled_to_the_size_of_the_policy() -> None:
    wanted = {"state": Feature((5,)), "images.front": Feature((3, 3, 3), dtype="uint8")}
    env = SimEnv("Counts-v0", 1, features=wanted)
    env.set_episode_seeds([2])
    obs = env.reset()
    assert obs["images.front"].shape == (1, 2, 3, 3, 3)
    # Of 8 columns the middle 6 remain: 3 dark and 3 bright ones, averaged in pairs.
    assert obs["images.front"][0, -1, 0, :, 0].tolist() == [0, 50, 100]
    assert shown(obs["images.front"]).tolist() == [[2, 2]]


def test_a_policy_gets_the_features_that_it_reads() -> None:
    blind = SimEnv("Counts-v0", 1, features={})
    assert list(blind.spec.features) == ["state"] and blind.reset().keys() == {"state", "task"}
    wanted = {"state": Feature((1,), slices={"goal": (0, 1)}), "images.wrist": Feature((4, 4, 3), dtype="uint8")}
    two = make_spec("TwoCameras-v0", None)
    assert two.images == ("images.front", "images.wrist") and two.state_dim == 0
    env = SimEnv("TwoCameras-v0", 1, features={"state": Feature((0,)), "images.wrist": wanted["images.wrist"]})
    env.set_episode_seeds([5])
    assert env.spec.images == ("images.wrist",) and (255 - shown(env.reset()["images.wrist"])).tolist() == [[5, 5]]
    with pytest.raises(UserError, match=r"environment Counts-v0: it has images\.front, the checkpoint reads images\.w"):
        SimEnv("Counts-v0", 1, features=wanted).reset()
    small = {"state": Feature((5,)), "images.front": Feature((7, 7, 3), dtype="uint8")}
    with pytest.raises(UserError, match=r"images\.front is \(6, 8\), expected at least 7 x 7"):
        SimEnv("Counts-v0", 1, features=small).reset()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("none", r"Broken-v0 returned None as observation arm at step 2; expected 4 numbers"),
        ("no arm", r"Broken-v0 returned None as observation arm at step 2; expected 4 numbers"),
        ("float", r"environment Broken-v0: images\.front is no image in colour"),
    ],
)
def test_an_observation_of_another_kind_is_one_line(kind: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Broken, "kind", kind)
    env = SimEnv("Broken-v0", 1)
    env.reset(seed=0)
    with pytest.raises(UserError, match=message) as error:
        env.step_chunk(torch.zeros(1, 3, 1))
    assert "\n" not in str(error.value)
