"""What a dreamed chunk counts: by its expected error, and nothing for a success that flips."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import rl.rounds.trust_signals
from rewards.errors import BadNumbers, UserError
from rl.build import make_policy, make_sim
from rl.compose import compose
from rl.config import TrainConfig
from rl.ppo.buffer import Rollout
from rl.ppo.distributed import Distributed
from rl.ppo.update import PPO
from rl.rounds.dreams import Dreams
from rl.rounds.loop import PostTraining
from rl.rounds.trial import try_signals
from rl.rounds.trust_signals import Signal, flipped, make_signals, trust_weights
from rl.verbs.prepare import prepare
from world_model.dream_env import DreamEnv, StartStates


def test_trust_weighs_by_hand() -> None:
    # the median is 1: 1/2, 1/2, 1/4, of mean 5/12
    torch.testing.assert_close(trust_weights(torch.tensor([[1.0], [1.0], [3.0]])), torch.tensor([[1.2], [1.2], [0.6]]))
    torch.testing.assert_close(trust_weights(torch.zeros(2, 2)), torch.ones(2, 2))


@pytest.fixture
def rollout(model, make_point) -> Rollout:
    """Four chunks in three branches; the actions of chunk t in branch j are all (t + 4 j) / 12."""
    env = make_point(3, seed=0)
    config = compose("sim", ["ppo.n_steps=4", "ppo.batch_size=4"], TrainConfig)
    found = PPO(make_policy_of(model, env), config.ppo).collect(env, 4)
    numbers = torch.arange(4).view(4, 1) + 4 * torch.arange(3)
    found.actions = (numbers / 12).view(4, 3, 1, 1).expand_as(found.actions).clone()
    for name in ("success", "terminated", "truncated"):
        setattr(found, name, torch.zeros(4, 3, dtype=torch.bool))
    # Branch 0 succeeds in its second chunk and begins anew; branch 1 is truncated first, then succeeds; 2 never ends.
    found.success[1, 0] = found.terminated[1, 0] = True
    found.truncated[0, 1] = found.success[3, 1] = found.terminated[3, 1] = True
    return found


def make_policy_of(model, env):
    from rl.policies.wam import flow_policy

    return flow_policy(model, env, n_denoising_steps=2, noise_std=0.1)


@pytest.mark.parametrize(
    ("seen_again", "lost"),
    [
        ({0: 1, 1: 2}, []),  # each in its last chunk
        ({0: 0, 1: 0}, []),  # sooner is as good
        ({1: 2}, [0]),
        ({0: 1}, [1]),
        ({0: 2, 1: 2}, [0]),  # after the chunks of the success were over
    ],
)
def test_a_success_that_flips_is_marked_from_its_first_chunk_on(model, rollout, monkeypatch, seen_again, lost) -> None:
    told: list[torch.Tensor] = []
    begun: list[StartStates] = []

    class Again(DreamEnv):
        def __init__(self, model, *, starts, **options) -> None:
            assert model.n_denoising_steps == 2 and options.pop("max_steps") == 3 * model.chunk_size
            assert options == {"num_envs": 2, "horizon": 3, "in_order": True, "action_delay": 2}
            begun.append(starts)
            super().__init__(model, starts=starts, max_steps=3 * model.chunk_size, **options)

        def step_chunk(self, actions):
            step = super().step_chunk(actions)
            step.is_success = torch.tensor([seen_again.get(i) == len(told) for i in range(2)])
            told.append(actions[:, 0, 0])
            return step

    monkeypatch.setattr(rl.rounds.trust_signals, "DreamEnv", Again)
    marks = flipped(model, rollout, seed=5, action_delay=2)
    assert model.n_denoising_steps == 1
    (starts,) = begun
    frames = rollout.frames["state"]
    assert starts.context.keys() == {"state"} and starts.seed.tolist() == [5, 6]
    assert torch.equal(starts.context["state"], torch.stack([frames[0, 0], frames[1, 1]]))
    # The chunks of branch 0 are 0 and 1, the last one repeated; those of branch 1 are 5, 6 and 7.
    torch.testing.assert_close(torch.stack(told) * 12, torch.tensor([[0.0, 5.0], [1.0, 6.0], [1.0, 7.0]]))
    expected = torch.zeros(4, 3, dtype=torch.bool)
    if 0 in lost:
        expected[:2, 0] = True
    if 1 in lost:
        expected[1:, 1] = True
    assert torch.equal(marks, expected)


def test_without_success_there_is_nothing_to_dream_again(model, rollout) -> None:
    rollout.success[:] = False
    assert not flipped(model, rollout, seed=0, action_delay=0).any()


def test_trust_that_was_never_calibrated_decides_nothing(tiny) -> None:
    from world_model.wam.store import load_model

    config = compose("dream", [*tiny, "dream.weigh_by_trust=true"], TrainConfig)
    model = load_model(config.checkpoint)
    nowhere = StartStates({"state": torch.zeros(0)}, torch.zeros(0), torch.zeros(0))
    with pytest.raises(
        UserError, match=r"dream.max_expected_error, dream.weigh_by_trust, dream.trust.* was never calibrated"
    ):
        Dreams(config, model).env(nowhere)


def test_what_flips_counts_nothing_and_is_no_success(tiny, monkeypatch) -> None:
    from world_model.wam.store import load_model

    config = compose("dream", [*tiny, "dream.redream=true", "dream.weigh_by_trust=true"], TrainConfig)
    model = load_model(config.checkpoint)
    sim = make_sim(config, model, ["button-press-topdown"], 4, rewards=False)
    found = PPO(make_policy(config, model, sim), config.ppo).collect(sim, 2)
    sim.close()
    found.success = torch.tensor([[False, True, False, False], [True, False, False, False]])
    found.expected_error = torch.ones(2, 4)
    marks = torch.tensor([[True, False, False, False], [True, False, False, False]])
    monkeypatch.setattr("rl.rounds.trust_signals.flipped", lambda *_: marks)
    seen = Dreams(config, model).weigh(found, 0)
    assert seen == {"expected_error": 1.0, "flipped": 0.5}
    assert torch.equal(found.weight, (~marks).float())
    assert found.success.tolist() == [[False, True, False, False], [False] * 4]
    found.success[:] = False
    assert Dreams(config, model).weigh(found, 0)["flipped"] == 0.0  # without a success none fails


OWN = """
import torch

def half(rollout, world_model, seed, least=0.5):
    trust = torch.ones_like(rollout.weight)
    trust[0] = least
    rollout.weight[:] = 7.0  # a copy, which nobody reads
    return trust

def never(rollout, world_model, seed):
    return rollout.task < 0

def of_one_environment(rollout, world_model, seed): return rollout.weight[:, 0]
def number(rollout, world_model, seed): return 1.0
def root(rollout, world_model, seed): return (rollout.weight - 2.0).sqrt()
def negative(rollout, world_model, seed): return rollout.weight - 1.5
def broken(rollout, world_model, seed): return rollout.nothing

class Kept:
    def __init__(self, least): self.least = 1 / least
    def __call__(self, rollout, world_model, seed): return rollout.weight * self.least + 0 * seed
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write trust signals into a folder of its own and go there."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "own.py"
    path.write_text(OWN)
    return path


def signals(**entries: Any) -> TrainConfig:
    return compose("dream", ["dream.trust=" + repr(entries).replace("None", "null")], TrainConfig)


def test_the_weight_is_the_product_of_all_signals_each_to_its_power(model, rollout, own) -> None:
    config = signals(
        a={"func": "own.py:half"},  # 0.5 for the first chunks
        b={"func": "own.py:half", "weight": 2.0, "params": {"least": 0.1}},  # 0.1 ** 2
        c={"func": "own.py:Kept", "params": {"least": 0.5}},  # 2 everywhere
        off={"func": "own.py:never", "weight": 0},
        none=None,
    )
    dreams = dreams_of(config, model)
    assert [(s.name, s.weight) for s in dreams.signals] == [("a", 1.0), ("b", 2.0), ("c", 1.0)]
    seen = dreams.weigh(rollout, 0)
    expected = torch.full((4, 3), 2.0)
    expected[0] = 0.5 * 0.01 * 2.0
    torch.testing.assert_close(rollout.weight, expected)
    # The mean of 4 rows: 0.5 or 0.01 in one, 1 in the others.
    assert {k: round(v, 6) for k, v in seen.items() if k != "expected_error"} == {
        **{"trust/a": 0.875, "trust/b": 0.7525, "trust/c": 2.0}
    }


def dreams_of(config: TrainConfig, model) -> Dreams:
    """Return the part of `Dreams` that weighs: the tiny model has none of the slices that rewards ask for."""
    dreams = Dreams.__new__(Dreams)
    dreams.config, dreams.model, dreams.signals = config, model, make_signals(config)
    dreams.distributed = Distributed()
    return dreams


def test_a_success_that_is_not_believed_at_all_is_taken_back(model, rollout, own) -> None:
    rollout.success[0, 2] = True
    dreams_of(signals(a={"func": "own.py:half", "params": {"least": 0.0}}), model).weigh(rollout, 0)
    assert rollout.success.nonzero().tolist() == [[1, 0], [3, 1]]
    assert rollout.weight.tolist() == [[0.0] * 3, *([1.0] * 3 for _ in range(3))]


def test_what_believes_nothing_at_all_is_refused(model, rollout, own) -> None:
    with pytest.raises(
        BadNumbers, match="every chunk of a dreamed rollout got weight 0 from the trust signals a, n together"
    ):
        dreams_of(signals(a={"func": "own.py:half"}, n={"func": "own.py:never"}), model).weigh(rollout, 0)


@pytest.mark.parametrize(
    ("func", "problem"),
    [
        ("of_one_environment", "returned shape (4,), expected (4, 3): one number for each chunk"),
        ("number", "returned a float, expected a tensor of shape (4, 3)"),
        ("root", "returned nan for chunk 0 of environment 0; expected 0 to 1e+06, where 1 means full weight"),
        ("negative", "returned -0.5 for chunk 0 of environment 0; expected 0 to 1e+06, where 1 means full weight"),
        ("broken", "raised AttributeError: 'Rollout' object has no attribute 'nothing'"),
    ],
)
def test_what_is_no_trust_is_one_line_with_its_place(model, rollout, own, func: str, problem: str) -> None:
    (signal,) = make_signals(signals(mine={"func": f"own.py:{func}"}))
    line = next(i for i, text in enumerate(OWN.splitlines(), 1) if f"def {func}(" in text)
    with pytest.raises(UserError) as caught:
        signal(rollout, model, 0)
    assert str(caught.value) == f"trust signal 'mine' {problem}; see {own.resolve()}:{line}"


@pytest.mark.parametrize(
    ("entry", "line"),
    [
        ({"func": "own.py:hlaf"}, "own.py has no 'hlaf'; did you mean 'half'?"),
        ({"func": "expected_eror"}, "unknown func 'expected_eror'; did you mean 'expected_error'?; known: "),
        ({"func": "own.py:half", "weigh": 1.0}, "unknown key 'weigh', expected func, weight or params; did you mean"),
        (
            {"func": "own.py:half", "weight": -1.0},
            "weight is -1, expected at least 0: it is a power; 0 switches it off",
        ),
        ({"func": "own.py:half", "params": {"most": 1}}, "params of own.py:half: got an unexpected keyword argument"),
        ({"func": "own.py:Kept", "params": {"least": 0}}, "raised ZeroDivisionError: division by zero; see "),
        ("own.py:half", "expected func, weight and params, got 'own.py:half'; write {func: own.py:half, weight: 1.0}"),
    ],
)
def test_what_cannot_be_built_is_one_line(own, entry: Any, line: str) -> None:
    with pytest.raises(UserError) as caught:
        make_signals(signals(mine=entry))
    said = str(caught.value).removeprefix("trust signal 'mine'").removeprefix(":").strip()
    assert said.startswith(line) and "\n" not in said


def test_the_switches_of_before_are_the_built_in_signals() -> None:
    config = compose("dream", ["dream.redream=true", "dream.weigh_by_trust=true", "env.action_delay=3"], TrainConfig)
    assert [s.name for s in make_signals(config)] == ["expected_error", "redream"]
    assert make_signals(config)[1].call.keywords == {"action_delay": 3}  # type: ignore[attr-defined]
    assert compose("dream", [], TrainConfig).dream.signals == {}
    assert signals(redream={}).dream.signals == {"redream": {}} and not signals(redream={}).dream.reads_trust
    assert signals(mine={"func": "expected_error", "weight": 0.5}).dream.reads_trust
    assert not signals(mine={"func": "expected_error", "weight": 0}).dream.reads_trust


def test_it_is_found_beside_the_preset_that_names_it(own, monkeypatch: pytest.MonkeyPatch) -> None:
    preset = own.parent / "mine.yaml"
    preset.write_text("name: mine\nbase: dream\ndream: {trust: {a: {func: own.py:half}}}\n")
    (own.parent / "elsewhere").mkdir()
    monkeypatch.chdir(own.parent / "elsewhere")
    assert [s.func for s in make_signals(compose(preset, [], TrainConfig))] == [f"{own}:half"]


@pytest.fixture
def post(tiny, own) -> Iterator[PostTraining]:
    config = compose("dream", [*tiny, "dream.trust={a: {func: own.py:half}}"], TrainConfig)
    post = prepare(config)
    yield post
    post.close()


def test_trying_a_signal_changes_nothing_of_what_follows(post: PostTraining, monkeypatch: pytest.MonkeyPatch) -> None:
    assert post.dreams is not None
    starts, before = post.eval_envs.starts(range(4)), post.ppo.generator.get_state()
    tried: list[torch.Size] = []
    monkeypatch.setattr(Signal, "__call__", lambda self, rollout, *_, seed: tried.append(rollout.weight.shape))
    try_signals(post.dreams, post.ppo, starts)
    assert tried == [(1, 4)] and torch.equal(post.ppo.generator.get_state(), before)


def test_a_bug_shows_before_anything_is_evaluated(post: PostTraining, own, monkeypatch: pytest.MonkeyPatch) -> None:
    own.write_text("def half(rollout, world_model, seed):\n    return rollout.weights\n")
    assert post.dreams is not None
    post.dreams.signals = make_signals(post.config)
    monkeypatch.setattr(post, "evaluate", lambda: pytest.fail("it was evaluated first"))
    with pytest.raises(
        UserError, match=r"trust signal 'a' raised AttributeError: .* has no attribute 'weights'; see .*:2"
    ):
        post.run()
