"""What may depend on what: the two sides of the model, the cached context, the batch, the task; storing it."""

from dataclasses import asdict, replace

import pytest
import torch

from rewards.errors import UserError
from world_model.tree import rows
from world_model.wam import modes, precision
from world_model.wam.config import ModelConfig
from world_model.wam.model import WorldActionModel
from world_model.wam.normalizer import Normalizer
from world_model.wam.store import half_precision, load_model, load_model_and_config, save_model

N = 6


@pytest.fixture
def batch(windows):
    return windows.sample(N, torch.Generator().manual_seed(0))


def dream(model, batch, context=None):
    context = model.encode(batch.context["state"], batch.task) if context is None else context
    return modes.dream(model, context, batch.actions, modes.video_noise(model, len(batch.task), seeded()), 2)


def act(model, batch, context=None):
    context = model.encode(batch.context["state"], batch.task) if context is None else context
    return modes.policy(model, context, modes.action_noise(model, len(batch.task), seeded()), 3)


def seeded():
    return torch.Generator().manual_seed(7)


def shake(parameters):
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=seeded()))


def test_the_dream_does_not_depend_on_the_action_side(model, batch):
    frames, success = dream(model, batch), model.read_frames(batch.future["state"][:, 0], batch.task)[0]
    actions = act(model, batch)
    shake([*model.action_parameters(), *model.value.parameters()])
    assert torch.equal(dream(model, batch), frames)
    assert torch.equal(model.read_frames(batch.future["state"][:, 0], batch.task)[0], success)
    assert not torch.allclose(act(model, batch), actions, atol=1e-3)


def test_the_policy_does_not_depend_on_the_world_side(model, batch):
    frames, actions = dream(model, batch), act(model, batch)
    shake([*model.dynamics_parameters(), *model.read_out.parameters()])
    assert torch.equal(act(model, batch), actions)
    assert not torch.allclose(dream(model, batch), frames, atol=1e-3)


def test_world_and_action_side_share_no_parameter_and_leave_out_context_and_trust(model):
    world = {*model.dynamics_parameters(), *model.read_out.parameters()}
    action, value = set(model.action_parameters()), set(model.value.parameters())
    assert not world & action and not value & (world | action)
    rest = {n.split(".")[0] for n, p in model.named_parameters() if p not in world | action | value}
    named = {n for n, p in model.named_parameters() if p not in world | action | value}
    assert rest == {"encoder", "codec", "trust"} and {n for n in named if n.startswith("codec")} == {
        "codec.context_in.weight",
        "codec.context_in.bias",
    }


def test_an_encoded_context_serves_every_decoder_and_knows_nothing_of_the_future(model, batch):
    context = model.encode(batch.context["state"], batch.task)
    before = [k.clone() for k, _ in context.cache]
    frames, actions = dream(model, batch, context), act(model, batch, context)
    modes.inverse(model, context, batch.future["state"], modes.action_noise(model, N, seeded()), 2)
    assert all(torch.equal(k, b) for (k, _), b in zip(context.cache, before, strict=True))
    assert torch.equal(dream(model, batch), frames) and torch.equal(act(model, batch), actions)


def test_products_in_bfloat16_change_a_dream_by_a_hundredth_and_only_where_the_processor_has_them(
    model, batch, monkeypatch
):
    half = WorldActionModel(replace(model.config, bfloat16=True), model.spec)
    half.load_state_dict(model.state_dict())
    frames, actions = dream(model, batch), act(model, batch)
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: False)
    assert torch.equal(dream(half, batch), frames) and torch.equal(act(half, batch), actions)
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: True)
    movement = (frames - batch.context["state"][:, -1:]).abs().mean()
    assert 0 < (dream(half, batch) - frames).abs().mean() < 0.02 * movement
    assert 0 < (act(half, batch) - actions).abs().mean() < 0.02
    assert dream(half, batch).dtype == act(half, batch).dtype == torch.float32


@pytest.mark.parametrize("bfloat16", [False, True])
def test_acting_and_dreaming_is_one_graph_that_asks_no_tensor_for_its_numbers(model, batch, bfloat16, monkeypatch):
    """Else it could not be captured on a GPU, and each question would be a wait there."""
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: True)
    half = WorldActionModel(replace(model.config, bfloat16=bfloat16), model.spec)
    half.load_state_dict(model.state_dict())
    noise, nothing = modes.action_noise(half, N, seeded()), modes.video_noise(half, N, seeded())

    @torch.no_grad()
    def chunk(context, task):
        encoded = half.encode(context, task)
        return modes.dream(half, encoded, modes.policy(half, encoded, noise, 2), nothing, 1)

    plain = chunk(batch.context["state"], batch.task)
    torch._dynamo.reset()
    whole = torch.compile(chunk, backend="eager", fullgraph=True)
    assert torch.equal(whole(batch.context["state"], batch.task), plain)


def test_neighbours_in_the_batch_do_not_change_a_row(model, batch):
    context = model.encode(batch.context["state"], batch.task)
    noise = modes.video_noise(model, N, seeded())
    together = modes.dream(model, context, batch.actions, noise, 2)
    row = torch.tensor([3])
    alone = modes.dream(
        model, model.encode(batch.context["state"][row], batch.task[row]), batch.actions[row], noise[row], n_steps=2
    )
    torch.testing.assert_close(alone, together[row], atol=1e-5, rtol=1e-5)
    selected = modes.dream(model, rows(context, row), batch.actions[row], noise[row], 2)
    torch.testing.assert_close(selected, together[row], atol=1e-5, rtol=1e-5)


def test_dream_listens_to_context_task_and_actions(model, batch):
    frames = dream(model, batch)
    for other in (
        replace(batch, actions=batch.actions.flip(0)),
        replace(batch, context={"state": batch.context["state"] + 0.1}),
        replace(batch, task=1 - batch.task),
    ):
        assert not torch.allclose(dream(model, other), frames, atol=1e-5)


def test_an_unseen_task_has_an_embedding(model, batch):
    null = torch.full_like(batch.task, model.null_task)
    assert model.null_task == len(model.spec.tasks)
    frames = dream(model, replace(batch, task=null))
    assert torch.isfinite(frames).all() and not torch.allclose(frames, dream(model, batch), atol=1e-5)
    assert torch.isfinite(model.read_frames(batch.future["state"][:, 0], null)[0]).all()


def test_gradients_of_the_critic_stop_at_its_features(model, batch):
    model.value(model.encode(batch.context["state"], batch.task).features).sum().backward()
    touched = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None}
    assert touched == {"value"}


def test_codes_are_decoded_to_what_was_encoded(model, batch):
    codes = model.codec.encode_future(batch.context["state"], batch.future["state"])
    torch.testing.assert_close(model.codec.decode_future(batch.context["state"], codes), batch.future["state"])
    torch.testing.assert_close(model.action_codec.decode(model.action_codec.encode(batch.actions)), batch.actions)


def test_sizes_that_do_not_divide_are_refused(model):
    with pytest.raises(UserError, match=r"model\.frames_per_token=3 must divide model\.chunk_size=8"):
        WorldActionModel(ModelConfig(frames_per_token=3), model.spec)


# --- normaliser ---


def test_normalizer_by_hand():
    normalizer = Normalizer((2,), floor=0.5, name="state")
    normalizer.fit(torch.tensor([[1.0, 3.0], [5.0, 3.0]]))
    assert normalizer.mean.tolist() == [3, 3]
    assert normalizer.std.tolist() == [2, 0.5]  # the second never moves: the floor
    assert normalizer(torch.tensor([7.0, 4.0])).tolist() == [2, 2]
    assert normalizer.invert(torch.tensor([2.0, 2.0])).tolist() == [7, 4]
    normalizer.fit(torch.tensor([[3.0, 0.0], [-4.0, 0.0]]), centered=False)
    # The mean is that of the first fit: only the deviation is new, sqrt((0 + 49) / 2).
    assert normalizer.mean.tolist() == [3, 3]
    assert normalizer.std.tolist() == pytest.approx([24.5**0.5, 3.0])


def test_a_feature_without_statistics_is_an_error(model, batch):
    fresh = WorldActionModel(model.config, model.spec)
    with pytest.raises(UserError, match="feature 'state' has no statistics"):
        fresh.encode(batch.context["state"], batch.task)
    with pytest.raises(UserError, match="feature 'action' has no statistics"):
        fresh.action_codec.encode(batch.actions)
    with pytest.raises(UserError, match="statistics of 'state': expected finite values"):
        fresh.codec.fit(batch.context["state"] * torch.nan, batch.future["state"])


# --- storing ---


def test_a_loaded_model_acts_bit_for_bit_like_the_saved_one(model, batch, tmp_path):
    save_model(tmp_path / "m", model, "tune", parent="root", about={"n_demonstrations": 3}, readme="# m\n")
    loaded, config = load_model_and_config(tmp_path / "m")
    assert torch.equal(act(loaded, batch), act(model, batch)) and torch.equal(dream(loaded, batch), dream(model, batch))
    assert config["stage"] == "tune" and config["parent"] == "root" and config["n_demonstrations"] == 3
    assert loaded.spec == model.spec and loaded.config == model.config
    assert not loaded.training


def test_half_precision_is_exact_once_rounded(model, batch, tmp_path):
    before, mean = act(model, batch), model.codec.state.mean.clone()
    half_precision(model)
    torch.testing.assert_close(act(model, batch), before, atol=0.05, rtol=0)
    assert torch.equal(model.codec.state.mean, mean)
    assert all(torch.equal(p.half().float(), p) for p in model.parameters())
    save_model(tmp_path / "m", model, "tune")
    assert torch.equal(act(load_model(tmp_path / "m"), batch), act(model, batch))


def test_tensors_that_do_not_fit_their_config_are_named(model, tmp_path):
    state = model.state_dict()
    model.to_config = lambda: {"model": {**asdict(model.config), "n_layers": 1}, "spec": model.spec.to_dict()}
    save_model(tmp_path / "m", model, "tune")
    with pytest.raises(UserError, match=r"tensor 'action.stack.blocks.1.* is unexpected in model.safetensors"):
        load_model(tmp_path / "m")
    model.to_config = lambda: {"model": {**asdict(model.config), "action_width": 64}, "spec": model.spec.to_dict()}
    save_model(tmp_path / "m", model, "tune")
    with pytest.raises(UserError, match=r"has shape \(.*\), config.json says \(.*\)"):
        load_model(tmp_path / "m")
    model.to_config = lambda: {"spec": model.spec.to_dict()}
    save_model(tmp_path / "m", model, "tune")
    with pytest.raises(UserError, match=r"config.json does not describe a world-action model"):
        load_model(tmp_path / "m")
    assert state.keys() == model.state_dict().keys()
