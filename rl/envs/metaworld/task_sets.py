"""Sets of Meta-World tasks by the names under which results on them are published; it needs no simulator.

ML45 is the split of Yu et al. ("Meta-World", CoRL 2019): 45 tasks to train on, and five that no stage of training sees.
"""

from __future__ import annotations

from rl.envs.metaworld.instructions import SENTENCES

MT50 = tuple(SENTENCES)
"""All 50 tasks, sorted by name."""

ML45_TEST = ("bin-picking", "box-close", "door-lock", "door-unlock", "hand-insert")
"""The five test tasks of ML45."""

ML45 = tuple(task for task in MT50 if task not in ML45_TEST)
"""The 45 training tasks of ML45."""

TASK_SETS = {"mt50": MT50, "ml45": ML45, "ml45-test": ML45_TEST}
"""Name of a set in `env.tasks` -> its tasks."""
