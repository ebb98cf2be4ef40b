"""The training stages on the toy: they learn, they resume bit for bit, they touch only their side, they stop at NaN."""

import copy
import math
from dataclasses import replace

import pytest
import torch

from rewards.errors import UserError
from world_model.checkpoint import load_training_state, pack_training_state
from world_model.data.windows import Windows
from world_model.wam import modes, training
from world_model.wam.losses import drop_task, rollout_losses, stage_losses
from world_model.wam.metrics import inverse_metrics, prediction_metrics, read_out_metrics
from world_model.wam.store import load_model, save_model
from world_model.wam.training import StageConfig, fit_statistics, schedule, train_stage

SHORT = StageConfig(n_steps=8, batch_size=8, learning_rate=1e-3, warmup_steps=2, save_every=4)


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one, other, but=()):
    return all(torch.equal(one[n], other[n]) for n in one if not n.startswith(tuple(but)))


def test_pretraining_learns_to_predict(model, windows, heldout):
    logged = []
    config = replace(SHORT, n_steps=120, batch_size=32, learning_rate=3e-3, warmup_steps=10, log_every=20)
    action = {n: p.clone() for n, p in model.value.named_parameters()}
    train_stage("pretrain", model, windows, config, log=lambda step, values: logged.append((step, values)))
    assert [step for step, _ in logged] == list(range(20, 121, 20))
    assert logged[-1][1]["video"] < 0.5 * logged[0][1]["video"]
    assert logged[-1][1].keys() == {"video", "action", "success", "progress", "learning_rate"}
    still = prediction_metrics(model, heldout, part="goal")  # it never moves
    assert still["mean"]["n"] == 0 and math.isnan(still["mean"]["error_ratio"])
    row = prediction_metrics(model, heldout, part="point", per_task=128)["mean"]
    assert row["error_ratio"] < 0.5 and row["shuffle_ratio"] > 2 and row["n"] > 50
    assert all(torch.equal(p, action[n]) for n, p in model.value.named_parameters())
    assert not model.training and all(p.requires_grad for p in model.parameters())


def test_inverse_dynamics_recovers_actions_better_than_the_mean_action(trained, heldout):
    assert inverse_metrics(trained, heldout, n=256)["inverse_error"] < 0.5


def test_the_read_out_tells_success(trained, windows):
    figures = read_out_metrics(trained, windows, n=1024)
    assert figures["success_precision"] > 0.8 and figures["progress_error"] < 0.25


@pytest.mark.parametrize("stage", ["pretrain", "tune", "refit", "dynamics"])
def test_an_interrupted_stage_ends_with_the_same_weights(model, windows, tmp_path, stage):
    whole, cut = model, copy.deepcopy(model)
    train_stage(stage, whole, windows, SHORT)

    def save(step, state):
        save_model(tmp_path / "m", cut, stage, extra=pack_training_state(state))
        if step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_stage(stage, cut, windows, SHORT, save=save)
    resumed = load_model(tmp_path / "m")
    assert not same(weights(resumed), weights(whole))
    train_stage(stage, resumed, windows, SHORT, resume=load_training_state(tmp_path / "m"))
    assert same(weights(resumed), weights(whole))


@pytest.mark.parametrize("stage", ["refit", "dynamics"])
def test_a_refit_leaves_the_policy_bit_equal(model, windows, stage):
    batch = windows.sample(8, torch.Generator().manual_seed(0))
    noise = modes.action_noise(model, 8, torch.Generator().manual_seed(1))

    def act():
        return modes.policy(model, model.encode(batch.context["state"], batch.task), noise, 3)

    actions, before = act(), weights(model)
    model.encoder.requires_grad_(False)  # as in a policy under PPO
    train_stage(stage, model, windows, SHORT)
    after = weights(model)
    assert torch.equal(act(), actions)
    world = ("world", "codec.future_in", "codec.future_out", *(["read_out"] if stage == "refit" else []))
    assert same(before, after, but=world)
    assert all(not same(before, after, but=[n for n in before if not n.startswith(part)]) for part in world)
    # The action side stays trainable for the PPO that follows, and the encoder frozen.
    assert all(p.requires_grad for p in model.action.parameters())
    assert not any(p.requires_grad for p in model.encoder.parameters())


def test_a_loss_that_is_not_finite_reaches_no_weight(model, windows):
    broken = copy.copy(windows)
    broken.values = {"state": torch.full_like(windows.values["state"], torch.nan)}
    before = weights(model)
    with pytest.raises(UserError, match=r"the loss became nan; .* lower learning_rate \(step 0\)"):
        train_stage("pretrain", model, broken, SHORT)
    assert same(before, weights(model))


def test_tuning_changes_the_action_decoder_alone(model, demos):
    before = weights(model)
    train_stage("tune", model, demos, SHORT)
    after = weights(model)
    assert same(before, after, but=("action.",))
    assert not same(before, after)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_steps": -1}, "n_steps=-1: expected at least 0"),
        ({"warmup_steps": 0}, "warmup_steps=0: expected at least 1"),
        ({"learning_rate": 0.0}, "learning_rate=0.0: expected a finite number above 0"),
        ({"learning_rate": float("nan")}, "learning_rate=nan: expected a finite number above 0"),
        ({"max_grad_norm": -1.0}, "max_grad_norm=-1.0: expected a finite number above 0"),
        ({"weight_decay": -1.0}, "weight_decay=-1.0: expected a finite number, at least 0"),
        ({"atoms": (1.0, 0.0)}, "atoms=.*: expected 5 weights"),
        ({"atoms": (0.0,) * 5}, "atoms=.*: expected 5 weights"),
    ],
)
def test_settings_that_mean_nothing_are_refused(model, windows, change, message):
    with pytest.raises(UserError, match=message):
        train_stage("tune", model, windows, replace(SHORT, **change))


def test_pretraining_does_not_imitate(model, windows):
    """Without imitation the action decoder hears only of clean futures."""
    batch = windows.sample(64, torch.Generator().manual_seed(0))
    never_inverse = (0.3, 0.3, 0.3, 0.0, 0.1)
    losses = stage_losses("pretrain", model, batch, never_inverse, torch.Generator().manual_seed(1))
    assert losses["action"] == 0 and set(losses) == {"video", "action", "success", "progress"}
    imitating = stage_losses("tune", model, batch, never_inverse, torch.Generator().manual_seed(1))
    assert imitating["action"] > 0 and set(imitating) == {"action"}
    refitting = stage_losses("refit", model, batch, never_inverse, torch.Generator().manual_seed(1))
    assert refitting["video"] == losses["video"] and set(refitting) == set(losses)


def test_the_loss_of_a_rollout_compares_frames_dreamed_from_dreamed_frames(model, windows):
    model.config = replace(model.config, context_noise=0.0)
    size, n = model.config.chunk_size, model.config.n_context_frames
    two_chunks = Windows(windows.episodes, model.spec.tasks, n, 2 * size)
    batch = two_chunks.at(torch.arange(0, 24, 8))
    context = true = batch.context["state"]
    errors = []
    noise = torch.zeros(3, model.codec.n_future_tokens, model.codec.code_dim)
    for chunk in (slice(0, size), slice(size, 2 * size)):
        encoded = model.encode(context, batch.task)
        dreamed = modes.dream(model, encoded, batch.actions[:, chunk], noise, n_steps=1)
        followed = batch.future["state"][:, chunk]
        # The target is the true change, and half of the error of the context.
        target = model.codec.encode_future((context + true) / 2, followed)
        errors.append((model.codec.encode_future(context, dreamed) - target).square().mean())
        context, true = dreamed[:, -n:], followed[:, -n:]
    loss = rollout_losses(model, batch, torch.Generator().manual_seed(0))["video"]
    assert loss.item() == pytest.approx(torch.stack(errors).mean().item(), rel=1e-5)


def test_the_loss_of_a_rollout_leaves_out_what_follows_the_end(model, windows):
    size, n = model.config.chunk_size, model.config.n_context_frames
    episode = windows.episodes[0]

    def loss(n_chunks):
        padded = Windows([episode], model.spec.tasks, n, n_chunks * size, ends=True, pads=True)
        last = padded.at(torch.tensor([episode.length - 3]))  # three steps before the end
        return rollout_losses(model, last, torch.Generator().manual_seed(0))["video"].item()

    assert math.isfinite(loss(1)) and loss(1) == loss(3)


def test_a_batch_that_holds_nothing_to_learn_changes_nothing(model, demos):
    before = weights(model)
    train_stage("tune", model, demos, replace(SHORT, atoms=(0.0, 0.0, 1.0, 0.0, 0.0)))
    assert same(before, weights(model))


def test_a_tenth_of_the_tasks_is_dropped(model):
    task = torch.zeros(5000, dtype=torch.long)
    dropped = drop_task(model, task, torch.Generator().manual_seed(0))
    assert set(dropped.tolist()) == {0, model.null_task}
    assert abs(float((dropped != 0).float().mean()) - 0.1) < 0.02


def test_schedule_warms_up_and_decays():
    config = replace(SHORT, n_steps=100, warmup_steps=10)
    rates = [schedule(step, config) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9] > 0.95
    assert rates[9:] == sorted(rates[9:], reverse=True) and rates[-1] == pytest.approx(0.01, abs=0.001)


def test_statistics_are_those_of_the_windows(model, windows):
    fit_statistics(model, windows, n=3000)
    batch = windows.sample(3000, torch.Generator().manual_seed(0))
    normal = model.codec.state(batch.context["state"][:, -1])
    torch.testing.assert_close(normal.mean(0), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(normal.std(0), torch.ones(4), atol=1e-2, rtol=0)


def test_activations_computed_again_give_the_same_weights(model, windows):
    """They are computed again from the same inputs, so only memory and time change."""
    config = StageConfig(n_steps=3, batch_size=8, warmup_steps=1)
    found = []
    for recompute in (False, True):
        one = copy.deepcopy(model)
        train_stage("pretrain", one, windows, replace(config, recompute=recompute))
        found.append(one.state_dict())
    before = model.state_dict()
    assert any(not torch.equal(value, before[name]) for name, value in found[0].items())
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


def test_the_parts_of_a_batch_have_the_gradient_of_their_mean(model, windows, monkeypatch):
    """Two parts that are equal have the gradient of one of them."""
    gradients = []

    def no_step(optimizer, *_):
        gradients.append(
            [p.grad.clone() for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        )

    monkeypatch.setattr(training, "_step", no_step)
    sample = windows.sample
    monkeypatch.setattr(windows, "sample", lambda n, _: sample(n, torch.Generator().manual_seed(0)))
    losses = training._losses
    monkeypatch.setattr(training, "_losses", lambda *a: losses(*a[:4], torch.Generator().manual_seed(1)))
    for batch_size, n_parts in ((8, 1), (16, 2)):
        config = StageConfig(n_steps=1, batch_size=batch_size, n_parts=n_parts)
        train_stage("pretrain", copy.deepcopy(model), windows, config)
    assert len(gradients[0]) > 10
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)
