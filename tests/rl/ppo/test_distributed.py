"""Two processes that share a batch learn what one process learns from all of it, and agree on every decision."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rewards.errors import UserError
from rl.ppo.distributed import Distributed

pytestmark = pytest.mark.usefixtures("elsewhere")

UPDATE = """
import sys
from dataclasses import replace

import torch
from safetensors.torch import save_file

from rl.config import PPOConfig
from rl.envs.sim import SimEnv
from rl.policies.gaussian import GaussianPolicy
from rl.ppo.buffer import Samples
from rl.ppo.distributed import Distributed
from rl.ppo.update import PPO

config = PPOConfig(n_steps=8, batch_size=64, n_epochs=3, max_grad_norm=1e9, target_kl=float(sys.argv[1]))
with Distributed.join() as distributed, distributed.together():
    torch.manual_seed(0)
    env = SimEnv("Pendulum-v1", 8, n_context_frames=1, seed=0)
    policy = GaussianPolicy(env, chunk_size=2)
    samples = Samples.from_rollout(PPO(policy, config, seed=0).collect(env, 8), 0.9, 0.9)
    # A shift of the old likelihood gives clipped ratios and another KL in each half.
    samples.log_prob += torch.linspace(-0.5, 0.1, 64)[:, None]
    samples.weight = torch.linspace(0.0, 2.0, 64)
    share = replace(config, batch_size=distributed.share.of(config.batch_size))
    own = samples[torch.tensor(distributed.shard(range(64)))]
    ppo = PPO(policy, share, seed=distributed.seed(0), distributed=distributed)
    stats = ppo.update(own, n_epochs=1)
    found = {name: parameter.grad for name, parameter in policy.named_parameters() if parameter.grad is not None}
    found |= {f"stats/{name}": torch.tensor(value) for name, value in stats.items()}
    save_file(found, f"{distributed.world_size}-{distributed.rank}.safetensors")
"""


def run(torchrun: Any, text: str, *words: str, n: int) -> None:
    Path("program.py").write_text(text)
    done = torchrun("program.py", *words, n=n)
    assert done.returncode == 0, done.stderr


def test_averaged_gradients_are_those_of_one_process(torchrun: Any) -> None:
    for n in (1, 2):
        run(torchrun, UPDATE, "10", n=n)
    whole, one, other = (load_file(f"{name}.safetensors") for name in ("1-0", "2-0", "2-1"))
    gradients = [name for name in whole if not name.startswith("stats/")]
    assert len(gradients) > 4 and max(float(whole[name].abs().max()) for name in gradients) > 0.01
    for name in gradients:
        torch.testing.assert_close(one[name], whole[name], atol=1e-6, rtol=1e-6)
    for name in whole.keys() - gradients - {"stats/explained_variance"}:  # that one is a mean of two variances
        torch.testing.assert_close(one[name], whole[name], atol=1e-5, rtol=1e-5)
    assert whole["stats/clip_fraction"] > 0.1
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


STOP = UPDATE.replace("n_epochs=1)", "n_epochs=3)")


def test_processes_stop_an_update_together(torchrun: Any) -> None:
    """The KL of the whole batch is 0.1, that of the half of process 0 alone is another."""
    run(torchrun, STOP, "0.0001", n=2)
    one, other = load_file("2-0.safetensors"), load_file("2-1.safetensors")
    assert one["stats/early_stop"] == other["stats/early_stop"] == 1
    assert torch.equal(one["stats/approx_kl"], other["stats/approx_kl"])


AVERAGE = """
import torch
from rl.ppo.distributed import Distributed

with Distributed.join() as distributed, distributed.together():
    layer = torch.nn.Linear(3, 2)
    calls, all_reduce = [], torch.distributed.all_reduce
    torch.distributed.all_reduce = lambda x, *words: (calls.append(x), all_reduce(x, *words))
    places = set()
    for step in range(3):
        layer.weight.grad = torch.full((2, 3), float(distributed.rank + step))
        layer.bias.grad = None if distributed.rank else torch.ones(2)
        calls.clear()
        means = distributed.average_gradients(list(layer.parameters()), {"loss": float(distributed.rank), "kl": 3.0})
        assert layer.weight.grad.eq(0.5 + step).all() and layer.bias.grad.eq(0.5).all()
        assert means == {"loss": 0.5, "kl": 3.0}
        places.add(layer.weight.grad.data_ptr())
    assert [x.numel() for x in calls] == [1]  # the agreement that no process has failed; the rest is in shared memory
    assert len(places) == 1
"""


def test_gradients_are_averaged_in_one_exchange_and_in_memory_that_stays(torchrun: Any) -> None:
    run(torchrun, AVERAGE, n=2)


MIXED = """
import torch
from rl.ppo.distributed import Distributed

with Distributed.join() as distributed, distributed.together():
    adapter, critic = torch.nn.Linear(3, 2, bias=False).bfloat16(), torch.nn.Linear(3, 1, bias=False)
    adapter.weight.grad = torch.full((2, 3), 1.0 + distributed.rank).bfloat16()
    critic.weight.grad = torch.full((1, 3), 1.0 + 2**-20 * distributed.rank)
    distributed.average_gradients([adapter.weight, critic.weight])
    assert adapter.weight.grad.eq(1.5).all() and adapter.weight.grad.dtype == torch.bfloat16
    assert critic.weight.grad.eq(1.0 + 2**-21).all()  # bfloat16 would round it to 1
"""


def test_gradients_in_bfloat16_do_not_round_those_in_float32(torchrun: Any) -> None:
    run(torchrun, MIXED, n=2)


EXCHANGES = """
from rewards.errors import BadNumbers
from rl.ppo.distributed import Distributed
import torch

with Distributed.join() as distributed:
    rank = distributed.rank
    assert distributed.sum(torch.tensor([rank, 1.0])).tolist() == [3.0, 3.0]
    assert distributed.mean({"a": rank, "b": 2.0}) == {"a": 1.0, "b": 2.0}
    assert distributed.any(rank == 1) and not distributed.any(False)
    items = list(range(8))
    assert list(distributed.shard(items)) == items[rank::3] and distributed.gather(distributed.shard(items)) == items
    assert distributed.gather(["only"] if rank == 2 else []) == ["only"]
    assert distributed.gather_to_first(rank) == ([0, 1, 2] if rank == 0 else [])
    assert distributed.from_first(f"of {rank}") == "of 0"
    weights = {"a": torch.full((4, 3), float(rank)).T, "b": torch.tensor(rank)}
    distributed.copy_from_first(weights)
    assert weights["a"].eq(0).all() and weights["b"] == 0
    drawn = torch.rand(4, generator=torch.Generator().manual_seed(distributed.seed(5)))
    assert len({tuple(numbers.tolist()) for numbers in distributed.gather([drawn])}) == 3  # not only other seeds
    print("only process 0 is heard")
    for failing in (2, 0):
        try:
            with distributed.together():
                if rank == failing:
                    raise BadNumbers("a number", x=torch.ones(2))
                distributed.any(False)
            raise AssertionError("nobody told")
        except BadNumbers as error:
            assert str(error) == f"process {failing}: a number" and error.tensors["x"].sum() == 2
    assert distributed.any(rank == 2)  # they can go on
"""


def test_exchanges_of_three_processes(torchrun: Any) -> None:
    Path("program.py").write_text(EXCHANGES)
    done = torchrun("program.py", n=3)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "only process 0 is heard\n"


def test_one_process_exchanges_nothing() -> None:
    with Distributed.join() as one, one.together():
        values, layer = torch.ones(2), torch.nn.Linear(2, 1)
        layer(values).backward()
        before = [p.grad for p in layer.parameters()]
        one.average_gradients(list(layer.parameters()))
        assert all(p.grad is grad for p, grad in zip(layer.parameters(), before, strict=True))
        assert one.sum(values) is values and one.any(True) and not one.any(False)
        assert one.shard([1, 2, 3]) == one.gather([1, 2, 3]) == [1, 2, 3]
        assert (one.seed(7), one.part("env.n_envs", 5), one.n_workers(3), one.is_first) == (7, 5, 3, True)
        assert one.share.of(5) == 5


def test_processes_share_environments_equally(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Distributed, "world_size", 4)
    line = "env.n_envs=6: expected a multiple of the 4 processes, which share it equally; try 4 or 8"
    with pytest.raises(UserError, match=re.escape(line)):
        Distributed().part("env.n_envs", 6)
    assert Distributed().part("env.n_envs", 8) == 2
