"""Post-training on a tiny checkpoint: what a round does, what a rollback restores, what counts as a success."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import rl.ppo.imitation
import rl.rounds.loop
from rewards.errors import UserError
from rl.compose import compose
from rl.config import TrainConfig
from rl.envs.sim import SimEnv
from rl.policies.api import critic_state, policy_state
from rl.report.results import gain_from, results_of
from rl.rounds.evaluate import EpisodeResult
from rl.rounds.exploring import explore
from rl.rounds.gate import Verdict
from rl.rounds.loop import PostTraining
from rl.rounds.outcome import Outcome, PhaseResult
from rl.rounds.trial import try_rewards
from rl.runs.state import Run
from rl.seeds import START
from world_model.wam.metrics import prediction_metrics
from world_model.wam.store import load_model

DREAMED = "rollout/dream_success"
Logged = list[tuple[int, dict[str, float]]]


@pytest.fixture
def post(tiny: list[str], demonstrations: list[Any]) -> Iterator[PostTraining]:
    # Long enough that an episode ends, for a dream to be refitted on.
    post = build("mix", tiny, demonstrations, "n_rounds=2", "total_timesteps=640")
    yield post
    post.close()


def build(preset: str, tiny: list[str], demonstrations: list[Any] | None, *overrides: str) -> PostTraining:
    """Build a run; without `demonstrations` it has nothing to imitate."""
    config = compose(preset, [*tiny, *overrides], TrainConfig)
    buttons = None if demonstrations is None else [e for e in demonstrations if e.task == "button-press-topdown"]
    return PostTraining(config, load_model(config.checkpoint), buttons)


class NoTraining:
    """A phase that trains nothing."""

    def train(self, round_index: int) -> None:
        pass


def judged(accepted: bool) -> Any:
    """Return a fake gate with a fixed verdict."""
    return lambda *, most, **others: Verdict(accepted, 0.5, 0.5, 0, 0, most)


def test_two_rounds_of_mix(post: PostTraining, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rl.rounds.loop, "judge", judged(True))
    logged: Logged = []
    ticks: list[tuple[float, int, str]] = []
    post.log = lambda step, values: logged.append((step, values))
    post.tick = lambda *tick: ticks.append(tick)
    assert post.model is not None
    dynamics = {
        name for name, p in post.model.named_parameters() if any(p is q for q in post.model.dynamics_parameters())
    }
    before = {name: value.clone() for name, value in post.model.named_parameters()}
    start = policy_state(post.policy)
    outcome = post.run()

    assert [result.phase for result in outcome.results] == ["sim", "imitation", "dream", "sim", "dream"]
    # Along the axis are updates of PPO and phases of imitation, no two of them at the same step.
    updates = [step for step, values in logged if "train/value_loss" in values]
    first_dream = next(i for i, row in enumerate(v for _, v in logged if "train/value_loss" in v) if DREAMED in row)
    assert updates == [*range(1, first_dream + 1), *range(first_dream + 2, len(updates) + 2)]
    assert outcome.n_updates == outcome.results[-1].n_updates == updates[-1] == len(updates) + 1
    steps = [values["time/total_timesteps"] for _, values in logged[1 : -len(outcome.results)]]
    assert steps == sorted(steps) and steps[-1] == outcome.sim_steps
    ends = [(n, values["eval/total_timesteps"]) for n, values in logged[-len(outcome.results) :]]
    assert ends == [(result.n_updates, result.sim_steps) for result in outcome.results]
    rounds = [values["eval/rounds"] for _, values in logged if "eval/rounds" in values]
    assert rounds == [0.0, pytest.approx(1 / 3), pytest.approx(2 / 3), 1.0, 1.5, 2.0]
    assert outcome.sim_steps == post.state.sim_steps >= 512
    assert len(outcome.before) == len(outcome.after) == 4
    assert [r.seed for r in outcome.before] == [r.seed for r in outcome.after] == [2_000_000 + i for i in range(4)]
    after = policy_state(post.policy)
    assert all(torch.equal(after[name], value) for name, value in outcome.results[-1].champion.items())
    assert any(not torch.equal(after[name], start[name]) for name in start if ".action." in name)
    for name, value in post.model.named_parameters():
        trained = name in dynamics or name.startswith(("action.", "value."))
        assert trained or torch.equal(value, before[name]), name
    assert any(
        not torch.equal(value, before[name]) for name, value in post.model.named_parameters() if name in dynamics
    )

    tags = {tag for _, values in logged for tag in values}
    assert {"eval/success", "gate/accepted", "train/approx_kl", "train/ref_kl", "train/bc_loss"} <= tags
    assert {"rollout/dream_success", "rollout/sim_reward", "reward/success", "reward/success_raw"} <= tags
    shares = [done / total for done, total, _ in ticks]
    assert all(0 <= share <= 1 for share in shares) and shares[-1] == 1.0


def test_a_round_without_imitation_ends_where_one_with_it_does(tiny: list[str]) -> None:
    post = build("mix", tiny, None, "n_rounds=2", "total_timesteps=640")  # as a control that has nothing to imitate
    assert post.phases_of(0) == ["sim", "dream"]
    assert post.gate("sim", 0).rounds == pytest.approx(1 / 3)
    assert [post.gate("dream", i).rounds for i in range(2)] == [1.0, 2.0]
    post.close()


def test_rollback_restores_bit_equal_weights(post: PostTraining, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rl.rounds.loop, "judge", judged(False))
    start = {name: value.clone() for name, value in post.state.champion.items()}
    post.phases["dream"].train(0)
    trained = policy_state(post.policy)
    assert any(not torch.equal(trained[name], start[name]) for name in start)
    assert not post.gate("dream", 0).accepted
    restored = policy_state(post.policy)
    assert restored.keys() == start.keys()
    assert all(torch.equal(restored[name], start[name]) for name in start)


def test_a_rollback_keeps_the_critic_that_was_warmed_up(
    tiny: list[str], demonstrations: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rl.rounds.loop, "judge", judged(False))
    post = build("dream", tiny, demonstrations, "ppo.critic_warmup_steps=20")
    start, warm = policy_state(post.policy), {}
    fit = post.ppo.fit_critic

    def fit_and_look(*given: Any) -> float:
        variance = fit(*given)
        warm.update(critic_state(post.policy))
        return variance

    monkeypatch.setattr(post.ppo, "fit_critic", fit_and_look)
    post.phases["dream"].train(0)
    assert not post.gate("dream", 0).accepted and not post.state.critic_is_new
    assert len(warm) > 1 and any(not torch.equal(warm[name], start[name]) for name in warm)
    expected = start | warm
    assert all(torch.equal(value, expected[name]) for name, value in policy_state(post.policy).items())
    post.close()


@pytest.mark.parametrize("seed", [3, 20_260_131, 2**31 - 1])
def test_dreams_of_a_large_seed_begin_in_their_range_of_episodes(
    tiny: list[str], seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    post, begun = build("dream", tiny, None, f"seed={seed}"), list[range]()
    monkeypatch.setattr(post.eval_envs, "starts", begun.append)
    monkeypatch.setattr(post.dreams, "env", lambda starts: None)
    phase: Any = post.phases["dream"]
    for round_index in (0, 1):
        phase._dream(round_index)
    post.close()
    assert all(START.start <= seeds.start < seeds.stop <= START.stop and len(seeds) == 4 for seeds in begun)
    assert begun[0].stop == begun[1].start
    if seed == 3:
        assert begun[0].start == START.start + 3000 * 4


def test_a_refused_half_costs_no_evaluation(post: PostTraining) -> None:
    no, champion = Verdict(False, 1.0, 0.0, 0, 4, 4), post.state.champion
    before = [EpisodeResult("push", 0, True, 5, 1.0)]
    outcome = Outcome(
        before, [PhaseResult("dream", no, champion, 0, 0, 0.0), PhaseResult("sim", no, champion, 9, 0, 0.0)], 9, 0
    )
    post.evaluate = lambda: pytest.fail("the champion is that of the start, and was evaluated")  # type: ignore
    post.evaluate_champions(outcome)
    assert outcome.after is before


def test_dreams_begin_where_episodes_begin_and_that_costs_no_step(post: PostTraining) -> None:
    begun: list[Any] = []
    starts_of = post.eval_envs.starts
    post.eval_envs.starts = lambda seeds: begun.append(starts_of(seeds)) or begun[-1]  # type: ignore
    for round_index in (0, 0, 1):
        post.phases["dream"].train(round_index)
    first, again, other = begun
    assert len(first) == 4
    assert post.state.sim_steps == post.state.gate_steps == 0
    assert torch.equal(first.context["state"], again.context["state"])
    assert not torch.isin(first.context["state"][:, -1], other.context["state"][:, -1]).all(1).any()


def test_dreams_of_several_tasks_begin_in_each(tiny: list[str], demonstrations: list[Any]) -> None:
    post = build("dream", tiny, demonstrations, "env.tasks=[button-press-topdown,push]", "dream.n_starts=5")
    starts = post.eval_envs.starts(range(5))
    post.close()
    assert post.model is not None
    names = [post.model.spec.tasks[i] for i in starts.task.tolist()]
    assert names == ["button-press-topdown"] * 3 + ["push"] * 2


def test_a_control_that_learns_nothing_from_dreams_does_not_dream(tiny: list[str], demonstrations: list[Any]) -> None:
    nothing = ("ppo.pg_coef=0", "ppo.success_bc_coef=0", "dream.success_bc_coef=0")
    post = build("dream", tiny, demonstrations, *nothing)
    post.ppo.collect = lambda *args, **kwargs: pytest.fail("it dreamed")  # type: ignore
    steps: list[int] = []
    imitate, post.ppo._step = post.ppo._step, lambda *given: (steps.append(1), imitate(*given))[1]  # type: ignore
    before = policy_state(post.policy)
    post.phases["dream"].train(0)
    post.close()
    assert len(steps) == 5  # as many as PPO would take: 5 epochs of 8 * 2 chunks in batches of 16
    assert post.state.n_updates == post.config.dream.n_updates  # and as far along the axis
    after = policy_state(post.policy)
    assert any(not torch.equal(after[name], before[name]) for name in before if ".action." in name)


@pytest.mark.parametrize("preset", ["mix", "dream"])
def test_episodes_of_gates_are_dreamed_of_and_those_of_evaluations_never(
    preset: str, tiny: list[str], demonstrations: list[Any]
) -> None:
    post = build(preset, tiny, demonstrations)
    assert post.dreams is not None and (post.eval_envs.envs == [post.sim]) == (preset == "dream")
    post.evaluate()
    assert post.dreams.episodes == []
    post.run_for_gate(post.state.champion, [1_000_000, 1_000_001])
    assert sorted(e.seed for e in post.dreams.episodes) == [1_000_000, 1_000_001]
    post.evaluate()
    post.run_for_gate(post.state.champion, [1_000_002])
    assert sorted(e.seed for e in post.dreams.episodes) == [1_000_000, 1_000_001, 1_000_002]
    post.close()


def test_evaluations_teach_no_dream_where_there_is_only_one_simulator(
    tiny: list[str], demonstrations: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SimEnv, "alone", True)  # as Isaac Lab is
    post = build("mix", tiny, demonstrations, "ppo.fresh_rollouts=true", "ppo.n_steps=8")
    assert post.dreams is not None and post.eval_envs.envs == [post.sim]
    post.evaluate()
    post.phases["sim"].collect(8)
    post.close()
    evaluated = range(post.config.eval.seed, post.config.eval.seed + post.config.eval.n_episodes)
    assert post.dreams.episodes and not {e.seed for e in post.dreams.episodes} & {*evaluated}


def test_gates_may_judge_alone(tiny: list[str], demonstrations: list[Any]) -> None:
    taught, judged_alone = (
        build("dream", tiny, demonstrations, "dream.n_episodes=2", f"gate.record={record}")
        for record in ("true", "false")
    )
    seeds = [1_000_000, 1_000_001]
    seen, unseen = (post.run_for_gate(post.state.champion, seeds) for post in (taught, judged_alone))
    assert seen == unseen and taught.state.gate_steps == judged_alone.state.gate_steps > 0
    for post in taught, judged_alone:  # what a gate saw does not come in with the next that explore
        explore(post.config, post.ppo, post.state, post.record_episodes, post._hooks)
        post.close()
    assert taught.dreams is not None and judged_alone.dreams is not None
    assert sorted(e.seed for e in taught.dreams.episodes) == [*seeds, 50_000_000, 50_000_001]
    assert sorted(e.seed for e in judged_alone.dreams.episodes) == [50_000_000, 50_000_001]


@pytest.mark.parametrize("pg_coef", [1, 0])
def test_a_round_may_begin_with_episodes_that_explore(
    pg_coef: int, tiny: list[str], demonstrations: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    control = [f"ppo.pg_coef={pg_coef}", "dream.success_bc_coef=0", "dream.ref_kl_coef=0", "gate.enabled=false"]
    post = build("dream", tiny, demonstrations, "n_rounds=2", "dream.n_episodes=3", *control)
    assert post.dreams is not None
    explored: list[int] = []
    sample = post.policy.sample
    monkeypatch.setattr(post.policy, "sample", lambda *given: (explored.append(1), sample(*given))[1])
    explore(post.config, post.ppo, post.state, post.record_episodes, post._hooks)
    assert explored
    post.dreams.episodes.clear()
    post.state.sim_steps = post.state.explored = 0
    post.run()
    post.close()
    assert sorted(e.seed for e in post.dreams.episodes) == [50_000_000 + i for i in range(6)]
    assert post.state.sim_steps == sum(e.length for e in post.dreams.episodes) and post.state.gate_steps == 0


def test_only_rounds_that_dream_begin_with_episodes_that_explore(
    tiny: list[str], demonstrations: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rl.rounds.loop, "judge", judged(True))
    words = "n_rounds=3", "dream.n_rounds=2", "dream.n_episodes=3", "ppo.imitation_steps=0", "total_timesteps=128"
    post = build("mix", tiny, demonstrations, *words)
    post.run()
    post.close()
    assert post.state.explored == 6 and [result.phase for result in post.state.results] == ["dream", "dream", "sim"]
    post = build("dream", tiny, demonstrations, "n_rounds=3", "dream.n_episodes=3", "ppo.imitation_steps=0")
    assert post.dreams is not None and post.config.dream.max_widenings is not None
    post.dreams.n_widenings = post.config.dream.max_widenings  # no more dreams, and nothing to collect for them
    post.run()
    post.close()
    assert post.state.explored == post.state.sim_steps == 0


def test_a_dream_goes_on_after_success_where_the_simulator_does(tiny: list[str], demonstrations: list[Any]) -> None:
    words = "env.terminate_on_success=false", "env.action_delay=2", "env.obs_noise=0.01"
    post = build("dream", tiny, demonstrations, *words)
    assert post.dreams is not None
    dream = post.dreams.env(post.eval_envs.starts([0, 1]))
    for env in post.sim, dream:
        assert (env.terminate_on_success, env.action_delay, env.obs_noise, env.max_steps) == (False, 2, 0.01, 64)
    post.close()


def test_success_is_a_share_of_episodes_where_they_go_on_after_it(tiny: list[str], demonstrations: list[Any]) -> None:
    logged: Logged = []
    post = build("sim", tiny, demonstrations, "env.terminate_on_success=false", "ppo.fresh_rollouts=true")
    post.log = lambda step, values: logged.append((step, values))
    rollout = post.phases["sim"].collect(8)  # 64 steps: all four episodes end with it
    rollout.success[2:] = torch.tensor([True, True, False, False])
    rollout.success[2, 2] = True  # seen, and lost again: a success, as in an evaluation
    assert post.learner.learn("sim", rollout, fresh=True) == 0.75
    post.close()
    assert logged[-1][1]["rollout/sim_success"] == 0.75


def test_a_refit_makes_the_dream_better_and_forgets_the_dreamed_successes(post: PostTraining) -> None:
    assert post.dreams is not None and post.imitation is not None
    post.phases["sim"].collect(20)
    windows = post.dreams.model.windows(post.dreams.episodes)
    real = post.imitation.examples.get("sim")
    before = prediction_metrics(post.model, windows, part="hand_pos")["mean"]["error_ratio"]
    post.phases["dream"].train(0)
    post.dreams.config = compose("mix", ["dream.refit_steps=40", "dream.refit_learning_rate=0.003"], TrainConfig)
    post.dreams.refit()
    assert prediction_metrics(post.model, windows, part="hand_pos")["mean"]["error_ratio"] < before
    assert post.imitation.examples.get("sim") is real and "dream" not in post.imitation.examples
    assert post.dreams.n_refitted == len(post.dreams.episodes)


def test_refits_after_the_first_have_fewer_steps(post: PostTraining, monkeypatch: pytest.MonkeyPatch) -> None:
    dreams, taken = post.dreams, list[int]()
    assert dreams is not None
    dreams.episodes = [object()]  # type: ignore[list-item] # nothing of it is read
    dreams.config = compose("mix", ["dream.refit_steps=100", "dream.later_refits=0.25"], TrainConfig)
    monkeypatch.setattr(dreams.model, "refit_together", lambda *_, n_steps, **__: taken.append(n_steps))
    monkeypatch.setattr(rl.rounds.dreams, "refit_read_out", lambda *_: None)
    for _ in range(3):
        dreams.refit()
    assert taken == [100, 25, 25]


def test_products_are_less_precise_in_training_alone(post: PostTraining, monkeypatch: pytest.MonkeyPatch) -> None:
    assert post.config.matmul_precision == "medium" and torch.get_float32_matmul_precision() == "highest"
    seen: dict[str, str] = {}

    class Watched(NoTraining):
        def train(self, round_index: int) -> None:
            seen["training"] = torch.get_float32_matmul_precision()

    def judge(*_: Any, most: int, **__: Any) -> Verdict:
        seen["gate"] = torch.get_float32_matmul_precision()
        return Verdict(True, 0.5, 0.5, 0, 0, most)

    monkeypatch.setattr(rl.rounds.loop, "judge", judge)
    monkeypatch.setitem(post.phases, "dream", Watched())
    post._run_phase("dream", 0)
    assert seen == {"training": "medium", "gate": "highest"}


def test_where_nothing_moved_there_is_no_error(post: PostTraining, demonstrations: list[Any]) -> None:
    assert post.dreams is not None
    post.dreams.episodes = [demonstrations[0]]
    assert post.dreams.error() is not None
    state = demonstrations[0].state
    post.dreams.episodes = [replace(demonstrations[0], obs={"state": state[:1].expand_as(state)})]
    assert post.dreams.error() is None


def test_gates_use_fresh_seeds(post: PostTraining, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, float]] = []
    post.config = replace(post.config, gate=replace(post.config.gate, z_loss=0.5))

    def judge(*, first_seed: int, most: int, z_loss: float, **others: Any) -> Verdict:
        seen.append((first_seed, z_loss))
        return Verdict(True, 0.0, 0.0, 0, 0, most)

    monkeypatch.setattr(rl.rounds.loop, "judge", judge)
    for i in range(3):
        post.gate("dream", i)
        post.gate("sim", i)  # in `mix`, what was learned in the simulator is not judged
    assert seen == [(1_000_000, 0.5), (1_000_004, 0.5), (1_000_008, 0.5)]


def test_a_dream_that_was_rolled_back_makes_the_next_one_stay_nearer(
    post: PostTraining, monkeypatch: pytest.MonkeyPatch
) -> None:
    verdicts = iter([True, False, False, False])
    monkeypatch.setattr(rl.rounds.loop, "judge", lambda **_: Verdict(next(verdicts), 0.5, 0.4, 0, 1, 4))
    strict = []
    for i, phase in enumerate(["dream", "sim", "dream", "dream"]):
        post.gate(phase, i)
        strict.append(post.state.ref_kl_coef / post.config.dream.ref_kl_coef)
    assert strict == [1, 1, 4, 16]


@pytest.mark.parametrize(("total", "n_rollouts"), [(128, [0, 1]), (500, [2, 2]), (580, [2, 3])])
def test_rounds_end_at_the_nearest_rollout(
    total: int, n_rollouts: list[int], tiny: list[str], demonstrations: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    post = build("sim", tiny, demonstrations, "n_rounds=2", f"total_timesteps={total}")
    begun: list[int] = []

    def collect(n_steps: int) -> None:
        n_executed = post.config.env.n_envs * n_steps * post.config.n_action_steps - 1  # an episode ended early
        post.state.sim_steps += n_executed
        begun.append(post.state.sim_steps)

    monkeypatch.setattr(post.phases["sim"], "collect", collect)
    monkeypatch.setattr(post.learner, "learn", lambda place, rollout, fresh: None)
    seen = []
    for i in range(2):
        begun.clear()
        post.phases["sim"].train(i)
        seen.append(len(begun))
    post.close()
    assert seen == n_rollouts


@pytest.mark.parametrize(("fresh", "n_chunks"), [("false", 4), ("true", 2)])
def test_rollouts_in_the_simulator_may_begin_new_episodes(
    fresh: str, n_chunks: int, tiny: list[str], demonstrations: list[Any]
) -> None:
    post = build("sim", tiny, demonstrations, f"ppo.fresh_rollouts={fresh}", "env.max_steps=400")
    for _ in range(2):
        post.phases["sim"].collect(2)
    post.close()
    assert post.sim.elapsed.tolist() == [n_chunks * post.config.n_action_steps] * post.config.env.n_envs


@pytest.mark.parametrize("place", ["sim", "dream"])
def test_the_first_rollout_teaches_the_critic_alone(place: str, tiny: list[str], demonstrations: list[Any]) -> None:
    post = build(place, tiny, demonstrations, "ppo.critic_warmup_steps=3", "total_timesteps=128", "dream.n_updates=0")
    logged: Logged = []
    post.log = lambda step, values: logged.append((step, values))
    before = policy_state(post.policy)
    post.phases[place].train(0)
    post.close()
    ((step, values),) = [entry for entry in logged if "dream/expected_error" not in entry[1]]
    assert step == 0  # it is no update
    assert (values["time/total_timesteps"] > 0) == (place == "sim")
    assert values["time/total_timesteps"] == post.state.sim_steps and "critic/heldout_explained_variance" in values
    changed = {name for name, value in policy_state(post.policy).items() if not torch.equal(value, before[name])}
    assert changed and all(".value." in name for name in changed)


@pytest.mark.parametrize("won", [0, 2])
def test_dreams_that_promise_ever_more_than_they_keep_come_to_an_end(
    won: int, tiny: list[str], demonstrations: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless the gate sees them win all the same."""
    post = build("mix", tiny, demonstrations, "n_rounds=6", "ppo.imitation_steps=0")
    assert post.dreams is not None
    post.phases["sim"] = NoTraining()
    promised = iter([0.1, 0.3, 0.7, 0.9, 0.9, 0.9])
    kept = iter(
        [0.3, 0.4, 0.6, 0.5, 0.4, 0.3]
    )  # gaps of -.2, -.1, .1, .4: the last two are wider, and promise too much
    monkeypatch.setattr(post.phases["dream"], "train", lambda i: setattr(post.dreams, "success", next(promised)))
    monkeypatch.setattr(rl.rounds.loop, "judge", lambda **_: Verdict(False, 0.5, next(kept), won, 1, 4))
    said: list[str] = []
    post.say = said.append
    results = post.run(post.evaluate()).results
    post.close()
    last = 6 if won else 4
    assert [result.phase for result in results] == ["sim", "dream"] * last + ["sim"] * (6 - last)
    assert [line for line in said if "no more dreams" in line] == [
        f"round {n}: the gap widens, there are no more dreams in this run" for n in range(last + 1, 7)
    ]


@pytest.mark.parametrize("preset", ["sim", "dream", "mix"])
def test_imitation_is_a_phase_of_the_first_round_and_judged_where_the_config_says(
    preset: str, tiny: list[str], demonstrations: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    post = build(preset, tiny, demonstrations, "ppo.imitation_steps=7", "n_rounds=2")
    taken: list[int] = []
    post.ppo.imitate = taken.append  # type: ignore
    post.phases["sim"] = post.phases["dream"] = NoTraining()
    monkeypatch.setattr(rl.rounds.loop, "judge", judged(False))
    results = post.run().results
    post.close()
    assert taken == [7]
    phases = {"sim": ["imitation", "sim"], "dream": ["imitation", "dream"], "mix": ["sim", "imitation", "dream"]}
    later = [phase for phase in phases[preset] if phase != "imitation"]
    assert [result.phase for result in results] == phases[preset] + later
    judged_ones = {"sim": {"imitation", "sim"}, "dream": {"imitation", "dream"}, "mix": {"imitation", "dream"}}
    assert {result.phase for result in results if result.verdict is not None} == judged_ones[preset]
    assert build(preset, tiny, demonstrations, "ppo.imitation_steps=0").phases_of(0) == later


def test_reward_terms_are_logged_raw_and_weighted(tiny: list[str], demonstrations: list[Any]) -> None:
    post = build("sim", tiny, demonstrations, "rewards.time_cost.weight=-0.5", "rewards.action_l2.weight=0")
    rollout = post.ppo.collect(post.sim, 3)
    post.close()
    assert rollout.terms["time_cost_raw"] == pytest.approx(1.0)  # a mean over executed steps alone
    assert rollout.terms["time_cost"] == pytest.approx(-0.5)
    assert rollout.terms["success"] == rollout.terms["success_raw"]
    assert "action_l2" not in rollout.terms


def test_several_tasks_share_the_seeds(tiny: list[str], demonstrations: list[Any]) -> None:
    post = build("sim", tiny, demonstrations, "env.tasks=[button-press-topdown,push]", "env.max_steps=8")
    results = post.evaluate()
    post.close()
    assert [(r.task, r.seed - 2_000_000) for r in results] == [
        ("button-press-topdown", 0),
        ("button-press-topdown", 2),
        ("push", 1),
        ("push", 3),
    ]


def test_sizes_that_do_not_fit_are_named(tiny: list[str], demonstrations: list[Any]) -> None:
    with pytest.raises(UserError, match=r"env\.id=Pendulum-v1.*observation size 21.*observation size 3"):
        build("sim", tiny, demonstrations, "env.id=Pendulum-v1", "env.tasks=[]")


def test_recorded_successes_are_imitated_from_first_to_last_step(post: PostTraining, demonstrations: list[Any]) -> None:
    assert post.imitation is not None and post.model is not None
    success, size = next(e for e in demonstrations if e.is_success), post.model.config.chunk_size
    n = success.length - (success.length - 3) % size  # whole chunks and 3 steps; the success is 8 steps before the end
    success = success.cut(0, n)
    failure = replace(success, success=torch.zeros_like(success.success))
    post.model.config = replace(post.model.config, context_noise=0.0)  # to compare frames exactly
    post.imitation.add_episodes([failure, success, failure])
    context, actions = post.imitation.examples["sim"]
    starts = [*range(0, success.length - size, size), success.length - size]
    assert torch.equal(actions, torch.stack([success.action[t : t + size] for t in starts]))
    assert torch.equal(context.frames[:, -1], success.state[torch.tensor(starts)])
    post.imitation.examples.clear()
    frames = [*range(0, success.length, size), success.length]
    rare = replace(success, obs={"state": success.state[frames]}, every={"state": size})  # seen, where chunks begin
    post.imitation.add_episodes([rare, success])
    whole, left = success.length // size, 3
    seen, everywhere = post.imitation.examples["sim"][1].split([whole + 1, len(starts)])
    assert torch.equal(seen[:-1], actions[:whole]) and torch.equal(everywhere, actions)
    # What is left up to the success begins at the last image, and goes on with the last action.
    assert torch.equal(seen[-1, :left], success.action[-left:])
    assert torch.equal(seen[-1, left:], success.action[-1:].expand(size - left, -1))
    assert torch.equal(post.imitation.examples["sim"][0].frames[whole, -1], success.state[whole * size])


def test_what_was_executed_late_is_imitated_where_it_was_commanded(
    post: PostTraining, demonstrations: list[Any]
) -> None:
    assert post.imitation is not None and post.model is not None
    post.model.config = replace(post.model.config, context_noise=0.0)  # to compare frames exactly
    success = next(e for e in demonstrations if e.is_success)
    size, delay = post.model.config.chunk_size, 3
    post.imitation.add_episodes([success], delay)
    context, actions = post.imitation.examples["sim"]
    last = success.length - delay - size
    starts = [*range(0, last, size), last]
    assert torch.equal(actions, torch.stack([success.action[t + delay : t + delay + size] for t in starts]))
    assert torch.equal(context.frames[:, -1], success.state[torch.tensor(starts)])


def test_what_was_collected_is_taken_back_in_place_of_what_there_is(
    post: PostTraining, demonstrations: list[Any]
) -> None:
    assert post.imitation is not None
    saved = post.imitation.collected()
    post.imitation.add_episodes(demonstrations)
    post.imitation.collect_again(saved)
    assert [*post.imitation.examples] == ["demonstrations"]


def test_shares_of_the_gain_add_up() -> None:
    def rate(n: int) -> list[EpisodeResult]:
        return [EpisodeResult("push", i, i < n, 5, 0.0) for i in range(10)]

    won = ("dream", 5), ("sim", 4), ("dream", 7), ("sim", 8)
    results = [PhaseResult(phase, None, {}, 0, 0, 0.0, rate(n)) for phase, n in won]
    (result,) = results_of([Run("mix", Outcome(rate(3), results, 100, 50), 1.0)])
    # dream: 3 -> 5 and 4 -> 7; simulator: 5 -> 4 and 7 -> 8
    assert gain_from(result, "dream") == pytest.approx(0.5)
    assert gain_from(result, "sim") == pytest.approx(0.0)


def test_mix_dreams_first_and_the_simulator_has_the_rest(tiny: list[str], demonstrations: list[Any]) -> None:
    """Three rounds, one of them in the dream: each of the other two executes half of the steps."""
    post = build("mix", tiny, demonstrations, "n_rounds=3", "dream.n_rounds=1", "total_timesteps=640", "env.n_envs=8")
    try:
        assert [post.phases_of(i) for i in range(3)] == [["imitation", "dream"], ["sim"], ["sim"]]
        outcome = post.run()
    finally:
        post.close()
    assert [result.phase for result in outcome.results] == ["imitation", "dream", "sim", "sim"]
    steps = [result.sim_steps for result in outcome.results]
    assert steps[:2] == [0, 0] and abs(steps[2] - 320) <= 128 and abs(steps[3] - 640) <= 128
    assert [result.verdict is None for result in outcome.results] == [False, False, True, True]


def test_a_round_that_executes_a_part_of_each_chunk(
    tiny: list[str], demonstrations: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    post = build("mix", tiny, demonstrations, "n_rounds=1", "total_timesteps=320", "n_action_steps=2")
    monkeypatch.setattr(rl.rounds.loop, "judge", judged(True))
    monkeypatch.setattr(rl.ppo.imitation, "leads_to_success", lambda success, done: torch.ones_like(success))
    outcome = post.run()
    post.close()
    assert [result.phase for result in outcome.results] == ["sim", "imitation", "dream"]
    assert post.imitation is not None and post.imitation.examples["sim"][1].shape[1] == post.policy.chunk_size


@pytest.mark.parametrize("place", ["sim", "dream"])
def test_a_bug_in_a_reward_term_shows_before_anything_is_evaluated(
    place: str, tiny: list[str], demonstrations: list[Any], tmp_path: Path
) -> None:
    """Also one that shows in the dream alone, which knows no reward of the task."""
    broken = "t.nothing" if place == "sim" else "t.action[:, 0] * t.task_reward"
    (tmp_path / "mine.py").write_text(f"def term(t):\n    return {broken}\n")
    post = build("mix", tiny, demonstrations, f"rewards.mine={{func: '{tmp_path}/mine.py:term', weight: 1.0}}")
    post.evaluate = lambda: pytest.fail("evaluated first")  # type: ignore
    with pytest.raises(UserError, match=r"^reward term 'mine' raised .*Error: .*; see .*/mine\.py:2$"):
        post.run()
    post.close()


def test_trying_the_rewards_changes_nothing_of_what_follows(tiny: list[str], demonstrations: list[Any]) -> None:
    tried, not_tried = (build("mix", tiny, demonstrations) for _ in range(2))
    try_rewards(tried.config, tried.model, tried.sim, dreams=True)
    assert not tried.sim.begun
    rollouts = [post.phases["sim"].collect(4) for post in (tried, not_tried)]
    assert torch.equal(rollouts[0].chain, rollouts[1].chain) and torch.equal(rollouts[0].reward, rollouts[1].reward)
    assert tried.sim.record(True) == not_tried.sim.record(True) == []
    for post in tried, not_tried:
        post.close()


@pytest.mark.parametrize("n_action_steps", [8, 4, 2, 3])
def test_rollouts_and_dreams_are_as_long_whatever_part_of_a_chunk_is_executed(
    n_action_steps: int, tiny: list[str], demonstrations: list[Any]
) -> None:
    words = f"n_action_steps={n_action_steps}", "ppo.n_steps=4", "dream.horizon=3", "dream.n_updates=1"
    post = build("mix", tiny, demonstrations, *words)
    assert post.dreams is not None
    dream = post.dreams.env(post.eval_envs.starts([0, 1]))
    collected: list[int] = []

    def collect(env: Any, n_steps: int, fresh: bool) -> None:
        collected.append(n_steps)
        post.state.sim_steps = post.config.total_timesteps
        raise KeyboardInterrupt  # far enough

    post.ppo.collect = collect  # type: ignore
    for phase in "sim", "dream":
        with pytest.raises(KeyboardInterrupt):
            post.state.sim_steps = 0
            post.phases[phase].train(0)
    post.close()
    assert [n * n_action_steps for n in collected] == {8: [32, 24], 4: [32, 24], 2: [32, 24], 3: [33, 24]}[
        n_action_steps
    ]
    assert dream.horizon == collected[1]


def test_a_budget_of_less_than_a_rollout_is_refused(tiny: list[str], demonstrations: list[Any]) -> None:
    said = r"total_timesteps=127: a rollout executes 128 steps \(env\.n_envs=4, ppo\.n_steps=4 chunks of 8\); expected"
    with pytest.raises(UserError, match=said):
        build("sim", tiny, demonstrations, "total_timesteps=127")
    for words in (["sim", "total_timesteps=128"], ["dream", "total_timesteps=1"]):  # a dream executes none
        build(words[0], tiny, demonstrations, words[1]).close()


@pytest.mark.parametrize("n_action_steps", [8, 4])
def test_a_state_of_an_older_version_goes_on_where_its_axis_ended(
    n_action_steps: int, tiny: list[str], demonstrations: list[Any]
) -> None:
    """Unless the older version counted other chunks."""
    post = build("sim", tiny, demonstrations, f"n_action_steps={n_action_steps}")
    state = post.state_dict()
    state["run"] = {k: v for k, v in state["run"].items() if k != "n_updates"} | {"sim_steps": 900}
    if n_action_steps == 8:
        post.load_state_dict(state)
        assert post.state.n_updates == post.state.sim_steps == 900
    else:
        with pytest.raises(UserError, match="n_action_steps=4: an older version began this run"):
            post.load_state_dict(state)
    post.close()


def test_gates_dream_the_twins_of_their_episodes_on_fresh_starts(tiny: list[str], demonstrations: list[Any]) -> None:
    """Champion and challenger dream from the same starts, before the dream may learn from the real episodes."""
    words = "gate.n_episodes=2", "gate.max_episodes=4", "gate.n_dreams=3", "gate.alpha=0.0001"
    post = build("dream", tiny, demonstrations, *words)
    assert post.twins is not None and post.dreams is not None
    asked: list[list[int]] = []
    known: list[int] = []
    starts_of, dream_of = post.twins.starts, post.twins.make_dream
    post.twins.starts = lambda seeds: (
        asked.append([*seeds]),
        known.append(len(post.dreams.episodes)),
        starts_of(seeds),
    )[2]  # type: ignore
    dreams: list[Any] = []
    post.twins.make_dream = lambda starts: dreams.append(dream_of(starts)) or dreams[-1]  # type: ignore
    result = post.gate("dream", 0)
    post.close()
    first = 60_000_000
    assert asked == [
        [1_000_000, 1_000_001, first, first + 3, first + 1, first + 4, first + 2, first + 5],
        [1_000_002, 1_000_003, first + 6, first + 9, first + 7, first + 10, first + 8, first + 11],
    ]
    assert known == [0, 4]  # of the episodes of both sides, those of earlier blocks alone
    assert len(dreams) == 4 and all(d.num_envs == 8 and d.in_order for d in dreams)
    assert dreams[0].horizon * 8 >= post.config.env.max_steps and dreams[0].starts.seed.tolist() == asked[0]
    assert torch.equal(dreams[0].starts.context["state"], dreams[1].starts.context["state"])
    assert result.verdict is not None and result.verdict.n_episodes == 4 and result.verdict.twin_weight is not None
    assert post.dreams.n_refitted == 0


def test_twins_have_the_task_of_their_episode(tiny: list[str], demonstrations: list[Any]) -> None:
    tasks = "env.tasks=[button-press-topdown,push]", "gate.n_dreams=2", "env.max_steps=16"
    post = build("dream", tiny, demonstrations, *tasks)
    assert post.twins is not None and post.twins.n_tasks == 2
    for seeds in ([1_000_000, 1_000_001], [1_000_002]):  # a whole turn of the tasks, and a part of one
        groups = [seeds, *([post.twins._other_seed(seed, k) for seed in seeds] for k in range(2))]
        starts = post.twins._starts_of(groups)
        task_of = dict(zip(starts.seed.tolist(), starts.task.tolist(), strict=True))
        for group in groups:
            assert [task_of[seed] for seed in group] == [task_of[seed] for seed in seeds]
    dreamed = post.twins.dream(post.policy, [1_000_000, 1_000_001])
    post.close()
    assert dreamed.twins.shape == (2,) and dreamed.others.shape == (2, 2)


@pytest.mark.parametrize(("preset", "word"), [("sim", "gate.n_dreams=4"), ("dream", "gate.n_dreams=0")])
def test_without_dreams_a_gate_has_real_episodes_alone(
    preset: str, word: str, tiny: list[str], demonstrations: list[Any]
) -> None:
    logged: Logged = []
    post = build(preset, tiny, demonstrations, word)
    post.log = lambda step, values: logged.append((step, values))
    verdict = post.gate("imitation", 0).verdict
    post.close()
    assert post.twins is None and verdict is not None and verdict.twin_weight is None and verdict.gain == 0.0
    assert {"gate/gain", "gate/gain_low", "gate/gain_high"} <= logged[-1][1].keys()
    assert not {"gate/twin_weight", "gate/phi", "gate/reason"} & logged[-1][1].keys()
