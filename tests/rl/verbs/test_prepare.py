"""Demonstrations of a run: from a folder of episodes, a LeRobot dataset or a checkpoint; errors without any."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rewards.errors import UserError
from rl.compose import compose
from rl.config import TrainConfig
from rl.verbs.prepare import load_demonstrations, prepare
from world_model.data.episodes import Episode, EpisodeStore
from world_model.data.lerobot import export_lerobot
from world_model.spec import Feature, Spec

pytestmark = pytest.mark.usefixtures("elsewhere")

IMAGE = "images.front"
SPEC = Spec(
    {"state": Feature((4,)), IMAGE: Feature((8, 8, 3), dtype="uint8", every=2)},
    (-1.0, -1.0),
    (1.0, 1.0),
    ("push", "reach"),
    control_hz=10.0,
)
OWN = """
from examples.own_policy import OwnPolicy


class Own(OwnPolicy):
    def __init__(self):
        super().__init__({sizes})
"""


@pytest.fixture
def episodes() -> list[Episode]:
    """An episode of each task, of 4 steps, with an image every 2 steps."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for i, task in enumerate(SPEC.tasks):
        images = torch.randint(256, (3, 8, 8, 3), generator=generator, dtype=torch.uint8)
        obs = {"state": torch.randn(5, 4, generator=generator), IMAGE: images}
        action = torch.rand(4, 2, generator=generator)
        success = torch.arange(4) == 3
        made.append(Episode(obs, action, success, task, "expert", seed=i, every={IMAGE: 2}))
    return made


def same(one: Episode, other: Episode) -> bool:
    equal = all(torch.equal(values, other.obs[name]) for name, values in one.obs.items())
    return equal and one.obs.keys() == other.obs.keys() and torch.equal(one.action, other.action)


def test_a_folder_of_episodes(episodes: list[Episode]) -> None:
    EpisodeStore("kept").append(episodes, SPEC)
    assert [e.task for e in load_demonstrations("kept", ())] == ["push", "reach"]
    (found,) = load_demonstrations("kept", ("reach",))
    assert same(found, episodes[1]) and found.every == {IMAGE: 2}


def test_a_lerobot_dataset_comes_with_its_images(episodes: list[Episode]) -> None:
    export_lerobot(episodes, SPEC, "dataset")
    (found,) = load_demonstrations("dataset", ("push",))
    assert found.obs.keys() == {"state", IMAGE} and same(found, episodes[0])
    assert len(load_demonstrations("dataset", ())) == 2


def test_a_built_in_checkpoint_has_some() -> None:
    found = load_demonstrations("metaworld-tuned", ("hammer",))
    assert found and {e.task for e in found} == {"hammer"}


@pytest.mark.parametrize(("tasks", "named"), [(("fly",), "fly"), ((), "any task")])
def test_nothing_there_is_one_line(tasks: tuple[str, ...], named: str, episodes: list[Episode]) -> None:
    folder = "kept" if tasks else "empty"
    EpisodeStore("kept").append(episodes, SPEC)
    Path("empty").mkdir()
    with pytest.raises(UserError) as error:
        load_demonstrations(folder, tasks)
    assert str(error.value) == (
        f"demonstrations={folder}: no episodes of {named} there; expected a folder of episodes or a LeRobot dataset"
    )


def words(*more: str, sizes: str = "state_dim=21") -> list[str]:
    Path("own.py").write_text(OWN.format(sizes=sizes))
    small = "name=x policy=own.py:Own env.tasks=[push] env.n_envs=2 ppo.n_steps=2 ppo.batch_size=4 threads=1".split()
    return [*small, "total_timesteps=64", *more]


def test_a_policy_that_was_brought_needs_demonstrations_or_no_anchor() -> None:
    with pytest.raises(UserError) as error:
        prepare(compose("sim", words(), TrainConfig))
    assert str(error.value) == (
        "ppo.bc_coef=0.1: the policy comes without demonstrations; name those that it was trained on with "
        "demonstrations=FOLDER (episodes, or a LeRobot dataset), or set ppo.bc_coef=0"
    )
    for more, imitates in ((["ppo.bc_coef=0"], True), (["ppo.bc_coef=0", "ppo.success_bc_coef=0"], False)):
        post = prepare(compose("sim", words(*more, "dream.success_bc_coef=0"), TrainConfig))
        post.close()
        assert (post.imitation is not None) == imitates
        assert post.imitation is None or post.imitation.examples == {}
    post = prepare(compose("sim", words("demonstrations=metaworld-tuned"), TrainConfig))
    post.close()
    assert post.imitation is not None and len(post.imitation.examples["demonstrations"][1]) > 100


def test_demonstrations_that_do_not_fit_the_policy_are_named(episodes: list[Episode]) -> None:
    EpisodeStore("kept").append(episodes, SPEC)
    with pytest.raises(UserError) as error:
        prepare(compose("sim", words("demonstrations=kept"), TrainConfig))
    assert str(error.value) == "demonstrations=kept: episode 0: state has shape (5, 4), expected (5, 21)"
