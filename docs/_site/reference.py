"""The reference pages of the site, made from the source: command line, config keys, presets, examples, Python modules.

`pages` returns them all. Nothing here needs MkDocs, so that the fast tests can read what the site says.
"""

from __future__ import annotations

import ast
import dataclasses
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from rl.cli import VERBS  # noqa: E402
from rl.compose import list_presets  # noqa: E402
from rl.config import PolicyConfig, ScheduleConfig, WorldModelConfig  # noqa: E402
from rl.deploy.safety import Box  # noqa: E402
from rl.envs.metaworld.events import Event  # noqa: E402
from rl.envs.names import IsaacOptions, MetaWorldOptions  # noqa: E402
from rl.verbs.help import HELP, SCHEMAS, Key, keys_in  # noqa: E402
from world_model.view import View  # noqa: E402

PACKAGES = ("rl", "world_model", "rewards")
"""The packages of the Python reference."""

NESTED: dict[str, type] = {
    "ppo.learning_rate, ppo.clip_range": ScheduleConfig,
    "policy": PolicyConfig,
    "dream.world_model": WorldModelConfig,
    "model.views.NAME, cameras.NAME": View,
    "limits.boxes.NAME": Box,
    "env.options of Meta-World": MetaWorldOptions,
    "env.options.events.NAME of Meta-World": Event,
    "env.options of Isaac Lab": IsaacOptions,
}
"""Key whose value is a group with keys of its own -> the dataclass of that group."""

OUTSIDE = {
    "rl/verbs/help.py": "reference/cli.md",
    "rl/config.py": "reference/config.md",
    "README.md": "index.md",
    "SECURITY.md": "reference/security.md",
    "CHANGELOG.md": "reference/changelog.md",
    "lerobot_policy_wamtune/README.md": "reference/lerobot_policy_wamtune.md",
    "configs": "reference/presets.md",
    "examples": "reference/examples.md",
    "world_model/builtin": "reference/checkpoints.md",
}
"""File or folder of the project outside docs/ -> the page of the site that shows it."""


def pages() -> dict[str, str]:
    """Return the generated pages: path below docs/ -> Markdown."""
    made = {
        "reference/cli.md": cli_page(),
        "reference/config.md": config_page(),
        "reference/presets.md": presets_page(),
        "reference/examples.md": examples_page(),
        "reference/checkpoints.md": checkpoints_page(),
        "reference/security.md": moved("SECURITY.md"),
        "reference/changelog.md": moved("CHANGELOG.md"),
        "reference/lerobot_policy_wamtune.md": moved("lerobot_policy_wamtune/README.md"),
        "reference/python/index.md": python_index(),
    }
    return made | {page_of_room(room): python_page(room, modules) for room, modules in rooms().items()}


def cli_page() -> str:
    """Return the page of the command line: every verb with its usage, what it does, and two examples."""
    parts = [
        "# Command line\n\n"
        "`wamtune VERB [PRESET | CHECKPOINT | FILE | RUN_FOLDER] [key=value ...]`\n\n"
        "`wamtune` alone says what to do next in the current folder, and `wamtune VERB --help` prints what stands "
        "here, with the keys. `--debug` shows where an error comes from.\n",
        "| verb | what it does |\n|---|---|",
        *(f"| [`{verb}`](#wamtune-{verb}) | {summary} |" for verb, (_, summary) in VERBS.items()),
    ]
    return "\n".join([*parts, *map(_verb, VERBS)]) + "\n"


def _verb(verb: str) -> str:
    """Return the section of a verb; its keys stand on the page of config keys."""
    text, _, examples = HELP[verb].partition("\n\nExamples:\n")
    about = re.split(r"\n\nKeys\b", text)[0]
    usage, *paragraphs = about.split("\n\n")
    prose = [re.sub(r"\(docs/(\w+)\.md\)", r"([more](../\1.md))", paragraph) for paragraph in paragraphs]
    keys = ", ".join(f"[{title(schema)}](config.md#{anchor(schema)})" for schema in SCHEMAS.get(verb, ()))
    return "\n\n".join(
        [
            f"\n## wamtune {verb}\n",
            f"```text\n{usage}\n```",
            *(re.sub(r"(?<![`\w])([\w.]+=[\w.:/{},|]+)", r"`\1`", p) if "`" not in p else p for p in prose),
            *([f"Keys: {keys}."] if keys else []),
            "```bash\n" + "\n".join(line.strip() for line in examples.splitlines()) + "\n```",
        ]
    )


def config_page() -> str:
    """Return the page of config keys: name, type, default and meaning of each, by verb."""
    parts = [
        "# Config keys\n\n"
        "Every key that a preset or a `key=value` on the command line may set. The tables are made from the "
        "dataclasses of the source, which also check each value. A key without a default has to be given. On the "
        "command line a list is written with commas: `env.tasks=push,hammer`.\n"
    ]
    for schema, verbs in schemas().items():
        words = " and ".join(f"`wamtune {verb}`" for verb in verbs)
        parts += [f"## {title(schema)}\n", f"{_first_line(schema)} Used by {words}.\n"]
        parts += _tables(keys_in(schema), anchor(schema))
    parts.append("## Groups within a key\n")
    for key, schema in NESTED.items():
        parts += [f"### {key}\n", _first_line(schema) + "\n", *_table(keys_in(schema), anchor(schema))]
    return "\n".join(parts) + "\n"


def schemas() -> dict[type, list[str]]:
    """Return each config schema -> the verbs that use it, that of `wamtune train` first."""
    found: dict[type, list[str]] = {}
    for verb, used in SCHEMAS.items():
        for schema in used:
            found.setdefault(schema, []).append(verb)
    return {schema: found[schema] for schema in sorted(found, key=lambda schema: found[schema] != ["train", "check"])}


def title(schema: type) -> str:
    """Return the heading of a schema: the words of its name."""
    words = re.sub(r"(Config|Options)$", "", schema.__name__)
    return {"Columns": "Columns of a dataset", "Hub": "Upload", "Robot": "Robot session"}.get(words, words)


def anchor(schema: type) -> str:
    """Return the anchor of the heading of a schema."""
    return re.sub(r"\W+", "-", title(schema).lower())


def _tables(keys: list[Key], prefix: str) -> Iterator[str]:
    """Yield a table for the keys without a group, then one for each group."""
    groups: dict[str, list[Key]] = {}
    for key in keys:
        groups.setdefault(key.name.partition(".")[0] if "." in key.name else "", []).append(key)
    for name in sorted(groups, key=lambda name: name != ""):
        if name:
            yield f"### {prefix}: {name} {{ #{prefix}-{name} }}\n"
        yield from _table(groups[name], prefix)


def _table(keys: list[Key], prefix: str) -> Iterator[str]:
    yield "| key | meaning | type | default |\n|---|---|---|---|"
    for key in keys:
        default = f"`{key.default}`" if key.default else ""
        meaning = re.sub(r"(?<=[^\\])\|", r"\\|", key.meaning).replace("{", "&#123;")
        yield f"| <a id='{prefix}-{key.name}'></a>`{key.name}` | {meaning} | {type_text(key.type)} | {default} |"
    yield ""


def type_text(hint: Any) -> str:
    """Return a type in plain words, with the allowed values of a choice."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return f"{type_text(inner[1])}, or a group"
    if origin in (Union, UnionType):
        return ", or ".join("null" if part is NoneType else type_text(part) for part in inner)
    if origin is Literal:
        return " \\| ".join(f"`{value}`" for value in inner)
    if origin in (tuple, list):
        return f"list of {type_text(inner[0])}s"
    if origin is dict:
        return f"group: name -> {type_text(inner[1])}"
    if dataclasses.is_dataclass(hint):
        return "group"
    return {bool: "true or false", int: "whole number", float: "number", str: "text", Any: "value"}[hint]


def _first_line(of: type) -> str:
    return " ".join((of.__doc__ or "").split("\n\n")[0].split())


def presets_page() -> str:
    """Return the page with every preset as it stands in configs/."""
    parts = [
        "# Presets\n\n"
        "A preset is a YAML file with the values that differ from the defaults; `base:` names the preset that it "
        "changes. `wamtune cp PRESET mine.yaml` makes a copy of your own, and `wamtune train mine.yaml` runs it. Which "
        "one you want stands on [a page of its own](../presets.md).\n"
    ]
    for name, _ in list_presets():
        parts.append(f"## {name}\n\n```yaml\n{(ROOT / 'configs' / f'{name}.yaml').read_text('utf-8').strip()}\n```\n")
    return "\n".join(parts)


def examples_page() -> str:
    """Return the page with every file of examples/."""
    parts = ["# Examples\n\nThe files of the folder `examples/`. A command of the docs runs each of them.\n"]
    for path in sorted((ROOT / "examples").iterdir()):
        if path.suffix in (".py", ".yaml"):
            language = {".py": "python", ".yaml": "yaml"}[path.suffix]
            parts.append(f"## {path.name}\n\n```{language}\n{path.read_text('utf-8').strip()}\n```\n")
    return "\n".join(parts)


def checkpoints_page() -> str:
    """Return the model cards of the built-in checkpoints on one page."""
    parts = ["# Built-in checkpoints\n\nThe model card of each checkpoint, written by the command that made it.\n"]
    for card in sorted((ROOT / "world_model" / "builtin").glob("*/README.md")):
        parts.append(re.sub(r"^#", "##", card.read_text("utf-8"), flags=re.MULTILINE))
    return "\n".join(parts)


def moved(name: str) -> str:
    """Return a page of the project that stands outside docs/, with links as they are seen from reference/."""
    text = (ROOT / name).read_text("utf-8")
    folder = Path(name).parent
    return re.sub(r"\]\((?!https?:|#)([^)]+)\)", lambda m: f"](../../{(folder / m[1]).as_posix()})", text)


def public_names(path: Path) -> list[str]:
    """Return the public classes, functions and values of a source file, in its order."""
    names: list[str] = []
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.append(node.name)
        elif isinstance(node, ast.Assign):
            targets = [
                t for target in node.targets for t in (target.elts if isinstance(target, ast.Tuple) else [target])
            ]
            names += [target.id for target in targets if isinstance(target, ast.Name)]
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.append(node.target.id)
    return list(dict.fromkeys(name for name in names if not name.startswith("_")))


def modules() -> dict[str, Path]:
    """Return every module of the packages -> its file."""
    files = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in files}


def rooms() -> dict[str, dict[str, Path]]:
    """Return each folder of the source as a dotted name -> its modules, those without public names left out."""
    found: dict[str, dict[str, Path]] = {}
    for name, path in modules().items():
        if public_names(path) or path.name != "__init__.py":
            folder = ".".join(path.parent.relative_to(ROOT).parts)
            found.setdefault(folder, {})[name] = path
    return found


def page_of_room(room: str) -> str:
    """Return the page of a folder of the source."""
    return f"reference/python/{room}.md"


def python_page(room: str, of: dict[str, Path]) -> str:
    """Return the page of a folder of the source; mkdocstrings replaces each `:::` by the docstrings of the module."""
    parts = [f"::: {name}\n\n{_values_set_together(name, path)}" for name, path in of.items()]
    return f"# {room}\n\n" + "\n\n".join(parts) + "\n"


def _values_set_together(module: str, path: Path) -> str:
    """Return a table of the public values that one line sets together, `A, B = 1, 2`; mkdocstrings leaves them out."""
    rows = []
    body = ast.parse(path.read_text("utf-8")).body
    for node, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.Assign) and isinstance(target := node.targets[0], ast.Tuple):
            about = after.value.value if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) else ""
            values = node.value.elts if isinstance(node.value, ast.Tuple) else [node.value] * len(target.elts)
            about = " ".join(str(about).split()).replace("|", "\\|")
            for part, value in zip(map(ast.unparse, target.elts), map(ast.unparse, values), strict=True):
                if not part.startswith("_"):
                    shown = value.replace("|", "\\|")
                    rows.append(f"| <a id='{module}.{part}'></a>`{part}` | `{shown}` | {about} |")
    return "\n".join(["| value | set to | about |\n|---|---|---|", *rows]) if rows else ""


def python_index() -> str:
    """Return the list of all modules with the first line of their docstring."""
    parts = [
        "# Python modules\n\n"
        "Every public class, function and value, from the docstrings. The three packages import in one direction: "
        "`rewards`, then `world_model`, then `rl`. Only the interface of plug-ins and config keys is kept stable "
        "between versions; everything else may move.\n"
    ]
    for room, of in rooms().items():
        parts.append(f"\n## [{room}]({room}.md)\n\n| module | about |\n|---|---|")
        for name, path in of.items():
            about = (ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "").partition("\n")[0]
            parts.append(f"| [`{name}`]({room}.md#{name}) | {about.replace('|', chr(92) + '|')} |")
    return "\n".join(parts) + "\n"


def page_for(target: str) -> str | None:
    """Return the page of the site that shows a file outside docs/, with an anchor; None: no page does."""
    path = Path(target)
    for outside, page in OUTSIDE.items():
        if path == Path(outside):
            return page
        if Path(outside) in path.parents:
            heading = (
                path.parent.name if path.name == "README.md" else path.stem if path.suffix == ".yaml" else path.name
            )
            if outside == "examples":
                heading = path.name.replace(".", "")
            return f"{page}#{heading.lower()}"
    found = {file.relative_to(ROOT): name for name, file in modules().items()}
    if path in found:
        return f"{page_of_room('.'.join(path.parent.parts))}#{found[path]}"
    return None
