"""What the critic learns of episodes in which a person took over."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor

from rewards import RewardManager
from rl import cli
from rl.compose import compose
from rl.config import PPOConfig, TrainConfig
from rl.policies.chain import ChainPolicy
from rl.ppo.update import PPO
from rl.rounds.corrections import corrected_values, policy_returns, step_rewards
from rl.verbs.prepare import prepare
from tests.rl.ppo.toy import FEATURES, Still
from world_model.data.episodes import BLEND, PERSON, POLICY, Episode, EpisodeStore
from world_model.spec import STATE, Spec
from world_model.wam.model import WorldActionModel
from world_model.wam.store import load_model, save_model

SPEC = Spec(FEATURES, (-1.0, -1.0), (1.0, 1.0), ("reach",), control_hz=10.0)
GAMMA = 0.9
SUCCESS = {"success": {"weight": 2.0}}


def episode(control: list[int] | None, n: int = 12, success: bool = True, at: float = 0.0) -> Episode:
    """The first number of state t is `at` + t / 10; the last step is the success."""
    t = at + torch.arange(n + 1.0)[:, None] / 10
    solved = torch.zeros(n, dtype=torch.bool)
    solved[-1] = success
    marks = None if control is None else torch.tensor(control, dtype=torch.uint8)
    return Episode({STATE: t * torch.eye(4)[:1]}, torch.zeros(n, 2), solved, "reach", "robot", seed=0, control=marks)


def manager() -> RewardManager:
    return RewardManager(SUCCESS, set(), "dream")


def test_returns_of_the_stretches_in_which_the_policy_acts() -> None:
    acts = torch.tensor([True, True, False, True, True, True])
    reward = torch.tensor([0.0, 1.0, 5.0, 0.0, 0.0, 2.0])
    # 0 + .9 * 1; 1, the takeover ends it; not the policy; .9^2 * 2; .9 * 2; 2
    assert policy_returns(reward, acts, GAMMA).tolist() == pytest.approx([0.9, 1.0, 0.0, 1.62, 1.8, 2.0])


def test_states_before_a_takeover_are_worth_nothing() -> None:
    taken_over = episode([POLICY] * 6 + [PERSON] * 6)
    given_back = episode([POLICY] * 2 + [PERSON] * 3 + [BLEND] * 2 + [POLICY] * 5)
    alone, unmarked = episode([POLICY] * 12), episode(None)
    policy = ChainPolicy(Still(), SPEC)
    found = corrected_values(policy, [taken_over, given_back, alone, unmarked], manager(), SPEC, GAMMA)
    assert found is not None
    # Decisions are at every second step, in windows of 4 steps, so up to step 8.
    states = (10 * found.context["state"][:, 0]).round().int().tolist()  # type: ignore[call-overload, index]
    assert states == [0, 2, 4, *[0, 8], *range(0, 9, 2)]
    reached = [2 * GAMMA ** (11 - step) for step in range(12)]  # the success is worth 2, in the last step
    assert found.returns.tolist() == pytest.approx([0.0] * 3 + [0.0, reached[8]] + reached[:9:2])


def test_nobody_took_over() -> None:
    policy = ChainPolicy(Still(), SPEC)
    assert corrected_values(policy, [episode([POLICY] * 12), episode(None)], manager(), SPEC, GAMMA) is None
    assert corrected_values(policy, [episode([PERSON] * 12)], manager(), SPEC, GAMMA) is None


def test_rewards_of_a_recorded_episode_are_those_of_the_run() -> None:
    terms = {"success": {"weight": 2.0}, "progress": {"weight": 10.0}}
    rewards = RewardManager(terms, {"progress"}, "dream")

    def read_out(frames: dict[str, Tensor], task: Tensor) -> tuple[Tensor, Tensor]:
        return frames[STATE][..., 0], frames[STATE][..., 0]

    total = step_rewards(episode(None), rewards, SPEC, read_out)
    assert total.tolist() == pytest.approx([1.0] * 11 + [3.0])  # each step makes a tenth of the progress


def test_the_critic_learns_them() -> None:
    """Where a person took over, a state is worth less than where the policy reached success alone."""
    torch.manual_seed(0)
    policy = ChainPolicy(Still(), SPEC)
    wrong, right = episode([POLICY] * 8 + [PERSON] * 4, at=-2.0), episode([POLICY] * 12, at=1.0)
    real = corrected_values(policy, [wrong, right], manager(), SPEC, GAMMA)
    assert real is not None
    ppo = PPO(policy, PPOConfig(batch_size=8, vf_coef=1.0, pg_coef=0.0, critic_learning_rate=1e-2))
    dreamed = replace(real, returns=torch.ones_like(real.returns))  # a dream that promises the same everywhere
    for _ in range(60):
        ppo.update(dreamed, real=real, n_epochs=1)
    values = policy.values({"state": torch.tensor([-1.6, 1.8])[:, None] * torch.eye(4)[:1]})
    assert values[1] > values[0] + 0.4


def test_a_run_learns_from_corrected_episodes(
    tiny: list[str], demonstrations: list[Episode], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The expert's episodes as if the policy had driven for the first 16 steps, and then a person."""
    monkeypatch.chdir(tmp_path)
    task, n = "button-press-topdown", 16
    marks = torch.full((1000,), PERSON, dtype=torch.uint8)
    marks[:n] = POLICY
    corrected = [replace(e, control=marks[: e.length]) for e in demonstrations if e.task == task]
    spec = load_model(tiny[0].partition("=")[2]).spec
    EpisodeStore("corrected").append(corrected, spec)
    post = prepare(compose("dream", [*tiny, "episodes=corrected", "ppo.bc_coef=0"], TrainConfig))
    try:
        real, imitation = post.state.real, post.imitation
        assert real is not None and imitation is not None
        # Two decisions of 8 steps in each episode before the takeover, and nothing of them is imitated.
        assert len(real) == 2 * len(corrected) and not real.returns.any()
        _, actions = imitation.examples["sim"]
        assert len(actions) == sum(e.length - n - post.policy.chunk_size + 1 for e in corrected)
        post.run()
    finally:
        post.close()


@pytest.mark.slow
def test_the_walk_from_images_with_a_moved_camera(
    seeing: WorldActionModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Record with corrections, fit the camera, train in a dream of it; the tiny policy has learned nothing."""
    monkeypatch.chdir(tmp_path)
    save_model(Path("sees"), seeing, "tune")
    robot = ["task=door-open", "n_episodes=4", "n_action_steps=8", "limits.max_age_s=60", "params.image_size=32"]
    robot += ["params.paced=false", "person=expert", "person_params.after=24"]
    assert cli.main(["deploy", "sees", "run", "robot-sim-moved", *robot]) == 0
    assert "4 of 4 episodes reported success, 4 of them with a person" in capsys.readouterr().out
    assert cli.main(["fit", "runs/robot/sim-moved", "checkpoint=sees", "n_steps=48"]) == 0
    fitted = yaml.safe_load(Path("fitted.yaml").read_text())["env"]["options"]["events"]
    middle = {name: (event["low"] + event["high"]) / 2 for name, event in fitted.items()}
    true = {"front_azimuth": 8.0, "front_elevation": 4.0, "front_distance": 0.92 / 0.85, "front_light": 0.8}
    assert {name: middle[name] for name in true} == pytest.approx(true, rel=0.15)
    assert middle["front_image_delay"] == 4.0 and middle["gain"] == pytest.approx(0.85, rel=0.05)
    words = "threads=1 n_rounds=1 env.n_envs=4 env.max_steps=64 eval.n_episodes=4 dream.n_envs=8 dream.n_updates=1"
    words += " dream.n_starts=4 dream.horizon=2 dream.refit_steps=2 dream.max_expected_error=null ppo.imitation_steps=5"
    words += " gate.n_episodes=4 gate.max_episodes=4 ppo.batch_size=16 ppo.critic_warmup_steps=2 ppo.bc_coef=0"
    assert cli.main(["train", "fitted.yaml", *words.split()]) == 0
    assert (max(Path("runs/fitted").iterdir()) / "report.html").is_file()
    alone = [word for word in robot if not word.startswith(("person", "n_episodes"))]
    pairs = ["n_episodes=1", "max_steps=16", "episodes=compared", *alone]
    capsys.readouterr()
    assert cli.main(["deploy", "sees", "compare", "runs/fitted", "robot-sim-moved", *pairs]) == 0
    assert "of 1 pairs (won 0, lost 0); at least" in capsys.readouterr().out
