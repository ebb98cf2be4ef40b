"""A Stable-Baselines3 callback for `wamtune train`: log successes in a row, and end the training at enough of them.

wamtune train sim env.tasks=push callbacks.enough.func=examples/my_callback.py:EnoughSuccesses
"""

from stable_baselines3.common.callbacks import BaseCallback


class EnoughSuccesses(BaseCallback):
    """End the training after `n` successful episodes in a row, with exploration on."""

    def __init__(self, n: int = 50) -> None:
        super().__init__()
        self.n, self.in_a_row = n, 0

    def _on_step(self) -> bool:
        """Called after every chunk of all environments; False ends the training."""
        for done, info in zip(self.locals["dones"], self.locals["infos"], strict=True):
            if done:
                self.in_a_row = self.in_a_row + 1 if info["is_success"] else 0
        self.logger.record("rollout/successes_in_a_row", self.in_a_row)
        return self.in_a_row < self.n
