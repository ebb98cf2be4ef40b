"""benchmarks/scaling_page.py: power laws and the cost model, recovered from numbers that follow them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.scaling_page import CostModel, fit_cost, fit_law, write_page

COST = CostModel(
    overhead=0.03, flop_per_s=50e9, window_s=2e-4, weight_s=1e-8, latency=0.007, bytes_per_s=1e9, beside=1.125
)
SIZES = (270_000, 5.7e6, 680_000), (1_070_000, 11e6, 1_620_000), (4_270_000, 31.8e6, 5_160_000)
"""Weights of the layers, FLOP of a window, and all trained weights."""


def measured(cost: CostModel) -> list[dict[str, Any]]:
    """Return the times that `scaling.py time` would write if the model held exactly."""
    rows: list[dict[str, Any]] = []
    for weights, flop, trained in SIZES:
        for batch in (64, 128, 256):
            row = {"weights": weights, "flop": flop, "trained": trained, "batch": batch}
            for n in (1, 2):
                rows.append({"kind": "step", "processes": n, **row, "seconds": cost.step({**row, "processes": n})})
            alone = cost.step({**row, "processes": 1})
            rows.append({"kind": "beside", "processes": 2, **row, "seconds": cost.beside * alone})
        n_bytes = 4 * trained
        rows.append({"kind": "exchange", "processes": 2, "bytes": n_bytes, "seconds": cost.exchange(2, n_bytes)})
    return rows


def test_a_step_is_compute_and_exchange() -> None:
    row = {"batch": 100, "flop": 5e6, "trained": 1_000_000, "weights": 1}
    # 30 ms + 100 * (0.1 ms + 0.2 ms) + 10 ms
    assert COST.step({**row, "processes": 1}) == pytest.approx(0.070)
    # 1.125 times that, and 7 ms + 4 MB / (1 GB/s)
    assert COST.step({**row, "processes": 2}) == pytest.approx(0.07875 + 0.011)


def test_the_cost_model_is_recovered_from_its_own_times() -> None:
    found = fit_cost(measured(COST))
    assert found is not None
    for name in ("overhead", "flop_per_s", "window_s", "weight_s", "latency", "bytes_per_s", "beside"):
        assert getattr(found, name) == pytest.approx(getattr(COST, name), rel=1e-6)


def test_a_part_that_takes_no_time_is_left_out() -> None:
    found = fit_cost(measured(replace(COST, weight_s=0.0)))
    assert found is not None and found.weight_s == pytest.approx(0.0, abs=1e-15)


def test_without_each_part_there_is_no_cost_model() -> None:
    rows = measured(COST)
    for kind in ("step", "beside", "exchange"):
        assert fit_cost([row for row in rows if row["kind"] != kind]) is None


def test_a_power_law_is_recovered() -> None:
    law = fit_law([1.0, 10.0, 100.0, 1000.0], [2.0 * x**-0.5 for x in (1.0, 10.0, 100.0, 1000.0)])
    assert law is not None
    assert (law.factor, law.exponent, law.low, law.high) == pytest.approx((2.0, 0.5, 0.5, 0.5))
    assert fit_law([1.0, 1.0, 2.0], [3.0, 3.0, 2.0]) is None  # two values say nothing about a law


def test_the_page_says_what_is_missing_and_how_far_the_model_is_off(tmp_path: Path) -> None:
    page, rows = tmp_path / "scaling.md", measured(COST)
    write_page(page, [], [])
    assert page.read_text().count("Not measured yet") == 3
    rows[1] = rows[1] | {"seconds": rows[1]["seconds"] / 1.1}  # a whole step of two, which nothing is fitted to
    write_page(page, [], rows)
    assert "Largest deviation: 10 %." in " ".join(page.read_text().split())
