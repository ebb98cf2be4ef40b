"""Imitation beside PPO: the anchor to demonstrations, own successes in the simulator, and those of a dream."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from rl.ppo.buffer import Rollout
from world_model.api import Context, Imitator
from world_model.data.episodes import Episode
from world_model.data.windows import Windows

MOST = 10_000
"""Chunks of successes that are kept of each kind, the newest ones: 15 kB each with what the encoder made of them."""

DEMO_COPIES = 8
"""Times that each window of a demonstration is encoded where a model learns with noise on contexts."""

Examples = tuple[Context, Tensor]
"""Contexts of n rows, and the actions taken there (n, chunk_size, action_dim)."""


class Imitation:
    """Loss of imitating demonstrations and, where asked for, the successes of the policy itself (filtered BC).

    Dreamed successes are many and not all true, so they are drawn apart from real ones, until `forget_dream`.

    Args:
        model: whose action decoder imitates.
        demonstrations: episodes of the tasks that are trained.
        demo_coef, sim_coef, dream_coef: weights of demonstrations and of successes in simulator and dream; the caller
            adds the sum to its own loss.
        batch_size: windows drawn of each.
    """

    def __init__(
        self,
        model: Imitator,
        demonstrations: list[Episode],
        demo_coef: float,
        sim_coef: float,
        dream_coef: float,
        batch_size: int,
    ) -> None:
        self.model, self.batch_size = model, batch_size
        self.coefs = {"demonstrations": demo_coef, "sim": sim_coef, "dream": dream_coef}
        # The encoder is frozen, so every context is encoded once, with the noise that the model learns with.
        self.examples: dict[str, Examples] = {}
        if demo_coef > 0:
            windows = model.windows(demonstrations)
            # They are few: each is encoded several times, with other noise.
            n_copies = 1 if model.context_noise == 0.0 else DEMO_COPIES
            self._encode("demonstrations", windows, torch.arange(len(windows)).repeat(n_copies))

    def loss(self, generator: torch.Generator) -> Tensor | None:
        """Draw the weighted loss; None when there is nothing to imitate."""
        parts = [self.coefs[kind] * self._draw(*examples, generator) for kind, examples in self.examples.items()]
        return torch.stack(parts).sum() if parts else None

    def add_successes(self, rollout: Rollout, place: str) -> None:
        """Keep the chunks of a rollout in simulator or dream that led to a success in the same episode."""
        done = rollout.terminated | rollout.truncated
        actions, whole = whole_chunks(rollout.actions, done, self.model.chunk_size)
        kept = leads_to_success(rollout.success, done)[: len(whole)] & whole
        if self.coefs[place] > 0 and kept.any():
            contexts = [context[rows] for context, rows in zip(rollout.context[: len(kept)], kept, strict=True)]
            self._keep(place, Context.join(contexts), actions[kept])

    def add_episodes(self, episodes: list[Episode], delay: int = 0) -> None:
        """Keep the chunks of recorded successes, one after the other and the last one up to the end.

        Of a model that sees they begin at new pictures alone, so what is left after the last whole one is shorter than
        a chunk. It is filled up by repeating its last action: the episode ended there, so what follows does not matter.

        What was executed had been commanded `delay` steps before, and commands are what a policy has to learn.
        """
        size = self.model.chunk_size
        successes = [_commanded(e, delay) for e in episodes if e.is_success and e.length >= size + delay]
        if self.coefs["sim"] == 0 or not successes:
            return
        windows = self.model.windows(successes, ends=True)
        begins = windows.start - windows.first[windows.episode]
        last = torch.tensor([e.length - size for e in windows.episodes], device=self.model.device)[windows.episode]
        self._encode("sim", windows, ((begins % size == 0) | (begins == last)).nonzero().squeeze(1))

    def collected(self) -> dict[str, Examples]:
        """All examples but those of the demonstrations, which are there from the start."""
        return {kind: examples for kind, examples in self.examples.items() if kind != "demonstrations"}

    def collect_again(self, collected: dict[str, Examples]) -> None:
        """Take back what `collected` gave, in place of what there is."""
        self.examples = {k: examples for k, examples in self.examples.items() if k == "demonstrations"}
        for kind, (context, actions) in collected.items():
            self.examples[kind] = context.to(self.model.device), actions.to(self.model.device)

    def forget_dream(self) -> None:
        """Drop dreamed successes: the next dream is another one."""
        self.examples.pop("dream", None)

    def _encode(self, kind: str, windows: Windows, index: Tensor) -> None:
        batch = windows.at(index)
        generator = torch.Generator(self.model.device).manual_seed(windows.episodes[0].seed)  # repeats after a resume
        with torch.no_grad():
            context = self.model.encode(self.model.noisy(batch.context, generator), batch.task)
        self._keep(kind, context, batch.actions)

    def _keep(self, kind: str, context: Context, actions: Tensor) -> None:
        if kind in self.examples:
            old_context, old_actions = self.examples[kind]
            context, actions = Context.join([old_context, context])[-MOST:], torch.cat([old_actions, actions])[-MOST:]
        self.examples[kind] = context, actions

    def _draw(self, context: Context, actions: Tensor, generator: torch.Generator) -> Tensor:
        index = torch.randint(len(actions), (self.batch_size,), generator=generator, device=generator.device)
        return self.model.imitation_loss(context[index], actions[index], generator)


def _commanded(episode: Episode, delay: int) -> Episode:
    seen, late = episode.state[: len(episode.state) - delay], slice(delay, None)
    return replace(episode, state=seen, action=episode.action[late], success=episode.success[late], task_reward=None)


def leads_to_success(success: Tensor, done: Tensor) -> Tensor:
    """Mark the chunks (n_steps, num_envs) after which, or in which, their episode succeeded within the rollout."""
    marks = torch.zeros_like(success)
    later = torch.zeros_like(success[0])
    for i in reversed(range(len(success))):
        later = success[i] | (later & ~done[i])
        marks[i] = later
    return marks


def whole_chunks(actions: Tensor, done: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Complete each chunk of executed actions (n_steps, num_envs, k, action_dim) with those of the next chunks.

    Returns m chunks (m, num_envs, size, action_dim) and whether each is of one episode (m, num_envs); m is n_steps less
    those that the end of the rollout leaves incomplete.
    """
    n_chunks = -(-size // actions.shape[2])
    m = max(0, len(actions) - n_chunks + 1)
    chunks = torch.cat([actions[i : m + i] for i in range(n_chunks)], dim=2)[:, :, :size]
    return chunks, ~sum((done[i : m + i] for i in range(n_chunks - 1)), start=torch.zeros_like(done[:m]))
