"""Isaac Lab's physics on a CPU, recorded once and replayed, which Isaac Lab itself does on a GPU alone.

Most of a step on a CPU is Python that packs the arguments of some hundred small kernels, the same ones at every step.
Warp can record what a step runs on a CPU as well, and replay it without that; the numbers stay the same to the bit.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

SIMULATES = "_simulate_full", "_simulate_physics_only"
"""Methods of Isaac Lab's `NewtonManager` that a step is made of; on a GPU it records whichever of them it needs."""


@contextlib.contextmanager
def replayed_physics(device: str) -> Iterator[None]:
    """Record and replay the physics of environments on the CPU while this is open; elsewhere Isaac Lab does.

    Off where a task says so with Isaac Lab's own `sim.physics.use_cuda_graph=false`, and for a solver that cannot be
    recorded.
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
        simulate(manager)  # for itself, and so that what is made at first use is there when it is recorded
        if PhysicsManager._cfg.use_cuda_graph and manager._supports_cuda_graph_capture():
            with warp.ScopedCapture(device="cpu") as recorded:  # nothing runs meanwhile
                simulate(manager)
            NewtonManager._graph = recorded.graph  # where Isaac Lab drops it when something changes

    return step
