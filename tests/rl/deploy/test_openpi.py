"""Observations as openpi's clients send them; the messages are written here as its `msgpack_numpy` writes them."""

from __future__ import annotations

import gc
from dataclasses import replace
from typing import Any

import msgpack
import numpy as np
import pytest
import torch
from websockets.sync.client import connect

from rl.deploy.openpi import feature_name
from rl.deploy.pilots import Decider
from rl.deploy.served import Handler, Served
from rl.deploy.server import Endpoint, serving
from rl.policies.wam import ModelPilot
from tests.conftest import CONFIG
from world_model.spec import Feature, Spec
from world_model.wam.config import TextConfig
from world_model.wam.model import WorldActionModel

STATE = np.array([0.1, -0.2, 0.3, 0.4])


def packed(observation: Any) -> bytes:
    def describe(value: np.ndarray) -> dict[bytes, Any]:
        return {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}

    data: bytes = msgpack.packb(observation, default=describe)
    return data


def unpacked(data: bytes | str) -> Any:
    assert isinstance(data, bytes), data

    def array(value: dict[Any, Any]) -> Any:
        if b"__ndarray__" not in value:
            return value
        return np.ndarray(buffer=value[b"data"], dtype=np.dtype(value[b"dtype"]), shape=value[b"shape"])

    return msgpack.unpackb(data, object_hook=array)


@pytest.fixture
def served(trained: WorldActionModel) -> Served:
    return Served(ModelPilot(trained, 2), "tiny", "", seed=5, rename={"observation/joint_position": "state"})


@pytest.fixture
def handler(served: Served) -> Handler:
    return served.handler()


@pytest.mark.parametrize(
    "observation",
    [
        {"state": STATE, "prompt": "reach"},
        {"observation/state": STATE.astype("f4"), "prompt": "reach"},
        {"observation": {"state": STATE}, "prompt": "reach"},
        {"observation/joint_position": STATE, "prompt": "reach", "observation/gripper": 1.0},
        {"observation/state": np.stack([STATE, STATE]), "prompt": "reach"},
    ],
)
def test_actions_are_those_of_a_robot_here(served: Served, handler: Handler, observation: dict[str, Any]) -> None:
    """Chunk after chunk with the same noise as in a session; one frame counts as standing still."""
    decide = Decider(served.pilot, "reach", seed=5)
    for _ in range(3):
        answer = unpacked(handler.answer(packed(observation)))
        expected = decide({"state": np.stack([STATE, STATE])}, np.zeros((0, 2)))
        assert answer.keys() == {"actions", "server_timing"} and answer["actions"].shape == (4, 2)
        assert answer["actions"].tobytes() == expected.tobytes()


def test_a_prompt_names_a_task_by_its_name_or_its_sentence(trained: WorldActionModel) -> None:
    trained.spec.instructions["rest"] = "stay where you are"
    handler = Served(ModelPilot(trained, 2), "tiny", "").handler()
    try:
        for prompt in ("rest", "stay where you are"):
            handler._openpi.decide.n_chunks = 0
            found = unpacked(handler.answer(packed({"state": STATE, "prompt": prompt})))["actions"]
            expected = Decider(ModelPilot(trained, 2), "rest", 0)({"state": np.stack([STATE] * 2)}, np.zeros((0, 2)))
            assert (found == expected).all()
    finally:
        trained.spec.instructions.clear()


@pytest.mark.parametrize(
    ("observation", "line"),
    [
        ({"prompt": "reach"}, "state is missing, the observation has nothing; send it, or start wamtune serve with "
         "'rename={KEY: state}'"),
        ({"image": STATE, "prompt": "reach"}, "state is missing, the observation has 'image'; send it"),
        ({"state": STATE}, "prompt: it is none, expected one of 'reach', 'rest'"),
        ({"state": STATE, "prompt": "raech"}, "prompt: it is 'raech', expected one of 'reach', 'rest'"),
        ({"state": STATE, "prompt": 3}, "prompt: it is no text, expected one of 'reach', 'rest'"),
        ({"state": STATE[:3], "prompt": "reach"}, "state has shape [3], expected [4], or [2, 4] with the"),
        ({"state": [0.1] * 4, "prompt": "reach"}, "state is list, expected an array of float32"),
        ({"state": STATE > 0, "prompt": "reach"}, "state is bool, expected an array of float32"),
        ({"state": STATE * np.nan, "prompt": "reach"}, "state has numbers that are not finite"),
        ({"state": STATE * 1e300, "prompt": "reach"}, "state has numbers that are not finite"),
        ({b"state": STATE, "prompt": "reach"}, "an observation has a key that is a bytes, expected text"),
        ({"a": {"b": {"c": {"d": {"e": {}}}}}}, "an observation has maps within maps, expected 4 levels at most"),
    ],
)  # fmt: skip
def test_an_error_is_one_line_of_text_and_the_next_one_is_answered(
    handler: Handler, observation: dict[Any, Any], line: str
) -> None:
    answer = handler.answer(packed(observation))
    assert isinstance(answer, str) and answer.startswith(line) and "\n" not in answer
    assert unpacked(handler.answer(packed({"state": STATE, "prompt": "rest"})))["actions"].shape == (4, 2)


TEXT = replace(
    CONFIG, task_conditioning="text", text=TextConfig(n_buckets=256, width=32, n_layers=1, n_heads=2, encoder="")
)
PUSH, STAY = "Push the point to its goal.", "Stay where you are."


def told(model: WorldActionModel, reach: str, rest: str, tasks: tuple[str, ...] = ("reach", "rest")) -> ModelPilot:
    """A policy that reads sentences, with the statistics of `model`; its tasks have these sentences."""
    torch.manual_seed(0)
    spec = replace(model.spec, tasks=tasks, instructions={"reach": reach, "rest": rest}, wordings={})
    reads = WorldActionModel(TEXT, spec)
    reads.codec.load_state_dict(model.codec.state_dict())
    reads.action_codec.load_state_dict(model.action_codec.state_dict())
    return ModelPilot(reads.eval(), 2)


def first_chunk(pilot: ModelPilot, prompt: str) -> np.ndarray:
    """The actions for a prompt at the beginning of a connection."""
    answer = Served(pilot, "tiny", "").handler().answer(packed({"state": STATE, "prompt": prompt}))
    found: np.ndarray = unpacked(answer)["actions"]
    return found


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_actions_that_are_not_finite_are_not_sent(value: float, served: Served, handler: Handler) -> None:
    act = served.pilot.act
    served.pilot.act = lambda *given: act(*given) * value  # type: ignore[method-assign]
    line = "the actions of the policy are not finite; are the numbers of the observation in its units?"
    assert handler.answer(packed({"state": STATE, "prompt": "reach"})) == line
    served.pilot.act = act  # type: ignore[method-assign]
    assert np.isfinite(unpacked(handler.answer(packed({"state": STATE, "prompt": "reach"})))["actions"]).all()


def test_a_policy_that_reads_takes_any_sentence_as_eval_does(model: WorldActionModel) -> None:
    """To the bit what `instruction=` gives, whatever the tasks are called and where they stand."""
    pilot = told(model, PUSH, STAY)
    for sentence in ("Shove it over there!", STAY, ""):
        other = told(model, sentence, PUSH)  # as `instruction=` replaces the sentence of a task
        expected = Decider(other, "reach", 0)({"state": np.stack([STATE] * 2)}, np.zeros((0, 2)))
        permuted = told(model, STAY, PUSH, tasks=("rest", "third", "reach"))
        for asked in (pilot, permuted):
            assert (first_chunk(asked, sentence) == expected).all()
    chunks = [first_chunk(pilot, text).tobytes() for text in (PUSH, STAY, "", "Shove it over there!")]
    assert len(set(chunks)) == 4
    # A name is short for the sentence of its task.
    assert chunks[1] == first_chunk(pilot, "rest").tobytes() == first_chunk(told(model, STAY, PUSH), "reach").tobytes()


def test_clients_with_sentences_of_their_own_do_not_disturb_each_other(model: WorldActionModel) -> None:
    served = Served(told(model, PUSH, STAY), "tiny", "")
    one, other = served.handler(), served.handler()
    for prompts in (("Up.", "Down."), ("Down.", "Up."), ("Up.", "Up.")):
        for handler, text in zip((one, other), prompts, strict=True):
            handler._openpi.decide.n_chunks = 0
            answer = unpacked(handler.answer(packed({"state": STATE, "prompt": text})))["actions"]
            assert (answer == first_chunk(served.pilot, text)).all()  # type: ignore[arg-type]


def test_new_sentences_take_no_memory(model: WorldActionModel) -> None:
    pilot = told(model, PUSH, STAY)
    handler = Served(pilot, "tiny", "").handler()

    def numbers_after(first: int) -> int:
        """How many numbers all tensors hold after 30 more sentences."""
        for i in range(first, first + 30):
            unpacked(handler.answer(packed({"state": STATE, "prompt": f"sentence {i} word{i}"})))
        gc.collect()
        return sum(x.numel() for x in gc.get_objects() if issubclass(type(x), torch.Tensor))

    assert numbers_after(0) == numbers_after(30)
    assert pilot.model.text is not None and pilot.model.text.rows == [PUSH, STAY, ""]
    assert pilot.spec.tasks == ("reach", "rest")
    long = handler.answer(packed({"state": STATE, "prompt": "long " * 300}))
    assert long == "prompt: it has 1,500 letters, expected 1,000 at most"


def test_a_frozen_text_encoder_belongs_to_the_server(model: WorldActionModel) -> None:
    def encode(texts: Any) -> Any:
        return [[float(len(text)), 1.0, -1.0] for text in texts]

    torch.manual_seed(0)
    config = replace(TEXT, text=TextConfig(encoder="mine.py:encode", dim=3))
    reads = WorldActionModel(config, model.spec)
    reads.load_state_dict(reads.state_dict() | {k: v for k, v in model.state_dict().items() if k.startswith("codec.")})
    reads.action_codec.load_state_dict(model.action_codec.state_dict())
    reads.tell(replace(model.spec, instructions={"reach": PUSH, "rest": STAY}), encode)
    message = packed({"state": STATE, "prompt": "Something else."})
    answer = Served(ModelPilot(reads, 2), "tiny", "").handler().answer(message)
    assert isinstance(answer, str) and "is new" in answer and "text_encoder=mine.py:encode" in answer
    assert unpacked(Served(ModelPilot(reads, 2, encode), "tiny", "").handler().answer(message))["actions"].size


@pytest.mark.parametrize(
    ("observation", "line"),
    [
        ({"state": STATE}, "prompt: it is none, expected one of 'Push the point to its goal.', 'Stay"),
        ({"state": STATE, "prompt": 3}, "prompt: it is no text, expected one of 'Push the point"),
    ],
)
def test_without_a_sentence_a_policy_that_reads_has_the_same_line(
    model: WorldActionModel, observation: dict[str, Any], line: str
) -> None:
    answer = Served(told(model, PUSH, STAY), "tiny", "").handler().answer(packed(observation))
    assert isinstance(answer, str) and answer.startswith(line)


class Sees:
    """A policy that reads an image; its actions are the image's brightest and darkest value."""

    spec = Spec(
        {"state": Feature((2,)), "images.front": Feature((8, 6, 3), dtype="uint8")},
        (0.0,) * 2,
        (255.0,) * 2,
        ("look",),
        10.0,
    )
    n_context_frames, chunk_size, noise_shape = 1, 3, (1,)

    def act(self, obs: Any, noise: torch.Tensor, held: torch.Tensor, n_held: torch.Tensor) -> torch.Tensor:
        image = obs["images.front"]
        assert image.dtype == torch.uint8 and obs["state"].dtype == torch.float32
        return torch.tensor([[[float(image.max()), float(image.min())]] * 3])


def test_images_are_found_by_name_and_keep_their_type() -> None:
    """The only task needs no prompt."""
    image = np.arange(8 * 6 * 3, dtype=np.uint8).reshape(8, 6, 3)
    handler = Served(Sees(), "sees", "").handler()
    for seen in (
        {"observation/state": STATE[:2], "observation/images/front": image},
        {"state": STATE[:2], "images": {"front": image}, "prompt": "look"},
    ):
        assert unpacked(handler.answer(packed(seen)))["actions"].tolist() == [[143.0, 0.0]] * 3
        bad = {**seen, "images.front": image.astype("f4")}
        assert handler.answer(packed(bad)) == "images.front is float32, expected an array of uint8"


@pytest.mark.parametrize(
    ("key", "name"),
    [("state", "state"), ("observation/state", "state"), ("observation.images.front", "images.front")]
    + [("images/front", "images.front"), ("observation/images/front", "images.front")],
)
def test_names(key: str, name: str) -> None:
    assert feature_name(key) == name


def test_over_the_line(served: Served) -> None:
    with serving(served, Endpoint()) as url, connect(url, compression=None, max_size=None) as connection:
        assert unpacked(connection.recv())["checkpoint"] == "tiny"  # a client of openpi keeps this as metadata
        connection.send(packed({"state": STATE, "prompt": "reach"}))
        assert unpacked(connection.recv())["actions"].dtype == np.float32


def test_the_client_of_openpi_itself(served: Served) -> None:
    """Where it is installed; the project does not need it."""
    client = pytest.importorskip("openpi_client.websocket_client_policy")
    with serving(served, Endpoint(token="secret")) as url:
        policy = client.WebsocketClientPolicy(url, api_key="secret")
        assert policy.get_server_metadata()["checkpoint"] == "tiny"
        found = policy.infer({"observation/state": STATE, "prompt": "reach"})["actions"]
        expected = Decider(served.pilot, "reach", 5)({"state": np.stack([STATE] * 2)}, np.zeros((0, 2)))
        assert (found == expected).all() and torch.from_numpy(found.copy()).isfinite().all()
        with pytest.raises(RuntimeError, match="prompt: it is 'raech', expected one of 'reach', 'rest'"):
            policy.infer({"observation/state": STATE, "prompt": "raech"})
