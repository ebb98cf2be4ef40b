"""What a GPU alone can show; left out where there is none."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rl.compose import compose
from rl.config import TrainConfig
from rl.policies.api import policy_state
from rl.runs.state import load_state, save_state
from rl.verbs.prepare import prepare
from world_model.checkpoint import find_checkpoint
from world_model.data.episodes import EpisodeStore
from world_model.wam import modes
from world_model.wam.features import joined
from world_model.wam.model import WorldActionModel
from world_model.wam.store import load_model

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
DEVICE, N = "cuda:0", 64


def test_a_run_trains_in_simulator_and_dream(tiny: list[str]) -> None:
    trust = ("dream.redream=true", "dream.weigh_by_trust=true", "ppo.critic_warmup_steps=2", f"device={DEVICE}")
    post = prepare(compose("mix", [*tiny, *trust, "n_rounds=2", "total_timesteps=640"], TrainConfig))
    start = policy_state(post.policy)
    outcome = post.run()
    post.close()
    assert {result.phase for result in outcome.results} == {"sim", "imitation", "dream"}
    weights = post.policy.state_dict().values()
    assert all(w.is_cuda and bool(w.isfinite().all()) for w in weights)
    assert any(not torch.equal(r.champion[name], start[name]) for r in outcome.results for name in start)


def test_a_run_goes_on_from_what_a_file_keeps(tiny: list[str], tmp_path: Path) -> None:
    config = compose("mix", [*tiny, "n_rounds=2", "total_timesteps=640", f"device={DEVICE}"], TrainConfig)
    whole, rest = prepare(config), prepare(config)

    def safe(ended: bool) -> None:
        if whole.state.n_phases == 2 and load_state(tmp_path) is None:
            save_state(tmp_path, whole.state_dict())

    whole.safe = safe
    outcome = whole.run()
    state = load_state(tmp_path)
    assert state is not None
    rest.load_state_dict(state)
    assert [r.phase for r in rest.run().results] == [r.phase for r in outcome.results]
    for name, value in whole.policy.state_dict().items():
        torch.testing.assert_close(value, rest.policy.state_dict()[name], atol=1e-3, rtol=1e-3)
    whole.close()
    rest.close()


@pytest.mark.parametrize("name", ["metaworld-tuned", "metaworld-pixels-tuned"])
def test_the_dream_is_that_of_the_processor_captured_or_not(name: str) -> None:
    model = load_model(name)
    context, task = starts_of(model, name)
    expected = chunk_of(model)(context, task)
    most = (0.02 if model.config.bfloat16 else 0.001) * (expected - context[:, -1:]).norm()
    model.to(DEVICE)
    there, chunk = (context.to(DEVICE), task.to(DEVICE)), chunk_of(model)
    plain = chunk(*there)
    assert plain.is_cuda
    assert (plain.cpu() - expected).norm() < most
    captured = torch.compile(chunk, mode="reduce-overhead", fullgraph=True, dynamic=False)
    for _ in range(3):  # warms up, is recorded, is replayed
        assert (captured(*there) - plain).norm() < most


def chunk_of(model: WorldActionModel) -> Callable[[Tensor, Tensor], Tensor]:
    """Encode, decide, dream; noise as drawn on the processor, for it to be the same everywhere."""
    generator = torch.Generator().manual_seed(0)
    action = torch.randn(N, model.action_codec.n_tokens, model.action_codec.code_dim, generator=generator)
    video = torch.randn(N, model.codec.n_future_tokens, model.codec.code_dim, generator=generator)
    action, video = action.to(model.device), video.to(model.device)

    @torch.no_grad()
    def chunk(context: Tensor, task: Tensor) -> Tensor:
        encoded = model.encode(context, task)
        return modes.dream(model, encoded, modes.policy(model, encoded, action, 2), video, 1)

    return chunk


def starts_of(model: WorldActionModel, name: str) -> tuple[Tensor, Tensor]:
    """Contexts (N, n_context_frames, frame_dim) and tasks (N,) from the demonstrations of a built-in model."""
    windows = model.windows(EpisodeStore(find_checkpoint(name)).load())
    batch = windows.sample(N, torch.Generator().manual_seed(1))
    return joined(batch.context), batch.task
