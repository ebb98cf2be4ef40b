"""The numbers of stock Meta-World at a multiple of its speed.

Stock Meta-World is slow in: rotations through SciPy, NumPy on arrays of three numbers, look-ups by name, contact lists
built in Python, and 100 settling steps in each reset. This module changes neither the physics nor the tasks. The
methods of a task run unchanged, with a few of their global names bound to faster equivalents. The stock classes stay
untouched, so both versions can run in one process. `benchmarks/metaworld_speed.py` prints the speed and the largest
difference.
"""

from __future__ import annotations

import copy
import math
import sys
import types
from functools import cache
from typing import Any

import mujoco
import numpy as np
from gymnasium.utils import seeding
from metaworld.env_dict import ENV_CLS_MAP
from metaworld.sawyer_xyz_env import SawyerXYZEnv
from metaworld.utils import reward_utils

Array = np.ndarray

_DOWN = np.array([1.0, 0.0, 1.0, 0.0])  # orientation of the hand as a quaternion; stock does not normalise it either
_INTEGRATION = mujoco.mjtState.mjSTATE_INTEGRATION
_SEEN = {"type": mujoco.mjtSensor.mjSENS_FRAMEPOS, "objtype": mujoco.mjtObj.mjOBJ_GEOM}
# In these tasks, objects settle against a body whose position is new in each episode. Their resets cannot reuse the
# settled state.
_SETTLES_ANEW = frozenset(
    f"{task}-v3"
    for task in (
        "box-close disassemble door-lock door-unlock handle-press handle-press-side handle-pull handle-pull-side "
        "peg-unplug-side"
    ).split()
)


class FastSawyer(SawyerXYZEnv):
    """Code that all tasks share: cached look-ups by name and a cached settled hand.

    One environment takes 4 MB, or 26 MB if it will be rendered (`drawn`).
    """

    settles_anew = False

    def __init__(self, drawn: bool = False) -> None:
        self.drawn = drawn
        self._views: dict[tuple[str, str], Array] = {}
        self._settled: Array | None = None
        self._anew = False
        super().__init__()
        self._set_task_called = True
        self._freeze_rand_vec, self.seeded_rand_vec = False, True  # unlimited goals, drawn from the seed
        self._partially_observable = False
        self.__dict__.pop("sawyer_observation_space", None)  # drop the cached space, it was made with a hidden goal
        self._low, self._high = self.sawyer_observation_space.low, self.sawyer_observation_space.high
        self._workspace = list(zip(self.mocap_low.tolist(), self.mocap_high.tolist(), strict=True))
        self._mocap_pos, self._mocap_quat, self._ctrl = self.data.mocap_pos[0], self.data.mocap_quat[0], self.data.ctrl

    def _initialize_simulation(self) -> tuple[mujoco.MjModel, mujoco.MjData]:
        model = copy.copy(_load_model(self.fullpath, self.drawn))  # a copy is a hundred times faster than compiling
        return model, mujoco.MjData(model)

    def restart(self, seed: int) -> Array:
        """Begin the episode that stock begins after `env.seed(seed); env.reset()`; return the observation (39,)."""
        self.np_random, _ = seeding.np_random(seed)
        self._anew = False
        # Stock resets the model twice, so the goal is drawn twice, and the second settling uses the bodies as placed by
        # the first draw. Repeat both.
        self.reset_model()
        mujoco.mj_resetData(self.model, self.data)
        self._anew = self.settles_anew
        obs = self.reset_model()
        self._prev_obs = obs[:18].copy()
        obs[18:36] = self._prev_obs
        return obs

    def advance(self, action: Array) -> tuple[Array, float, bool]:
        """Execute one step as stock does with `action` (4,); return the observation (39,), reward and success."""
        self.set_xyz_action(action[:3])
        self.do_simulation((action[3], -action[3]), self.frame_skip)
        # Not redundant: it sets the solver's warm start, which changes the last digits of the next step.
        mujoco.mj_forward(self.model, self.data)
        obs = self._get_obs()
        np.minimum(np.maximum(obs, self._low, out=obs), self._high, out=obs)
        reward, info = self.evaluate_state(obs, action)
        return obs, float(reward), bool(info["success"])

    def do_simulation(self, ctrl: Any, n_frames: int) -> None:
        """Step the physics, without the contact forces that stock computes for force sensors; no task has any."""
        self._ctrl[:] = ctrl
        mujoco.mj_step(self.model, self.data, nstep=n_frames)

    def set_xyz_action(self, action: Array) -> None:
        """Move the mocap body that the hand is welded to by `action` (3,), within the workspace."""
        delta = np.minimum(np.maximum(action, -1.0), 1.0) * self.action_scale
        wanted = zip((self._mocap_pos + delta).tolist(), self._workspace, strict=True)
        self._mocap_pos[:] = [min(max(x, low), high) for x, (low, high) in wanted]
        self._mocap_quat[:] = _DOWN

    def _reset_hand(self, steps: int = 50) -> None:
        """Settle the hand to the same state as stock; restore all but the last step from the cache where possible."""
        if self._anew:
            return super()._reset_hand(steps)
        if self._settled is None:  # fill the cache, with all bodies where the model file puts them
            mujoco.mj_resetData(self.model, self.data)
            super()._reset_hand(steps - 1)
            self._settled = np.empty(mujoco.mj_stateSize(self.model, _INTEGRATION))
            mujoco.mj_getState(self.model, self.data, self._settled, _INTEGRATION)
        mujoco.mj_setState(self.model, self.data, self._settled, _INTEGRATION)
        super()._reset_hand(1)  # one real step updates derived quantities and the task's own attributes

    def _get_obs(self) -> Array:
        obs = np.empty(39)
        obs[:18] = current = self._get_curr_obs_combined_no_goal()
        obs[18:36] = self._prev_obs
        obs[36:] = self._target_pos
        self._prev_obs = current
        return obs

    def _get_curr_obs_combined_no_goal(self) -> Array:
        obs = np.zeros(18)
        obs[:3] = self._position("body", "hand")
        apart = _norm(self._position("body", "rightclaw") - self._position("body", "leftclaw"))
        obs[3] = min(max(apart / 0.1, 0.0), 1.0)
        position, quaternion = self._get_pos_objects(), self._get_quat_objects()
        obs[4:7], obs[7:11] = position[:3], quaternion[:4]
        if len(position) > 3:
            obs[11:14], obs[14:18] = position[3:], quaternion[4:]
        return obs

    def _position(self, kind: str, name: str) -> Array:
        """Return the position (3,) of a body or site as a view into `self.data`; the look-up by name is cached."""
        try:
            return self._views[kind, name]
        except KeyError:
            view = self._views[kind, name] = getattr(self.data, kind)(name).xpos
            return view

    def get_endeff_pos(self) -> Array:
        """Return the position of the hand, a view into `self.data`. Shape: (3,)."""
        return self._position("body", "hand")

    def get_body_com(self, body_name: str) -> Array:
        """Return the position of a body, a view into `self.data`. Shape: (3,)."""
        return self._position("body", body_name)

    def _get_site_pos(self, site_name: str) -> Array:
        return self._position("site", site_name).copy()

    @property
    def tcp_center(self) -> Array:
        """Return the point in the middle between the fingers. Shape: (3,)."""
        return (self._position("site", "rightEndEffector") + self._position("site", "leftEndEffector")) / 2.0

    def touching_object(self, object_geom_id: int) -> bool:
        """Return whether both finger pads press on the object."""
        contact = self.data.contact
        pairs = contact.geom.tolist()
        # Most steps have no contact with the object; skip the look-ups then.
        if not any(object_geom_id in pair for pair in pairs):
            return False
        pads = self.data.geom("leftpad_geom").id, self.data.geom("rightpad_geom").id
        force, address = self.data.efc_force, contact.efc_address
        pressure = [
            sum(force[address[i]] for i, pair in enumerate(pairs) if pad in pair and object_geom_id in pair)
            for pad in pads
        ]
        return 0 < pressure[0] and 0 < pressure[1]

    def _gripper_caging_reward(
        self,
        action: Array,
        obj_pos: Array,
        obj_radius: float,
        pad_success_thresh: float,
        object_reach_radius: float,
        xz_thresh: float,
        desired_gripper_effort: float = 1.0,
        high_density: bool = False,
        medium_density: bool = False,
    ) -> float:
        """Compute stock's caging reward with scalars instead of arrays.

        It rewards pads on both sides of the object (y), the gripper over the object (x, z), and closing the gripper.
        """
        hamacher = reward_utils.hamacher_product
        (x, y, z), (x0, y0, z0) = obj_pos.tolist(), np.asarray(self.obj_init_pos).tolist()
        # y: how close each pad is to its side of the object.
        sides = [
            _tolerance(
                abs(pad - y), (obj_radius, pad_success_thresh), abs(abs(pad - y0) - pad_success_thresh), "long_tail"
            )
            for pad in (float(self._position("body", name)[1]) for name in ("leftpad", "rightpad"))
        ]
        # x and z: how close the gripper is to the object; the start distance sets the margin.
        (tx, ty, tz), (sx, sy, sz) = self.tcp_center.tolist(), self.init_tcp.tolist()
        above = _tolerance(
            math.sqrt((tx - x) ** 2 + (tz - z) ** 2),
            (0, xz_thresh),
            math.sqrt((x0 - sx) ** 2 + (z0 - sz) ** 2) - xz_thresh,
            "long_tail",
        )
        caging = hamacher(hamacher(*sides), float(above))
        # Closing counts only once the object is between the pads.
        closing = min(max(0, action[-1]), desired_gripper_effort) / desired_gripper_effort
        reward = hamacher(caging, closing if caging > 0.97 else 0.0)
        if high_density:
            return (reward + caging) / 2
        if medium_density:
            start = math.sqrt((x0 - sx) ** 2 + (y0 - sy) ** 2 + (z0 - sz) ** 2)
            distance = math.sqrt((x - tx) ** 2 + (y - ty) ** 2 + (z - tz) ** 2)
            margin = abs(start - object_reach_radius)
            return (reward + _tolerance(distance, (0, object_reach_radius), margin, "long_tail")) / 2
        return reward


@cache
def fast_class(name: str) -> type[Any]:
    """Build the faster subclass of a stock task such as "push-v3": its relinked methods on top of `FastSawyer`."""
    stock = ENV_CLS_MAP[name]
    namespace = {**vars(sys.modules[stock.__module__]), **_FASTER}
    own = {key: _relink(value, namespace) for key, value in vars(stock).items() if _is_method(value)}
    for key in ("__init__", "_reset_hand"):  # FastSawyer has its own and calls the stock ones through super()
        own.pop(key, None)
    fast: Any = type(f"Fast{stock.__name__}", (FastSawyer, stock), own)
    fast.settles_anew = name in _SETTLES_ANEW
    namespace[stock.__name__] = fast  # tasks call their static methods by the name of their class
    return fast


@cache
def _load_model(path: str, drawn: bool) -> mujoco.MjModel:
    """Compile a model; unless it is rendered, without the geoms that are only visible, which saves memory."""
    spec = mujoco.MjSpec.from_file(path)
    spec.compiler.discardvisual = not drawn
    for geom in () if drawn else spec.geoms:
        # A task may read the position of a named geom without contacts. A sensor on it keeps the compiler from
        # discarding it.
        if geom.name and not geom.contype and not geom.conaffinity:
            spec.add_sensor(**_SEEN, objname=geom.name)
    return spec.compile()


def _norm(vector: Array) -> float:
    return math.sqrt(vector.dot(vector))


def _numpy_norm(x: Any, *args: Any, **kwargs: Any) -> Any:
    if args or kwargs or type(x) is not np.ndarray or x.ndim != 1:
        return np.linalg.norm(x, *args, **kwargs)
    return np.float64(math.sqrt(x.dot(x)))


def _tolerance(
    x: float, bounds: tuple[float, float] = (0.0, 0.0), margin: float = 0.0, sigmoid: str = "gaussian", **rest: float
) -> Any:
    """Compute stock's `tolerance` without arrays for the case that nearly all rewards use; else call stock's."""
    if sigmoid != "long_tail" or rest or not margin > 0 or not isinstance(x, float):
        return reward_utils.tolerance(x, bounds, margin, sigmoid, **rest)
    lower, upper = bounds
    if lower <= x <= upper:
        return 1.0
    distance = 3.0 * ((lower - x if x < lower else x - upper) / margin)  # 3: the value at the margin is 0.1
    return float(1.0 / (distance * distance + 1.0))


class _Rotation:
    """Replaces SciPy's `Rotation`; Meta-World only uses `from_matrix(m).as_quat()`."""

    def __init__(self, matrix: Array) -> None:
        self.matrix = matrix

    from_matrix = classmethod(lambda cls, matrix: cls(matrix))

    def as_quat(self) -> Array:
        """Return x, y, z, w with SciPy's sign: positive in the component that SciPy solves for first."""
        quat = np.empty(4)
        mujoco.mju_mat2Quat(quat, self.matrix.reshape(9))
        w, x, y, z = quat.tolist()
        xx, yy, zz = self.matrix.diagonal().tolist()
        lead = max((xx, x), (yy, y), (zz, z), (xx + yy + zz, w), key=lambda pair: pair[0])[1]
        return np.array([-x, -y, -z, -w] if lead < 0 else [x, y, z, w])


def _overlay(module: Any, **names: Any) -> types.ModuleType:
    """Return a new module with the names of `module`, some of them replaced; `module` itself does not change."""
    overlay = types.ModuleType(module.__name__)
    overlay.__dict__.update({**vars(module), **names})
    return overlay


_FASTER = {
    "Rotation": _Rotation,
    "tolerance": _tolerance,
    "reward_utils": _overlay(reward_utils, tolerance=_tolerance),
    "np": _overlay(np, linalg=_overlay(np.linalg, norm=_numpy_norm)),
}


def _is_method(value: Any) -> bool:
    return isinstance(value, types.FunctionType | staticmethod)


def _relink(value: Any, namespace: dict[str, Any]) -> Any:
    """Return a stock method that looks up its globals in `namespace`."""
    if isinstance(value, staticmethod):
        return staticmethod(_relink(value.__func__, namespace))
    if value.__name__ == "inner":  # a decorator that checks for a set task: take the function that it wraps
        return _relink(next(cell.cell_contents for cell in value.__closure__), namespace)
    linked = types.FunctionType(value.__code__, namespace, value.__name__, value.__defaults__, value.__closure__)
    linked.__kwdefaults__ = value.__kwdefaults__
    return linked
