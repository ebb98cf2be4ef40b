"""What a refit teaches the read-out of success: a point that moved left or right before is asked to go up."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rewards.errors import UserError
from tests.conftest import CONFIG as INDEX_CONFIG
from world_model.data.episodes import Episode
from world_model.spec import Feature, Spec
from world_model.wam.config import TextConfig
from world_model.wam.model import WorldActionModel
from world_model.wam.read_out import FrameBatch, FrameData, frame_data
from world_model.wam.store import load_model, save_model
from world_model.wam.training import StageConfig, fit_statistics, train_stage

CONFIG = replace(INDEX_CONFIG, task_conditioning="text", text=TextConfig(encoder="mine.py:encode", dim=10))
SPEC = Spec(
    {"state": Feature((2,), "m", {"point": (0, 2)})},
    (-1.0, -1.0),
    (1.0, 1.0),
    ("left", "right"),
    control_hz=10.0,
    instructions={"left": "Move it left.", "right": "Move it right."},
)
UP = replace(SPEC, tasks=("left", "right", "up"), instructions=SPEC.instructions | {"up": "Lift it."})
GOAL = {"left": (0, -1.0), "right": (0, 1.0), "up": (1, 1.0)}
"""Task -> the column of the state and the sign that it needs."""

SOLVED = 0.5


def wandering(task: str, n: int, seed: int, ends: bool = False) -> list[Episode]:
    """Return `n` episodes of 24 steps in all directions; with `ends` they end at their first success."""
    generator, found = torch.Generator().manual_seed(seed), []
    column, sign = GOAL[task]
    for i in range(n):
        drift, noise = torch.randn(2, generator=generator), torch.randn(24, 2, generator=generator)
        action = (0.6 * drift + 0.4 * noise).clamp(-1, 1)
        state = torch.cat([torch.zeros(1, 2), 0.08 * action.cumsum(0)])
        episode = Episode({"state": state}, action, state[1:, column] * sign > SOLVED, task, "policy", seed=i)
        hits = episode.success.nonzero()
        found.append(episode.cut(0, int(hits[0]) + 1) if ends and len(hits) else episode)
    return found


def encode(sentences: Sequence[str]) -> torch.Tensor:
    """A frozen text encoder: how often each of ten letters occurs."""
    return torch.tensor([[float(text.count(letter)) for letter in "letrighmvf"] for text in sentences])


class AllFrames:
    """All frames of some episodes, equally often, with their labels."""

    def __init__(self, frames: FrameBatch) -> None:
        self.frames = frames

    def sample(self, n: int, generator: torch.Generator) -> FrameBatch:
        return self.frames.at(torch.randint(len(self.frames.success), (n,), generator=generator))


@pytest.fixture(scope="module")
def own() -> list[Episode]:
    """The episodes of the checkpoint."""
    return wandering("left", 24, 1) + wandering("right", 24, 2)


@pytest.fixture(scope="module")
def checkpoint(own: list[Episode]) -> WorldActionModel:
    """A model whose read-outs know left and right, and which is told of a third task."""
    torch.manual_seed(0)
    model = WorldActionModel(CONFIG, SPEC)
    model.tell(SPEC, encode)
    fit_statistics(model, model.windows(own), n=200)
    stage = StageConfig(n_steps=300, batch_size=96, read_out_learning_rate=3e-3, warmup_steps=5)
    train_stage("read_out", model, AllFrames(FrameBatch.of(own, SPEC.tasks)), stage)  # type: ignore[arg-type]
    model.tell(UP, encode)
    return model


@torch.no_grad()
def judged(model: WorldActionModel, task: str, n: int = 40) -> tuple[float, float, torch.Tensor]:
    """Return how many of all successes are seen, how many other frames are taken for one, and all probabilities."""
    episodes = wandering(task, n, 99)
    state, truth = (torch.stack(of) for of in ([e.state[1:] for e in episodes], [e.success for e in episodes]))
    p, _ = model.success_and_progress({"state": state}, torch.full((n,), UP.tasks.index(task)))
    return float((p[truth] > 0.5).float().mean()), float((p[~truth] > 0.5).float().mean()), p


def test_a_new_task_is_learned_and_the_known_ones_stay(checkpoint: WorldActionModel, own: list[Episode]) -> None:
    assert checkpoint.unseen_tasks == ("up",) and checkpoint.spec.tasks == UP.tasks
    model = copy.deepcopy(checkpoint)
    recorded = wandering("up", 30, 3, ends=True)
    assert sum(int(e.success.sum()) for e in recorded) < 0.03 * sum(e.length for e in recorded)  # few frames are solved
    model.refit_read_out(recorded, own, ("up",), seed=0)
    seen, false, _ = judged(model, "up")
    before, false_before, _ = judged(checkpoint, "up")
    assert seen > 0.8 and false < 0.03 and before < 0.5 and false_before > 0.05
    for task in SPEC.tasks:
        was, now = judged(checkpoint, task), judged(model, task)
        assert was[0] > 0.8 and now[0] > was[0] - 0.05 and now[1] < was[1] + 0.02, task
        assert (now[2] - was[2]).abs().mean() < 0.02
    # Nothing else has changed, not even where no gradient should be.
    pairs = zip(checkpoint.state_dict().items(), model.state_dict().values(), strict=True)
    changed = {name for (name, old), new in pairs if not torch.equal(old, new)}
    assert changed and all(name.startswith("read_out.") for name in changed)
    assert all(parameter.requires_grad for parameter in model.parameters()) and not model.training


def test_a_refit_repeats_to_the_bit_and_leaves_the_random_numbers_of_torch(
    checkpoint: WorldActionModel, own: list[Episode]
) -> None:
    state = torch.get_rng_state()
    weights = []
    for seed in (0, 0, 1):
        model = copy.deepcopy(checkpoint)
        model.refit_read_out(wandering("up", 8, 3, ends=True), own, ("up",), seed)
        weights.append(torch.cat([p.flatten() for p in model.read_out.parameters()]))
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert torch.equal(torch.get_rng_state(), state)


def test_a_checkpoint_says_which_tasks_are_unseen(checkpoint: WorldActionModel, tmp_path: Path) -> None:
    model = copy.deepcopy(checkpoint)
    save_model(tmp_path / "m", model, "rl")
    assert load_model(tmp_path / "m").unseen_tasks == ("up",)
    older = model.to_config()
    assert older.pop("unseen_tasks") == ["up"] and WorldActionModel.from_config(older).unseen_tasks == ()
    for wrong in (["down"], "up", [1]):
        with pytest.raises(UserError, match=r"unseen_tasks is .*, expected a list of tasks of the spec"):
            WorldActionModel.from_config(older | {"unseen_tasks": wrong})
    model.mark_seen({"left", "up"})
    assert model.unseen_tasks == () and checkpoint.unseen_tasks == ("up",)


def test_failures_alone_teach_nothing(checkpoint: WorldActionModel, own: list[Episode]) -> None:
    failed = [episode for episode in wandering("up", 30, 3) if not episode.is_success]
    solved = [episode for episode in wandering("up", 30, 3) if episode.is_success]
    assert failed and solved
    assert frame_data(checkpoint, failed, own, ("up",)) is None
    assert frame_data(checkpoint, failed + solved, own, ()) is None  # nobody asked
    assert frame_data(checkpoint, failed + solved, [], ("up",)) is None  # nothing to keep the known tasks with
    model = copy.deepcopy(checkpoint)
    model.refit_read_out(failed, own, ("up",), seed=0)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), checkpoint.parameters(), strict=True))


def test_a_quarter_of_the_new_frames_shows_a_success_and_half_of_all_are_known(
    checkpoint: WorldActionModel, own: list[Episode]
) -> None:
    rare = [e for e in wandering("up", 60, 3, ends=True) if not e.is_success][:20]
    rare += [e for e in wandering("up", 60, 3, ends=True) if e.is_success][:1]
    lonely = [e for e in wandering("left", 60, 5) if not e.is_success][:5]
    data = frame_data(checkpoint, rare + lonely, own, ("up", "left"))
    assert isinstance(data, FrameData)
    assert set(data.new.task.tolist()) == {UP.tasks.index("up")}  # of left there is no success to learn
    assert len(data.new.success) == sum(e.length for e in rare) and int(data.new.success.sum()) == 1
    assert float(data.weights[data.new.success.bool()].sum()) == pytest.approx(0.25)
    assert float(data.weights.sum()) == pytest.approx(1.0)
    batch = data.sample(400, torch.Generator().manual_seed(0))
    of_new = batch.task == UP.tasks.index("up")
    assert int(of_new.sum()) == 200 and 0.15 < float(batch.success[of_new].mean()) < 0.35
    assert set(batch.success[of_new].tolist()) == {0.0, 1.0}
    p, progress = checkpoint.read_frames(batch.frames[~of_new], batch.task[~of_new])
    assert torch.allclose(p, batch.success[~of_new]) and torch.allclose(progress, batch.progress[~of_new])


def test_a_frame_has_the_value_of_a_slow_feature_that_was_known_then_and_the_label_of_its_step() -> None:
    episode = Episode(
        obs={"state": torch.arange(6.0)[:, None], "latents": torch.tensor([[10.0], [20.0], [30.0]])},
        action=torch.zeros(5, 1),
        success=torch.tensor([False, False, False, True, False]),
        task="right",
        source="policy",
        seed=0,
        every={"latents": 4},
    )
    frames = FrameBatch.of([episode], ("left", "right"))
    # Frames 1 to 5. The slow feature is known at frames 0 and 4, and at the last one.
    assert frames.frames.tolist() == [[1, 10], [2, 10], [3, 10], [4, 20], [5, 30]]
    assert frames.success.tolist() == [0, 0, 0, 1, 0] and frames.task.tolist() == [1] * 5
    assert frames.progress[3:].tolist() == [1, 1] and bool((frames.progress[:3] < 1).all())
