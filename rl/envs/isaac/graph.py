"""Record Isaac Lab's physics step once and replay it, on the CPU; Isaac Lab itself does so only on a GPU.

On a CPU, most of a step is Python code that packs the arguments of about a hundred small kernels, the same ones at
every step. Warp can record the kernels of a step on the CPU too and replay them without that code. The numbers are
bit-identical.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

SIMULATES = "_simulate_full", "_simulate_physics_only"
"""The two methods of Isaac Lab's `NewtonManager` that may run a physics step; on a GPU it records the one it needs."""


@contextlib.contextmanager
def replayed_physics(device: str) -> Iterator[None]:
    """Within this context, record and replay the physics on the CPU; on another device, change nothing.

    Recording is off if the task sets Isaac Lab's own `sim.physics.use_cuda_graph=false`, or if its solver does not
    support it.
    """
    if device != "cpu":
        yield
        return
    from isaaclab_newton.physics import NewtonManager

    eager = {name: getattr(NewtonManager, name).__func__ for name in SIMULATES}
    for name, simulate in eager.items():
        setattr(NewtonManager, name, classmethod(_replayed(simulate)))
    try:
        yield
    finally:
        for name, simulate in eager.items():
            setattr(NewtonManager, name, classmethod(simulate))


def _replayed(simulate: Callable[[Any], None]) -> Callable[[Any], None]:
    import warp
    from isaaclab.physics import PhysicsManager
    from isaaclab_newton.physics import NewtonManager

    @functools.wraps(simulate)
    def step(manager: Any) -> None:
        if manager._graph is not None:
            warp.capture_launch(manager._graph)
            return
        # The first step runs normally, which also allocates everything that is made at first use.
        simulate(manager)
        if PhysicsManager._cfg.use_cuda_graph and manager._supports_cuda_graph_capture():
            with warp.ScopedCapture(device="cpu") as recorded:  # records the kernels without running them
                simulate(manager)
            NewtonManager._graph = recorded.graph  # Isaac Lab drops it when the simulation changes

    return step
