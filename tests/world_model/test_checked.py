"""What a world model of somebody else returns is checked at every call, and blamed on its file and line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from rewards.errors import BadNumbers, UserError
from rewards.plugins import load
from world_model.api import WorldModel
from world_model.checked import CheckedWorldModel
from world_model.dream_env import DreamEnv, StartStates

SOURCE = """
import torch
from world_model.api import Prediction, WorldModel
from world_model.spec import Feature, Spec

class Own(WorldModel):
    spec = Spec({"state": Feature((2,))}, (-1.0,), (1.0,), ("a",), control_hz=10.0)
    chunk_size = 4
    def begin(self, history, seed):
        return SESSION
    def predict(self, session, actions):
        n, k = actions.shape[:2]
        frames, success, expected = torch.zeros(n, k, 2), torch.zeros(n, k), None
        CHANGE
        return session, Prediction({"state": frames}, success, expected)
"""


def make(folder: Path, change: str = "", session: str = "{'seed': seed}", who: str = "dream.world_model=own.py:Own"):
    (folder / "own.py").write_text(SOURCE.replace("CHANGE", change or "pass").replace("SESSION", session))
    return CheckedWorldModel(load("world_model", f"{folder}/own.py:Own", {})(), who)


def dream(model: CheckedWorldModel) -> DreamEnv:
    starts = StartStates({"state": torch.zeros(1, 1, 2)}, torch.zeros(1, dtype=torch.long), torch.zeros(1).long())
    return DreamEnv(model, 2, starts)


def test_what_is_right_passes(tmp_path: Path) -> None:
    env = dream(make(tmp_path, "frames = frames.double().requires_grad_(); expected = torch.ones(n)"))
    env.reset()
    step = env.step_chunk(torch.zeros(2, 3, 1))
    assert step.frames["state"].dtype == torch.float32 and not step.frames["state"].requires_grad
    assert env.expected_error.tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("change", "kind", "line"),
    [
        ("frames = frames[:, :1]", UserError, "frames['state'] of shape (2, 1, 2), expected (2, 3, 2)"),
        ("frames = [1]", UserError, "frames['state'] as a list, expected (2, 3, 2)"),
        ("return session, frames", UserError, "a tuple, expected a session and a world_model.api.Prediction"),
        ("return frames", UserError, "a Tensor, expected a session and a world_model.api.Prediction"),
        ("success = success[:, 0]", UserError, "success of shape (2,), expected (2, 3)"),
        ("success = None", UserError, "success as a NoneType, expected (2, 3)"),
        ("frames = frames + 1j", UserError, "frames['state'] of type torch.complex64, expected real numbers"),
        (
            "frames[1, 2, 0] = torch.nan",
            BadNumbers,
            "frames['state'] with nan in row 1, step 2 of the chunk; expected a finite number within ±1e+09",
        ),
        (
            "success[0, 1] = 1.5",
            BadNumbers,
            "success with 1.5 in row 0, step 1 of the chunk; expected a number from 0 to 1",
        ),
        (
            "expected = torch.full((n,), -1.0)",
            BadNumbers,
            "expected_error with -1 in row 0 of the chunk; expected a number from 0 to 1e+09",
        ),
        ("return session, Prediction({}, success)", UserError, "frames , expected state: the features of its spec"),
        ("session = {'seed': torch.zeros(3)}", UserError, "a session with shape (3,) at seed, expected 2 rows"),
    ],
)
def test_a_wrong_prediction_is_one_line(tmp_path: Path, change: str, kind: type[UserError], line: str) -> None:
    env = dream(make(tmp_path, change))
    env.reset()
    with pytest.raises(kind) as caught:
        env.step_chunk(torch.zeros(2, 3, 1))
    assert str(caught.value) == f"dream.world_model=own.py:Own returned {line}; see {tmp_path}/own.py:11"


@pytest.mark.parametrize(
    ("session", "line"),
    [
        ("seed[:1]", "returned a session with shape (1,), expected 2 rows; see {}:9"),
        ("{}", "returned a session without tensors, expected at least one; see {}:9"),
        ("'hidden'", "returned a session that is no tree: a tree holds tensors, dicts, .*, not a str; see {}:9"),
        ("history['images']", "raised KeyError: 'images'; see {}:10"),
    ],
)
def test_a_wrong_session_is_one_line(tmp_path: Path, session: str, line: str) -> None:
    env = dream(make(tmp_path, session=session))
    expected = "dream.world_model=own.py:Own " + line.format(tmp_path / "own.py")
    with pytest.raises(UserError, match="^" + re.escape(expected).replace(re.escape(".*"), ".*") + "$"):
        env.reset()


def test_what_it_raises_and_declares_is_blamed(tmp_path: Path) -> None:
    env = dream(make(tmp_path, "1 / 0"))
    env.reset()
    with pytest.raises(UserError, match=r"^dream.world_model=own.py:Own raised ZeroDivisionError: .*own.py:14$"):
        env.step_chunk(torch.zeros(2, 3, 1))
    model = make(tmp_path).model
    model.chunk_size = 2.0  # type: ignore[assignment]
    with pytest.raises(UserError, match=r"^who: its attribute chunk_size is 2.0, expected a whole number of at"):
        CheckedWorldModel(model, "who")


def test_it_cannot_change_what_it_gets(tmp_path: Path) -> None:
    env = dream(make(tmp_path, "actions.fill_(0.5)", "(history['state'].fill_(9.0), {'seed': seed})[1]"))
    env.reset()
    step = env.step_chunk(torch.zeros(2, 3, 1))
    assert not step.actions.any() and not env.context["state"].any()
    session = {"seed": torch.tensor([1, 2])}
    make(tmp_path, "session['seed'].zero_()").predict(session, torch.zeros(2, 3, 1))
    assert session["seed"].tolist() == [1, 2]


def test_a_model_without_weights_has_none_to_save(tmp_path: Path) -> None:
    model = make(tmp_path)
    assert model.state_dict() == {}
    model.load_state_dict({})
    model.model.state_dict = lambda: {"a": 1}  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="its state_dict returned a dict, expected tensors by name"):
        model.state_dict()


def test_it_passes_on_everything_that_a_world_model_can_do() -> None:
    public = {name for name in vars(WorldModel) if not name.startswith("_")}
    # The first is set in `__init__`. The second is set on the model itself, and nothing reads it from here.
    assert public - vars(CheckedWorldModel).keys() == {"n_context_frames", "n_denoising_steps"}
