"""Callbacks of Stable-Baselines3 in a run: build them from the config, call them, save and restore their state."""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from stable_baselines3.common import callbacks as sb3
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter, Logger
from torch import Tensor

from rewards.errors import UserError, blamed, did_you_mean, file_of
from rewards.plugins import load, source_file
from rl.envs.adapters import ChunkVecEnv, StepVecEnv
from rl.envs.simulator import Simulator
from rl.ppo.buffer import Rollout
from rl.ppo.sb3 import ChunkPPO, folder_of
from rl.ppo.update import PPO
from rl.seeds import CALLBACK_EVAL
from world_model.env import BatchedEnv

BUILTIN: dict[str, type[BaseCallback]] = {
    of.__name__: of
    for of in (
        sb3.CheckpointCallback,
        sb3.EvalCallback,
        sb3.EveryNTimesteps,
        sb3.LogEveryNTimesteps,
        sb3.StopTrainingOnMaxEpisodes,
        sb3.StopTrainingOnNoModelImprovement,
        sb3.StopTrainingOnRewardThreshold,
    )
}
"""Callbacks of Stable-Baselines3 that `func` may name. Its others are base classes, or serve its own progress bar."""

PATHS = ("save_path", "log_path", "best_model_save_path")
"""Params of the built-in callbacks that are paths, relative to the run folder."""

OURS = "time/total_timesteps"
"""The run logs executed simulator steps here in every row; what callbacks record under this key is dropped."""

Result = TypeVar("Result")


class RunCallbacks:
    """The callbacks of one run; without any, `ppo` collects the rollouts directly.

    Args:
        terms: name -> `{func, params}`, or None to switch it off; without `func`, the built-in with this name. A param
            that has this form itself is built as a callback.
        ppo: the PPO of the run.
        env: the first environment that it trains in.
        make_eval_env: builds an environment for a number of episodes, for callbacks with a param `eval_env`.
        folder: run folder.
        log: called with values by name.
        save: called with the folder to write a checkpoint to.

    Raises:
        UserError: a callback is unknown, or its params do not fit.
    """

    def __init__(
        self,
        terms: Mapping[str, Any],
        ppo: PPO,
        env: BatchedEnv,
        make_eval_env: Callable[[int], Simulator],
        folder: Path,
        log: Callable[[dict[str, float]], None],
        save: Callable[[Path], None],
    ) -> None:
        self.stopped_by = ""  # name of the callback that ended the training
        self._ppo, self._eval_envs = ppo, list[StepVecEnv]()
        self._restored: Mapping[str, Any] | None = None
        self._begun = False
        builder = _Builder(make_eval_env, folder, self._eval_envs)
        self._called = _Named({name: builder.build(name, term) for name, term in terms.items() if term is not None})
        self._model: _RunModel | None = None
        if self._called.callbacks:
            self._model = _RunModel(ppo, env, Logger(None, [_ToRun(log)]), save)
            self._called.init_callback(self._model)

    def begin(self, **about: Any) -> None:
        """Call `on_training_start` once per process, then apply the state that `load_state_dict` received.

        `about` holds the local variables that callbacks find in `locals`: `total_timesteps`, `tb_log_name`.
        """
        if self._model is None:
            return
        if not self._begun:
            self._begun = True
            self._called.on_training_start({"self": self._model, **about}, {})
        if self._restored is not None:
            self._model.num_timesteps = self._restored["num_timesteps"]
            for name, state in self._restored["callbacks"].items():
                if name in self._called.callbacks:
                    _restore(self._called.callbacks[name], state)
            self._restored = None

    def collect(self, env: BatchedEnv, n_steps: int, fresh: bool, n_updates: int) -> Rollout:
        """Collect a rollout as `PPO.collect` does; set `stopped_by` to the callback that ended it, or to ""."""
        if self._model is None:
            return self._ppo.collect(env, n_steps, fresh)
        model = self._model
        model.at(env, n_updates)
        going_on = model.collect(model.env, self._called, n_steps, fresh)
        self.stopped_by = "" if going_on else self._called.stopped_by
        if not going_on:
            self.dump()  # log now: no update follows, and a saved state does not hold recorded values
        assert model.rollout is not None
        return model.rollout

    def dump(self) -> None:
        """Log the values that callbacks have recorded since the last call."""
        if self._model is not None:
            self._model.logger.dump()

    def end(self) -> None:
        """Call `on_training_end`, then log the values that are still pending."""
        if self._model is not None:
            self._called.on_training_end()
            self.dump()

    def state_dict(self) -> dict[str, Any] | None:
        """Return the callbacks' attributes that are plain values or tensors; None without callbacks."""
        if self._model is None:
            return None
        kept = {name: _kept(callback) for name, callback in self._called.callbacks.items()}
        return {"num_timesteps": self._model.num_timesteps, "callbacks": kept}

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """Keep a state of `state_dict`, to apply it at the next `begin`."""
        self._restored = state

    def close(self) -> None:
        """Close the evaluation environments of the callbacks."""
        for env in self._eval_envs:
            env.close()


def callback_files(terms: Mapping[str, Any]) -> dict[str, Path]:
    """Return the source file of every callback that is not built in, by its key in the config."""
    found: dict[str, Path] = {}
    for name, term in terms.items():
        if isinstance(term, Mapping):
            func = term.get("func") or name
            file = source_file("callback", func, BUILTIN, who=f"callback {name!r}") if isinstance(func, str) else None
            found |= {} if file is None else {f"callbacks.{name}": file}
            params = term.get("params") or {}
            inner = {f"{name}.{key}": value for key, value in params.items() if _is_term(value)}
            found |= callback_files(inner)
    return found


class _Builder:
    """Build callbacks from config terms; add the environments made for `eval_env` to `eval_envs`, to be closed."""

    def __init__(self, make_eval_env: Callable[[int], Simulator], folder: Path, eval_envs: list[StepVecEnv]) -> None:
        self.make_eval_env, self.folder, self.eval_envs = make_eval_env, folder, eval_envs

    def build(self, name: str, term: Any) -> BaseCallback:
        """Build the callback `name`, and first the callbacks among its params."""
        what = f"callback {name!r}"
        if not isinstance(term, Mapping):
            raise UserError(f"{what}: expected func and params, got {term!r}; write {{func: ..., params: {{...}}}}")
        for key in term:
            if key not in ("func", "params"):
                hint = did_you_mean(str(key), ("func", "params"))
                raise UserError(f"{what}: unknown key {key!r}, expected func or params{hint}")
        func, params = term.get("func") or name, term.get("params") or {}
        if not isinstance(func, str):
            raise UserError(f"{what}: func is {func!r}, expected a name, module:Class or path.py:Class")
        if not isinstance(params, Mapping):
            raise UserError(f"{what}: params are {params!r}, expected names and values; write {{name: value}}")
        found = load("callback", func, BUILTIN, who=what)
        if not (inspect.isclass(found) and issubclass(found, BaseCallback)):
            base = f"{BaseCallback.__module__}.{BaseCallback.__name__}"
            raise UserError(f"{what}: {func} is no callback; expected a class that extends {base}")
        # Params that are callbacks themselves, such as `callback_on_new_best` of EvalCallback, are built first.
        given = {key: self.build(f"{name}.{key}", v) if _is_term(v) else v for key, v in params.items()}
        return self._built(what, func, found, given)

    def _built(self, what: str, func: str, found: type[BaseCallback], params: dict[str, Any]) -> BaseCallback:
        # Check the params before the call, so that a wrong one is not blamed on the callback's code.
        signature = inspect.signature(found)
        asks = "eval_env" in signature.parameters and "eval_env" not in params
        try:
            signature.bind(**params, **({"eval_env": None} if asks else {}))
        except TypeError as error:
            takes = ", ".join(name for name in signature.parameters if not (asks and name == "eval_env")) or "none"
            raise UserError(f"{what}: params of {func}: {error}; it takes {takes}") from error
        if func in BUILTIN:
            params = {k: str(self.folder / v) if k in PATHS and isinstance(v, str) else v for k, v in params.items()}
        with blamed(what, file_of(found)):
            if asks:
                params["eval_env"] = self._eval_env(int(params.get("n_eval_episodes", 5)))
            return found(**params)

    def _eval_env(self, n_episodes: int) -> StepVecEnv:
        """Build an environment that runs the same episodes in every evaluation, so that results can be compared."""
        self.eval_envs.append(StepVecEnv(self.make_eval_env(n_episodes), CALLBACK_EVAL))
        return self.eval_envs[-1]


class _RunModel(ChunkPPO):
    """The `model` that callbacks of a run see: its PPO, its logger, and a `save` that writes its checkpoints."""

    def __init__(self, ppo: PPO, env: BatchedEnv, logger: Logger, save: Callable[[Path], None]) -> None:
        super().__init__(ppo.policy, env, ppo.config)
        self.ppo, self._save, self._first = ppo, save, self.env
        self.set_logger(logger)
        self.ep_info_buffer = deque(maxlen=self._stats_window_size)
        self.ep_success_buffer = deque(maxlen=self._stats_window_size)

    @property
    def n_updates(self) -> int:
        """Updates of the run so far."""
        return self._n_updates

    def at(self, env: BatchedEnv, n_updates: int) -> None:
        """Set the environment of the next rollout and the number of updates before it."""
        if env is self._first.batched:
            self.env = self._first  # keep this adapter: it counts steps and rewards of unfinished episodes
        elif env is not self.env.batched:
            self.env = ChunkVecEnv(env, self.ppo.policy.n_action_steps, self.gamma)
        self.n_envs = env.num_envs
        self._n_updates, self._current_progress_remaining = n_updates, self.ppo.progress_remaining

    def save(self, path: str | Path, *_: object, **__: object) -> None:  # type: ignore[override]
        """Write a checkpoint folder as `wamtune train` does; a `.zip` in the name is left out."""
        self._save(folder_of(path))


class _Named(BaseCallback):
    """Call several callbacks in order; name the one that raised an exception or ended the training."""

    def __init__(self, callbacks: dict[str, BaseCallback]) -> None:
        super().__init__()
        self.callbacks = callbacks
        self.stopped_by = ""

    def _each(self, call: Callable[[BaseCallback], Result]) -> dict[str, Result]:
        results = {}
        for name, callback in self.callbacks.items():
            with blamed(f"callback {name!r}", file_of(callback)):
                results[name] = call(callback)
        return results

    def _init_callback(self) -> None:
        self._each(lambda callback: callback.init_callback(self.model))

    def _on_training_start(self) -> None:
        self._each(lambda callback: callback.on_training_start(self.locals, self.globals))

    def _on_rollout_start(self) -> None:
        self._each(lambda callback: callback.on_rollout_start())

    def _on_step(self) -> bool:
        # Call all of them, even if the first one stops, as a CallbackList of SB3 does.
        goes_on = self._each(lambda callback: callback.on_step())
        self.stopped_by = next((name for name, goes in goes_on.items() if not goes), "")
        return not self.stopped_by

    def _on_rollout_end(self) -> None:
        self._each(lambda callback: callback.on_rollout_end())

    def _on_training_end(self) -> None:
        self._each(lambda callback: callback.on_training_end())

    def update_child_locals(self, locals_: dict[str, Any]) -> None:
        """Pass the local variables of a rollout on to each callback."""
        self._each(lambda callback: callback.update_locals(locals_))


class _ToRun(KVWriter):
    """Write recorded numbers to the log of a run; skip texts, figures and histograms."""

    def __init__(self, log: Callable[[dict[str, float]], None]) -> None:
        self.log = log

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Log the numbers; the run sets the step itself, so `step` is ignored."""
        numbers = {key: float(v) for key, v in key_values.items() if key != OURS and _is_number(v)}
        if numbers:
            self.log(numbers)

    def close(self) -> None:
        """Do nothing: the log belongs to the run."""


def _is_term(value: Any) -> bool:
    return isinstance(value, Mapping) and "func" in value


def _is_number(value: Any) -> bool:
    if isinstance(value, Tensor | np.ndarray):
        return value.ndim == 0
    return isinstance(value, bool | int | float | np.number | np.bool_)


def _kept(callback: BaseCallback) -> dict[str, Any]:
    """Return the attributes of a callback that a saved state can hold, nested for callbacks inside it.

    Texts given as params are skipped: the config sets them again. They may be paths below a run folder that has been
    moved since.
    """
    params = inspect.signature(type(callback)).parameters
    kept = {}
    for name, value in vars(callback).items():
        if name in ("locals", "globals", "parent") or (isinstance(value, str) and name in params):
            continue
        try:
            kept[name] = _kept(value) if isinstance(value, BaseCallback) else _plain(value)
        except TypeError:  # an environment, a file or another object: the constructor makes it again
            continue
    return kept


def _plain(value: Any) -> Any:
    """Return a copy of a value that consists of numbers, texts, tensors, lists, tuples and dicts.

    Raises:
        TypeError: it contains anything else.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Tensor):
        return value.detach().clone()
    if type(value) in (list, tuple):
        return type(value)(_plain(item) for item in value)
    if type(value) is dict:
        return {_plain(key): _plain(item) for key, item in value.items()}
    raise TypeError(f"a {type(value).__name__} is not kept")


def _restore(callback: BaseCallback, state: Mapping[str, Any]) -> None:
    for name, value in state.items():
        now = getattr(callback, name, None)
        if isinstance(now, BaseCallback):
            _restore(now, value)
        else:
            setattr(callback, name, value.to(now.device) if isinstance(now, Tensor) else value)
