"""Imitation losses added to PPO: demonstrations (the anchor), successes in the simulator, and dreamed successes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from rl.policies.api import TrainablePolicy
from rl.ppo.buffer import Rollout
from rl.ppo.distributed import Distributed
from world_model.data.episodes import PERSON, Episode
from world_model.data.windows import Windows
from world_model.tree import Tree, join, rows, to

MOST = 10_000
"""Largest number of success chunks kept of each kind, in all processes together; older ones are dropped.

Each takes 15 kB with its context.
"""

DEMO_COPIES = 8
"""Number of times each demonstration window is encoded, with new noise each, if the model adds noise to contexts."""

MOST_DEMOS = 64_000
"""Largest number of encoded demonstration windows, copies included: 1 GB. 50 tasks may have more without a copy."""

Examples = tuple[Tree, Tensor]
"""Encoded observations of n rows, and the actions taken there (n, chunk_size, action_dim)."""


class Imitation:
    """Imitation loss on demonstrations and, if its weight is above 0, on the policy's own successes.

    The latter is filtered behaviour cloning (BC), close to self-imitation learning (Oh et al., 1806.05635).
    Dreamed successes are many, and some are wrong. They are sampled separately from real ones, until `forget_dream`.

    Args:
        policy: is trained.
        demonstrations: episodes of the trained tasks.
        demo_coef: weight of the loss on demonstrations; the caller adds the weighted sum to its own loss.
        sim_coef: weight of the loss on successes in the simulator.
        dream_coef: weight of the loss on dreamed successes.
        batch_size: windows drawn from each of the three, in each process.
        distributed: the processes that train the policy together. Each keeps the successes that it has collected, and
            all have the demonstrations. None: there is one process.
    """

    def __init__(
        self,
        policy: TrainablePolicy,
        demonstrations: list[Episode],
        demo_coef: float,
        sim_coef: float,
        dream_coef: float,
        batch_size: int,
        distributed: Distributed | None = None,
    ) -> None:
        self.policy, self.batch_size, self.distributed = policy, batch_size, distributed or Distributed()
        self.coefs = {"demonstrations": demo_coef, "sim": sim_coef, "dream": dream_coef}
        # The encoder is frozen, so each context is encoded once, with the noise used in the model's training.
        self.examples: dict[str, Examples] = {}
        self.weights: dict[str, float] = {}  # of each kind in the loss of this process; none: no process has any
        if demo_coef > 0:
            windows = policy.windows(demonstrations)
            # Demonstrations are few: encode each window several times, each time with other noise.
            n_copies = 1 if policy.context_noise == 0.0 else DEMO_COPIES
            corrected, driven = _of_person(windows)
            index = (~corrected | driven).nonzero().squeeze(1)
            self._encode("demonstrations", windows, affordable(index, n_copies, MOST_DEMOS))
        self._weigh()

    def loss(self, generator: torch.Generator) -> Tensor | None:
        """Draw batches and return the weighted sum of their losses; None if there are no examples in any process."""
        parts = [self.weights[kind] * self._draw(*examples, generator) for kind, examples in self.examples.items()]
        if not self.weights:
            return None
        return torch.stack(parts).sum() if parts else torch.zeros((), device=self.policy.device)

    def add_successes(self, rollout: Rollout, place: str) -> None:
        """Keep the chunks of a rollout that led to a success in the same episode; `place` is "sim" or "dream"."""
        done = rollout.terminated | rollout.truncated
        # If only a part of each chunk was executed, extend it to a whole chunk with the following executed actions.
        actions, whole = whole_chunks(rollout.actions, done, self.policy.chunk_size, pads=self.policy.masks_unknown)
        kept = leads_to_success(rollout.success, done)[: len(whole)] & whole
        if self.coefs[place] > 0 and kept.any():
            contexts = [rows(context, of) for context, of in zip(rollout.context[: len(kept)], kept, strict=True)]
            self._keep(place, join(contexts), actions[kept])
        self._weigh()

    def add_episodes(self, episodes: list[Episode], delay: int = 0) -> None:
        """Keep consecutive chunks of recorded successes, and one more that ends with the episode.

        Without demonstrations these are the only examples, so all windows are kept, whatever step they begin at.

        Of an episode in which a person took over, only the person's chunks are kept, also if it was no success: before
        that, the policy erred.

        With images, a chunk can only begin at a new image, so the rest after the last whole chunk is shorter than a
        chunk. It is padded with its last action; the episode ended there, so the padding has no effect.

        Episodes hold executed actions. With a delay these were commanded `delay` steps earlier; the policy must learn
        the commands, so the actions are shifted back.
        """
        size = self.policy.chunk_size
        shortest = delay + (1 if self.policy.masks_unknown else size)
        kept = [e for e in episodes if e.is_success or _is_corrected(e)]
        successes = [_commanded(e, delay) for e in kept if e.length >= shortest]
        if self.coefs["sim"] > 0 and successes:
            self._add(successes)
        self._weigh()

    def _add(self, successes: list[Episode]) -> None:
        windows = self.policy.windows(successes, ends=True)
        corrected, driven = _of_person(windows)
        if self.policy.masks_unknown:  # one window for each decision
            aligned = windows.begins % self.policy.n_action_steps == 0
        elif self.coefs["demonstrations"] == 0.0:  # nothing else to imitate: every window, as of demonstrations
            aligned = torch.ones_like(windows.begins, dtype=torch.bool)
        else:  # every window that begins at a multiple of the chunk size, and the last one that fits the episode
            size = self.policy.chunk_size
            last = torch.tensor([e.length - size for e in windows.episodes], device=self.policy.device)
            aligned = (windows.begins % size == 0) | (windows.begins == last[windows.episode])
        # As in `leads_to_success`, leave out what comes after the last success.
        ends = torch.tensor([_last_success(e) for e in windows.episodes], device=self.policy.device)
        led = windows.begins <= ends[windows.episode]
        self._encode("sim", windows, ((aligned & led & ~corrected) | driven).nonzero().squeeze(1))

    def collected(self) -> dict[str, Examples]:
        """Return all examples except the demonstrations, which the constructor encodes."""
        return {kind: examples for kind, examples in self.examples.items() if kind != "demonstrations"}

    def collect_again(self, collected: dict[str, Examples]) -> None:
        """Replace the collected examples by those that `collected` returned."""
        self.examples = {k: examples for k, examples in self.examples.items() if k == "demonstrations"}
        for kind, (context, actions) in collected.items():
            self.examples[kind] = to(context, self.policy.device), actions.to(self.policy.device)
        self._weigh()

    def deal(self, parts: Sequence[dict[str, Examples]]) -> None:
        """Replace the collected examples by this process's share of those that `collected` returned in each process."""
        dealt: dict[str, Examples] = {}
        for kind in dict.fromkeys(kind for part in parts for kind in part):
            contexts, actions = zip(*(part[kind] for part in parts if kind in part), strict=True)
            context, action = join(contexts), torch.cat(actions)
            if own := list(self.distributed.shard(range(len(action)))):
                dealt[kind] = rows(context, torch.tensor(own, device=action.device)), action[own]
        self.collect_again(dealt)

    def forget_dream(self) -> None:
        """Drop dreamed successes: the next dream comes from a refitted model."""
        self.examples.pop("dream", None)
        self._weigh()

    def _weigh(self) -> None:
        """Weigh each kind by the share of its examples that this process has, so that all examples weigh the same.

        Every process draws as many windows as the others, also if it has fewer to draw from.
        """
        sizes = [len(self.examples[kind][1]) if kind in self.examples else 0 for kind in self.coefs]
        own = torch.tensor(sizes, device="cpu")
        every = self.distributed.sum(own).tolist()
        shares = zip(self.coefs.items(), own.tolist(), every, strict=True)
        self.weights = {
            kind: coef * (n * self.distributed.world_size / n_all) for (kind, coef), n, n_all in shares if n_all
        }

    def _encode(self, kind: str, windows: Windows, index: Tensor) -> None:
        if not len(index):
            return
        batch = windows.at(index)
        # Seeded by the data, so that a resumed run draws the same noise.
        generator = torch.Generator(self.policy.device).manual_seed(windows.episodes[0].seed)
        self._keep(kind, self.policy.encode(batch.obs, generator), batch.actions)

    def _keep(self, kind: str, context: Tree, actions: Tensor) -> None:
        if kind in self.examples:
            old_context, old_actions = self.examples[kind]
            context, actions = join([old_context, context]), torch.cat([old_actions, actions])
        if kind != "demonstrations":  # the number of those is limited before they are encoded
            newest = slice(-self.distributed.share.of(MOST), None)
            context, actions = rows(context, newest), actions[newest]
        self.examples[kind] = context, actions

    def _draw(self, context: Tree, actions: Tensor, generator: torch.Generator) -> Tensor:
        index = torch.randint(len(actions), (self.batch_size,), generator=generator, device=generator.device)
        return self.policy.imitation_loss(rows(context, index), actions[index], generator)


def _commanded(episode: Episode, delay: int) -> Episode:
    """Pair each state with the action that was commanded in it and executed `delay` steps later."""
    # The last `delay` states have no known command, so the episode gets shorter by them.
    shorter, late = episode.cut(0, episode.length - delay), slice(delay, None)
    control = None if episode.control is None else episode.control[late]
    action, success = episode.action[late], episode.success[late]
    return replace(shorter, action=action, success=success, task_reward=None, control=control)


def _is_corrected(episode: Episode) -> bool:
    """Whether a person took over in an episode."""
    return episode.control is not None and bool((episode.control == PERSON).any())


def _last_success(episode: Episode) -> int:
    """Return the index of the last step at which the task is solved; -1 if it never is."""
    return max(episode.success.nonzero().flatten().tolist(), default=-1)


def _of_person(windows: Windows) -> tuple[Tensor, Tensor]:
    """Return which windows (n,) are of an episode in which a person took over, and which a person's from end to end."""
    corrected, driven = [], []
    for number, begin in zip(windows.episode.tolist(), windows.begins.tolist(), strict=True):
        control = windows.episodes[number].control
        corrected.append(_is_corrected(windows.episodes[number]))
        part = None if control is None else control[begin : begin + windows.chunk_size]
        driven.append(part is not None and len(part) == windows.chunk_size and bool((part == PERSON).all()))
    device = windows.start.device
    return torch.tensor(corrected, device=device), torch.tensor(driven, device=device)


def affordable(index: Tensor, n_copies: int, most: int) -> Tensor:
    """Return `index` (n,) up to `n_copies` times, as often as `most` rows allow; of more than `most`, some."""
    if len(index) > most:
        return index[torch.arange(most, device=index.device) * len(index) // most]
    return index.repeat(max(1, min(n_copies, most // max(len(index), 1))))


def leads_to_success(success: Tensor, done: Tensor) -> Tensor:
    """Mark chunks (n_steps, num_envs) whose episode succeeded in or after them, within the rollout."""
    marks = torch.zeros_like(success)
    later = torch.zeros_like(success[0])
    # Backwards in time: an end without success in the same chunk separates a chunk from later successes.
    for i in reversed(range(len(success))):
        later = success[i] | (later & ~done[i])
        marks[i] = later
    return marks


def whole_chunks(actions: Tensor, done: Tensor, size: int, pads: bool = False) -> tuple[Tensor, Tensor]:
    """Extend each chunk of executed actions (n_steps, num_envs, k, action_dim) to `size` with those of the next chunks.

    Returns m chunks (m, num_envs, size, action_dim), and whether each lies within one episode (m, num_envs). m is
    smaller than n_steps by the chunks that the end of the rollout leaves incomplete. With `pads` no chunk is lost:
    actions of chunks after the one in which the episode or the rollout ends are NaN.
    """
    n_chunks = -(-size // actions.shape[2])  # rounded up: executed chunks needed for one whole chunk
    if pads:
        missing = actions.new_full((n_chunks - 1, *actions.shape[1:]), torch.nan)
        actions = torch.cat([actions, missing])
        done = torch.cat([done, done.new_zeros(n_chunks - 1, done.shape[1])])
    m = max(0, len(actions) - n_chunks + 1)
    parts = [actions[i : m + i] for i in range(n_chunks)]
    # Whether the episode of chunk 0 ended before chunk i.
    ended = [sum((done[j : m + j] for j in range(i)), start=torch.zeros_like(done[:m])) for i in range(n_chunks)]
    if not pads:
        return torch.cat(parts, dim=2)[:, :, :size], ~ended[-1]
    known = [torch.where(over[..., None, None], torch.nan, part) for over, part in zip(ended, parts, strict=True)]
    return torch.cat(known, dim=2)[:, :, :size], torch.ones_like(done[:m])
