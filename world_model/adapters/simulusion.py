"""The recurrent state-space model of the package simulusion (Dreamer's: a GRU and a Gaussian latent) as a dream.

    pip install -e '.[simulusion]'
    wamtune train dream env.tasks=button-press-topdown \
        'dream.world_model={func: world_model.adapters.simulusion:RecurrentWorldModel, params: {episodes: FOLDER}}'

It predicts from a hidden state, not from frames: a session holds that state for each dream. The network and its steps
are those of the package; this file trains it on state vectors of recorded episodes, with Dreamer's loss, and draws its
noise from the seeds of the dreams. The package's own `WorldModel` protocol is not used, because it has images alone,
without the state of the robot that policies read.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from world_model.api import Prediction, Session, WorldModel
from world_model.checkpoint import builtin_checkpoints, find_checkpoint
from world_model.data.episodes import Episode, EpisodeStore
from world_model.data.windows import Windows
from world_model.env import Obs
from world_model.extras import import_extra
from world_model.flow import seeded_noise
from world_model.spec import STATE

Latent = dict[str, Tensor]
"""State of the network for n rows: `deter` (n, deter_size), and `mean`, `std`, `stoch` (n, stoch_size)."""

BATCH_SIZE = 64
"""Sequences in a training step."""

FREE_NATS = 1.0
"""The divergence of posterior and prior is not trained below this, as in Dreamer (1912.01603)."""


class RecurrentWorldModel(nn.Module, WorldModel):
    """A recurrent state-space model on state vectors.

    Args:
        episodes: folder of recorded episodes, or a built-in checkpoint, which it learns from and gets its spec from.
        n_steps: optimizer steps before the run begins; `dream.refit_steps` are those before each dream.
        learning_rate: of these steps.
        length: steps of a training sequence.
        deter_size: size of the hidden state.
        stoch_size: size of the latent.
        n_context_frames: frames that a dream begins with; a policy reads as many at most.
        chunk_size: most actions of one prediction.

    Raises:
        UserError: the package is not installed, or there are no episodes.
    """

    def __init__(
        self,
        episodes: str,
        n_steps: int = 2000,
        learning_rate: float = 1e-3,
        length: int = 16,
        deter_size: int = 128,
        stoch_size: int = 16,
        n_context_frames: int = 2,
        chunk_size: int = 8,
    ) -> None:
        super().__init__()
        store = EpisodeStore(find_checkpoint(episodes) if episodes in builtin_checkpoints() else episodes)
        self.spec = replace(store.spec, features={STATE: store.spec.features[STATE]})
        self.recorded = store.load(features=[STATE])
        self.n_context_frames, self.chunk_size, self.length = n_context_frames, chunk_size, length
        states = torch.cat([episode.state for episode in self.recorded])
        self.register_buffer("middle", states.mean(0))
        self.register_buffer("scale", states.std(0) + 1e-3)
        self.middle: Tensor
        self.scale: Tensor
        self.rssm = _create_modular_rssm()(
            encoder_type="mlp",
            decoder_type="mlp",
            backbone_type="gru",
            obs_shape=(self.spec.state_dim + len(self.spec.tasks),),
            action_size=self.spec.action_dim,
            stoch_size=stoch_size,
            deter_size=deter_size,
            embed_size=deter_size,
            hidden_size=deter_size,
        )
        self.n_steps, self.learning_rate = n_steps, learning_rate

    def pretrain(self, seed: int) -> None:
        """Train on the episodes that it begins with."""
        self.refit([], self.n_steps, self.learning_rate, seed)

    def begin(self, history: Obs, seed: Tensor) -> Session:
        """Filter the frames of each dream to a hidden state. The actions between them are unknown, and count as 0."""
        known = {"task": history["task"], "seed": seed}
        with self._own_random_numbers():
            latent, _ = self._observed(history[STATE], history["task"])
        return self._redrawn(latent, seed, torch.zeros_like(seed)) | known | {"counter": torch.ones_like(seed)}

    def predict(self, session: Session, actions: Tensor) -> tuple[Session, Prediction]:
        """Imagine k steps from the hidden state, and decode a state vector and success from each."""
        latent = {name: session[name] for name in ("mean", "std", "stoch", "deter")}
        seed, counter, frames, success = session["seed"], session["counter"], [], []
        for action in actions.unbind(1):
            with self._own_random_numbers():
                latent = self.rssm.imagine_step(latent, action)
            latent, counter = self._redrawn(latent, seed, counter), counter + 1
            frame, logit = self._decoded(latent)
            frames.append(self.middle + self.scale * frame)
            success.append(logit.sigmoid())
        following = {**session, **latent, "counter": counter}
        return following, Prediction({STATE: torch.stack(frames, 1)}, torch.stack(success, 1))

    def refit(
        self,
        episodes: list[Episode],
        n_steps: int,
        learning_rate: float,
        seed: int,
        tick: Callable[[float], None] = lambda share: None,
    ) -> None:
        """Train on the episodes that it began with and on those of the run; see `WorldModel.refit`.

        Raises:
            UserError: no episode has `length` steps.
        """
        windows = Windows(self.recorded + episodes, self.spec.tasks, self.n_context_frames, self.length)
        windows.to(self.device)
        generator = torch.Generator(self.device).manual_seed(seed)
        optimizer = torch.optim.Adam(self.parameters(), learning_rate)
        with self._own_random_numbers():
            torch.manual_seed(seed)  # the package draws from the global generator
            for i in range(n_steps):
                batch = windows.sample(BATCH_SIZE, generator)
                loss = self._loss(batch.context[STATE], batch.task, batch.actions, batch.future[STATE], batch.success)
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(self.parameters(), 100.0)
                optimizer.step()
                tick((i + 1) / n_steps)

    def _loss(self, context: Tensor, task: Tensor, actions: Tensor, future: Tensor, success: Tensor) -> Tensor:
        """Return Dreamer's loss of sequences: reconstruction, success, and divergence of posterior and prior."""
        latent, _ = self._observed(context, task)
        losses = []
        for t in range(actions.shape[1]):
            prior, latent = self.rssm.observe_step(latent, actions[:, t], self._seen(future[:, t], task))
            frame, logit = self._decoded(latent)
            error = (frame - (future[:, t] - self.middle) / self.scale).square().sum(-1).mean()
            solved = F.binary_cross_entropy_with_logits(logit, success[:, t])
            divergence = kl_divergence(*(Normal(of["mean"], of["std"]) for of in (latent, prior))).sum(-1).mean()
            losses.append(error + solved + divergence.clamp(min=FREE_NATS))
        return torch.stack(losses).mean()

    def _observed(self, states: Tensor, task: Tensor) -> tuple[Latent, Latent]:
        """Return posterior and prior after the states (n, n_frames, state_dim) of tasks (n,)."""
        latent = prior = self.rssm.init_state(len(states), self.device)
        still = states.new_zeros(len(states), self.spec.action_dim)
        for frame in states.unbind(1):
            prior, latent = self.rssm.observe_step(latent, still, self._seen(frame, task))
        return latent, prior

    def _seen(self, state: Tensor, task: Tensor) -> Tensor:
        """Return the input of the encoder: the normalised state (n, state_dim) and the task (n,) as one-hot."""
        which = F.one_hot(task, len(self.spec.tasks))
        return torch.cat([(state - self.middle) / self.scale, which], dim=1)

    def _decoded(self, latent: Latent) -> tuple[Tensor, Tensor]:
        """Return the normalised state (n, state_dim) and the logit of success (n,)."""
        features = torch.cat([latent["stoch"], latent["deter"]], dim=1)
        frame = self.rssm.decode_observation(features).mean[:, : self.spec.state_dim]
        return frame, self.rssm.decode_reward(features).mean[:, 0]

    def _redrawn(self, latent: Latent, seed: Tensor, counter: Tensor) -> Latent:
        """Draw the latent again, from the seed (n,) and step (n,) of each row in place of the global generator."""
        noise = seeded_noise(seed, counter, latent["mean"].shape[1:])
        return {**latent, "stoch": latent["mean"] + noise * latent["std"]}

    def _own_random_numbers(self) -> AbstractContextManager[None]:
        """Leave the global generators as they were: the package draws from them in every step."""
        return torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else [])


def _create_modular_rssm() -> Any:
    """Import the package.

    Raises:
        UserError: it is not installed.
    """
    module = "simulusion.models.modular_rssm"
    return import_extra(module, "simulusion", "RecurrentWorldModel needs the package simulusion").create_modular_rssm
