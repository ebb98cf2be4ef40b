"""The training objective: noise levels and their corners."""

import torch

from world_model.wam.losses import sample_noise_levels
from world_model.wam.training_config import ATOMS


def test_training_visits_the_corners_in_the_shares_asked_for():
    n, weights = 20_000, (0.4, 0.15, 0.2, 0.15, 0.1)
    atom, t_video, t_action = sample_noise_levels(n, weights, torch.Generator().manual_seed(0))
    share = torch.bincount(atom, minlength=5) / n
    torch.testing.assert_close(share, torch.tensor(weights), atol=0.01, rtol=0)
    rows = {name: atom == i for i, name in enumerate(ATOMS)}
    assert (t_action[rows["dream"]] == 0).all() and (t_action[rows["video"]] == 1).all()
    assert (t_video[rows["inverse"]] == 0).all()
    assert (t_video[rows["dream"]] == 1).all()
    # Elsewhere a level is uniform, but for a fifth of pure noise: the mean is .8 / 2 + .2 = .6.
    for level in (t_video[rows["joint"]], t_action[rows["joint"]], t_action[rows["policy"]], t_video[rows["video"]]):
        assert 0 <= level.min() and level.max() == 1
        assert abs(float((level == 1).float().mean()) - 0.2) < 0.03 and abs(float(level.mean()) - 0.6) < 0.03
    both = torch.stack([t_video[rows["joint"]], t_action[rows["joint"]]])
    assert abs(float(torch.corrcoef(both)[0, 1])) < 0.05
