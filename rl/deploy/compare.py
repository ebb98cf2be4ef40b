"""Which of two policies is better on a robot: pairs of episodes, who goes first drawn by lot, until it is clear.

Episodes on a robot are dear, so the evidence is looked at after each pair. That is allowed, because it is an e-value:
where neither policy is better, it exceeds 1 / alpha at any time with a probability of at most alpha (Ville 1939). Only
pairs that one of the two solved and the other did not tell; half of them each way is the hypothesis, any other share,
all alike likely, the alternative (Robbins 1970).
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
from rl.seeds import COMPARE
from world_model.files import write_atomically

RESULTS = "compare.json"
SIDES = ("champion", "challenger")


@dataclass
class Score:
    """Pairs so far: solved by the challenger alone, by the champion alone, by both, by neither."""

    won: int = 0
    lost: int = 0
    both: int = 0
    neither: int = 0
    stopped: str = field(default="", compare=False)  # why the robot was stopped before all were run

    @staticmethod
    def of(pairs: list[dict[str, bool]]) -> Score:
        """Count the pairs that both have run."""
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
        """Pairs that count."""
        return self.won + self.lost + self.both + self.neither

    def is_clear(self, alpha: float) -> bool:
        """Whether luck alone would ever show as much with a probability of at most `alpha`."""
        return _evidence(self.won, self.lost) >= 1 / alpha

    def n_needed(self, alpha: float) -> int:
        """Pairs that it takes at least until it is clear: if all of them went to the one that leads."""
        more, most, least = 0, max(self.won, self.lost), min(self.won, self.lost)
        while _evidence(most + more, least) < 1 / alpha:
            more += 1
        return more

    def verdict(self, alpha: float) -> str:
        """Say what the pairs have shown, and what it would take to show more."""
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
) -> Score:
    """Run pairs of episodes until it is clear which policy is better, or `config.n_episodes` pairs are done.

    Both begin a pair in the same scene, where the robot can do that, with the same noise; see `first_scene`. Who runs
    is not said, so that nobody who judges by key or sets the scene knows it. An episode that a policy makes the guard
    stop is not solved. What is done is kept in compare.json beside the episodes, and a later call goes on from there.

    Args:
        champion: the policy in use.
        challenger: the one that may replace it.
        names: theirs, which compare.json has to agree with.
        config: robot, limits and counts.
        say: hears a line for people.
        keys: whether a line on standard input stops the robot.

    Raises:
        UserError: the two do not fit the same robot, compare.json is of other policies, or as `Session` says.
    """
    if champion.spec != challenger.spec:
        raise UserError(f"{names[0]} and {names[1]} expect different robots: their features, bounds or rates differ")
    with Session(champion.spec, config, say, keys) as session:
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
            order = SIDES[:: random.Random(f"{config.seed}, {i}").choice((1, -1))]
            for side in (s for s in order if s not in pairs[i]):
                pilot = champion if side == "champion" else challenger
                lived = session.run(pilot, first + i, f"pair {i + 1}, {('first', 'second')[len(pairs[i])]}")
                if lived.failed or lived.ended:
                    pairs[i][side] = any(lived.success)
                    _write(path, names, pairs)
                if lived.stopped:
                    return replace(Score.of(pairs), stopped=lived.reason)
    return Score.of(pairs)


def first_scene(names: tuple[str, str]) -> int:
    """Return the scene of the first pair: beyond those of `run`, and far from those of any other two policies."""
    return COMPARE + random.Random(", ".join(names)).randrange(2**30)


def _evidence(won: int, lost: int) -> float:
    """Likelihood of the discordant pairs where every share of them is alike likely, in units of that of one half."""
    n = won + lost
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
