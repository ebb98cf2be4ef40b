"""What the trust heads read of the surroundings of a chunk: sizes and numbers by hand."""

import math

import torch

from world_model.wam.codec import PatchCodec, VectorCodec
from world_model.wam.trust_inputs import NEAREST, n_surroundings, surroundings

CHUNK, DIM = 4, 7  # two positions, and one number more


def vector_codec() -> VectorCodec:
    return VectorCodec(DIM, [slice(0, 3), slice(3, 6)], 2, CHUNK, CHUNK, width=8, world_width=8)


def test_a_chunk_of_states() -> None:
    codec = vector_codec()
    codec.state.std.fill_(2.0)
    codec.change.std.fill_(0.5)
    context, frames = torch.zeros(1, 2, DIM), torch.zeros(1, CHUNK, DIM)
    context[:, 1, 6] = 1.0  # it was 0 before
    frames[:, :, 6] = 1.0
    frames[:, :, 0] = torch.tensor([0.01, 0.02, 0.03, 0.04])  # the first position moves away from the second
    found = surroundings(codec, context, frames)[0]
    assert len(found) == n_surroundings(codec, 2, CHUNK, DIM)
    newest, velocity, change, rest = found.split([DIM, DIM, 3 * DIM, len(found) - 5 * DIM])
    assert newest.tolist() == [0.0] * 6 + [0.5]
    assert velocity.tolist() == [0.0] * 6 + [2.0]
    torch.testing.assert_close(change.view(3, DIM)[:, 0], torch.tensor([0.02, 0.04, 0.08]))  # after 1, 2 and 4 steps
    distances, contact, approach = rest.split([1 + CHUNK, 6, 6])
    torch.testing.assert_close(distances.exp(), torch.tensor([NEAREST, 0.01, 0.02, 0.03, 0.04]))
    torch.testing.assert_close(contact.view(2, 3)[:, 0], torch.tensor([0.0, math.tanh(0.04 / 0.02)]))
    torch.testing.assert_close(approach.view(2, 3)[:, 0], torch.tensor([0.0, math.tanh(0.04 / 0.1)]))


def test_patches_say_how_much_they_change() -> None:
    codec = PatchCodec(vector_codec(), n_tokens=2, dim=2, width=8, world_width=8)
    codec.scale.std.fill_(2.0)
    n = DIM + 4
    context, frames = torch.zeros(3, 2, n), torch.zeros(3, CHUNK, n)
    context[:, 1, DIM:] = torch.tensor([3.0, 4.0, 0.0, 0.0])  # the first patch changed by 5 before
    frames[:, -1, DIM:] = torch.tensor([3.0, 4.0, 6.0, 8.0])  # the second changes by 10
    found = surroundings(codec, context, frames)
    assert found.shape == (3, n_surroundings(codec, 2, CHUNK, n))
    torch.testing.assert_close(found[0, -4:].exp(), torch.tensor([2.5, NEAREST, NEAREST, 5.0]))


def test_a_state_without_positions_has_no_distances() -> None:
    codec = VectorCodec(DIM, [], 2, CHUNK, CHUNK, width=8, world_width=8)
    assert n_surroundings(codec, 2, CHUNK, DIM) == 5 * DIM
    assert torch.isfinite(surroundings(codec, torch.zeros(1, 2, DIM), torch.zeros(1, CHUNK, DIM))).all()


def test_a_single_frame_of_context_and_a_chunk_of_one_step() -> None:
    codec = VectorCodec(DIM, [slice(0, 3), slice(3, 6)], 1, 1, 1, width=8, world_width=8)
    assert surroundings(codec, torch.zeros(2, 1, DIM), torch.zeros(2, 1, DIM)).shape == (
        2,
        n_surroundings(codec, 1, 1, DIM),
    )
