"""The built-in policies decide, and dream, what they did when they were made: no change of the code may move that.

`python tests/rl/policies/test_decisions.py` writes the fixtures again, after a built-in checkpoint was remade. They
hold numbers and no hash of them, since processors differ in the last bits of a matrix product.
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from world_model.checkpoint import find_checkpoint
from world_model.data.episodes import EpisodeStore
from world_model.flow import seeded_noise
from world_model.wam import modes
from world_model.wam.features import joined
from world_model.wam.store import load_model

FIXTURES = Path(__file__).parents[2] / "fixtures" / "decisions"
NAMES = ("metaworld-tuned", "metaworld-pixels-tuned")
N_OBSERVATIONS, N_DREAMS = 1000, 2


@torch.no_grad()
def decisions(name):
    """Return the actions of 1,000 observations of the demonstrations, and dreamed chunks, in half precision."""
    model = load_model(name)
    windows = model.windows(EpisodeStore(find_checkpoint(name)).load())
    batch = windows.sample(N_OBSERVATIONS, torch.Generator().manual_seed(0))
    context, seed = model.observe(batch.obs), torch.arange(N_OBSERVATIONS)
    codec = model.action_codec
    noise = seeded_noise(seed, torch.zeros_like(seed), (codec.n_tokens, codec.code_dim))
    session = model.begin({feature: values[:N_DREAMS] for feature, values in batch.obs.items()}, seed[:N_DREAMS])
    _, dreamed = model.predict(session, batch.actions[:N_DREAMS])
    return {"actions": modes.policy(model, context, noise, 2).half(), "frames": joined(dreamed.frames).half()}


@pytest.mark.parametrize("name", NAMES)
def test_actions_and_dreams_are_those_of_the_day_it_was_made(name):
    expected, found = load_file(FIXTURES / f"{name}.safetensors"), decisions(name)
    assert found.keys() == expected.keys() and len(found["actions"]) == N_OBSERVATIONS
    # A network in bfloat16 differs by more between processors than one in float32.
    tolerance = 0.03 if "pixels" in name else 2e-3
    for key, value in expected.items():
        torch.testing.assert_close(found[key].float(), value.float(), atol=tolerance, rtol=tolerance)


if __name__ == "__main__":
    FIXTURES.mkdir(exist_ok=True)
    for fixture in NAMES:
        save_file(decisions(fixture), FIXTURES / f"{fixture}.safetensors")
