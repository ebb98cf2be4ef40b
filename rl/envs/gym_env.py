"""Any registered gymnasium environment with Box spaces, one at a time. No torch: it runs in worker processes."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np

from rl.envs.workers import user_error

Array = np.ndarray


class GymTask:
    """One gymnasium environment behind the internal protocol of `SimEnv`; observations are flattened to float32.

    Success is `info["is_success"]` or `info["success"]`, and False where neither is reported.
    """

    def __init__(self, env_id: str) -> None:
        self._env = _make(env_id)
        observation, action = self._env.observation_space, self._env.action_space
        for name, space in (("observation", observation), ("action", action)):
            if not isinstance(space, gymnasium.spaces.Box):
                raise user_error(
                    f"environment {env_id!r}: its {name} space is {type(space).__name__}, expected Box; "
                    f"wrap it or choose another environment"
                )
        assert isinstance(action, gymnasium.spaces.Box)
        if not action.is_bounded() or len(action.shape) != 1:
            raise user_error(f"environment {env_id!r}: its action space is {action}, expected a bounded one-axis Box")
        self.state_dim = int(np.prod(observation.shape or (1,)))
        self.action_low, self.action_high = action.low.tolist(), action.high.tolist()
        self.control_hz = float(self._env.metadata.get("render_fps") or 1.0)  # the rate that gymnasium lets it declare

    def reset(self, seed: int) -> Array:
        """Begin the episode that `seed` names; return its first frame (state_dim,)."""
        obs, _ = self._env.reset(seed=seed)
        return _frame(obs)

    def step(self, action: Array) -> tuple[Array, float, bool, bool, bool]:
        """Execute `action` (action_dim,); return frame (state_dim,), reward, success, terminated, truncated."""
        obs, reward, terminated, truncated, info = self._env.step(action)
        success = bool(info.get("is_success", info.get("success", False)))
        return _frame(obs), float(reward), success, bool(terminated), bool(truncated)

    def close(self) -> None:
        """Release what the environment holds."""
        self._env.close()


def _make(env_id: str) -> gymnasium.Env[Any, Any]:
    try:
        if env_id.startswith("gym_pusht/"):
            import gym_pusht  # noqa: F401 - registers the id
        return gymnasium.make(env_id, disable_env_checker=True)
    except ImportError as error:  # gymnasium's DependencyNotInstalled as well
        if env_id.startswith("gym_pusht/"):
            raise user_error(f"environment {env_id!r} needs a package: pip install 'wamtune[pusht]'") from error
        raise user_error(f"environment {env_id!r} needs a package that is not installed: {_line(error)}") from error
    except gymnasium.error.Error as error:
        raise user_error(
            f"environment {env_id!r} cannot be made: {_line(error)}; expected 'metaworld' or a registered gymnasium id"
        ) from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")


def _frame(obs: Any) -> Array:
    return np.asarray(obs, dtype=np.float32).reshape(-1)
