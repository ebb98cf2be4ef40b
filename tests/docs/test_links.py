"""Links of README and docs lead somewhere, and every page can be reached."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tests.docs.pages import DOCS, ROOT, all_pages, anchors, reference, without_code


def broken(pages: list[Path]) -> Iterator[str]:
    """Yield each relative link whose file or anchor does not exist."""
    for page in pages:
        for target in re.findall(r"\]\(((?!https?:|mailto:)[^)\s]+)\)", without_code(page.read_text("utf-8"))):
            path, _, fragment = target.partition("#")
            file = (page.parent / path).resolve() if path else page
            if not file.exists():
                yield f"{page.relative_to(ROOT)}: {target}: there is no such file"
            elif fragment and file.suffix == ".md" and fragment not in anchors(file):
                yield f"{page.relative_to(ROOT)}: {target}: there is no such heading"


def nav_entries(nav: Any) -> Iterator[str]:
    """Yield the pages that the navigation of the site names."""
    for entry in nav if isinstance(nav, list) else [nav]:
        if isinstance(entry, dict):
            for value in entry.values():
                yield from nav_entries(value)
        else:
            yield entry


def test_links_and_anchors_lead_somewhere() -> None:
    assert not list(broken(all_pages()))


def test_a_broken_link_is_found(tmp_path: Path, monkeypatch: Any) -> None:
    page = tmp_path / "page.md"
    page.write_text("# One, two\n[a](#one-two) [b](#three) [c](other.md) `[d](code.md)` ![e](e.png)\n")
    monkeypatch.setattr("tests.docs.test_links.ROOT", tmp_path)
    assert [line.split(": ")[1] for line in broken([page])] == ["#three", "other.md", "e.png"]


def test_every_page_is_in_the_navigation_once() -> None:
    entries = list(nav_entries(yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))["nav"]))
    written = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    made = {name for name in reference().pages() if not re.match(r"reference/python/(?!index)", name)}
    assert sorted(entries) == sorted(written | made)


def test_links_out_of_docs_have_a_page_on_the_site() -> None:
    """The site has no files outside docs/, so a link there must lead to a page that shows the file."""
    wrong = []
    for page in DOCS.rglob("*.md"):
        for target in re.findall(r"\]\((\.\./[^)\s#]+)", without_code(page.read_text("utf-8"))):
            file = (page.parent / target).resolve()
            if not file.is_relative_to(DOCS) and reference().page_for(file.relative_to(ROOT).as_posix()) is None:
                wrong.append(f"{page.name}: {target}")
    assert not wrong


def test_readme_is_one_screen_with_a_film() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    assert len(text.splitlines()) <= 110
    assert "docs/film.gif" in text and (DOCS / "film.gif").stat().st_size < 3_000_000
