"""Commands in the documentation can be pasted into any shell."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from rl.verbs.help import HELP

ROOT = Path(__file__).resolve().parent.parent
PATTERNS = set("[]{}*?")
"""What a shell expands unless it is quoted; zsh then refuses a word that matches no file."""

COMMAND = r"(?:[A-Z_]+=\S+ )*(?:\S*/)?(?:wamtune|python|pip|make|uv) "


def commands() -> Iterator[tuple[str, str]]:
    """Where a command stands, and the command: of fenced blocks, inline code, comments of presets, and examples."""
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/*.md")]
    for page in pages:
        text = page.read_text("utf-8")
        blocks = re.findall(r"^```(?:bash|sh|shell|zsh)?\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
        inline = re.findall(rf"`({COMMAND}[^`]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))
        yield from ((page.name, command) for command in (*inline, *lines) if re.match(COMMAND, command))
    for preset in (*ROOT.glob("configs/*.yaml"), *ROOT.glob("examples/*")):
        if preset.is_file():
            yield from ((preset.name, line) for line in re.findall(rf"^# +({COMMAND}.*)$", preset.read_text(), re.M))
    for verb, text in HELP.items():
        yield from ((f"{verb} --help", line) for line in text.partition("Examples:\n")[2].splitlines())
    for file in (path for package in ("rl", "world_model", "rewards") for path in (ROOT / package).rglob("*.py")):
        found = re.findall(r"wamtune (?:[a-z]+ )[^`\"'\n]*=\[[^`\"\n]*", file.read_text("utf-8"))
        yield from ((file.name, command) for command in found)


def unquoted(command: str) -> list[str]:
    """Words of a command that a shell would expand."""
    bare = re.sub(r"'[^']*'|\"[^\"]*\"", "", command)
    words = re.sub(r"(?:^|\s)#.*", "", bare).split()
    return [word for word in words if PATTERNS & set(word)]


@pytest.mark.parametrize("word", ["tasks=[push]", "--seeds=?", "a={b,c}"])
def test_what_a_shell_expands_is_found(word: str) -> None:
    assert unquoted(f"wamtune train {word} 'x=[y]'  # [z]") == [word]


def test_commands_need_no_quotes_that_are_missing() -> None:
    found = list(commands())
    assert len(found) > 60
    assert not [f"{where}: {command}" for where, command in found if unquoted(command)]
