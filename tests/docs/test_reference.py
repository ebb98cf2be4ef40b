"""The reference pages name every verb, every config key and every module."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from typing import Any, get_type_hints

from rl.cli import VERBS
from rl.compose import list_presets
from rl.deploy.robot_config import RobotConfig
from rl.verbs.help import HELP, SCHEMAS, keys_in
from rl.verbs.words import OPTIONS, PRESETS
from tests.docs.pages import ROOT, reference


def leaves(schema: Any, prefix: str = "") -> Iterator[str]:
    """Yield the dotted name of every key of a schema."""
    hints = get_type_hints(schema)
    for field in dataclasses.fields(schema):
        if dataclasses.is_dataclass(hints[field.name]):
            yield from leaves(hints[field.name], f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}"


def test_every_config_key_has_a_row_with_type_and_meaning() -> None:
    page = reference().config_page()
    rows = dict(re.findall(r"^\| <a id='([^']+)'></a>`[^`]+` \| (.*) \|$", page, re.MULTILINE))
    used = {schema for schemas in SCHEMAS.values() for schema in schemas}
    assert used >= {*PRESETS.values(), *OPTIONS.values(), RobotConfig}
    wrong = []
    for schema in used:
        for key in leaves(schema):
            cells = re.split(r"(?<!\\) \| ", rows.get(f"{reference().anchor(schema)}-{key}", ""))
            if len(cells) != 3 or not cells[0].strip() or not cells[1].strip():
                wrong.append(f"{schema.__name__}.{key}: {cells}; write what it means as a comment beside the field")
    assert not wrong, "\n".join(wrong)
    assert len(rows) > 250


def test_defaults_are_those_of_the_classes() -> None:
    keys = {key.name: key.default for key in keys_in(PRESETS["train"])}
    assert keys["ppo.clip_range"] == "0.2" and keys["gate.places"] == "imitation,sim,dream" and keys["name"] == ""


def test_every_verb_and_preset_has_a_section() -> None:
    page = reference().cli_page()
    assert HELP.keys() == VERBS.keys()
    for verb in VERBS:
        assert f"\n## wamtune {verb}\n" in page and f"wamtune {verb}" in page.partition(f"## wamtune {verb}\n")[2]
    presets = reference().presets_page()
    assert all(f"\n## {name}\n" in presets for name, _ in list_presets())


def test_keys_of_the_command_line_lead_to_their_table() -> None:
    headings = {re.sub(r"\W+", "-", h.lower()) for h in re.findall(r"^## (.*)$", reference().config_page(), re.M)}
    linked = set(re.findall(r"config\.md#([\w-]+)\)", reference().cli_page()))
    assert linked and linked <= headings


def test_every_module_with_public_names_is_on_one_page() -> None:
    named = [m for page in reference().pages().values() for m in re.findall(r"^::: ([\w.]+)$", page, re.MULTILINE)]
    assert len(named) == len(set(named))
    for package in ("rl", "world_model", "rewards"):
        for path in (ROOT / package).rglob("*.py"):
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            public = re.search(
                r"^(?:class|def|async def) [A-Za-z]|^[A-Z]\w*\s*(?::.*)?=", path.read_text("utf-8"), re.M
            )
            assert not public or module in named, module
