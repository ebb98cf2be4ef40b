"""What the page may send, and the actions that it stands for."""

from __future__ import annotations

import math

import pytest
import torch

from rl.play.controls import Controls, Message, Refused, parse
from tests.rl.play.toy import spec
from world_model.spec import Feature, Spec
from world_model.view import View


def test_messages_of_the_page() -> None:
    assert parse('{"held": [0, -1, 0.5, 1]}', ("push",)) == Message(held=(0.0, -1.0, 0.5, 1.0))
    assert parse('{"press": "policy"}', ("push",)) == Message(press="policy")
    assert parse(b'{"task": "push"}', ("push",)) == Message(task="push")
    assert parse('{"instruction": "Öffne sie."}', ("push",)) == Message(instruction="Öffne sie.")
    assert parse('{"instruction": ""}', ("push",)) == Message(instruction="")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        "null",
        '{"press": "policy", "task": "push"}',
        '{"press": "eval"}',
        '{"press": ["policy"]}',
        '{"task": "door-open"}',
        '{"task": {}}',
        '{"instruction": 1}',
        '{"instruction": "a\\nb"}',
        f'{{"instruction": "{"a" * 201}"}}',
        '{"held": [0, 0, 0]}',
        '{"held": [0, 0, 0, 1.1]}',
        '{"held": [0, 0, 0, NaN]}',
        '{"held": [0, 0, 0, Infinity]}',
        '{"held": [0, 0, 0, true]}',
        '{"held": [0, 0, 0, "1"]}',
        '{"held": {"0": 1}}',
        "[" * 500,
        b"\xff\xfe\x00",
    ],
)
def test_anything_else_is_refused(text: str | bytes) -> None:
    with pytest.raises(Refused):
        parse(text, ("push",))


def action(controls: Controls, *held: float) -> list[float]:
    controls.hold(held)
    actions = controls.actions(8)
    assert actions.shape == (1, 8, controls.spec.action_dim) and (actions == actions[:, :1]).all()
    return actions[0, 0].tolist()


def test_the_hand_moves_as_the_camera_sees_it() -> None:
    """A camera that looks along +y (azimuth 90) has +x to its right; one that looks along -x (180) has +y there."""
    along_y = Controls(spec(), View(azimuth=90.0), speed=0.5)
    assert action(along_y, 1, 0, 0, 0) == pytest.approx([0.5, 0, 0, 0], abs=1e-6)
    assert action(along_y, 0, 1, 0, 0) == pytest.approx([0, 0.5, 0, 0], abs=1e-6)
    assert action(along_y, 0, 0, -1, 0) == pytest.approx([0, 0, -0.5, 0], abs=1e-6)
    back = Controls(spec(), View(azimuth=180.0), speed=1.0)
    assert action(back, 1, 0, 0, 0) == pytest.approx([0, 1, 0, 0], abs=1e-6)
    assert action(back, 0, 1, 0, 0) == pytest.approx([-1, 0, 0, 0], abs=1e-6)
    diagonal = action(Controls(spec(), View(azimuth=45.0), speed=1.0), 1, 0, 0, 0)
    assert diagonal == pytest.approx([math.sqrt(0.5), -math.sqrt(0.5), 0, 0], abs=1e-6)


def test_the_gripper_keeps_its_command() -> None:
    controls = Controls(spec(), View(azimuth=90.0), speed=0.5)
    assert action(controls, 0, 0, 0, 1)[3] == 1.0  # whole, whatever the speed
    assert action(controls, 1, 0, 0, 0)[3] == 1.0
    assert action(controls, 0, 0, 0, -1)[3] == -1.0
    controls.follow(torch.tensor([[[0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.7]]]))
    assert action(controls, 1, 0, 0, 0)[3] == pytest.approx(0.7)


def test_other_actions_go_a_share_of_the_way_to_their_bounds() -> None:
    plain = Spec({"state": Feature((2,))}, (-2.0, 1.0), (4.0, 3.0), ("a",), control_hz=10.0)
    controls = Controls(plain, None, speed=0.5)
    assert controls.rest().tolist() == [0.0, 1.0]
    assert action(controls, 1, 1, 1, 1) == [2.0, 2.0]
    assert action(controls, -1, -1, 0, 0) == [-1.0, 1.0]
    many = Spec({"state": Feature((2,))}, (-1.0,) * 6, (1.0,) * 6, ("a",), control_hz=10.0)
    assert action(Controls(many, None, speed=0.5), 1, 0, 0, -1) == [0.5, 0.0, 0.0, -0.5, 0.0, 0.0]


def test_a_short_tap_moves_for_one_chunk() -> None:
    controls = Controls(spec(), View(azimuth=90.0), speed=0.5)
    controls.hold((1, 0, 0, 0))
    controls.hold((0, 0, 0, 0))
    assert controls.is_held
    assert controls.actions(1)[0, 0].tolist() == pytest.approx([0.5, 0, 0, 0], abs=1e-6)
    assert not controls.is_held
