"""Commands of README and docs: each block is run by a test or says why not, and every word of it exists."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from rewards.errors import UserError
from rl.cli import VERBS
from rl.compose import compose, list_presets
from rl.deploy.robot_config import RobotConfig
from rl.verbs.options import DatasetOptions, HubOptions
from rl.verbs.words import ACTIONS, PRESETS, check_words
from tests.docs.pages import ROOT, all_pages, blocks, without_code
from world_model.data.columns_config import ColumnsConfig

HOLDS_PLACE = re.compile(r"\.\.\.|…|\[|^[A-Z_]+$")
"""A word that stands for others: `...`, CHECKPOINT, [PRESET]."""


def wamtune_words(command: str) -> list[str] | None:
    """Return the words after `wamtune` of a command line; None if it is another program."""
    words = shlex.split(command, comments=True)
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    if words and words[0].rsplit("/", 1)[-1] == "wamtune":
        return words[1:]
    return words[words.index("rl.cli") + 1 :] if "rl.cli" in words else None


def check(words: list[str]) -> None:
    """Raise `UserError` unless a verb takes these words; runs, files and checkpoints of the reader need not exist.

    A preset that the reader makes (`fitted.yaml`, `runs/NAME`) is left out; its keys are checked all the same.
    """
    verb, rest = (words[0], words[1:]) if words else ("", [])
    if verb and verb not in VERBS:
        raise UserError(f"unknown verb {verb}")
    if not rest:  # in running text a verb alone is a name
        return
    if verb in PRESETS and is_file_of_reader(rest[0]):
        compose(None, [*_defaults(verb), *rest[1:]], PRESETS[verb])
    elif verb == "deploy" and len(rest) > 1 and rest[1] in ACTIONS:
        keys = rest[ACTIONS[rest[1]] :]
        check_words(verb, rest)
        if rest[1] in ("run", "compare") and keys and "=" in keys[0]:
            compose(None, keys, RobotConfig)
    elif verb == "cp":
        check_copy(rest)
    else:
        check_words(verb, rest)


def check_copy(words: list[str]) -> None:
    """Raise the error of the last schema if the keys of `cp` fit none of those that it has."""
    keys = [word for word in words if "=" in word and not word.startswith("format=")]
    errors = []
    for schema in (HubOptions, DatasetOptions, ColumnsConfig):
        try:
            compose(None, keys, schema)
        except UserError as error:
            errors.append(error)
    if len(errors) == 3:
        raise errors[-1]


def is_file_of_reader(word: str) -> bool:
    """Whether a first word names a run or a preset that only exists after other commands."""
    made = word.startswith("runs/") or (word.endswith(".yaml") and not (ROOT / word).exists())
    return made and word not in dict(list_presets())


def _defaults(verb: str) -> list[str]:
    return ["name=x", "episodes=x"] if verb == "tune" else ["name=x"]


def inline_commands() -> list[tuple[str, str]]:
    """Return (page, command) of each `wamtune ...` in running text without words that stand for others."""
    found = []
    for page in all_pages():
        text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
        for command in re.findall(r"`((?:\.venv/bin/)?wamtune [^`]+)`", text):
            words = " ".join(command.replace("--help", "").split())
            if not any(HOLDS_PLACE.search(word) for word in shlex.split(words)):
                found.append((page.name, words))
    return found


def test_every_block_is_run_by_a_test_or_says_why_not() -> None:
    wrong = []
    for block in blocks():
        tests = re.findall(r"tests/[\w/]+\.py", block.comment)
        missing = [name for name in tests if not (ROOT / name).is_file()]
        says = re.fullmatch(r"Not run by a test: .+\.", block.comment, re.DOTALL) or (tests and "run" in block.comment)
        if missing or not says:
            wrong.append(f"{block.where}: {block.comment or 'no comment'} {missing or ''}")
    assert not wrong, "write <!-- Not run by a test: REASON. --> above the block\n" + "\n".join(wrong)


def test_every_word_of_wamtune_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    in_blocks = [(block.where, command) for block in blocks() for command in block.commands]
    n, wrong = 0, []
    for where, command in [*in_blocks, *inline_commands()]:
        words = wamtune_words(command)
        if words is None:
            continue
        n += 1
        try:
            check([re.sub(r"\b[A-Z]{3,}(?:_[A-Z]+)*\b", "mine", word) for word in words])
        except UserError as error:
            wrong.append(f"{where}: {command}: {error}")
    assert n > 100
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "command",
    [
        "wamtune trian mix",
        "wamtune train mx",
        "wamtune train mix env.task=push",
        "wamtune train fitted.yaml n_round=2",
        "wamtune eval metaworld-tuned n_episode=3",
        "wamtune deploy metaworld-tuned run robot-sim hz=fast",
        "wamtune cp a b pirvate=false",
        "torchrun --nproc-per-node=2 -m rl.cli train mix seeds=1",
    ],
)
def test_a_wrong_word_is_found(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    words = wamtune_words(command)
    assert words is not None
    with pytest.raises(UserError):
        check(words)


def test_targets_of_make_exist() -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    used = {m for page in all_pages() for m in re.findall(r"`make ([a-z-]+)", page.read_text("utf-8"))}
    used |= {command.split()[1] for block in blocks() for command in block.commands if command.startswith("make ")}
    assert {"demo", "test", "docs"} <= used <= {*targets}


def test_scripts_and_their_options_exist() -> None:
    """`python benchmarks/NAME.py --option` in a block or in running text."""
    n, wrong = 0, []
    for page in (page for page in all_pages() if page.name != "CHANGELOG.md"):  # which tells of what is gone
        text = page.read_text("utf-8").replace("\\\n", " ")
        for script, rest in re.findall(r"(benchmarks/\w+\.py)([^`\n]*)", text):
            n += 1
            file = ROOT / script
            source = file.read_text("utf-8") if file.is_file() else ""
            options = re.findall(r" (--[a-z][\w-]*)", rest.partition("#")[0])
            wrong += [f"{page.name}: {script} {option}" for option in options if f'"{option}"' not in source]
            wrong += [] if source else [f"{page.name}: {script}"]
    assert n > 30 and not wrong


def test_a_block_after_one_of_another_language_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.md"
    page.write_text("```text\nas printed\n```\n\nThen:\n\n<!-- Why. -->\n```bash\nwamtune ls\n```\n")
    monkeypatch.setattr("tests.docs.pages.all_pages", lambda: [page])
    (block,) = blocks()
    assert block.commands == ["wamtune ls"] and block.comment == "Why." and block.line == 8


def test_commands_in_text_are_looked_at(tmp_path: Path) -> None:
    assert without_code("a `b` c\n```\nd\n```\n") == "a  c\n\n"
    assert len(inline_commands()) > 40
    found: Any = wamtune_words("SSL_CERT_FILE=a .venv/bin/wamtune train mix  # as before")
    assert found == ["train", "mix"] and wamtune_words("python -m mkdocs build") is None
