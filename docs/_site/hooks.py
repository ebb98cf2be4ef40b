"""Hooks of MkDocs: add the generated pages, and point links that leave docs/ to the pages that show those files."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

sys.path.insert(0, str(Path(__file__).resolve().parent))

import reference

LINK = re.compile(r"(\]\()((?!https?:|mailto:|#)[^)\s]+)(\))")


def on_config(config: Any) -> Any:
    """Put a page for each folder of the source below "Python modules"."""
    for section in config.nav:
        for i, entry in enumerate(section.get("Reference", ()) if isinstance(section, dict) else ()):
            if entry == {"Python modules": "reference/python/index.md"}:
                rooms = [{room: reference.page_of_room(room)} for room in reference.rooms()]
                section["Reference"][i] = {"Python modules": ["reference/python/index.md", *rooms]}
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages."""
    for path, text in reference.pages().items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Rewrite links of this page that leave docs/."""
    folder = PurePosixPath(page.file.src_uri).parent

    def rewritten(match: re.Match[str]) -> str:
        target, _, fragment = match[2].partition("#")
        resolved = os.path.normpath(f"docs/{folder}/{target}")
        if resolved.startswith("docs/"):
            inside = os.path.relpath(resolved.removeprefix("docs/"), str(folder))
        elif (found := reference.page_for(resolved)) is not None:
            inside = os.path.relpath(found, str(folder))
        else:
            return match[0]
        return f"{match[1]}{inside}{f'#{fragment}' if fragment and '#' not in inside else ''}{match[3]}"

    return LINK.sub(rewritten, markdown)
