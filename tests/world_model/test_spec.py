"""What a checkpoint expects of an environment: each difference that matters is named with both values."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

import world_model
from rewards.errors import UserError
from world_model.checkpoint import builtin_checkpoints
from world_model.spec import Feature, Spec

IMAGE = Feature((64, 64, 3), dtype="uint8", every=8)
SPEC = Spec({"state": Feature((4,), "m")}, (-1.0, 0.0), (1.0, 2.0), ("push", "reach"), 20.0)
SEEING = replace(SPEC, features={**SPEC.features, "images.front": IMAGE})
OWN = "choose a checkpoint trained on this environment, or name that of the checkpoint (env.simulator, env.id)"


def test_a_checkpoint_fits_what_it_was_trained_on_and_what_allows_more() -> None:
    for env in (
        SPEC,
        replace(SPEC, tasks=("push",)),
        SEEING,  # an image that nobody reads
        replace(SPEC, action_low=(-2.0, 0.0), action_high=(1.0, 3.0)),  # a dataset: those of its actions
        replace(SPEC, action_high=(0.9999999, 2.0000001), control_hz=20.0000003),  # rounded on the way
    ):
        SPEC.check_fits(env, "here")
    SEEING.check_fits(SEEING, "here")


@pytest.mark.parametrize(
    ("mine", "env", "message"),
    [
        (
            SPEC,
            replace(SPEC, features={"state": Feature((3,))}),
            f"the checkpoint has observation size 4, the environment has observation size 3; {OWN}",
        ),
        (
            SPEC,
            replace(SPEC, control_hz=30.0),
            "the checkpoint acts at 20 Hz, the environment runs at 30 Hz; change the rate of the environment or choose "
            "a checkpoint trained on it",
        ),
        (
            SPEC,
            replace(SPEC, action_high=(1.0, 1.5)),
            "action 1 of the checkpoint is from 0 to 2, the environment clips it to 0 to 1.5; widen the bounds of the "
            "environment or choose a checkpoint trained on it",
        ),
        (
            SPEC,
            replace(SPEC, action_low=(-0.5, 0.0)),
            "action 0 of the checkpoint is from -1 to 1, the environment clips it to -0.5 to 1; widen the bounds of "
            "the environment or choose a checkpoint trained on it",
        ),
        (
            SEEING,
            SPEC,
            f"the checkpoint reads 'images.front' of shape [64, 64, 3], the environment has none; {OWN}",
        ),
        (
            SEEING,
            replace(SPEC, features={**SPEC.features, "images.front": replace(IMAGE, shape=(32, 64, 3))}),
            f"the checkpoint reads 'images.front' of shape [64, 64, 3], the environment has [32, 64, 3]; {OWN}",
        ),
        (
            SEEING,
            replace(SPEC, features={**SPEC.features, "images.front": replace(IMAGE, every=1)}),
            "the checkpoint reads a new 'images.front' every 8 steps, the environment has one every 1; change `every` "
            "of that feature of the environment",
        ),
        (
            SPEC,
            replace(SPEC, tasks=("push", "reech")),
            "task 'reech' is unknown to the checkpoint; did you mean 'reach'?",
        ),
    ],
)
def test_a_difference_is_named_with_both_values(mine: Spec, env: Spec, message: str) -> None:
    with pytest.raises(UserError) as error:
        mine.check_fits(env, "env.id=here")
    assert str(error.value) == f"env.id=here: {message}"


def test_built_in_checkpoints_fit_meta_world() -> None:
    from rl.envs.sim import make_spec

    configs = sorted(Path(world_model.__file__).parent.glob("builtin/*/config.json"))
    assert [path.parent.name for path in configs] == builtin_checkpoints()
    for path in configs:
        spec = Spec.from_dict(json.loads(path.read_text())["spec"])
        env = make_spec("metaworld", spec.tasks)
        if spec.images:  # it reads images in place of where things are
            env = replace(env, features=spec.features)
        spec.check_fits(env, path.parent.name)


def test_a_spec_with_images_and_instructions_comes_back_from_json() -> None:
    spec = replace(SEEING, instructions={"push": "Push the puck to the goal."})
    back = Spec.from_dict(json.loads(json.dumps(spec.to_dict())))
    assert back == spec and back.features["images.front"] == IMAGE and back.images == ("images.front",)
    assert back.instruction("push") == "Push the puck to the goal."
    assert replace(spec, tasks=("door-open", "pick_place")).instruction("door-open") == "door open"


def test_names_of_motors_come_back_from_json_and_need_one_for_each_number() -> None:
    spec = Spec(
        {"state": Feature((2,), names=("a.pos", "b.pos"))}, (-1.0,), (1.0,), ("push",), 10.0, action_names=("a",)
    )
    back = Spec.from_dict(json.loads(json.dumps(spec.to_dict())))
    assert back.features["state"].names == ("a.pos", "b.pos") and back.action_names == ("a",)
    for names in (["a", "b"], ["a", 1], "a"):
        with pytest.raises(UserError, match=r"action_names: .* expected none, or one for each number, each once"):
            Spec.from_dict(spec.to_dict() | {"action_names": names})
    data = spec.to_dict()
    data["features"]["state"]["names"] = ["a.pos", "a.pos"]
    with pytest.raises(UserError, match="features"):
        Spec.from_dict(data)


def test_a_state_without_parts_is_a_part_itself() -> None:
    features = {"state": Feature((2,)), "environment_state": Feature((3,), slices={"cup": (1, 3)})}
    spec = Spec(features, (-1.0,), (1.0,), ("reach",), 10.0)
    assert spec.parts == {"state": slice(0, 2), "cup": slice(3, 5)}
    named = replace(spec, features=features | {"state": Feature((2,), slices={"x": (0, 1)})})
    assert named.parts == named.vector_slices == {"x": slice(0, 1), "cup": slice(3, 5)}


def test_codes_at_the_end_of_an_old_state_become_a_feature_of_their_own() -> None:
    old = SPEC.to_dict()
    state = {"shape": [7], "unit": "m; image: codes", "slices": {"hand_pos": [0, 3], "image": [4, 7]}}
    old["features"] = {"state": state, "image": {"shape": [1, 64, 64, 3], "unit": "uint8", "slices": {}}}
    spec = Spec.from_dict(old)
    assert spec.features == {"state": Feature((4,), "m", {"hand_pos": (0, 3)}), "latents": Feature((3,), "codes")}


@pytest.mark.parametrize(
    "feature",
    [
        {"shape": [64, 64, 3], "unit": "", "slices": {}, "dtype": "float32"},
        {"shape": [64, 64, 1], "unit": "", "slices": {}, "dtype": "uint8"},
        {"shape": [64, 64, 3], "unit": "", "slices": {}, "dtype": "uint8", "every": 0},
        {"shape": [64, 64, 3], "unit": "", "slices": {}, "dtype": "uint8", "every": True},
    ],
)
def test_impossible_images_are_refused(feature: dict[str, object]) -> None:
    data = SPEC.to_dict()
    data["features"]["images.front"] = feature
    with pytest.raises(UserError, match=r"spec\.features: .*expected images of uint8"):
        Spec.from_dict(data)
