"""Flow matching: noise levels and their corners, integration, likelihood, seeded noise."""

import pytest
import torch

from world_model.flow import gaussian_log_prob, noise_level, noised, seeded_noise, step_mean


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("n_steps", [1, 2, 3, 7])
def test_an_exact_estimate_reproduces_the_data(n_steps):
    """Every point on the way lies on the path, and the last one on the data."""
    clean, noise = torch.randn(2, 5, 3, 2, generator=generator())
    x = noise
    for step in range(n_steps):
        t = noise_level(step, n_steps)
        torch.testing.assert_close(x, noised(clean, noise, torch.full((5,), t)))
        x = step_mean(x, clean, step, n_steps)
    torch.testing.assert_close(x, clean)


def test_noise_levels_run_from_pure_noise_towards_the_data():
    assert [noise_level(i, 4) for i in range(4)] == [1.0, 0.75, 0.5, 0.25]


def test_noised_takes_a_level_for_each_row():
    clean, noise = torch.zeros(3, 2, 2), torch.ones(3, 2, 2)
    mixed = noised(clean, noise, torch.tensor([0.0, 0.25, 1.0]))
    assert mixed[:, 0, 0].tolist() == [0.0, 0.25, 1.0]


def test_log_prob_equals_that_of_torch_in_double():
    x, mean = torch.randn(2, 6, 4, 3, generator=generator())
    expected = torch.distributions.Normal(mean.double(), 0.1).log_prob(x.double()).sum((1, 2))
    torch.testing.assert_close(gaussian_log_prob(x, mean, 0.1).double(), expected, rtol=1e-6, atol=1e-3)


def test_seeded_noise_depends_on_seed_and_counter_of_its_row_alone():
    seeds, counters = torch.tensor([5, 6, 5, 5]), torch.tensor([0, 0, 1, 0])
    noise = seeded_noise(seeds, counters, (50, 40))
    assert torch.equal(noise[0], noise[3])
    assert not torch.allclose(noise[0], noise[1]) and not torch.allclose(noise[0], noise[2])
    order = torch.tensor([2, 0, 3, 1])
    assert torch.equal(seeded_noise(seeds[order], counters[order], (50, 40)), noise[order])
    assert abs(float(noise.mean())) < 0.05 and abs(float(noise.std()) - 1) < 0.05
    assert abs(float(torch.corrcoef(noise[:3].flatten(1))[0, 1:].max())) < 0.1  # neighbouring seeds are unrelated
