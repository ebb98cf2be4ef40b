"""Whether the images of an observation are new enough to act on.

Each camera has its own rate, so an observation may repeat an image. It counts as old when its time says so, or, if the
robot gives no times, when it has not changed for as long: a camera always has some noise. A camera that sends the same
image again and again with new times is frozen, and its image counts as old too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from rl.deploy.safety import Limits
from rl.robots.errors import NOT_NUMBERS, Stop
from world_model.spec import IMAGES

Array = np.ndarray


@dataclass
class _Seen:
    """The newest image of a camera."""

    content: int  # hash of its pixels
    changed_s: float  # when it was first seen
    taken_s: float  # when it was taken, as the robot says; -inf: it does not say


class Freshness:
    """Tells how old the images of an episode are; times are seconds of `time.monotonic`.

    Args:
        limits: the largest ages.
        cameras: feature of the policy -> camera of the robot.
    """

    def __init__(self, limits: Limits, cameras: Mapping[str, str]) -> None:
        self.limits, self.cameras = limits, dict(cameras)
        self.begin()

    def begin(self) -> None:
        """Start an episode."""
        self._seen: dict[str, _Seen] = {}

    def complaint(self, observation: Mapping[str, Any], now: float) -> str:
        """Return why an image of an observation is too old to act on; empty: none is.

        Raises:
            Stop: the time of an image is not a time, is in the future, or is before that of the image before it.
        """
        times = observation.get("timestamps") or {}
        if not isinstance(times, Mapping):
            raise Stop(f"timestamps of the observation is {repr(times)[:60]}, expected seconds by camera")
        found = [self._old(name, camera, observation[camera], times.get(camera), now)
                 for name, camera in self.cameras.items()]  # fmt: skip
        return next((why for why in found if why), "")

    def _old(self, name: str, camera: str, image: Array, stamp: Any, now: float) -> str:
        most = self.limits.image_ages_s.get(name.removeprefix(IMAGES), self.limits.max_image_age_s)
        before, content = self._seen.get(camera), hash(image.tobytes())
        changed = now if before is None or before.content != content else before.changed_s
        taken = -math.inf if stamp is None else _time(name, stamp)
        if before is not None and taken < before.taken_s:
            raise Stop(f"{name} is {before.taken_s - taken:.3f} s older than the image before it")
        if stamp is not None and not now - taken >= -most:
            raise Stop(f"{name} was taken {taken - now:.3f} s in the future; correct the clock of the camera")
        self._seen[camera] = _Seen(content, changed, taken)
        age = now - (changed if stamp is None else taken)
        if age > most:
            what = "has not changed for" if stamp is None else "is"
            return f"{name} {what} {age:.2f} s{'' if stamp is None else ' old'}, at most {most:g} s is allowed"
        if 0 < self.limits.max_frozen_s < now - changed:
            return f"{name} is frozen: it has not changed for {now - changed:.2f} s, see limits.max_frozen_s"
        return ""


def _time(name: str, stamp: Any) -> float:
    """Return the time of an image as a number.

    Raises:
        Stop: it is none.
    """
    try:
        taken = float("nan") if isinstance(stamp, bool | np.bool_ | str | bytes) else float(stamp)
    except NOT_NUMBERS:
        taken = math.nan
    if not math.isfinite(taken):
        raise Stop(f"the time of {name} is {repr(stamp)[:60]}, expected seconds")
    return taken
