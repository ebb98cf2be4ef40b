"""Isaac-Cartpole without a network: the assets of its config, laid out as in NVIDIA's store.

    python -m rl.envs.isaac_assets FOLDER
    ISAACSIM_ASSET_ROOT=FOLDER wamtune train isaac

The cart comes from the newton wheel, which carries it; the ground is a plain plane.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

from rewards.errors import UserError

CART = "Isaac/IsaacLab/Robots/Classic/Cartpole/cartpole.usd"
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
    """Write the assets below `folder`, which `ISAACSIM_ASSET_ROOT` has to name before Isaac Lab is imported.

    Raises:
        UserError: newton is not installed.
    """
    found = find_spec("newton")
    if found is None or not found.submodule_search_locations:
        raise UserError("the cart of Isaac-Cartpole comes with newton, which is not installed: make isaac")
    cart = Path(found.submodule_search_locations[0]) / "examples/assets/cartpole_single_pendulum.usda"
    # Its default prim is spelled otherwise than the prim itself.
    text = cart.read_text("utf-8").replace('defaultPrim = "cartPole"', 'defaultPrim = "cartpole"')
    for name, content in ((CART, text), (GROUND, PLANE)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content, encoding="utf-8")


if __name__ == "__main__":
    lay_out(Path(sys.argv[1]))
