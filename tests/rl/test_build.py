"""What a config says of a simulator reaches the simulator, the episodes and the checkpoints."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from rewards.errors import UserError
from rl.build import build_simulator, make_denoiser
from rl.compose import compose
from rl.config import PolicyConfig, SimulatorConfig
from rl.envs.sim import make_spec
from rl.runs.folder import RunFolder
from rl.stages.config import PretrainConfig
from rl.stages.run import pretrain
from world_model.data.episodes import EpisodeStore
from world_model.wam.model import WorldActionModel
from world_model.wam.store import load_model

SENTENCE = "Pull the drawer open."


def test_instructions_are_in_the_spec_of_the_simulator() -> None:
    for instructions, expected in (({}, "Pull the drawer open by its handle."), ({"drawer-open": SENTENCE}, SENTENCE)):
        config = SimulatorConfig(tasks=("drawer-open",), instructions=instructions)
        env = build_simulator(config, config.tasks, 1, model=None, known_tasks=(), n_context_frames=1, max_steps=2)
        with contextlib.closing(env):
            assert env.spec.instruction("drawer-open") == expected


def test_instructions_are_stored_with_episodes_and_checkpoint(tmp_path: Path) -> None:
    words = f"""name=x tasks=[drawer-open] threads=1 episodes={tmp_path}/e n_expert=1 n_noisy=0 n_random=0 n_heldout=3
        trust_steps=0 stage.n_steps=1 stage.batch_size=2 stage.warmup_steps=1""".split()
    words += ["model={width: 32, world_width: 48, action_width: 32, n_layers: 1, n_heads: 2}"]
    words += [f"env.instructions={{drawer-open: {SENTENCE}}}"]
    config = compose(None, words, PretrainConfig)
    with RunFolder.create(tmp_path / "runs", config.name, 0) as run:
        pretrain(config, run)
    assert EpisodeStore(tmp_path / "e").spec.instructions == {"drawer-open": SENTENCE}
    assert load_model(run.path / "checkpoints" / "last").spec.instruction("drawer-open") == SENTENCE


OWN = """
from examples.own_policy import OwnPolicy
from world_model.spec import Feature


class Own(OwnPolicy):
    def __init__(self, **sizes):
        super().__init__(**sizes)


class Late(OwnPolicy):
    def __init__(self, width):
        super().__init__(width=width)
        raise ValueError("no\\n  file")


class Eyes(OwnPolicy):
    def __init__(self, size, n_context_frames=1, **sizes):
        super().__init__(**sizes)
        self.reads = {**self.reads, "images.front": Feature((size, size, 3), dtype="uint8")}
        self.n_context_frames = n_context_frames


def function():
    return 3
"""


@pytest.fixture
def own(tmp_path: Path) -> str:
    (tmp_path / "own.py").write_text(OWN)
    return f"{tmp_path}/own.py"


def failure(call: Callable[[], object]) -> str:
    """The one line that a call must fail with."""
    with pytest.raises(UserError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_policy_of_ones_own_is_built_from_its_params(own: str) -> None:
    denoiser = make_denoiser(PolicyConfig(f"{own}:Own", {"horizon": 6}), "cpu")
    assert denoiser is not None and (denoiser.horizon, denoiser.n_action_steps) == (6, 6)
    chosen = make_denoiser(PolicyConfig(f"{own}:Own", {"horizon": 6}), "cpu", n_action_steps=3)
    assert chosen is not None and chosen.n_action_steps == 3
    for func in ("flow", "gaussian"):  # these are made of a model, or of a simulator
        assert make_denoiser(PolicyConfig(func), "cpu") is None


def test_images_of_a_policy_are_needed_when_it_decides(own: str) -> None:
    """And in each step, if it reads more frames than one."""
    for n_frames, every in ((1, 4), (2, 1)):
        actor = PolicyConfig(f"{own}:Eyes", {"size": 8, "n_context_frames": n_frames})
        denoiser = make_denoiser(actor, "cpu", n_action_steps=4)
        assert denoiser is not None
        assert {name: feature.every for name, feature in denoiser.reads.items()} == {"state": 1, "images.front": every}


def test_what_is_no_policy_is_one_line(own: str) -> None:
    def line(name: str, **params: object) -> str:
        return failure(lambda: make_denoiser(PolicyConfig(name, params), "cpu"))

    page = "write one around your network, see docs/bring_your_own.md#your-own-policy"
    assert line(f"{own}:function") == f"policy={own}:function: expected a rl.policies.api.Denoiser, got 3; {page}"
    assert line(f"{own}:Owm") == f"policy={own}:Owm: {own} has no 'Owm'; did you mean 'Own'?"
    assert line("absent.py:Own").startswith("policy=absent.py:Own: there is no file absent.py (looked for ")
    assert line(f"{own}:Late", width=8) == f"policy={own}:Late raised ValueError: no   file; see {own}:14"
    wrong = line(f"{own}:Late", height=8)
    assert wrong == f"policy={own}:Late: params of {own}:Late: missing a required argument: 'width'; it takes width"
    assert line("lerobot") == (
        "policy.params: checkpoint is missing; policy.func=lerobot has checkpoint, rename and lora_rank"
    )
    assert line("lerobot", checkpoint="a", rank=2) == (
        "policy.params: unknown 'rank'; policy.func=lerobot has checkpoint, rename and lora_rank"
    )
    assert line("lerobot", checkpoint="no/where/it") == (
        "policy=no/where/it: no policy of LeRobot there; expected a folder with its config.json, such as "
        "outputs/train/NAME/checkpoints/last/pretrained_model"
    )
    assert line("lerobot", checkpoint="gausian") == ("policy=gausian: did you mean 'gaussian'?; or a folder of LeRobot")


def built(actor: PolicyConfig, model: WorldActionModel | None = None) -> None:
    """Build a simulator of Meta-World for a policy, and for a world model if there is one."""
    denoiser = make_denoiser(actor, "cpu", 8)
    config = SimulatorConfig(tasks=("push",))
    tasks = () if model is None else model.spec.tasks
    env = build_simulator(
        config, ["push"], 1, model=model, known_tasks=tasks, denoiser=denoiser, n_context_frames=2, max_steps=2
    )
    env.close()


def test_a_simulator_has_what_the_policy_reads(own: str) -> None:
    built(PolicyConfig(f"{own}:Own"))
    remedy = (
        "correct `reads` of a policy of your own, rename the features of one of LeRobot (policy.params.rename), or "
        "choose one that was trained here"
    )
    assert failure(lambda: built(PolicyConfig(f"{own}:Own", {"state_dim": 5}))) == (
        f"env.simulator=metaworld: the policy reads 'state' of shape [5], the environment has [21]; {remedy}"
    )


def test_a_dream_has_what_the_policy_reads(own: str, image_model: WorldActionModel) -> None:
    """The model with images has a state of 4 numbers, images of 32 pixels and a context of two frames."""
    blind = WorldActionModel(replace(image_model.config, views={}), make_spec("metaworld", ["push"]))
    remedy = "choose another checkpoint, or train without dreams (env.kind=sim)"
    actor = PolicyConfig(f"{own}:Eyes", {"size": 32})
    assert failure(lambda: built(actor, blind)) == (
        f"the policy reads 'images.front', and a dream of the checkpoint has state; {remedy}"
    )
    actor = PolicyConfig(f"{own}:Eyes", {"size": 16, "state_dim": 4})
    assert failure(lambda: built(actor, image_model)) == (
        "env.simulator=metaworld: the policy reads 'images.front' of shape [16, 16, 3], the world model [32, 32, 3]; "
        "choose a checkpoint or a policy with the same"
    )
    actor = PolicyConfig(f"{own}:Eyes", {"size": 32, "state_dim": 4, "n_context_frames": 3})
    assert failure(lambda: built(actor, image_model)) == (
        f"the policy reads 3 frames, and a dream has as many as the world model reads, 2; {remedy}"
    )
