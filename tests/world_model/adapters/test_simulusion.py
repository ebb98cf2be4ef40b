"""The recurrent model of simulusion as a dream: it learns, its hidden state is carried, its noise is that of a row."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rewards.errors import UserError
from world_model.adapters.simulusion import RecurrentWorldModel
from world_model.checked import CheckedWorldModel
from world_model.data.episodes import Episode, EpisodeStore
from world_model.dream_env import DreamEnv, StartStates
from world_model.replays import chunk_errors
from world_model.spec import Feature, Spec
from world_model.tree import rows

SIZES = {"length": 6, "deter_size": 32, "stoch_size": 4, "chunk_size": 4}
SPEC = Spec({"state": Feature((2,))}, (-1.0,), (1.0,), ("push",), control_hz=10.0)


def recorded(n: int, seed: int) -> list[Episode]:
    """A point is pushed along a line; beyond 0.6 m is a success. The second number is how far the last push went."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for i in range(n):
        action = (0.7 * torch.randn(1, generator=generator) + 0.3 * torch.randn(12, 1, generator=generator)).clamp(
            -1, 1
        )
        place = torch.cat([torch.zeros(1, 1), 0.1 * action.cumsum(0)])
        state = torch.cat([place, torch.cat([torch.zeros(1, 1), action])], dim=1)
        found.append(Episode({"state": state}, action, place[1:, 0] > 0.6, "push", "random", seed=i))
    return found


@pytest.fixture
def folder(tmp_path: Path) -> str:
    EpisodeStore(tmp_path / "recorded").append(recorded(32, seed=0), SPEC)
    return str(tmp_path / "recorded")


def test_without_the_package_one_line_says_what_to_install(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "simulusion.models.modular_rssm", None)
    with pytest.raises(UserError, match=r"^RecurrentWorldModel needs the package simulusion; .*\[simulusion\]'$"):
        RecurrentWorldModel(folder, n_steps=1, **SIZES)


def test_it_learns_and_dreams_from_its_hidden_state(folder: str) -> None:
    pytest.importorskip("simulusion", reason="simulusion is not installed")
    torch.manual_seed(0)
    untrained, model = (CheckedWorldModel(RecurrentWorldModel(folder, n_steps=n, **SIZES), "own") for n in (0, 300))
    for of in (untrained, model):
        of.pretrain(seed=0)
    held, global_state = recorded(16, seed=1), torch.get_rng_state()
    errors = [float(chunk_errors(m, held, n_chunks=2).errors.mean()) for m in (untrained, model)]
    assert errors[1] < 0.5 * errors[0]

    starts = StartStates.from_episodes(held, SPEC.tasks, model.n_context_frames)
    env, twin = (DreamEnv(model, 3, starts, horizon=2, seed=1) for _ in range(2))
    env.reset(), twin.reset()
    actions = torch.linspace(-1, 1, 12).view(3, 4, 1)
    env.step_chunk(actions)
    state = env.state_dict()
    assert (
        not torch.equal(state["session"]["deter"][0], torch.zeros(32))
        and state["session"]["counter"].tolist() == [5] * 3
    )
    # A saved dream goes on the same; with another hidden state it would not.
    expected = env.step_chunk(actions[:, :2]).frames["state"]
    assert expected.shape == (3, 2, 2)
    twin.load_state_dict(state)
    assert torch.equal(twin.step_chunk(actions[:, :2]).frames["state"], expected)
    other = state["session"] | {"deter": torch.zeros_like(state["session"]["deter"])}
    twin.load_state_dict(state | {"session": other})
    assert not torch.allclose(twin.step_chunk(actions[:, :2]).frames["state"], expected, atol=1e-3)
    # Its noise belongs to a row, whatever its place in the batch; the global generator stays as it was.
    order = torch.tensor([2, 0, 1])
    _, one = model.predict(state["session"], actions)
    _, same = model.predict(rows(state["session"], order), actions[order])
    torch.testing.assert_close(same.frames["state"], one.frames["state"][order], atol=1e-5, rtol=0)
    assert not torch.equal(
        one.frames["state"], model.predict(state["session"] | {"seed": order + 9}, actions)[1].frames["state"]
    )
    assert torch.equal(torch.get_rng_state(), global_state)


def test_its_weights_are_saved_and_loaded(folder: str) -> None:
    pytest.importorskip("simulusion", reason="simulusion is not installed")
    torch.manual_seed(0)
    one = CheckedWorldModel(RecurrentWorldModel(folder, n_steps=2, **SIZES), "own")
    torch.manual_seed(1)
    other = CheckedWorldModel(RecurrentWorldModel(folder, n_steps=0, **SIZES), "own")
    other.load_state_dict(one.state_dict())
    starts = StartStates.from_episodes(recorded(2, seed=1), SPEC.tasks, one.n_context_frames)
    found = []
    for model in (one, other):
        env = DreamEnv(model, 2, starts, seed=0)
        env.reset()
        found.append(env.step_chunk(torch.ones(2, 4, 1)).frames["state"])
    assert torch.equal(*found)
