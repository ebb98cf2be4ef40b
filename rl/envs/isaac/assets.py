"""Assets for Isaac-Cartpole, -Ant and -Humanoid without a network, in the folder layout of NVIDIA's store.

    python -m rl.envs.isaac.assets FOLDER
    ISAACSIM_ASSET_ROOT=FOLDER wamtune train isaac

The robots come from the newton wheel, which contains them; the ground is a plain plane.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from rewards.errors import UserError


@dataclass(frozen=True)
class Robot:
    """Where newton has a robot, where Isaac Lab looks for it, and the names that differ between them."""

    source: str  # below newton/examples/assets
    target: str  # below the root of the store
    renamed: dict[str, str] = field(default_factory=dict)  # text in newton's file -> text that Isaac Lab expects


ROBOTS = (
    Robot(
        "cartpole_single_pendulum.usda",
        "Isaac/IsaacLab/Robots/Classic/Cartpole/cartpole.usd",
        # newton's file spells the default prim differently from the prim itself.
        {'defaultPrim = "cartPole"': 'defaultPrim = "cartpole"'},
    ),
    Robot("ant.usda", "Isaac/Robots/IsaacSim/Ant/ant_instanceable.usd"),
    Robot(
        "humanoid.usda",
        "Isaac/Robots/IsaacSim/Humanoid/humanoid_instanceable.usd",
        # Isaac Lab names a joint after the body that it moves.
        {
            f'PhysicsRevoluteJoint "{theirs}"': f'PhysicsRevoluteJoint "{ours}"'
            for theirs, ours in (
                ("abdomen_x", "pelvis"),
                ("right_knee", "right_shin"),
                ("left_knee", "left_shin"),
                ("right_elbow", "right_lower_arm"),
                ("left_elbow", "left_lower_arm"),
            )
        },
    ),
)

GROUND = "Isaac/IsaacLab/Environments/Grid/default_ground_plane_checker_v1/default_ground_plane.usda"

PLANE = """#usda 1.0
(
    defaultPrim = "Ground"
    metersPerUnit = 1
    upAxis = "Z"
)

def Xform "Ground"
{
    def Plane "Collision" (
        prepend apiSchemas = ["PhysicsCollisionAPI"]
    )
    {
        uniform token axis = "Z"
    }
}
"""


def lay_out(folder: Path) -> None:
    """Write the assets below `folder`; set `ISAACSIM_ASSET_ROOT` to it before Isaac Lab is imported.

    Raises:
        UserError: newton is not installed, or this version has other robot files.
    """
    found = find_spec("newton")
    if found is None or not found.submodule_search_locations:
        raise UserError("the robots of Isaac Lab come with newton, which is not installed: make isaac")
    examples = Path(found.submodule_search_locations[0]) / "examples" / "assets"
    _write(folder / GROUND, PLANE)
    for robot in ROBOTS:
        _write(folder / robot.target, _as_isaac_lab_has_it(examples / robot.source, robot))


def _as_isaac_lab_has_it(file: Path, robot: Robot) -> str:
    """Return the text of a robot's file with the names that Isaac Lab expects."""
    try:
        text = file.read_text("utf-8")
    except OSError as error:
        raise UserError(f"{file}: cannot read it ({error.strerror}); this newton has no {robot.source}") from error
    for theirs, ours in robot.renamed.items():
        if theirs not in text and ours not in text:
            raise UserError(f"{file}: expected {theirs} in it; this newton has another {robot.source}")
        text = text.replace(theirs, ours)
    return text


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    lay_out(Path(sys.argv[1]))
