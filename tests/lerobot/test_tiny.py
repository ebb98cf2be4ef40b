"""The tiny checkpoints are fit for tests: LeRobot loads and samples them, and what goes in changes what comes out."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("lerobot", reason="lerobot is not installed")
pytest.importorskip("transformers", reason="lerobot is installed without its policies")
pytest.importorskip("diffusers", reason="lerobot is installed without its policies")

from tests.lerobot import tiny

WITHOUT_NOISE = ("act",)
WITHOUT_TASK = RESNETS = ("act", "diffusion")


@pytest.fixture(scope="module", params=tiny.NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make(name, tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def loaded(name: str, folder: Path) -> tiny.Loaded:
    return tiny.load(folder)


@pytest.fixture(scope="module")
def sample(loaded: tiny.Loaded) -> Callable[..., torch.Tensor]:
    """Return the chunk of raw observations, by default those of seed 0, and of a noise."""
    policy, preprocessor, _ = loaded

    def run(obs: dict[str, Any] | None = None, noise_seed: int = 0) -> torch.Tensor:
        generator = torch.Generator().manual_seed(noise_seed)
        noise = torch.randn(3, *tiny.noise_shape(policy), generator=generator)
        batch = preprocessor(tiny.observation(3, seed=0, policy=policy) if obs is None else obs)
        return tiny.own_sample(policy, batch, noise)

    return run


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """Return the largest absolute difference."""
    return (a - b).abs().max().item()


def test_a_checkpoint_has_the_files_of_lerobot_train(folder: Path) -> None:
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "model.safetensors", "policy_preprocessor.json", "policy_postprocessor.json"} <= names


def test_a_second_build_is_the_same(
    name: str, folder: Path, sample: Callable[..., torch.Tensor], tmp_path: Path
) -> None:
    """LeRobot loads without complaint when weights are missing, and those would be random: hence the other seed."""
    torch.manual_seed(123)
    start = time.perf_counter()
    again = tiny.make(name, tmp_path)
    made = time.perf_counter()
    policy, preprocessor, _ = tiny.load(again)
    loaded = time.perf_counter()
    n_parameters = sum(parameter.numel() for parameter in policy.parameters())
    print(f"{name}: {n_parameters} parameters, made in {made - start:.2f} s, loaded in {loaded - made:.2f} s")
    assert (again / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    noise = torch.randn(3, *tiny.noise_shape(policy), generator=torch.Generator().manual_seed(0))
    batch = preprocessor(tiny.observation(3, seed=0, policy=policy))
    assert torch.equal(tiny.own_sample(policy, batch, noise), sample())


def test_it_is_tiny_and_ready(name: str, loaded: tiny.Loaded) -> None:
    policy = loaded[0]
    # The smallest ResNet of torchvision, which diffusion and act must use, has 11.2 million.
    assert sum(parameter.numel() for parameter in policy.parameters()) < (12e6 if name in RESNETS else 1e5)
    assert not policy.training
    assert {parameter.dtype for parameter in policy.parameters()} == {torch.float32}


def test_a_chunk_is_finite_and_repeats(loaded: tiny.Loaded, sample: Callable[..., torch.Tensor]) -> None:
    rows, _ = tiny.noise_shape(loaded[0])
    chunk = sample()
    assert chunk.shape == (3, rows, tiny.ACTION_DIM)
    assert chunk.isfinite().all()
    assert torch.equal(sample(), chunk)


def test_noise_and_observation_change_the_chunk(
    name: str, loaded: tiny.Loaded, sample: Callable[..., torch.Tensor]
) -> None:
    chunk = sample()
    assert (difference(sample(noise_seed=1), chunk) > 0.1) == (name not in WITHOUT_NOISE)
    obs, other = (tiny.observation(3, seed=seed, policy=loaded[0]) for seed in (0, 1))
    for key in loaded[0].config.input_features:
        assert difference(sample({**obs, key: other[key]}), chunk) > 1e-4, key
    # The same number of letters: what changes is the sentence, not its length.
    task = [sentence.replace("p", "b") for sentence in obs["task"]]
    assert (difference(sample({**obs, "task": task}), chunk) > 1e-4) == (name not in WITHOUT_TASK)


def test_the_postprocessor_unnormalises(loaded: tiny.Loaded, sample: Callable[..., torch.Tensor]) -> None:
    policy, _, postprocessor = loaded
    chunk, of = sample(), tiny.STATISTICS[tiny.ACTION]
    if policy.config.type == "vla_jepa":
        chunk = chunk.clamp(-1, 1)  # the first step of its postprocessor
    low, high = {
        "MEAN_STD": (of["mean"] - of["std"], of["mean"] + of["std"]),
        "MIN_MAX": (of["min"], of["max"]),
        "QUANTILES": (of["q01"], of["q99"]),
    }[policy.config.normalization_mapping["ACTION"].name]
    # Each mode maps -1 and 1 to two numbers of the statistics.
    torch.testing.assert_close(postprocessor(sample()), low + (chunk + 1) / 2 * (high - low))


def test_own_sample_leaves_the_global_generator_alone(sample: Callable[..., torch.Tensor]) -> None:
    before = torch.get_rng_state()
    sample()
    assert torch.equal(torch.get_rng_state(), before)


def test_an_observation_without_a_policy_has_one_step() -> None:
    obs = tiny.observation(2, seed=0)
    assert obs["observation.state"].shape == (2, 4)
    assert obs["observation.images.front"].shape == (2, 3, 64, 64)
    assert obs["task"] == list(tiny.SENTENCES[:2])
