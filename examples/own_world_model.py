"""A world model of your own: a small MLP that learns from recorded episodes; docs/bring_your_own.md explains each part.

`wamtune train dream env.tasks=button-press-topdown dream.world_model=examples/own_world_model.py:OwnWorldModel`
"""

import torch
from torch import Tensor, nn

from world_model.api import Prediction, WorldModel
from world_model.checkpoint import builtin_checkpoints, find_checkpoint
from world_model.data.episodes import Episode, EpisodeStore
from world_model.data.windows import Windows


class OwnWorldModel(nn.Module, WorldModel):
    """Predicts each state from the last two and an action; `episodes` names the folder that it learns from."""

    n_context_frames, chunk_size = 2, 8

    def __init__(self, episodes: str = "metaworld-tuned", n_steps: int = 2000, width: int = 512) -> None:
        super().__init__()
        store = EpisodeStore(find_checkpoint(episodes) if episodes in builtin_checkpoints() else episodes)
        self.spec, self.recorded, self.n_steps = store.spec, store.load(), n_steps
        states = torch.cat([episode.state for episode in self.recorded])
        self.middle, self.scale = nn.Buffer(states.mean(0)), nn.Buffer(states.std(0) + 1e-3)
        n_in = 2 * self.spec.state_dim + len(self.spec.tasks) + self.spec.action_dim
        self.net = nn.Sequential(nn.Linear(n_in, width), nn.SiLU(), nn.Linear(width, self.spec.state_dim + 1))

    def pretrain(self, seed: int) -> None:
        """Train new weights; not called where those of a run are loaded."""
        self.refit([], self.n_steps, learning_rate=1e-3, seed=seed)

    def begin(self, history: dict[str, Tensor], seed: Tensor) -> dict[str, Tensor]:
        """Begin dreams with two states each; this model draws no random numbers."""
        return {"states": history["state"], "task": history["task"]}

    def predict(self, session: dict[str, Tensor], actions: Tensor) -> tuple[dict[str, Tensor], Prediction]:
        """Predict k states, one after the other, and the probability that each solves the task."""
        states, success = session["states"], []
        for action in actions.unbind(1):
            following, logit = self._step(states[:, -2:], session["task"], action)
            states, success = torch.cat([states, following[:, None]], dim=1), [*success, logit.sigmoid()]
        return session | {"states": states[:, -2:]}, Prediction({"state": states[:, 2:]}, torch.stack(success, dim=1))

    def refit(self, episodes: list[Episode], n_steps: int, learning_rate: float, seed: int, tick=None) -> None:
        """Train on its own episodes and on those of the run."""
        windows = Windows(self.recorded + episodes, self.spec.tasks, self.n_context_frames, 1).to(self.scale.device)
        generator, optimizer = torch.Generator().manual_seed(seed), torch.optim.Adam(self.parameters(), learning_rate)
        for batch in (windows.sample(256, generator) for _ in range(n_steps)):
            following, logit = self._step(batch.context["state"], batch.task, batch.actions[:, 0])
            error = ((following - batch.future["state"][:, 0]) / self.scale).abs().mean()
            loss = error + nn.functional.binary_cross_entropy_with_logits(logit, batch.success[:, 0])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    def _step(self, states: Tensor, task: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        which = nn.functional.one_hot(task, len(self.spec.tasks))
        out = self.net(torch.cat([((states - self.middle) / self.scale).flatten(1), which, action], dim=1))
        return states[:, -1] + self.scale * out[:, :-1], out[:, -1]
