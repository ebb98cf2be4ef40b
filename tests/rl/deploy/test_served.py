"""What a request is answered with, without a network: the same actions and dreams as here, or one line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from rl.deploy.remote_client import pack, unpack
from rl.deploy.served import Dream, Handler, Served
from rl.policies.wam import ModelPilot
from world_model.data.episodes import Episode
from world_model.dream_env import StartStates
from world_model.wam.model import WorldActionModel

N = 3


@pytest.fixture
def served(trained: WorldActionModel, episodes: list[Episode]) -> Served:
    starts = StartStates.from_episodes(episodes[:8], trained.spec.tasks, trained.n_context_frames)
    dream = Dream(trained, starts, horizon=2, max_steps=12)
    return Served(ModelPilot(trained, 2), "tiny", "ab" * 32, max_rows=N, dream=dream)


@pytest.fixture
def handler(served: Served) -> Handler:
    return served.handler()


def act(number: int = 1, n: int = N, seed: int = 0, **changes: Any) -> dict[str, Any]:
    draw = np.random.default_rng(seed)
    message = {
        "op": "act",
        "id": number,
        "obs": {"state": draw.normal(size=(n, 2, 4)).astype("<f4")},
        "task": np.arange(n) % 2,
        "noise": draw.normal(size=(n, 2, 4)).astype("<f4"),
        "held": draw.uniform(-1, 1, size=(n, 4, 2)).astype("<f4"),
        "n_held": np.arange(n) % 3,
    }
    return {**message, **changes}


def ask(handler: Handler, **message: Any) -> dict[str, Any]:
    answer = handler.answer(pack(message))
    assert isinstance(answer, bytes)
    return unpack(answer)


def fit(message: dict[str, Any], served: Served) -> dict[str, Any]:
    """The same message with noise of the size of the policy."""
    noise = np.random.default_rng(1).normal(size=(N, *served.pilot.noise_shape))
    return {**message, "noise": noise.astype("<f4")}


def test_actions_are_those_of_the_policy_bit_for_bit(served: Served, handler: Handler) -> None:
    message = fit(act(), served)
    tensors = {name: torch.from_numpy(message[name]) for name in ("task", "noise", "held", "n_held")}
    obs = {"state": torch.from_numpy(message["obs"]["state"]), "task": tensors["task"]}
    expected = served.pilot.act(obs, tensors["noise"], tensors["held"], tensors["n_held"])
    answer = ask(handler, **message)
    assert answer["id"] == 1 and answer["actions"].tobytes() == expected.numpy().tobytes()
    again = ask(handler, **{**message, "id": 2})
    assert again["actions"].tobytes() == answer["actions"].tobytes()  # it depends on the request alone


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"obs": {"state": np.zeros((N, 2, 5), "<f4")}}, r"act: obs.state is float32 of shape \(3, 2, 5\), expected "
         r"float32 of shape \(3, 2, 4\)"),
        ({"obs": {"state": np.zeros((N, 2, 4))}}, "act: obs.state is float64 .* expected float32"),
        ({"obs": {"state": np.full((N, 2, 4), np.nan, "<f4")}}, "act: obs.state has numbers that are not finite"),
        ({"obs": {}}, "act: state is missing; expected state"),
        ({"obs": {"state": np.zeros((N, 2, 4), "<f4"), "x": 1}}, "act: unknown 'x'; expected state"),
        ({"obs": [1]}, "act: obs is no map of features"),
        ({"task": np.array([0, 1, 2])}, "act: task has an index beyond 0 to 1"),
        ({"task": np.array([0, 1, -1])}, "act: task has an index beyond 0 to 1"),
        ({"task": np.zeros(4, "<i8")}, "act: task: expected an index for each of 1 to 3 rows, see max_rows"),
        ({"task": np.zeros(0, "<i8")}, "act: task: expected an index for each of 1 to 3 rows"),
        ({"task": np.zeros(3)}, "act: task is float64"),
        ({"task": "reach"}, "act: task: expected an index"),
        ({"n_held": np.array([0, 1, 5])}, "act: n_held has a number beyond 0 to 4, the actions of a chunk"),
        ({"held": np.full((N, 4, 2), np.inf, "<f4")}, "act: held has numbers that are not finite"),
        ({"held": None}, "act: held is missing"),
        ({"noise": np.zeros((N, 1), "<f4")}, "act: noise is float32"),
        ({"more": 1}, "act: unknown 'more'; expected obs, task, noise, held, n_held"),
        ({"op": "atc"}, "op=atc: expected one of act, reset, step_chunk; did you mean 'act'?"),
        ({"op": 1}, "op=int: expected one of act, reset, step_chunk"),
        ({"op": "step_chunk"}, "step_chunk: actions is missing; expected actions"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_request_is_one_line(
    served: Served, handler: Handler, changes: dict[str, Any], line: str
) -> None:
    with pytest.raises(AssertionError, match=line):
        assert "error" not in (answer := ask(handler, **{**fit(act(), served), **changes})), answer["error"]
    assert "actions" in ask(handler, **fit(act(2), served))  # and the next one is answered


@pytest.mark.parametrize("number", [0, 5, 4, -1, True, None, "6", 1.5, 2**63])
def test_a_request_has_a_larger_number_than_the_one_before(served: Served, handler: Handler, number: Any) -> None:
    """So what was recorded and is sent again steps no dream."""
    assert "actions" in ask(handler, **fit(act(5), served))
    assert handler.answer(pack(act(number))) == "id: expected a whole number above 5, that of the request before"
    assert "actions" in ask(handler, **fit(act(6), served))


def test_a_dream_is_the_same_as_here(served: Served, handler: Handler) -> None:
    """Over three chunks, of which the second ends all dreams, so that new ones begin in the third."""
    assert served.dream is not None
    here = served.dream.env(N)
    obs = here.reset(7)
    there = ask(handler, op="reset", id=1, n_envs=N, seed=7)
    assert_same(there["obs"], obs)
    for number in range(2, 5):
        actions = np.random.default_rng(number).uniform(-2, 2, size=(N, 4, 2)).astype("<f4")
        step = here.step_chunk(torch.from_numpy(actions))
        answer = ask(handler, op="step_chunk", id=number, actions=actions)
        for name in ("obs", "final_obs", "frames"):
            assert_same(answer[name], getattr(step, name))
        for name in ("reward", "executed", "terminated", "truncated", "is_success", "actions", "success"):
            assert answer[name].tobytes() == getattr(step, name).numpy().tobytes(), name
        assert answer["truncated"].any() == (number == 3)


def assert_same(found: dict[str, np.ndarray], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name].tobytes() == values.numpy().tobytes() and found[name].shape == values.shape, name


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ({"op": "reset", "n_envs": 4, "seed": 0}, "reset: n_envs: expected a whole number from 1 to 3, see max_rows"),
        ({"op": "reset", "n_envs": True, "seed": 0}, "reset: n_envs: expected a whole number"),
        ({"op": "reset", "n_envs": 1, "seed": -1}, "reset: seed: expected a whole number from 0 to 2,147,483,647"),
        ({"op": "reset", "n_envs": 1}, "reset: seed is missing; expected n_envs, seed"),
        ({"op": "step_chunk", "actions": np.zeros((1, 5, 2), "<f4")}, "step_chunk: actions has 5 steps, expected 1 to"),
        ({"op": "step_chunk", "actions": np.zeros((1, 0, 2), "<f4")}, "step_chunk: actions has 0 steps"),
        ({"op": "step_chunk", "actions": np.zeros((2, 4, 2), "<f4")}, r"step_chunk: actions is float32 of shape \(2, "),
        ({"op": "step_chunk", "actions": np.full((1, 4, 2), 3e38, "<f4")}, "dream: the action for .* or beyond"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_dream_is_one_line(handler: Handler, message: dict[str, Any], line: str) -> None:
    early = ask(handler, op="step_chunk", id=1, actions=np.zeros((1, 4, 2), "<f4"))
    assert early["error"] == "step_chunk: there is no dream yet; send a reset first"
    ask(handler, op="reset", id=2, n_envs=1, seed=0)
    with pytest.raises(AssertionError, match=line):
        assert "error" not in (answer := ask(handler, id=3, **message)), answer["error"]
    assert ask(handler, op="step_chunk", id=4, actions=np.zeros((1, 4, 2), "<f4"))["reward"].shape == (1, 4)


def test_actions_that_are_not_finite_are_not_sent(served: Served, handler: Handler) -> None:
    huge = {"state": np.full((N, 2, 4), 3e38, "<f4")}
    assert ask(handler, **{**fit(act(), served), "obs": huge})["error"] == (
        "act: the actions of the policy are not finite; are the numbers of the observation in its units?"
    )


def test_a_server_without_a_dream_says_so(trained: WorldActionModel) -> None:
    handler = Served(ModelPilot(trained, 2), "tiny", "").handler()
    answer = ask(handler, op="reset", id=1, n_envs=1, seed=0)
    assert answer["error"] == "reset: this server offers no dream; start it with dream=true"


def test_dreams_of_two_clients_are_apart(served: Served) -> None:
    one, other = served.handler(), served.handler()
    first = ask(one, op="reset", id=1, n_envs=1, seed=3)["obs"]["state"]
    ask(other, op="reset", id=1, n_envs=2, seed=4)
    ask(other, op="step_chunk", id=2, actions=np.ones((2, 4, 2), "<f4"))
    still = np.zeros((1, 4, 2), "<f4")
    alone = served.handler()
    assert (ask(alone, op="reset", id=1, n_envs=1, seed=3)["obs"]["state"] == first).all()
    found, expected = (ask(handler, op="step_chunk", id=2, actions=still)["frames"] for handler in (one, alone))
    assert (found["state"] == expected["state"]).all()


def test_the_largest_request_is_read(served: Served) -> None:
    assert len(pack(fit(act(n=N), served))) < served.max_bytes < 70_000
    about = unpack(served.greeting)
    assert about["max_bytes"] == served.max_bytes and about["sha256"] == "ab" * 32
    assert about["dream"]["horizon"] == 2 and about["latency_budget_s"] == pytest.approx(0.2)


def test_images_of_a_dream_are_decoded_for_who_asks_for_them(image_model: WorldActionModel, make_handler: Any) -> None:
    handler = make_handler(image_model)
    obs = ask(handler, op="reset", id=1, n_envs=2, seed=0)["obs"]
    assert obs["images.front"].shape == (2, image_model.n_context_frames, 32, 32, 3)
    assert obs["images.front"].dtype == np.uint8 and "latents" in obs


@pytest.fixture
def make_handler() -> Callable[[WorldActionModel], Handler]:
    def make(model: WorldActionModel) -> Handler:
        features = model.predicted_spec.features
        context = {name: torch.zeros(2, model.n_context_frames, *of.shape) for name, of in features.items()}
        starts = StartStates(context, torch.zeros(2, dtype=torch.long), torch.arange(2))
        dream = Dream(model, starts, horizon=1, max_steps=8, images=("images.front",))
        return Served(ModelPilot(model, 1), "sees", "", dream=dream).handler()

    return make
