"""The state codec: what it tells the world decoder beside the noisy codes."""

import torch

from world_model.wam.codec import NEAR, VectorCodec


def codec(dim: int, positions: list[slice]) -> VectorCodec:
    torch.manual_seed(0)
    made = VectorCodec(dim, positions, 2, chunk_size=4, frames_per_token=2, width=16, world_width=8)
    made.fit(torch.randn(50, 2, dim), torch.randn(50, 4, dim))
    return made


def test_relative_positions_stand_behind_the_codes_of_every_token():
    hand, cup, angle = slice(0, 3), slice(4, 7), slice(7, 8)
    of_three = codec(8, [hand, cup, angle])  # an angle is as long as no position, and is compared with nothing
    assert of_three.pairs == [(hand, cup)]
    of_three.future_in = torch.nn.Identity()  # what it was given
    context, codes = torch.zeros(1, 2, 8), torch.randn(1, 2, 16)
    context[:, -1, hand] = torch.tensor([0.5, 0.0, 0.3])  # the frame before does not matter
    context[:, -1, cup] = torch.tensor([0.48, 0.0, 0.1])
    given = of_three.embed_future(context, codes)
    assert given.shape == (1, 2, 16 + 3 * len(NEAR))
    torch.testing.assert_close(given[..., :16], codes)
    # 2 cm and 20 cm apart: tanh(0.02 / 0.02), tanh(0.2 / 0.02), then the same within 10 cm
    expected = torch.tanh(torch.tensor([1.0, 0.0, 10.0, 0.2, 0.0, 2.0])).expand(1, 2, 6)
    torch.testing.assert_close(given[..., 16:], expected, atol=1e-5, rtol=0)


def test_a_state_without_positions_has_codes_alone():
    plain = codec(4, [])
    assert plain.pairs == [] and plain.future_in.in_features == 8
    assert plain.embed_future(torch.zeros(3, 2, 4), torch.zeros(3, 2, 8)).shape == (3, 2, 8)
