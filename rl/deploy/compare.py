"""Compare two policies on a robot by a sequential test: run pairs of episodes until one policy is clearly better.

Both policies run from the same start; a random draw decides which one runs first. Episodes on a robot are expensive,
so the test may stop after any pair. This is valid because the evidence is an e-value: if neither policy is better, the
probability that it ever exceeds 1 / alpha is at most alpha (Ville 1939). Only discordant pairs count, those that
exactly one policy solved. The null hypothesis is that each policy wins half of them; the alternative is a uniform prior
over all shares (Robbins 1970).
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from rewards.errors import UserError
from rl.deploy.pilots import Pilot
from rl.deploy.robot_config import RobotConfig
from rl.deploy.session import Session
from rl.robots.api import Robot
from rl.seeds import COMPARE
from world_model.files import write_atomically

RESULTS = "compare.json"
SIDES = ("champion", "challenger")


@dataclass
class Score:
    """Counts of the pairs so far."""

    won: int = 0  # only the challenger solved it
    lost: int = 0  # only the champion solved it
    both: int = 0
    neither: int = 0
    stopped: str = field(default="", compare=False)  # why the session was stopped before all pairs were run

    @staticmethod
    def of(pairs: list[dict[str, bool]]) -> Score:
        """Count the pairs that both policies have run."""
        score = Score()
        for pair in (p for p in pairs if len(p) == 2):
            champion, challenger = (pair[side] for side in SIDES)
            score.both += champion and challenger
            score.neither += not (champion or challenger)
            score.won += challenger and not champion
            score.lost += champion and not challenger
        return score

    @property
    def n_pairs(self) -> int:
        """Number of complete pairs."""
        return self.won + self.lost + self.both + self.neither

    def is_clear(self, alpha: float) -> bool:
        """Return whether the evidence reaches 1 / `alpha`; equal policies ever reach it with probability <= `alpha`."""
        return _evidence(self.won, self.lost) >= 1 / alpha

    def n_needed(self, alpha: float) -> int:
        """Return the smallest number of further pairs that makes it clear: if the leading policy wins them all."""
        more, most, least = 0, max(self.won, self.lost), min(self.won, self.lost)
        while _evidence(most + more, least) < 1 / alpha:
            more += 1
        return more

    def verdict(self, alpha: float) -> str:
        """Describe the result so far, and how many more pairs a clear result needs at least."""
        if self.is_clear(alpha):
            return f"the {SIDES[self.won > self.lost]} is better: {self}"
        n = self.n_needed(alpha)
        return f"{self}; at least {n} pair{'s' * (n > 1)} more until it can tell"

    def __str__(self) -> str:
        n = max(self.n_pairs, 1)
        champion, challenger = (100 * (self.both + alone) / n for alone in (self.lost, self.won))
        return (
            f"champion {champion:.0f} %, challenger {challenger:.0f} % of {self.n_pairs} pairs "
            f"(won {self.won}, lost {self.lost})"
        )


def compare(
    champion: Pilot,
    challenger: Pilot,
    names: tuple[str, str],
    config: RobotConfig,
    say: Callable[[str], None] = print,
    keys: bool = False,
    robot: Robot | None = None,
) -> Score:
    """Run pairs of episodes until it is clear which policy is better, or `config.n_episodes` pairs are done.

    Both policies of a pair start in the same scene, if the robot can repeat one, with the same noise; see
    `first_scene`. The output does not show which policy runs, so the person who sets the scene or judges by key is
    blind to it. If the guard stops an episode because of the policy's actions, it counts as not solved. Results are
    saved in compare.json next to the episodes, and a later call continues from there.

    Args:
        champion: the policy in use.
        challenger: the policy that may replace it.
        names: names of champion and challenger, which an existing compare.json must contain.
        config: robot, limits and counts.
        say: called with each line of output.
        keys: whether a line on standard input stops the robot.
        robot: see `Session`.

    Raises:
        UserError: the two policies need different robots, compare.json is of other policies, or see `Session`.
    """
    if champion.spec != challenger.spec:
        raise UserError(f"{names[0]} and {names[1]} expect different robots: their features, bounds or rates differ")
    with Session(champion.spec, config, say, keys, robot) as session:
        path, first = session.store.folder / RESULTS, first_scene(names)
        pairs = _read(path, names)
        for i in range(config.n_episodes):
            score = Score.of(pairs)
            if score.is_clear(config.alpha):
                break
            if score.n_pairs:
                say(score.verdict(config.alpha))
            if i == len(pairs):
                pairs.append({})
            # Which policy runs first is random, but the same again when an interrupted pair is continued.
            order = SIDES[:: random.Random(f"{config.seed}, {i}").choice((1, -1))]
            for side in (s for s in order if s not in pairs[i]):
                pilot = champion if side == "champion" else challenger
                lived = session.run(pilot, first + i, f"pair {i + 1}, {('first', 'second')[len(pairs[i])]}")
                # An episode stopped for another reason tells nothing about the policy; a later call repeats it.
                if lived.failed or lived.ended:
                    pairs[i][side] = any(lived.success)
                    _write(path, names, pairs)
                if lived.stopped:
                    return replace(Score.of(pairs), stopped=lived.reason)
    return Score.of(pairs)


def first_scene(names: tuple[str, str]) -> int:
    """Return the number of the first pair's scene: larger than those of `run`, and random for each two policies."""
    return COMPARE + random.Random(", ".join(names)).randrange(2**30)


def _evidence(won: int, lost: int) -> float:
    """Return the e-value: the likelihood of the discordant pairs under a uniform prior, divided by that under 1/2."""
    n = won + lost
    # The uniform prior integrates to the beta function won! lost! / (n + 1)!, and 1/2 gives 2^-n; in logarithms.
    return math.exp(n * math.log(2) + math.lgamma(won + 1) + math.lgamma(lost + 1) - math.lgamma(n + 2))


def _read(path: Path, names: tuple[str, str]) -> list[dict[str, bool]]:
    if not path.is_file():
        return []
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        theirs, pairs = tuple(found[side] for side in SIDES), found["pairs"]
        known = all(set(pair) <= set(SIDES) and all(type(v) is bool for v in pair.values()) for pair in pairs)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: it cannot be read as the results of a comparison; move it away") from error
    if not known or any(len(pair) < 2 for pair in pairs[:-1]):
        raise UserError(f"{path}: its pairs are not what a comparison writes; move it away")
    if theirs != names:
        raise UserError(f"{path}: it compares {theirs[0]} with {theirs[1]}; name another folder with episodes=...")
    if found.get("first_scene") != first_scene(names):
        raise UserError(f"{path}: its pairs began in other scenes; move it away")
    return list(pairs)


def _write(path: Path, names: tuple[str, str], pairs: list[dict[str, bool]]) -> None:
    score = {name: n for name, n in asdict(Score.of(pairs)).items() if name != "stopped"}
    rows = dict(zip(SIDES, names, strict=True)) | {"first_scene": first_scene(names), "pairs": pairs, "score": score}
    write_atomically(path, (json.dumps(rows, indent=1) + "\n").encode())
