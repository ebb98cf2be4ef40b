"""The shares of all processes together are the run."""

import pytest

from rewards.errors import UserError
from rl.compose import compose
from rl.config import TrainConfig
from rl.ppo.distributed import Distributed
from rl.rounds.process_share import share_of, tasks_from


def group(rank: int, world_size: int) -> Distributed:
    """A process that exchanges nothing, but has a rank."""
    process = Distributed()
    process.rank, process.world_size = rank, world_size
    return process


def test_one_process_has_the_config_itself() -> None:
    config = compose("mix", [], TrainConfig)
    assert share_of(config, Distributed()) is config


def test_environments_are_shared_and_seeds_differ() -> None:
    config = compose("mix", ["env.n_envs=8", "dream.n_envs=12", "ppo.batch_size=8", "seed=3"], TrainConfig)
    shares = [share_of(config, group(rank, 4)) for rank in range(4)]
    assert [share.env.n_envs for share in shares] == [2] * 4 and [share.dream.n_envs for share in shares] == [3] * 4
    assert shares[0].seed == 3 and len({share.seed for share in shares}) == 4
    with pytest.raises(UserError, match=r"dream\.n_envs=12: expected a multiple of the 8 processes"):
        share_of(config, group(0, 8))
    alone = compose("sim", ["env.n_envs=66"], TrainConfig)
    assert share_of(alone, group(0, 3)).env.n_envs == 22  # nothing is dreamed, so 256 dreams need no equal parts


def test_callbacks_are_refused() -> None:
    config = compose("sim", ["callbacks={EvalCallback: {}}"], TrainConfig)
    with pytest.raises(UserError, match=r"callbacks\.EvalCallback: callbacks see the rollouts of one process"):
        share_of(config, group(0, 2))


@pytest.mark.parametrize("n_envs", [1, 2, 3, 5])
def test_all_processes_together_run_the_tasks_in_turn(n_envs: int) -> None:
    tasks, n_processes = ("a", "b", "c"), 4
    run = []
    for rank in range(n_processes):
        own = tasks_from(tasks, rank * n_envs)
        run += [own[j % 3] for j in range(n_envs)]
    assert run == [tasks[i % 3] for i in range(n_envs * n_processes)]
    assert tasks_from((), 5) == ()
