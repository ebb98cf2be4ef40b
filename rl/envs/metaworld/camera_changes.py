"""What can differ in a camera from the simulator's: where it stands, the light, and how old its images are.

Events change these quantities (`rl.envs.metaworld.events`), and `wamtune fit` finds them from recorded images.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from rewards.errors import UserError
from rl.envs.cameras import CameraUse

ADDED = ("azimuth", "elevation", "lookat_x", "lookat_y")
"""Quantities that are added: degrees, and metres of the point in the centre of the image, in the plane of the table.

With `distance` these are all positions and directions of a camera that stands upright.
"""

LIGHTS = ("light", "red", "blue")
FACTORS = ("distance", *LIGHTS)
"""Quantities that are factors: of the distance, of the brightness of all lights, and of their red and blue."""

DELAY = "image_delay"
"""Steps by which the images of a camera are old."""

UNCHANGED: dict[str, float] = {**dict.fromkeys(ADDED, 0.0), **dict.fromkeys(FACTORS, 1.0), DELAY: 0.0}
"""Values that change nothing."""

POSE = (*ADDED, "distance")
"""Quantities that move a camera."""


def key_of(quantity: str, camera: str) -> str:
    """Return the name of a quantity of one camera; `camera` is empty if it is that of all cameras."""
    return f"{camera}.{quantity}" if camera else quantity


def values_of(camera: str, values: Mapping[str, float]) -> dict[str, float]:
    """Return the quantities of a camera: its own (`key_of`), else those of all cameras, else unchanged ones."""
    return {name: values.get(f"{camera}.{name}", values.get(name, same)) for name, same in UNCHANGED.items()}


def changed(use: CameraUse, values: Mapping[str, float]) -> CameraUse:
    """Return a camera with other quantities; all keys of `UNCHANGED` but the delay are applied.

    Raises:
        UserError: a camera of the model would be moved; only a free one can be.
    """
    view, (red, green, blue) = use.view, use.light
    if any(values[name] != UNCHANGED[name] for name in POSE):
        if view.camera:
            raise UserError(
                f"camera {view.camera!r} is fixed to the model, so events cannot move it ({', '.join(POSE)}); let "
                "them change another camera, with `camera`"
            )
        x, y, z = view.lookat
        view = replace(
            view,
            lookat=(x + values["lookat_x"], y + values["lookat_y"], z),
            distance=view.distance * values["distance"],
            azimuth=view.azimuth + values["azimuth"],
            elevation=view.elevation + values["elevation"],
        )
    light = values["light"]
    return replace(use, view=view, light=(red * light * values["red"], green * light, blue * light * values["blue"]))
