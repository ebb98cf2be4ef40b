"""Trust: what it reads, that it finds out which chunks go wrong, and that nothing else changes."""

import math
from dataclasses import replace

import pytest
import torch

from rewards.errors import UserError
from world_model.replays import chunk_errors
from world_model.wam.model import WorldActionModel
from world_model.wam.trust import (
    HORIZON,
    calibrate,
    dream_of_real_actions,
    expected_error,
    expected_errors,
    position_error,
    read,
)


@pytest.fixture
def context(model, windows):
    batch = windows.sample(6, torch.Generator().manual_seed(0))
    return model.observe(batch.obs), batch


def test_error_is_that_of_the_normalised_state_where_there_is_no_object(model):
    true = torch.zeros(2, 3, model.spec.state_dim)
    off = true.clone()
    off[..., 1] = 2 * model.codec.state.std[1]
    torch.testing.assert_close(position_error(model, true, off), torch.full((2, 3), 2.0))


def test_what_is_read_of_a_chunk(model, context):
    encoded, batch = context
    given = read(model, encoded, batch.actions, batch.context["state"][:, -1:].expand(-1, 4, -1))
    n, n_actions = encoded.features.shape[1], batch.actions[0].numel()
    assert given.shape == (6, model.trust.given.mean.shape[0]) and given.shape[1] > n + n_actions + 1
    assert torch.allclose(given[:, -1], torch.tensor(1e-4).log())  # nothing moved
    torch.testing.assert_close(
        given[:, : n + n_actions],
        torch.cat([encoded.features, model.action_codec.encode(batch.actions).flatten(1)], 1),
    )


def test_it_learns_which_chunks_go_wrong_and_changes_nothing_else(model):
    generator = torch.Generator().manual_seed(0)
    before = {k: v.clone() for k, v in model.state_dict().items() if not k.startswith("trust.")}
    given = torch.randn(1000, 2, model.trust.given.mean.shape[0], generator=generator)
    errors = (0.05 * given[..., 0]).exp() * 0.01 * (1 + 9 * (given[..., 1] > 0))
    state = torch.random.get_rng_state()
    calibrate(model, given, errors, n_steps=200)
    assert torch.equal(torch.random.get_rng_state(), state)
    fresh = torch.randn(500, given.shape[2], generator=generator)
    with torch.no_grad():
        said, memory = model.trust(fresh, model.trust.begin(500))
        expected, _ = expected_error(model, fresh, model.trust.begin(500))
    assert said.shape == (3, 500) and memory.shape == (500, 3, model.config.trust_memory)
    torch.testing.assert_close(expected, said.mean(0).exp())
    assert expected[fresh[:, 1] > 0.3].median() > 4 * expected[fresh[:, 1] < -0.3].median()
    assert not any(p.requires_grad for p in model.trust.parameters())
    after = model.state_dict()
    assert all(torch.equal(after[k], v) for k, v in before.items())


def test_a_head_remembers_the_chunks_before(model):
    """The error of the second chunk depends on the first one alone; without memory nothing could tell."""
    generator = torch.Generator().manual_seed(0)
    given = torch.randn(1500, 2, model.trust.given.mean.shape[0], generator=generator)
    errors = torch.full((1500, 2), 0.01)
    errors[:, 1] *= 1 + 9 * (given[:, 0, 0] > 0)
    calibrate(model, given[:1000], errors[:1000], n_steps=200)
    with torch.no_grad():
        expected = expected_errors(model, given[1000:])
    first = given[1000:, 0, 0]
    assert expected[first > 0.3, 1].median() > 4 * expected[first < -0.3, 1].median()
    assert expected[:, 0].log().std() < 0.3


def test_the_first_steps_are_near_the_mean_log_error(model):
    given = torch.randn(100, 2, model.trust.given.mean.shape[0], generator=torch.Generator().manual_seed(0))
    calibrate(model, given, torch.full((100, 2), 0.003), n_steps=1)
    with torch.no_grad():
        assert expected_errors(model, given).log().mean().item() == pytest.approx(math.log(0.003), abs=0.3)


def test_a_calibration_knows_nothing_of_the_one_before(model):
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(200, 2, model.trust.given.mean.shape[0], generator=generator) for _ in range(2))
    errors = torch.rand(200, 2, generator=generator)
    calibrate(model, second, errors, n_steps=20)
    alone = {k: v.clone() for k, v in model.trust.state_dict().items()}
    calibrate(model, first, errors, n_steps=20)
    calibrate(model, second, errors, n_steps=20)
    assert all(torch.equal(v, alone[k]) for k, v in model.trust.state_dict().items())


def test_an_uncalibrated_trust_says_so(model, context):
    encoded, batch = context
    given = read(model, encoded, batch.actions, batch.future["state"])
    with pytest.raises(UserError, match=r"input of the trust heads.*has no statistics"):
        expected_error(model, given, model.trust.begin(6))


def test_a_session_carries_what_the_heads_remember(model, episodes):
    long = [e for e in episodes if e.length >= HORIZON * model.config.chunk_size]
    own = dream_of_real_actions(model, long)
    calibrate(model, own.given, own.errors, n_steps=20)
    found = chunk_errors(model, long)
    torch.testing.assert_close(found.expected, expected_errors(model, own.given))
    with torch.no_grad():  # each chunk alone is something else
        alone, _ = expected_error(model, own.given[:, -1], model.trust.begin(len(own.given)))
    assert not torch.allclose(alone, found.expected[:, -1])


def test_heads_of_older_checkpoints_have_no_memory_and_work_as_before(model, context, episodes):
    encoded, batch = context
    data = model.to_config()
    assert data["model"].pop("trust_memory") == 16
    older = WorldActionModel.from_config(data)
    older.load_state_dict({k: v for k, v in model.state_dict().items() if "trust" not in k}, strict=False)
    n = encoded.features.shape[1] + batch.actions[0].numel() + 1
    assert older.trust.given.mean.shape == (n,) and older.trust.heads[0][0].in_features == n
    assert older.trust.heads[0][-1].out_features == 1
    seeds = torch.arange(6)
    assert older.begin(batch.obs, seeds)["trust"].shape == (6, 3, 0)
    assert model.begin(batch.obs, seeds)["trust"].shape == (6, 3, 16)
    own = dream_of_real_actions(older, [e for e in episodes if e.length >= HORIZON * model.config.chunk_size])
    calibrate(older, own.given, own.errors, n_steps=2)
    with torch.no_grad():
        session = older.begin(batch.obs, seeds)
        _, predicted = older.predict(session, batch.actions)
        del session["trust"]  # as in the state of an older run
        _, again = older.predict(session, batch.actions)
    assert torch.equal(predicted.expected_error, again.expected_error)
    assert predicted.expected_error.shape == (6,) and (predicted.expected_error > 0).all()
    older.renew_trust()
    assert older.config == model.config and not older.estimates_error
    assert {k: v.shape for k, v in older.trust.state_dict().items()} == {
        k: v.shape for k, v in model.trust.state_dict().items()
    }


def test_errors_grow_along_a_dream_and_rows_are_tasks(model, episodes):
    long = [e for e in episodes if e.length >= HORIZON * model.config.chunk_size]
    assert long
    replayed = dream_of_real_actions(model, long)
    n = len(replayed.task)
    assert replayed.given.shape[:2] == replayed.errors.shape == (n, HORIZON) and (replayed.errors >= 0).all()
    assert [long[i].task for i in replayed.episode.tolist()] == [model.spec.tasks[i] for i in replayed.task.tolist()]


def test_dreams_begin_as_often_where_a_model_sees(model, episodes):
    size = model.config.chunk_size
    (long,) = [replace(e, obs={"state": e.state.repeat(2, 1)[: 2 * e.length + 1]}) for e in episodes[:1]]
    long = replace(long, action=long.action.repeat(2, 1), success=long.success.repeat(2))
    n = len(range(0, long.length - HORIZON * size + 1, size))
    assert n == 5
    both = []
    for every in (1, size):  # windows begin everywhere, or at new images alone
        images = long.state[[*range(0, long.length, every), long.length]]
        both.append(replace(long, obs={**long.obs, "seldom": images}, every={"seldom": every} if every > 1 else {}))
        assert len(dream_of_real_actions(model, both[-1:]).task) == n
    assert dream_of_real_actions(model, both).episode.tolist() == [0] * n + [1] * n
