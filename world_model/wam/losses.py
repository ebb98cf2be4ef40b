"""The training objective: flow matching on both modalities at independent noise levels, and the read-outs.

Independent noise levels make one network all conditional models (UniDiffuser, Bao et al., 2303.06555; for video and
action Unified World Models, Zhu et al., 2504.02792).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from world_model.api import Context
from world_model.data.windows import Batch
from world_model.flow import noised, uniform_noise_level
from world_model.tree import rows as rows_of
from world_model.wam.features import joined
from world_model.wam.modes import action_noise, video_noise
from world_model.wam.network import Network
from world_model.wam.sharding import is_sharded
from world_model.wam.training_config import ATOMS


def stage_losses(
    stage: str, model: Network, batch: Batch, atom_weights: tuple[float, ...], generator: torch.Generator
) -> dict[str, Tensor]:
    """Return the mean losses of a batch, by name.

    The losses are `action` in every stage, `video` in every stage except tune, `success` and `progress` in pretrain and
    refit. Outside tune the action decoder learns only inverse dynamics, from clean futures: which action leads from one
    frame to the next is physics and can be learned from any episode. Which action to take must be learned from
    demonstrations, in tune.
    """
    # 1. Draw for each sample a mode of use (atom) and its noise levels.
    n, imitate = len(batch.task), stage == "tune"
    atom, t_video, t_action = sample_noise_levels(n, atom_weights, generator)
    task = drop_task(model, model.reworded(batch.task, generator), generator)
    acted, frames, clean_video, known, clean_action = _clean(model, batch)
    # 2. Add noise. The target `clean_video` was computed from clean frames, because noise cannot be predicted.
    frames = model.noisy(frames, generator)
    # Samples from videos have no actions: they can only train the mode `video`.
    atom, t_action = torch.where(acted, atom, ATOMS.index("video")), torch.where(acted, t_action, 1.0)
    context = model.encode(frames, task)
    noisy_video = noised(clean_video, video_noise(model, n, generator), t_video)
    noisy_action = noised(clean_action, action_noise(model, n, generator), t_action)

    # 3. Losses of the read-outs, of the predicted frames, and of the actions.
    losses = read_out_losses(model, batch, task, acted) if stage in ("pretrain", "refit") else {}
    inverse = atom == ATOMS.index("inverse")
    decodes = _imitated(atom) if imitate else inverse
    # In the mode `inverse` the action decoder must recover the actions, so the world decoder does not get them.
    t_given = torch.where(inverse, 1.0, t_action)
    # Rows of the mode `policy` have no future tokens, so they are computed separately.
    sees_future, errors = atom != ATOMS.index("policy"), []
    # Processes that share a layer must all call it, also without rows.
    always = is_sharded(model)
    for rows, with_future in ((sees_future, True), (~sees_future, False)):
        future = None
        if with_future and (always or rows.any()):
            estimate, future = model.predict_future(
                rows_of(context, rows), noisy_video[rows], t_video[rows], noisy_action[rows], t_given[rows]
            )
            if not imitate:
                predicted = ((estimate - clean_video[rows]) * known[rows]).square().mean((1, 2))
                losses["video"] = _mean_where(predicted, ~inverse[rows])
        # Run the action decoder only on rows that have an action loss: a seventh of them in pre-training.
        chosen = rows & decodes
        if always or chosen.any():
            if future is not None:  # keep the future tokens of the chosen rows only
                future = [(k[decodes[rows]], v[decodes[rows]]) for k, v in future]
            estimate = model.predict_action(rows_of(context, chosen), noisy_action[chosen], t_action[chosen], future)
            # Divide by the whole batch, not by the chosen rows: each sample has the same weight in every batch.
            errors.append((estimate - clean_action[chosen]).square().mean((1, 2)).sum() / n)
    losses["action"] = sum(errors, start=clean_action.new_zeros(()))
    return losses


CORRECTED = 0.5
"""Share of the error of the frames before a chunk that its prediction is asked to remove, see `rollout_losses`."""


def rollout_losses(model: Network, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
    """Return the mean loss of predicted frames in dreams of several chunks.

    Each chunk is predicted from the frames *predicted* before it, so that the model learns in contexts like those of a
    dream. The target of a chunk is the true change, plus the correction of a share (`CORRECTED`) of the error that the
    frames before it have. If nothing is corrected, errors add up from chunk to chunk. If all of it is, the model learns
    to guess the true state from the actions, because they were chosen in the true state; but a policy that acts in the
    dream chooses its actions in the dreamed state. No gradient flows from one chunk to those before it (the
    "pushforward trick" of Brandstetter et al., 2202.03376).

    Args:
        model: dreams.
        batch: windows of a multiple of `model.config.chunk_size` steps; actions and frames after the end are NaN.
        generator: of the noise on the first context.
    """
    size, n_context_frames = model.config.chunk_size, model.config.n_context_frames
    true, actions, future = joined(batch.context), _held(batch.actions), joined(batch.future)
    frames, task = model.noisy(true, generator), model.reworded(batch.task, generator)
    errors, n_known = [], 0
    for at in range(0, actions.shape[1], size):
        # 1. Predict the codes of a chunk, as the mode `dream` does: one step from pure noise, with known actions.
        context = model.encode(frames, task)
        codes = model.action_codec.encode(actions[:, at : at + size])
        certain = codes.new_zeros(len(codes))
        nothing = codes.new_zeros(len(codes), model.codec.n_future_tokens, model.codec.code_dim)
        estimate, _ = model.predict_future(context, nothing, 1.0 - certain, codes, certain)
        # 2. Compare them with those of the true change, and a part of the correction.
        followed = future[:, at : at + size]
        target = model.codec.encode_future(true.lerp(frames, CORRECTED), followed)
        known = ~target.isnan()
        errors.append(((estimate - target.nan_to_num()) * known).square().sum())
        n_known += int(known.sum())
        # 3. Go on from what was predicted.
        predicted = model.codec.decode_future(frames, estimate.detach())
        frames = torch.cat([frames, predicted], dim=1)[:, -n_context_frames:]
        true = torch.cat([true, followed], dim=1)[:, -n_context_frames:]
    return {"video": torch.stack(errors).sum() / max(n_known, 1)}


def _held(actions: Tensor) -> Tensor:
    """Replace unknown actions (batch, n_steps, action_dim), NaN after the end of an episode, by the last known one."""
    n_known = actions.isfinite().all(2).sum(1, keepdim=True)
    steps = torch.arange(actions.shape[1], device=actions.device).minimum(n_known - 1)
    return actions.gather(1, steps.unsqueeze(2).expand_as(actions))


def _clean(model: Network, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return which rows have actions (n,), context frames, clean future codes, which codes are known, clean actions.

    Videos have no actions and no proprioception; those entries are NaN in the batch. Here they become the mean in the
    context frames and 0 in codes and actions.
    """
    acted = batch.actions.isfinite().flatten(1).all(1)
    context = joined(batch.context)
    frames = torch.where(context.isnan(), model.codec.state.mean, context)
    clean_video = model.codec.encode_future(frames, joined(batch.future))
    clean_action = model.action_codec.encode(batch.actions.nan_to_num())
    return acted, frames, clean_video.nan_to_num(), ~clean_video.isnan(), clean_action


def policy_loss(model: Network, context: Context, actions: Tensor, generator: torch.Generator) -> Tensor:
    """Return the flow-matching loss of the mode `policy` alone, the imitation anchor of PPO.

    It imitates `actions` (n, chunk_size, action_dim), which were taken in an encoded `context` of n rows. The encoder
    is frozen.
    """
    n = len(actions)
    t = uniform_noise_level(n, generator)
    # The network predicts the clean codes, see `flow`.
    clean = model.action_codec.encode(actions)
    estimate = model.predict_action(context, noised(clean, action_noise(model, n, generator), t), t)
    return (estimate - clean).square().mean()


def read_out_losses(model: Network, batch: Batch, task: Tensor, judged: Tensor) -> dict[str, Tensor]:
    """Return the binary cross-entropy of success and the squared error of progress, on the future frames.

    Args:
        model: its `read_out` is trained.
        batch: n windows.
        task: (n,), the task that the read-out gets, which may be the null task.
        judged: (n,) bool, rows with labels; the others are ignored. Without any, the result is empty.
    """
    if not judged.any():
        return {}
    # Every future frame is one sample, with the task of its window.
    future = joined(batch.future)[judged]
    logit, progress = model.read_out(
        model.codec.state(future.flatten(0, 1)), model.told(task[judged]).repeat_interleave(future.shape[1], dim=0)
    )
    return {
        "success": F.binary_cross_entropy_with_logits(logit, batch.success[judged].flatten()),
        "progress": (progress - batch.progress[judged].flatten()).square().mean(),
    }


def drop_task(model: Network, task: Tensor, generator: torch.Generator) -> Tensor:
    """Replace a random share (`task_dropout`) of the tasks (n,) by the null task: an unknown one, or no sentence."""
    drop = torch.rand(len(task), generator=generator, device=task.device) < model.config.task_dropout
    return torch.where(drop, model.null_task, task)


def _imitated(atom: Tensor) -> Tensor:
    """Return which samples train the action decoder in tune (n,): those of policy, joint and inverse."""
    return (atom == ATOMS.index("policy")) | (atom == ATOMS.index("joint")) | (atom == ATOMS.index("inverse"))


def _mean_where(values: Tensor, mask: Tensor) -> Tensor:
    return (values * mask).sum() / mask.sum().clamp(min=1)


def sample_noise_levels(
    n: int, weights: tuple[float, ...], generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw atom (n,) int64, t_video (n,) and t_action (n,) of training samples; `weights` are those of `ATOMS`.

    Every mode of use is a corner or an edge of the square of noise levels, which two independent uniform draws almost
    never reach: policy: no future; dream: t_action = 0, t_video = 1; inverse: t_video = 0; video: t_action = 1. So the
    modes are drawn explicitly. With known actions the future is nearly certain; so a dream is trained as one step from
    pure noise.
    """
    device = generator.device
    # First the mode of each sample, then both noise levels; the mode then fixes one or both of them. The mode `joint`
    # keeps both draws, and `policy` does not use t_video.
    atom = torch.multinomial(torch.tensor(weights, device=device), n, replacement=True, generator=generator)
    t_video, t_action = uniform_noise_level(n, generator), uniform_noise_level(n, generator)
    t_action = torch.where(atom == ATOMS.index("dream"), 0.0, t_action)
    t_action = torch.where(atom == ATOMS.index("video"), 1.0, t_action)
    t_video = torch.where(atom == ATOMS.index("inverse"), 0.0, t_video)
    t_video = torch.where(atom == ATOMS.index("dream"), 1.0, t_video)
    return atom, t_video, t_action
