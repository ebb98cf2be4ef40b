"""Read and check the data of a report. The run folder may come from anybody, so nothing in it is trusted.

Lines of metrics or episodes that a run would not write are skipped, like those that a crash cut short. `pairs.json` is
checked as a whole, and the error names its first wrong field.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rewards.errors import UserError
from rl.compose import compose
from rl.config import TrainConfig
from rl.report.results import RESULTS, SOURCES
from rl.rounds.evaluate import EpisodeResult
from rl.runs.folder import read_rows
from world_model.api import METRES, NORMALISED, OF_STATE
from world_model.files import JSON_BYTES, read_file

PAIRS = "pairs.json"
"""File of a run folder with the paired evaluation of its champion, see `rl.report.pairs`."""

BAD_NUMBERS = "bad_numbers.safetensors"
"""File of a run folder with the tensors that led to the last bad numbers."""

Row = dict[str, Any]
Check = tuple[str, Callable[[Any], bool]]
"""What is expected of a value: in words for the error, and as a test."""

TAG = re.compile(r"[\w./ -]{1,100}")
LARGEST = 1e30
"""Larger numbers are not drawn: no axis could show them together with others."""

FILM = re.compile(r"data:image/gif;base64,[A-Za-z0-9+/]*={0,2}")
"""A video must be inside the page: loading one from a server would reveal who reads the report."""


@dataclass(frozen=True)
class RunData:
    """What the files of a run folder say, checked."""

    folder: Path
    config: TrainConfig
    rows: Sequence[Row]  # of metrics.jsonl, with those of controls
    evaluations: dict[str, dict[str, list[EpisodeResult]]]  # run or control -> see `read_results`; finished ones alone
    results: Sequence[Row]  # of results.json; [] before the end, and in runs of older versions
    pairs: Row | None  # of pairs.json
    bad_numbers: bool  # whether numbers that were not finite have stopped it, for good or for a while

    @property
    def names(self) -> tuple[str, ...]:
        """The run itself, then its controls."""
        return tuple(dict.fromkeys((self.config.name, *self.config.controls)))

    def rows_of(self, name: str) -> list[Row]:
        """Return the rows of the run itself or of a control, without the name of the control in their keys."""
        controls = self.config.controls
        if name == self.config.name:
            return [row for row in self.rows if not any(key.partition("/")[0] in controls for key in row)]
        prefix = f"{name}/"
        found = []
        for row in self.rows:
            if any(key.startswith(prefix) for key in row):
                found.append({key.removeprefix(prefix): value for key, value in row.items()})
        return found


def read_run(folder: str | Path) -> RunData:
    """Read the folder of a training, finished or not.

    Raises:
        UserError: it holds no training, or one of its files is damaged.
    """
    folder = Path(folder)
    rows = read_metrics(folder)
    if not (folder / "config.yaml").is_file() or not rows:
        raise UserError(f"report: {folder} holds no training; expected runs/NAME/TIME-s0 with a metrics.jsonl")
    config = compose(folder / "config.yaml", [], TrainConfig)
    found = {name: read_results(folder, name) for name in (config.name, *config.controls)}
    return RunData(
        folder=folder,
        config=config,
        rows=rows,
        evaluations={name: results for name, results in found.items() if results["before"]},
        results=read_outcomes(folder),
        pairs=read_pairs(folder),
        bad_numbers=(folder / BAD_NUMBERS).is_file(),
    )


def is_number(value: Any) -> bool:
    """Whether `value` is a number that can be drawn."""
    return type(value) in (int, float) and -LARGEST <= value <= LARGEST


def read_metrics(folder: Path) -> list[Row]:
    """Return the valid rows of `metrics.jsonl`: tag -> number, or None for a value that was not finite."""
    return [row for row in read_rows(folder / "metrics.jsonl") if all(map(_is_metric, row.items()))]


def _is_metric(item: tuple[str, Any]) -> bool:
    tag, value = item
    return TAG.fullmatch(tag) is not None and (value is None or is_number(value))


def read_results(folder: Path, run: str) -> dict[str, list[EpisodeResult]]:
    """Return the episodes of `eval.jsonl` of `run`, by "before" and "after"; only those that are in both."""
    found: dict[str, dict[tuple[str, int], EpisodeResult]] = {"before": {}, "after": {}}
    for row in read_rows(folder / "eval.jsonl"):
        if row.get("run") != run or row.get("place") != "sim" or row.get("phase") not in ("before", "after"):
            continue
        if (result := _result(row)) is not None:
            found[row["phase"]][result.task, result.seed] = result
    both = [key for key in found["before"] if key in found["after"]]
    return {phase: [results[key] for key in both] for phase, results in found.items()}


def _result(row: Row) -> EpisodeResult | None:
    task, seed, success, n_steps, reward = (row.get(k) for k in ("task", "seed", "success", "n_steps", "reward"))
    if not isinstance(task, str) or type(seed) is not int or type(success) is not bool or type(n_steps) is not int:
        return None
    number = float(reward) if reward is not None and is_number(reward) else 0.0
    return EpisodeResult(task, seed, success, n_steps, number, row.get("has_success") is not False)


NUMBER: Check = ("a number", is_number)
SHARE: Check = ("a number from 0 to 1", lambda v: is_number(v) and 0 <= v <= 1)
MAYBE: Check = ("a number or null", lambda v: v is None or is_number(v))
RHO: Check = ("a number or NaN", lambda v: is_number(v) or (type(v) is float and v != v))
COUNT: Check = ("a whole number of at least 0", lambda v: type(v) is int and 0 <= v <= 10**9)
WHOLE: Check = ("a whole number", lambda v: type(v) is int and abs(v) < 2**63)
FLAG: Check = ("true or false", lambda v: type(v) is bool)
TITLE: Check = ("a short text", lambda v: isinstance(v, str) and len(v) <= 200 and v.isprintable())
UNIT: Check = (f"{METRES}, {NORMALISED} or {OF_STATE}", lambda v: v in (METRES, NORMALISED, OF_STATE))
CORRELATION = {"rho": RHO, "low": RHO, "high": RHO}
NAMES = ("simulator", "dream of its actions", "dream of the policy")

MOST_ITEMS, MOST_STEPS = 100_000, 10_000
"""Largest number of items of a list, and of steps of a curve."""


def _is_curve(value: Any) -> bool:
    """Whether `value` is a list of positions (T, axes) of one size."""
    if not isinstance(value, list) or not 0 < len(value) <= MOST_STEPS:
        return False
    sizes = {len(row) if isinstance(row, list) and all(map(is_number, row)) else 0 for row in value}
    return len(sizes) == 1 and 1 <= sizes.pop() <= 100


def _is_part(value: Any) -> bool:
    known = isinstance(value, dict) and len(value) > 0 and set(value) <= set(NAMES)
    return known and all(map(_is_curve, value.values())) and len({len(curve[0]) for curve in value.values()}) == 1


def _is_parts(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and 0 < len(value) <= 10
        and all(map(TAG.fullmatch, value))
        and all(map(_is_part, value.values()))
    )


SUMMARY: dict[str, Any] = {
    **dict.fromkeys(("n", "n_compared", "both", "sim_only", "dream_only", "neither"), COUNT),
    **dict.fromkeys(("sim", "dream"), SHARE),
    **dict.fromkeys(("retold_recall", "retold_false_success"), MAYBE),
    "retold_agreement": RHO,
    **dict.fromkeys(("error_and_success", "movement_and_success"), CORRELATION),
    "error_by_step": [NUMBER],
}
POINT: dict[str, Any] = {"sim": FLAG, "movement": NUMBER, "error": NUMBER}
TRUST: dict[str, Any] = {"n": COUNT, **CORRELATION, "expected": [NUMBER], "error": [NUMBER]}
EXAMPLE: dict[str, Any] = {
    "title": TITLE,
    "seed": WHOLE,
    "chunk_size": ("a whole number from 1 to 10,000", lambda v: type(v) is int and 1 <= v <= 10_000),
    "parts": ("positions by part and place", _is_parts),
    "film": ("a GIF as text", lambda v: v == "" or (isinstance(v, str) and FILM.fullmatch(v) is not None)),
}
OPTIONAL = ("film", "unit", "retold_agreement", "with_noise")
"""Fields that runs of older versions lack."""

FILM_OF: dict[str, Any] = {"title": TITLE, "panels": [TITLE], "gif": EXAMPLE["film"]}
"""Fields of the film at the head of a report."""

ALL: dict[str, Any] = {
    "film": FILM_OF,
    "unit": UNIT,
    "summary": SUMMARY,
    "gap": [NUMBER],
    "points": [POINT],
    "examples": [EXAMPLE],
}


PHASE: dict[str, Any] = {
    "phase": (" or ".join(SOURCES), lambda v: v in SOURCES),
    "accepted": FLAG,
    "success": SHARE,
    "rounds": NUMBER,
}
OUTCOME: dict[str, Any] = {
    "name": TITLE,
    "before": SHARE,
    "phases": [PHASE],
    "reward": ("two numbers", lambda v: isinstance(v, list) and len(v) == 2 and all(map(is_number, v))),
    "sim_steps": WHOLE,
    "gate_steps": WHOLE,
    "minutes": NUMBER,
    "with_noise": ("a number from 0 to 1, or null", lambda v: v is None or SHARE[1](v)),
}
"""Fields of an entry of `results.json`, see `rl.report.results`."""


def read_pairs(folder: Path) -> Row | None:
    """Return `pairs.json` after checking every field that a report shows; None if there is no such file.

    Raises:
        UserError: a field is wrong; the first one is named.
    """
    path = folder / PAIRS
    pairs = _read_json(path)
    if pairs is None:
        return None
    wrong = next(_wrong(pairs, ALL, ""), None)
    if wrong is None and (trust := pairs.get("trust")) is not None:
        wrong = next(_wrong(trust, TRUST, "trust"), None)
        if wrong is None and len(trust["expected"]) != len(trust["error"]):
            wrong = "trust: expected and error differ in length"
    if wrong is None and len(pairs["gap"]) != 3:
        wrong = "gap: expected three numbers"
    if wrong is not None:
        raise UserError(f"{path}: {wrong}; delete it to write the report without it")
    if "unit" not in pairs:  # an older run: errors are in metres where the examples show the object
        shown = any("object_pos" in example["parts"] for example in pairs["examples"])
        pairs["unit"] = METRES if shown else NORMALISED
    return dict(pairs)


def read_outcomes(folder: Path) -> list[Row]:
    """Return `results.json` after checking every field; [] if there is no such file.

    Raises:
        UserError: a field is wrong; the first one is named.
    """
    path = folder / RESULTS
    found = _read_json(path)
    if found is None:
        return []
    if (wrong := next(_wrong(found, [OUTCOME], "it"), None)) is not None:
        raise UserError(f"{path}: {wrong}; delete it to write the report without it")
    return list(found)


def _read_json(path: Path) -> Any:
    """Return the content of a JSON file, None if there is no such file."""
    try:
        return json.loads(read_file(path, 2 * JSON_BYTES))
    except FileNotFoundError:
        return None
    except UserError:
        raise
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: it is not valid JSON; delete it to write the report without it") from error


def _wrong(value: Any, expected: Any, where: str) -> Iterator[str]:
    """Yield what is wrong with `value`. `expected` is a check, a dict of checks, or a list [check of every item]."""
    if isinstance(expected, dict):
        if not isinstance(value, dict):
            yield f"{where or 'it'} is not an object"
            return
        for key, inner in expected.items():
            name = f"{where}.{key}" if where else key
            if key in value:
                yield from _wrong(value[key], inner, name)
            elif key not in OPTIONAL:
                yield f"{name} is missing"
    elif isinstance(expected, list):
        if not isinstance(value, list) or len(value) > MOST_ITEMS:
            yield f"{where} is not a list of at most {MOST_ITEMS:,}"
            return
        for i, item in enumerate(value):
            yield from _wrong(item, expected[0], f"{where}[{i}]")
    elif not expected[1](value):
        yield f"{where}={value!r:.60}, expected {expected[0]}"
