"""Dream the actions of recorded episodes again, where the true frames are known, to judge any world model.

| function | says |
|---|---|
| `replay`, `replay_episodes` | what is dreamed of whole episodes, and whether they succeed there as well |
| `dreamed_episodes` | recorded episodes with dreamed frames and true labels, to learn from |
| `agreement` | how well dreamed and real success agree (Matthews correlation) |
| `chunk_errors` | true and expected error of chunks all along the episodes |
| `error_ratio` | error of one chunk in units of "nothing moves" |
| `moving_windows` | windows in which something moves, task by task |
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from world_model.api import Prediction, WorldModel
from world_model.data.episodes import Episode
from world_model.data.windows import Batch, Windows
from world_model.dream_env import SURE, StartStates, solved
from world_model.env import Frames, Obs
from world_model.spec import STATE, periods
from world_model.tree import to

HORIZON = 4
"""Chunks of a dream of recorded actions where errors are compared: the first starts from a real state, each other one
from the predicted frames."""

MOVED = 0.01
"""A window counts for an error ratio only if the part moves by more than this in it, in metres."""

MOST_WINDOWS = 512
"""Windows of a task at most that an error ratio is measured on."""


@dataclass
class Replay:
    """A dream of the actions of one recorded episode."""

    frames: Frames  # feature of `predicted_spec` -> (n_steps + 1, *shape); the first is the real one it began in
    success: bool  # whether the dream succeeds, by the rule of `DreamEnv`


@dataclass
class EpisodeReplays:
    """Dreams of the actions of `n` recorded episodes."""

    replays: list[Replay]
    errors: list[Tensor]  # (n_steps,) each, of the dreamed frames, in `WorldModel.error_unit`
    real_success: Tensor  # (n,) bool

    @property
    def success(self) -> Tensor:
        """Whether each dream succeeds, (n,) bool."""
        return torch.tensor([replay.success for replay in self.replays], dtype=torch.bool)


@dataclass
class ChunkErrors:
    """`n` dreams of recorded actions, each of the same number of chunks."""

    errors: Tensor  # (n, n_chunks), true mean error of each chunk, in `WorldModel.error_unit`
    expected: Tensor | None  # (n, n_chunks), what the model expected; None if it cannot estimate it
    episode: Tensor  # (n,), index of the episode among those that are long enough


def replay_episodes(model: WorldModel, episodes: list[Episode], n_chunks: int | None = None) -> EpisodeReplays:
    """Dream the recorded actions of episodes from their first states.

    Args:
        model: dreams.
        episodes: with the features that the model reads or predicts, of tasks that it knows.
        n_chunks: of the dreams at most; None: the whole episodes. Real success is counted within the same steps.

    Raises:
        UserError: there are no episodes.
    """
    encoded = model.encode_episodes(episodes)
    most = None if n_chunks is None else n_chunks * model.chunk_size
    replays = _replays(model, encoded, most)
    errors = []
    for episode, dreamed in zip(encoded, replays, strict=True):
        n_steps = len(next(iter(dreamed.frames.values()))) - 1
        true = {name: episode.obs[name][episode.rows_of(name)[1 : n_steps + 1]] for name in dreamed.frames}
        true = {name: values.to(model.device) for name, values in true.items()}
        errors.append(model.frame_error(true, {name: values[1:] for name, values in dreamed.frames.items()}))
    real = torch.tensor([bool(episode.success[:most].any()) for episode in encoded])
    return EpisodeReplays(replays, errors, real)


def dreamed_episodes(model: WorldModel, episodes: list[Episode]) -> list[Episode]:
    """Return episodes with the frames that a model dreams of their actions, from their first states.

    Actions and labels are the recorded ones, so they say what really came of what is dreamed.

    Args:
        model: dreams.
        episodes: as for `replay_episodes`.
    """
    replays = _replays(model, model.encode_episodes(episodes))
    frames = ({name: values.cpu() for name, values in of.frames.items()} for of in replays)
    # Every feature has a dreamed value in each frame.
    return [replace(episode, obs=obs, every={}) for episode, obs in zip(episodes, frames, strict=True)]


@torch.no_grad()
def replay(model: WorldModel, starts: StartStates, actions: Sequence[Tensor]) -> list[Replay]:
    """Dream each row of `actions` (n_steps, action_dim) from its start.

    The last chunk is padded with its last action. Frames after the row are not returned, but they may show success,
    which takes two frames in a row.
    """
    # Pad all rows to whole chunks of one length.
    size = model.chunk_size
    n_chunks = [-(-len(of_row) // size) for of_row in actions]
    padded = torch.stack([a[torch.arange(max(n_chunks) * size).clamp(max=len(a) - 1)] for a in actions])
    encoded = model.encode_obs(starts.context)
    context = {name: encoded[name][:, -model.n_context_frames :] for name in model.predicted_spec.features}
    predictions = _predictions(model, context | {"task": starts.task}, starts.seed, padded.to(model.device))
    frames = {
        name: torch.cat([first[:, -1:], *(p.frames[name] for p in predictions)], dim=1)
        for name, first in context.items()
    }
    sure = torch.cat([p.success for p in predictions], dim=1) >= SURE
    hits = solved(sure, torch.zeros_like(sure[:, 0]))
    return [
        Replay(
            {name: values[i, : len(of_row) + 1].clone() for name, values in frames.items()},
            success=bool(hits[i, : k * size].any()),
        )
        for i, (of_row, k) in enumerate(zip(actions, n_chunks, strict=True))
    ]


@torch.no_grad()
def chunk_errors(model: WorldModel, episodes: list[Episode], n_chunks: int = HORIZON) -> ChunkErrors:
    """Dream the recorded actions for `n_chunks` chunks, starting from every `chunk_size`-th real state.

    Raises:
        UserError: no episode has so many chunks.
    """
    size = model.chunk_size
    windows = _windows(model, episodes, n_chunks * size)
    index = (windows.begins % size == 0).nonzero().squeeze(1)
    batch = windows.at(index)
    predictions = _predictions(model, batch.obs, torch.arange(len(index), device=model.device), batch.actions)
    errors = []
    for i, predicted in enumerate(predictions):
        true = {name: values[:, i * size : (i + 1) * size] for name, values in batch.future.items()}
        errors.append(model.frame_error(true, predicted.frames).mean(1))
    found = [p.expected_error for p in predictions if p.expected_error is not None]
    expected = torch.stack(found, 1) if len(found) == n_chunks else None
    return ChunkErrors(torch.stack(errors, 1), expected, windows.episode[index])


@torch.no_grad()
def error_ratio(model: WorldModel, episodes: list[Episode], part: str = "object_pos") -> float | None:
    """Measure the prediction of a slice of the state after one chunk, where it moves by more than 1 cm.

    Returns the error in units of that of repeating the last frame, as the mean over the tasks with at least two such
    windows; None without any.
    """
    windows, where = _windows(model, episodes, model.chunk_size), model.predicted_spec.slices[part]
    generator = torch.Generator(model.device).manual_seed(0)
    ratios = []
    for _, batch in moving_windows(windows, where, generator):
        seeds = torch.arange(len(batch.task), device=model.device)
        (predicted,) = _predictions(model, batch.obs, seeds, batch.actions)
        truth = batch.future[STATE][:, -1, where]
        guesses = predicted.frames[STATE][:, -1, where], batch.context[STATE][:, -1, where]
        error, repeated = (float((guess - truth).norm(dim=-1).mean()) for guess in guesses)
        ratios.append(error / repeated)
    return sum(ratios) / len(ratios) if ratios else None


def moving_windows(
    windows: Windows, part: slice, generator: torch.Generator, most: int = MOST_WINDOWS
) -> Iterator[tuple[int, Batch]]:
    """Yield the index of each task and windows of it in which a part of the state moves by more than `MOVED`.

    At most `most` of them, drawn at random; a task with fewer than two is left out.
    """
    task = windows.task[windows.episode]
    for index in task.unique().tolist():
        candidates = (task == index).nonzero().squeeze(1)
        batch = windows.at(candidates)
        moved = (batch.future[STATE][:, -1, part] - batch.context[STATE][:, -1, part]).norm(dim=-1)
        candidates = candidates[moved > MOVED]
        if len(candidates) >= 2:
            order = torch.randperm(len(candidates), generator=generator, device=generator.device)
            yield index, windows.at(candidates[order[:most]])


def agreement(dreamed: Tensor, real: Tensor) -> float:
    """Return the Matthews correlation φ of two outcomes (n,) bool: 1 if they agree, 0 if they are unrelated.

    It is NaN if one of the two is always the same.
    """
    hits, both = dreamed.double(), real.double()
    spread = math.sqrt(float(hits.var(correction=0) * both.var(correction=0)))
    return float((hits * both).mean() - hits.mean() * both.mean()) / spread if spread > 0 else math.nan


def _replays(model: WorldModel, encoded: list[Episode], n_steps: int | None = None) -> list[Replay]:
    """Dream the first `n_steps` actions of encoded episodes from their first states; None: all actions."""
    starts = StartStates.from_episodes(encoded, model.spec.tasks, model.n_context_frames)
    return replay(model, to(starts, model.device), [episode.action[:n_steps] for episode in encoded])


def _predictions(model: WorldModel, history: Obs, seed: Tensor, actions: Tensor) -> list[Prediction]:
    """Dream `actions` (n, n_steps, action_dim) chunk by chunk."""
    session, predictions = model.begin(history, seed), []
    for chunk in actions.split(model.chunk_size, dim=1):
        session, predicted = model.predict(session, chunk)
        predictions.append(predicted)
    return predictions


def _windows(model: WorldModel, episodes: list[Episode], length: int) -> Windows:
    """Cut episodes into windows of `length` steps, on the device of the model."""
    windows = Windows(
        model.encode_episodes(episodes),
        tasks=model.spec.tasks,
        n_context_frames=model.n_context_frames,
        chunk_size=length,
        every=periods(model.predicted_spec.features),
    )
    return windows.to(model.device)
