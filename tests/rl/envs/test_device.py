"""A run on a device of its own: every tensor says where it is, and a device that is not there is named."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors

from rewards.errors import UserError
from rl.compose import compose
from rl.config import TrainConfig
from rl.verbs.prepare import prepare

ROOT = Path(__file__).parents[3]
CONSTRUCTORS = _device_constructors()


class Nowhere(TorchFunctionMode):
    """Notes where our code makes a tensor without saying on which device; it would be on the CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in CONSTRUCTORS and not (kwargs or {}).get("device"):
            file = Path(sys._getframe(1).f_code.co_filename)
            if any(file.is_relative_to(ROOT / folder) for folder in ("rewards", "world_model", "rl", "tests")):
                self.seen.add(file.relative_to(ROOT).as_posix())
        return func(*args, **(kwargs or {}))


def test_a_run_says_of_every_tensor_where_it_is(tiny: list[str]) -> None:
    trust = ("dream.redream=true", "dream.weigh_by_trust=true", "env.obs_noise=0.01", "ppo.critic_warmup_steps=2")
    post = prepare(compose("mix", [*tiny, *trust, "n_rounds=2", "total_timesteps=640"], TrainConfig))
    with Nowhere() as nowhere:
        post.run()
    post.close()
    assert {result.phase for result in post.state.results} == {"sim", "imitation", "dream"}
    # Windows are cut where episodes are, and then moved as a whole.
    assert nowhere.seen <= {"world_model/data/windows.py"}
    with Nowhere() as nowhere:
        torch.zeros(2, device="cpu")
        assert nowhere.seen == set()
        torch.zeros(2)
    assert nowhere.seen == {"tests/rl/envs/test_device.py"}


def test_a_device_that_is_not_there_is_named(tiny: list[str]) -> None:
    with pytest.raises(
        UserError, match=r"^device=cuda:7: torch cannot use that here; expected cpu, cuda:0, \.\.\. or auto$"
    ):
        prepare(compose("sim", [*tiny, "device=cuda:7"], TrainConfig))
