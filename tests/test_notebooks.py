"""The notebooks: as they are committed, and executed from the first cell to the last."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SECONDS = 1_500
"""Longest time of a cell; generous, because other programs may run beside it."""


def code_of(cell: dict[str, Any]) -> str:
    """The Python of a code cell; a cell with a magic is another language."""
    source = "".join(cell["source"])
    return "" if source.startswith("%%") else source


def test_there_are_two() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["post_train_in_a_dream", "write_a_reward"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_committed_without_outputs(path: Path) -> None:
    """They would be of another version before long, and the notebooks are executed by a test."""
    notebook = json.loads(path.read_text())
    cells = notebook["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert code and all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    for cell in code:
        ast.parse(code_of(cell))
    assert cells[-1] is code[-1]
    first = "".join(cells[0]["source"])
    assert "Open in Colab" in first and f"notebooks/{path.name}" in first and "pip install" in first


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_and_ends_with_a_picture(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(notebook, timeout=SECONDS, kernel_name="python3").execute(cwd=str(tmp_path))
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    last = [kind for output in code[-1].outputs for kind in output.get("data", {})]
    assert {"image/png", "image/gif"} & set(last)
    texts = [
        output.get("text", "") + output.get("data", {}).get("text/plain", "")
        for cell in code
        for output in cell.outputs
    ]
    assert not [text for text in texts if "\x1b" in text]  # escape codes would be shown as text
    assert any("│ before" in text for text in texts)  # tables are plain text
