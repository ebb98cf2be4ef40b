"""The built site, looked at by `make docs`: it names every public symbol and loads nothing from elsewhere."""

from __future__ import annotations

import ast
import os
import re
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.pages import ROOT

SITE = Path(os.environ.get("WAMTUNE_SITE", "no-site"))

pytestmark = pytest.mark.skipif("WAMTUNE_SITE" not in os.environ, reason="`make docs` builds the site and runs this")


def public_symbols() -> Iterator[str]:
    """Yield every public class, function, method and value of the packages."""
    for package in ("rl", "world_model", "rewards"):
        for path in (ROOT / package).rglob("*.py"):
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            for node in ast.parse(path.read_text("utf-8")).body:
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and node.name[0] != "_":
                    yield f"{module}.{node.name}"
                    if isinstance(node, ast.ClassDef):
                        inner = [part for part in node.body if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef)]
                        yield from (f"{module}.{node.name}.{part.name}" for part in inner if part.name[0] != "_")
                elif isinstance(node, ast.Assign):
                    names = [t.id for target in node.targets for t in ast.walk(target) if isinstance(t, ast.Name)]
                    yield from (f"{module}.{name}" for name in names if name[0] != "_")


def test_every_public_symbol_is_in_the_inventory() -> None:
    raw = (SITE / "objects.inv").read_bytes()
    lines = zlib.decompress(raw.split(b"\n", 4)[4]).decode().splitlines()
    documented = {line.split(" ")[0] for line in lines}
    for page in (SITE / "reference" / "python").glob("*.html"):  # values that one line sets together stand in tables
        documented |= set(re.findall(r"<a id=[\"']([\w.]+)[\"']", page.read_text("utf-8")))
    missing = sorted(set(public_symbols()) - documented)
    assert not missing and len(documented) > 1500


def test_nothing_is_loaded_from_elsewhere() -> None:
    pages = list(SITE.rglob("*.html"))
    assert len(pages) > 50
    loaded = r"<(?:link|script|img|iframe|source)\b[^>]*?(?:src|href)=[\"']?(https?:)?//[^>]*>"
    wrong = {page.name: found[0] for page in pages if (found := re.search(loaded, page.read_text("utf-8")))}
    assert not wrong
    for sheet in SITE.rglob("*.css"):
        assert not re.search(r"url\([\"']?(?:https?:)?//", sheet.read_text("utf-8")), sheet.name


def test_every_page_has_a_heading_and_is_found_by_search() -> None:
    index = (SITE / "search" / "search_index.json").read_text("utf-8")
    for name in ("dreams.html", "reference/config.html", "reference/cli.html", "reference/python/rl.html"):
        assert "<h1" in (SITE / name).read_text("utf-8") and f'"{name}' in index, name
