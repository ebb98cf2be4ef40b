"""The planned work of a run, in units of one evaluation or gate; used for the progress display alone."""

from __future__ import annotations

from collections.abc import Collection, Sequence

OF_PHASE = {"imitation": 1.0, "sim": 4.0, "dream": 10.0}
"""Rough duration of the training in each phase."""


class Work:
    """The items of work of a run in order, and the index of the current one."""

    def __init__(self) -> None:
        self.items, self.current = [1.0], 0

    def plan(self, phases: Sequence[str], gated: Collection[str]) -> None:
        """Plan a first evaluation, training and gate of each phase, then evaluations of champions.

        Args:
            phases: names of all phases.
            gated: names of those that a gate follows.
        """
        of_phases = [item for name in phases for item in (OF_PHASE[name], float(name in gated))]
        self.items, self.current = [1.0, *of_phases, float(len(phases))], 0

    def begin_phase(self, n_before: int) -> None:
        """Go to the training of a phase; `n_before` phases have ended before it."""
        self.current = 1 + 2 * n_before

    def begin_evaluations(self, n: int) -> None:
        """Go to the evaluations of `n` champions, a number that is known only now."""
        self.current = len(self.items) - 1
        self.items[self.current :] = [1.0] * max(n, 1)

    def go_on(self) -> None:
        """Go to the next item, if there is one."""
        self.current = min(self.current + 1, len(self.items) - 1)

    def done(self, share: float) -> tuple[float, float]:
        """Return the finished work, with a share of the current item, and all of it."""
        return sum(self.items[: self.current], 0.0) + self.items[self.current] * min(share, 1.0), sum(self.items, 0.0)
