"""The page: one HTML file with its style and script inside, which may load nothing else."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from rl.report.look import STYLE, text

FOLDER = Path(__file__).parent / "page"


@dataclass(frozen=True)
class Page:
    """The page of a checkpoint; `name` is its name, for people."""

    name: str

    def html(self) -> str:
        """Return the whole page."""
        skeleton = _read("page.html")
        for mark, value in (("NAME", text(self.name)), ("STYLE", self._style), ("SCRIPT", self._script)):
            skeleton = skeleton.replace(f"{{{{{mark}}}}}", value)
        return skeleton

    @property
    def policy(self) -> str:
        """The Content-Security-Policy: this style, this script, and a websocket back to the same address."""
        return (
            f"default-src 'none'; style-src {_hash(self._style)}; script-src {_hash(self._script)}; "
            "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )

    def response(self) -> Any:
        """Return the page as an answer of websockets to a request of HTTP."""
        body = self.html().encode()
        headers = import_module("websockets.datastructures").Headers(
            {
                "Content-Type": "text/html; charset=utf-8",
                "Content-Length": str(len(body)),
                "Content-Security-Policy": self.policy,
                "Connection": "close",
                "Cache-Control": "no-store",
                "Referrer-Policy": "no-referrer",
                "X-Content-Type-Options": "nosniff",
                "Cross-Origin-Opener-Policy": "same-origin",
                "Cross-Origin-Resource-Policy": "same-origin",
            }
        )
        return import_module("websockets.http11").Response(200, "OK", headers, body)

    @property
    def _style(self) -> str:
        return STYLE + _read("page.css")

    @property
    def _script(self) -> str:
        return _read("page.js")


def _read(name: str) -> str:
    return (FOLDER / name).read_text("utf-8")


def _hash(source: str) -> str:
    """Return the source expression of a Content-Security-Policy for an inline style or script."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}'"
