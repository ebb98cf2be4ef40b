"""The pages of the documentation, and what stands in them."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"

FENCED = r"^```(\w*)[^\n]*\n(.*?)^```"
"""A block of code: language and lines. All languages are matched, or the end of one block would begin another."""

SHELLS = ("", "bash", "sh", "shell", "zsh")
"""Languages of a block that may hold commands; the first is none."""

PROGRAMS = r"(?:[A-Z_]+=\S+ )*(?:\S*/)?(?:wamtune|python|pip|make|uv|torchrun|tensorboard|lerobot-\w+)(?: |$)"
"""How a line begins that is a command."""


class Block(NamedTuple):
    """A block of commands: the page, the line where it begins, the comment above it, and its commands."""

    page: Path
    line: int
    comment: str
    commands: list[str]

    @property
    def where(self) -> str:
        """Page and line, for messages."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def all_pages() -> list[Path]:
    """Return the Markdown files that people read, in the repository and in the site."""
    return [*sorted(ROOT.glob("*.md")), *sorted(DOCS.rglob("*.md")), ROOT / "lerobot_policy_wamtune" / "README.md"]


def blocks() -> Iterator[Block]:
    """Yield every block of commands of all pages."""
    for page in all_pages():
        text = page.read_text("utf-8")
        for found in re.finditer(FENCED, text, re.MULTILINE | re.DOTALL):
            if found[1] not in SHELLS:
                continue
            lines = found[2].replace("\\\n", " ").splitlines()
            commands = [line.strip() for line in lines if re.match(PROGRAMS, line.strip())]
            if commands:
                above = text[: found.start()].rstrip("\n").rpartition("\n\n")[2]
                comment = re.search(r"<!--(.*?)-->$", above, re.DOTALL)
                line = text[: found.start()].count("\n") + 1
                yield Block(page, line, comment[1].strip() if comment else "", commands)


def without_code(text: str) -> str:
    """Return Markdown without blocks and inline code."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`\n]*`", "", text)


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    found: dict[str, int] = {}
    names = set()
    for heading in re.findall(
        r"^#+ (.*)$", re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.M | re.S), re.M
    ):
        slug = re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")
        n = found.get(slug, 0)
        found[slug] = n + 1
        names.add(f"{slug}-{n}" if n else slug)
    return names


@cache
def reference() -> ModuleType:
    """Return the module that makes the reference pages of the site."""
    spec = importlib.util.spec_from_file_location("site_reference", DOCS / "_site" / "reference.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
