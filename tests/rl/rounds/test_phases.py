"""The phases of a round one by one: how many steps and updates they make, and what they leave in the state of a run."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from rl.compose import compose
from rl.config import DreamConfig, TrainConfig
from rl.policies.api import policy_state
from rl.policies.gaussian import GaussianPolicy
from rl.ppo.callbacks import RunCallbacks
from rl.ppo.update import PPO
from rl.rounds.budget import rollout_size
from rl.rounds.evaluate import EpisodeResult, Exploring
from rl.rounds.exploring import explore
from rl.rounds.loop import PostTraining
from rl.rounds.outcome import RunState
from rl.rounds.phases import Hooks, ImitationPhase, Learner, SimPhase
from rl.rounds.task_shares import TaskShares
from rl.verbs.prepare import control_config, prepare

STEPS = 4 * 3 * 2  # of a rollout: four environments, three decisions of two actions
STOP = """
from stable_baselines3.common.callbacks import BaseCallback


class Stop(BaseCallback):
    def _on_step(self):
        return False
"""


@dataclass
class Heard:
    """What a phase has called, in order."""

    logged: list[dict[str, float]] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    ticks: list[tuple[str, float]] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)
    n_safe: int = 0

    def hooks(self) -> Hooks:
        def safe() -> None:
            self.n_safe += 1

        def tick(doing: str, share: float) -> None:
            self.ticks.append((doing, share))

        return Hooks(self.logged.append, self.said.append, tick, self.shares.append, safe)


@dataclass
class Toy:
    """PPO of a Gaussian policy on the point of `tests/conftest.py`, and the phase in the simulator."""

    config: TrainConfig
    ppo: PPO
    state: RunState
    heard: Heard
    phase: SimPhase


@pytest.fixture
def make_toy(make_point: Callable[..., Any]) -> Callable[..., Toy]:
    def make(*overrides: str, critic_is_new: bool = False, **callbacks: Any) -> Toy:
        words = ["n_action_steps=2", "env.n_envs=4", "ppo.n_steps=3", "ppo.batch_size=12", "ppo.n_epochs=1"]
        config = compose("gaussian", [*words, *overrides], TrainConfig)
        torch.manual_seed(0)
        env = make_point(4, max_steps=6, terminate_on_success=False, seed=1)
        ppo, heard = PPO(GaussianPolicy(env, chunk_size=2), config.ppo), Heard()
        state = RunState(policy_state(ppo.policy), ref_kl_coef=0.0, critic_is_new=critic_is_new)
        called = RunCallbacks(
            callbacks,
            ppo=ppo,
            env=env,
            make_eval_env=lambda n: pytest.fail("no callback here evaluates"),
            folder=Path(),
            log=heard.logged.append,
            save=lambda path: None,
        )
        called.begin()
        tasks = TaskShares(env.spec.tasks, (), steer=0.0, state=state, distributed=ppo.distributed)
        learner = Learner(config, ppo, called, state, heard.hooks(), tasks, chunk_size=2)
        phase = SimPhase(config, env, learner, imitation=None, keep_episodes=None, state=state, hooks=heard.hooks())
        return Toy(config, ppo, state, heard, phase)

    return make


@pytest.fixture
def make_post(tiny: list[str]) -> Iterator[Callable[..., PostTraining]]:
    """Build runs that dream: two updates of five epochs, on 8 * 3 chunks in batches of 16, without a refit."""
    words = ["dream.n_updates=2", "dream.n_epochs=5", "dream.horizon=3", "dream.refit_steps=0", "ppo.target_kl=null"]
    made: list[PostTraining] = []

    def make(*overrides: str, control: str = "") -> PostTraining:
        config = compose("dream", [*tiny, *words, *overrides], TrainConfig)
        made.append(prepare(control_config(config, control) if control else config))
        made[-1].say = lambda line: None
        return made[-1]

    yield make
    for post in made:
        post.close()


@contextmanager
def counted_steps() -> Iterator[list[int]]:
    """Count the steps of all optimizers in a list of one number."""
    count = [0]

    def step(*_: Any) -> None:
        count[0] += 1

    handle = register_optimizer_step_post_hook(step)
    yield count
    handle.remove()


def unchanged(before: dict[str, torch.Tensor], policy: Any) -> bool:
    return all(torch.equal(value, before[name]) for name, value in policy_state(policy).items())


def test_the_steps_of_a_rollout_are_counted_in_executed_actions() -> None:
    config = compose(
        "gaussian", ["n_action_steps=2", "env.n_envs=4", "ppo.n_steps=3", "ppo.batch_size=12"], TrainConfig
    )
    assert rollout_size(config, chunk_size=2) == STEPS
    assert rollout_size(config, chunk_size=5) == 4 * 8 * 2  # 3 chunks of 5 actions are 7.5 decisions, rounded up


def test_each_round_in_the_simulator_executes_its_share_of_the_steps(make_toy: Callable[..., Toy]) -> None:
    toy = make_toy("n_rounds=2", f"total_timesteps={4 * STEPS}")
    before = policy_state(toy.ppo.policy)
    seen = []
    for i in range(2):
        toy.phase.train(i)
        seen.append((toy.state.sim_steps, toy.state.n_updates, toy.heard.n_safe))
    assert seen == [(2 * STEPS, 2, 2), (4 * STEPS, 4, 4)]
    assert toy.heard.shares == [0.0, 0.5, 0.0, 0.5]  # of each round
    assert toy.heard.ticks == [(f"round {i}, PPO in sim", share) for i in (1, 2) for share in (0.0, 0.5)]
    assert ["train/value_loss" in row for row in toy.heard.logged] == [True] * 4
    assert not unchanged(before, toy.ppo.policy)
    toy.phase.train(1)  # as after a resume: nothing is left to do
    assert toy.state.n_updates == 4


def test_a_phase_that_was_begun_before_goes_on_to_the_same_number_of_steps(make_toy: Callable[..., Toy]) -> None:
    toy = make_toy("n_rounds=2", f"total_timesteps={8 * STEPS}")
    toy.state.sim_steps = 3 * STEPS  # a state saved in the first round
    toy.phase.train(0)
    assert (toy.state.sim_steps, toy.state.n_updates, toy.heard.shares) == (4 * STEPS, 1, [0.75])


def test_the_first_rollout_of_a_new_critic_makes_no_update(make_toy: Callable[..., Toy]) -> None:
    toy = make_toy("n_rounds=1", f"total_timesteps={2 * STEPS}", "ppo.critic_warmup_steps=3", critic_is_new=True)
    toy.phase.train(0)
    assert (toy.state.sim_steps, toy.state.n_updates, toy.state.critic_is_new) == (2 * STEPS, 1, False)
    assert [*toy.heard.logged[0]] == ["critic/heldout_explained_variance"]
    assert len(toy.heard.logged) == 2 and "train/value_loss" in toy.heard.logged[1]


def test_a_rollout_that_a_callback_ends_makes_no_update(
    make_toy: Callable[..., Toy], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("stop.py").write_text(STOP)
    toy = make_toy("n_rounds=1", f"total_timesteps={2 * STEPS}", enough={"func": "stop.py:Stop"})
    before = policy_state(toy.ppo.policy)
    toy.phase.train(0)
    assert toy.state.stopped_by == "enough"
    assert toy.heard.said == ["callback 'enough' ended the training after 0 updates"]
    assert toy.state.sim_steps == 4 * 2  # the one decision that was executed counts
    assert toy.state.n_updates == toy.heard.n_safe == 0 and unchanged(before, toy.ppo.policy)


def test_imitation_counts_as_one_update(make_toy: Callable[..., Toy]) -> None:
    toy = make_toy()
    toy.ppo.imitation = lambda generator: toy.ppo.policy.denoiser.log_std.square().sum()
    with counted_steps() as count:
        ImitationPhase(7, toy.ppo, toy.state, toy.heard.hooks()).train(0)
    assert count == [7] and toy.state.n_updates == 1
    assert toy.heard.ticks == [("round 1, imitation", 0.0)]


def test_a_control_takes_as_many_optimizer_steps_as_ppo_in_the_dream(make_post: Callable[..., PostTraining]) -> None:
    counts, updates = [], []
    for control in "", "anchor":
        post = make_post(control=control)
        assert post.config.learns_from_dreams == (control == "")
        with counted_steps() as count:
            post.phases["dream"].train(0)
        counts += count
        updates.append(post.state.n_updates)
    assert counts == [2 * 5 * 2] * 2  # updates, epochs, batches of 16 for 24 chunks
    assert updates == [2, 2]


def test_a_dream_may_begin_with_imitation(make_post: Callable[..., PostTraining]) -> None:
    """What it has imitated is what the KL penalty keeps it close to."""
    post = make_post("dream.imitation_steps=7")
    at: list[int] = []
    with counted_steps() as count:
        post.policy.set_reference = lambda: at.extend(count)  # type: ignore[method-assign]
        post.phases["dream"].train(0)
    assert count == [7 + 2 * 5 * 2] and at == [7] and post.state.n_updates == 2


def test_the_critic_of_a_dream_costs_one_more_rollout(make_post: Callable[..., PostTraining]) -> None:
    post = make_post("ppo.critic_warmup_steps=1")
    assert post.state.critic_is_new
    collected, collect = [], post.ppo.collect
    post.ppo.collect = lambda *given, **named: collected.append(1) or collect(*given, **named)  # type: ignore
    post.phases["dream"].train(0)
    assert len(collected) == 3 and post.state.n_updates == 2
    post.phases["dream"].train(1)
    assert len(collected) == 5 and post.state.n_updates == 4


def test_a_dream_stays_as_close_to_the_reference_as_the_state_says(make_post: Callable[..., PostTraining]) -> None:
    post = make_post()
    assert post.dreams is not None
    post.state.ref_kl_coef = 0.75  # grown by rollbacks
    given: list[tuple[int | None, float | None]] = []
    update = post.ppo.update

    def spy(samples: Any, real: Any, n_epochs: int | None, ref_kl_coef: float | None) -> dict[str, float]:
        given.append((n_epochs, ref_kl_coef))
        return update(samples, real, n_epochs, ref_kl_coef)

    post.ppo.update = spy  # type: ignore[method-assign]
    post.phases["dream"].train(0)
    assert given == [(5, 0.75)] * 2
    assert 0.0 <= post.dreams.success <= 1.0  # for the gap that the next gate measures


def test_a_dream_that_a_callback_ends_makes_no_update(
    make_post: Callable[..., PostTraining], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("stop.py").write_text(STOP)
    post = make_post("callbacks.enough.func=stop.py:Stop")
    before = policy_state(post.policy)
    post.callbacks.begin()
    post.phases["dream"].train(0)
    assert post.state.stopped_by == "enough" and post.state.n_updates == post.state.sim_steps == 0
    assert unchanged(before, post.policy)
    assert post.imitation is not None and "dream" not in post.imitation.examples


def test_half_of_the_exploring_may_be_without_noise_and_sets_the_noise(make_post: Callable[..., PostTraining]) -> None:
    words = ("dream.n_episodes=7", "dream.noise_keeps=0.5")
    post, said, logged, asked = make_post(*words), list[str](), list[dict[str, float]](), list[tuple[bool, int]]()
    post.say, post.log = said.append, lambda step, values: logged.append(values)

    def record(policy: Any, seeds: Sequence[int], tick: Callable[[float], None]) -> list[EpisodeResult]:
        explores = isinstance(policy, Exploring)
        assert explores or policy is post.policy
        asked.extend((explores, seed - 50_000_000) for seed in seeds)
        # Rates of 4/5 and 1/6: with noise 0.2 exp(-c 0.2^2) = 5/24 is left.
        return [EpisodeResult("reach", seed, not explores, n_steps=10, reward=0.0) for seed in seeds]

    post.record_episodes = record  # type: ignore[assignment]
    before = post.state_dict()
    assert post.policy.noise_std == 0.2 and post.dreams is not None
    post._explore(post.dreams)
    assert asked == [(i >= 3, i) for i in range(7)] and (post.state.explored, post.state.sim_steps) == (7, 70)
    fitted = 0.2 * (math.log(2) / math.log(24 / 5)) ** 0.5
    assert post.state.noise_std == post.policy.noise_std == pytest.approx(fitted)
    assert [values["dream/noise_std"] for values in logged] == [post.state.noise_std]
    assert said == [
        "exploring: 0 of 4 episodes succeed with noise of 0.2, 3 of 3 without; noise of the next dream: 0.133"
    ]
    resumed = make_post(*words)
    assert resumed.policy.noise_std == 0.2
    resumed.load_state_dict(post.state_dict())
    assert resumed.policy.noise_std == post.policy.noise_std
    resumed.load_state_dict(before)  # as after bad numbers
    assert resumed.policy.noise_std == 0.2


@pytest.mark.parametrize("n_episodes", [0, 1])
def test_without_two_exploring_episodes_the_noise_stays(
    make_post: Callable[..., PostTraining], n_episodes: int
) -> None:
    post = make_post(f"dream.n_episodes={n_episodes}", "dream.noise_keeps=0.5")
    assert post.dreams is not None
    post._explore(post.dreams)
    assert post.policy.noise_std == 0.2 and post.state.noise_std is None and post.state.explored == n_episodes


def test_exploring_uses_seeds_once_and_its_steps_count(make_toy: Callable[..., Toy]) -> None:
    toy = make_toy()
    asked: list[int] = []

    def record(policy: Any, seeds: Sequence[int], tick: Callable[[float], None]) -> list[EpisodeResult]:
        assert isinstance(policy, Exploring) and policy.generator is toy.ppo.generator
        asked.extend(seeds)
        tick(0.5)
        return [EpisodeResult("reach", seed, success=False, n_steps=10, reward=0.0) for seed in seeds]

    for n in 2, 3:
        explore(TrainConfig(dream=DreamConfig(n_episodes=n)), toy.ppo, toy.state, record, toy.heard.hooks())
    assert asked == [50_000_000 + i for i in range(5)]
    assert (toy.state.explored, toy.state.sim_steps, toy.state.n_updates) == (5, 50, 0)
    assert toy.heard.ticks == [("exploring", 0.0)] * 2  # it precedes a phase, whose progress begins at 0
