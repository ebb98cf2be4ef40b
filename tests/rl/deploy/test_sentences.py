"""Any sentence for a policy at the other end of a line: as with the policy here, for this client alone."""

from __future__ import annotations

import gc
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from rewards.errors import UserError
from rl.deploy.remote_client import Client, Refused, pack, unpack
from rl.deploy.remote_pilot import RemotePilot
from rl.deploy.robot_config import RobotConfig
from rl.deploy.served import Handler, Served
from rl.deploy.server import Endpoint, serving
from rl.policies.wam import ModelPilot
from rl.verbs.deploy import _tell
from tests.conftest import CONFIG
from world_model.spec import Spec
from world_model.wam.config import TextConfig
from world_model.wam.model import WorldActionModel

TEXT = replace(
    CONFIG, task_conditioning="text", text=TextConfig(n_buckets=256, width=32, n_layers=1, n_heads=2, encoder="")
)
PUSH, STAY, NEW = "Push the point to its goal.", "Stay where you are.", "Shove it over there!"


@pytest.fixture
def pilot(trained: WorldActionModel) -> ModelPilot:
    """A policy that reads sentences, with the statistics of `trained`."""
    torch.manual_seed(0)
    spec = replace(trained.spec, instructions={"reach": PUSH, "rest": STAY}, wordings={})
    reads = WorldActionModel(TEXT, spec)
    reads.codec.load_state_dict(trained.codec.state_dict())
    reads.action_codec.load_state_dict(trained.action_codec.state_dict())
    return ModelPilot(reads.eval(), 2)


def request(pilot: ModelPilot, number: int, **changes: Any) -> dict[str, Any]:
    """A request of two rows, of the task reach."""
    draw = np.random.default_rng(0)
    message = {
        "op": "act",
        "id": number,
        "obs": {"state": draw.normal(size=(2, 2, 4)).astype("<f4")},
        "task": np.zeros(2, "<i8"),
        "noise": draw.normal(size=(2, *pilot.noise_shape)).astype("<f4"),
        "held": np.zeros((2, 4, 2), "<f4"),
        "n_held": np.zeros(2, "<i8"),
    }
    return {**message, **changes}


def ask(handler: Handler, message: dict[str, Any]) -> dict[str, Any]:
    answer = handler.answer(pack(message))
    assert isinstance(answer, bytes)
    return unpack(answer)


def here(pilot: ModelPilot, sentence: str) -> np.ndarray:
    """The actions for the same request and a sentence, without a server."""
    of = {
        name: torch.from_numpy(values) for name, values in request(pilot, 1).items() if isinstance(values, np.ndarray)
    }
    obs = {"state": torch.from_numpy(request(pilot, 1)["obs"]["state"]), "task": pilot.read(sentence).expand(2, -1)}
    actions: np.ndarray = pilot.act(obs, of["noise"], of["held"], of["n_held"]).numpy()
    return actions


def test_an_instruction_counts_in_place_of_the_task(pilot: ModelPilot) -> None:
    served = Served(pilot, "tiny", "")
    assert unpack(served.greeting)["reads_sentences"] is True
    one, other = served.handler(), served.handler()
    for number, sentence in enumerate((NEW, STAY, NEW), start=1):
        found = ask(one, request(pilot, number, instruction=sentence))["actions"]
        assert found.tobytes() == here(pilot, sentence).tobytes()
        plain = ask(other, request(pilot, number))["actions"]  # another client is not told
        assert plain.tobytes() == here(pilot, PUSH).tobytes()
    # And the next request without one is about its task again.
    assert ask(one, request(pilot, 9))["actions"].tobytes() == here(pilot, PUSH).tobytes()
    assert len({here(pilot, sentence).tobytes() for sentence in (PUSH, STAY, NEW)}) == 3


@pytest.mark.parametrize(
    ("instruction", "line"),
    [
        ("long " * 300, "instruction: it has 1,500 letters, expected 1,000 at most"),
        (3, "act: instruction is a int, expected text"),
        (None, "act: instruction is a NoneType, expected text"),
        (np.zeros(3, "<f4"), "act: instruction is a ndarray, expected text"),
    ],
)
def test_what_is_no_sentence_is_one_line(pilot: ModelPilot, instruction: Any, line: str) -> None:
    handler = Served(pilot, "tiny", "").handler()
    assert ask(handler, request(pilot, 1, instruction=instruction))["error"] == line
    assert "actions" in ask(handler, request(pilot, 2))


def test_a_policy_that_knows_tasks_by_name_refuses_it(trained: WorldActionModel) -> None:
    named = ModelPilot(trained, 2)
    served = Served(named, "tiny", "")
    assert unpack(served.greeting)["reads_sentences"] is False
    error = ask(served.handler(), request(named, 1, instruction=NEW))["error"]
    assert error == "act: instruction: the policy here knows its tasks by name and reads no sentence; leave it out"


def test_new_sentences_take_no_memory(pilot: ModelPilot) -> None:
    handler = Served(pilot, "tiny", "").handler()

    def numbers_after(first: int) -> int:
        """How many numbers all tensors hold after 20 more sentences."""
        for i in range(first, first + 20):
            ask(handler, request(pilot, i, instruction=f"sentence {i} word{i}"))
        gc.collect()
        return sum(x.numel() for x in gc.get_objects() if issubclass(type(x), torch.Tensor))

    assert numbers_after(1) == numbers_after(21)
    assert pilot.spec.instructions == {"reach": PUSH, "rest": STAY}


def config(**changes: Any) -> RobotConfig:
    return RobotConfig(robot="fake", **{"task": "reach", "instruction": NEW, **changes})


def test_a_robot_tells_the_policy_on_a_server(pilot: ModelPilot) -> None:
    message = request(pilot, 1)
    obs = {"state": torch.from_numpy(message["obs"]["state"]), "task": torch.zeros(2, dtype=torch.long)}
    rest = [torch.from_numpy(message[name]) for name in ("noise", "held", "n_held")]
    with serving(Served(pilot, "tiny", ""), Endpoint()) as url:
        remote = RemotePilot(url)
        assert remote.act(obs, *rest).numpy().tobytes() == here(pilot, PUSH).tobytes()
        _tell(remote, url, config())
        assert remote.spec.instructions == {"reach": NEW, "rest": STAY}  # what is recorded
        assert remote.act(obs, *rest).numpy().tobytes() == here(pilot, NEW).tobytes()
        remote.close()  # a line that was lost and is open again tells the same sentence
        assert remote.act(obs, *rest).numpy().tobytes() == here(pilot, NEW).tobytes()
        with pytest.raises(UserError, match=r"^text_encoder: the server reads the sentence; name it there"):
            _tell(remote, url, config(text_encoder="mine.py:encode"))
        with pytest.raises(UserError, match=r"it is for one task; name that with task="):
            _tell(remote, url, config(task=""))
        remote.close()


class OldServer:
    """A client of a server from before there were sentences in the messages."""

    def __init__(self, spec: Spec) -> None:
        self.server = {"spec": spec.to_dict(), "n_context_frames": 2, "chunk_size": 4, "noise_shape": [1]}

    def close(self) -> None:
        """There is no line."""


@pytest.mark.parametrize("said", [None, False, 1, "yes"])
def test_an_older_server_is_told_nothing(trained: WorldActionModel, said: Any) -> None:
    line: Any = OldServer(trained.spec)
    if said is not None:
        line.server["reads_sentences"] = said
    remote = RemotePilot("ws://old:1", lambda url: line)
    with pytest.raises(
        UserError, match=r"^instruction: ws://old:1 knows its tasks by name and reads no sentence; leave"
    ):
        _tell(remote, "ws://old:1", config())


def test_the_client_in_one_file_sends_sentences(pilot: ModelPilot, trained: WorldActionModel) -> None:
    message = request(pilot, 1)
    with serving(Served(pilot, "tiny", ""), Endpoint()) as url, Client(url) as client:
        found = client.act(message["obs"], ["reach", "reach"], message["noise"], instruction=NEW)
        assert found.tobytes() == here(pilot, NEW).tobytes()
    with serving(Served(ModelPilot(trained, 2), "tiny", ""), Endpoint()) as url, Client(url) as client:
        with pytest.raises(Refused, match="the policy here knows its tasks by name and reads no sentence"):
            client.act(message["obs"], ["reach", "reach"], instruction=NEW)
