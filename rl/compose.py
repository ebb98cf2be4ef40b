"""Compose a config: YAML presets over a dataclass schema, `key=value` overrides on top. No interpolation, no code.

Each file and each override is checked against the schema separately, so that an error names the source of the value.
"""

from __future__ import annotations

import dataclasses
import math
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rewards.errors import UserError, closest_or_known
from world_model.files import read_file
from world_model.runs import find_run

T = TypeVar("T")
Layer = tuple[str, dict[str, Any]]  # source of the values for messages ("in demo.yaml"), the values

MAX_CHARACTERS = 100_000
"""Largest accepted length of a preset; the presets of this project have less than a tenth of it."""

MAX_DEPTH = 20
_YAML_BEGIN = (
    yaml.BlockMappingStartToken,
    yaml.BlockSequenceStartToken,
    yaml.FlowMappingStartToken,
    yaml.FlowSequenceStartToken,
)
_YAML_END = (yaml.BlockEndToken, yaml.FlowMappingEndToken, yaml.FlowSequenceEndToken)
LARGEST = {
    "seed": 2**31 - 1,
    "total_timesteps": 10**12,
    "n_envs": 65_536,
    **dict.fromkeys(("batch_size", "bc_batch_size"), 2**20),
    **dict.fromkeys(("n_epochs", "horizon", "action_delay", "n_chunks"), 100_000),
    **dict.fromkeys(("threads", "n_workers", "n_denoising_steps", "n_action_steps"), 1024),
}
"""Largest accepted integer, by the last word of its key. Larger ones are typing errors that could fill the memory."""

LARGEST_OTHER = 10_000_000
"""Largest accepted integer for every other key."""

_SCALARS: dict[type, str] = {bool: "true or false", int: "an integer", float: "a finite number", str: "text"}


def compose(preset: str | Path | None, overrides: Sequence[str], schema: type[T]) -> T:
    """Return a checked `schema` instance from a preset and `key=value` overrides.

    Values are YAML. A list may also be `tasks=push,hammer`, because zsh reads unquoted brackets as a pattern.
    A preset may name a `base:` (another preset, or a file beside it) and is merged over it. Groups are merged, lists
    replaced.

    A dataclass of the schema may define `check(self)`, whose `UserError` begins with a field name; `BELONGS`, see
    `_drop_what_belonged`; `MOVED` and `migrate` for keys of older versions, see `_migrated`.

    Raises:
        UserError: a key is unknown, a value does not fit its field, or a field without a default has no value.
    """
    files = [[layer] for layer in _preset_layers(find_preset(preset))] if preset is not None else []
    words = [_override_layer(override, schema) for override in overrides]
    return _composed([*files, words], schema, str(preset or "the config"))


def _composed(groups: Sequence[Sequence[Layer]], schema: type[T], name: str) -> T:
    """Merge layers in order, and build and check the config.

    Layers of one group (all overrides of a command) have no order among each other for `BELONGS`.
    """
    # Rename old keys first, then check each layer alone: after the merge, the source of a value is lost.
    groups = [[(where, _migrated(values, schema)) for where, values in group] for group in groups]
    layers = [layer for group in groups for layer in group]
    for where, values in layers:
        _check_value(values, schema, "", where)
    # Then merge in order: the base of a preset, the preset, the overrides.
    _drop_what_belonged([[values for _, values in group] for group in groups], schema)
    merged = OmegaConf.merge(OmegaConf.structured(schema), *(values for _, values in layers))
    if missing := sorted(OmegaConf.missing_keys(merged)):
        key = missing[0]
        raise UserError(f"key {key!r} has no value in {name}; add {key}=... to the command")
    config = OmegaConf.to_object(merged)
    assert isinstance(config, schema)
    _run_checks(config, "")
    return config


def typed(values: Mapping[str, Any], schema: type[T], key: str, where: str, remedy: str = "") -> T:
    """Return a checked instance of the dataclass `schema` from the group of values at `key` of a composed config.

    A list of texts may be written as one text with commas.

    Args:
        values: the group.
        schema: dataclass with the expected fields.
        key: of the group, for messages.
        where: source of the values, for messages: "in demo.yaml".
        remedy: added to the message about an unknown key.

    Raises:
        UserError: a key is unknown or a value does not fit.
    """
    hints = get_type_hints(schema)
    values = {
        name: parse(f"value: [{value}]", f"in {key}.{name}")["value"]
        if isinstance(value, str) and get_origin(hints.get(name)) is tuple
        else value
        for name, value in values.items()
    }
    for name in values:
        if name not in hints:
            suggestion = closest_or_known(str(name), hints)
            raise UserError(f"unknown key {_shown(f'{key}.{name}')} {where}; {suggestion}{remedy}")
    _check_value(values, schema, key, where)
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), values))
    assert isinstance(config, schema)
    _run_checks(config, f"{key}.")
    return config


def _migrated(values: dict[str, Any], schema: Any) -> dict[str, Any]:
    """Rename the keys of older versions to those of this version.

    A class of a schema may define `MOVED`, pairs (old key, new key) such as ("id", "env.id"), and a static method
    `migrate`, which converts its whole group of keys.
    """
    values = dict(values)
    for old, new in getattr(schema, "MOVED", ()):
        if old in values:
            group, _, name = new.rpartition(".")
            inner = values.setdefault(group, {}) if group else values
            if not isinstance(inner, dict):
                break  # leave it as it is: the type check reports it
            inner.setdefault(name, values[old])
            del values[old]
    for name, hint in get_type_hints(schema).items():
        if dataclasses.is_dataclass(hint) and isinstance(values.get(name), dict):
            values[name] = _migrated(values[name], hint)
    return schema.migrate(values) if hasattr(schema, "migrate") else values


def _drop_what_belonged(groups: Sequence[Sequence[dict[str, Any]]], schema: Any) -> None:
    """Drop keys of earlier groups that belong to a value which a later group changes, in place.

    A class of a schema lists them in `BELONGS`, pairs (key, owner) such as ("tasks", "id"): the tasks of a preset are
    dropped if the command line sets another `env.id`. A key that the later group sets itself is kept.
    """
    hints = get_type_hints(schema)
    for field in dataclasses.fields(schema):
        if dataclasses.is_dataclass(hints[field.name]):
            inner = [[v for values in g if isinstance(v := values.get(field.name), dict)] for g in groups]
            _drop_what_belonged(inner, hints[field.name])
    for name, owner in getattr(schema, "BELONGS", ()):
        value = next(field.default for field in dataclasses.fields(schema) if field.name == owner)
        for i, group in enumerate(groups):
            # The owner's value before this group, and after it.
            before, value = value, next((values[owner] for values in reversed(group) if owner in values), value)
            if value != before and not any(name in values for values in group):
                for values in (values for lower in groups[:i] for values in lower):
                    values.pop(name, None)


def preset_folder() -> Path:
    """Return the folder of the presets: inside this package in a wheel, `configs/` beside it in a checkout."""
    package = Path(__file__).resolve().parent
    packed = package / "presets"
    return packed if packed.is_dir() else package.parent / "configs"


def list_presets() -> list[tuple[str, str]]:
    """Return (name, first comment line) of every preset, sorted by name."""
    folder = preset_folder()
    found = []
    for path in folder.rglob("*.yaml"):
        lines = read_file(path, 4 * MAX_CHARACTERS).decode().splitlines()
        comment = next((line.lstrip("# ").strip() for line in lines if line.startswith("#")), "")
        found.append((path.relative_to(folder).with_suffix("").as_posix(), comment))
    return sorted(found)


def find_preset(name_or_path: str | Path, beside: Path | None = None) -> Path:
    """Return the file of a preset name, a YAML file (also one relative to `beside`) or a run folder, see `find_run`."""
    name, known = str(name_or_path), [preset for preset, _ in list_presets()]
    if name in known:
        return (preset_folder() / f"{name}.yaml").resolve()
    file = (beside or Path()) / name
    if (run := find_run(file)) is not None:
        file = run / "config.yaml"
    if file.suffix in (".yaml", ".yml"):
        if file.is_file():
            return file.resolve()
        expected = f"a preset ({', '.join(known)}), a .yaml file or a run folder"
        raise UserError(f"there is no file {str(file)!r}; give {expected}")
    raise UserError(f"unknown preset {_shown(name)}; {closest_or_known(name, known)}")


def to_yaml(config: object) -> str:
    """Return YAML that composes to an equal config."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def diff_from_defaults(config: Any) -> dict[str, Any]:
    """Return {dotted key: value} for every value that differs from the schema's default, in schema order."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            found |= {f"{field.name}.{key}": v for key, v in diff_from_defaults(value).items()}
            continue
        factory = field.default_factory
        default = field.default if factory is dataclasses.MISSING else factory()
        if value != default:
            found[field.name] = value
    return found


def overrides_of(config: Any) -> list[str]:
    """Return the differences from the defaults as words for a shell, `key=value`, in schema order."""
    return [shlex.quote(f"{key}={_written(value)}") for key, value in diff_from_defaults(config).items()]


def yaml_on_one_line(value: Any) -> str:
    """Return numbers, text, lists and dicts as YAML on one line, as a value on the command line is.

    Raises:
        yaml.YAMLError: there is something else in it.
    """
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=1_000_000)
    return text.removesuffix("\n").removesuffix("\n...")


def _written(value: Any) -> str:
    """Return a value as an override has it: YAML on one line, a list of plain words without brackets."""
    plain = _plain(value)
    if isinstance(plain, list):
        items = [_written(item) for item in plain]
        if items and not set("".join(items)) & set(",[]{}'\""):
            return ",".join(items)
    return yaml_on_one_line(plain)


def _plain(value: Any) -> Any:
    """Return dicts, lists and single values in place of dataclasses and tuples."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _preset_layers(path: Path, seen: tuple[Path, ...] = ()) -> Iterator[Layer]:
    """Yield the layers of a preset, its `base:` first; `seen` are the presets that led here, to detect a circle."""
    if path in seen:
        chain = " -> ".join(p.name for p in (*seen, path))
        raise UserError(f"presets name each other as base: {chain}; remove one 'base:'")
    where = f"in {path}"
    try:
        text = read_file(path, 4 * MAX_CHARACTERS).decode()
    except (FileNotFoundError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the preset {path}: {error}") from None
    values = parse(text, where)
    base = values.get("base")
    if base is not None:
        if not isinstance(base, str):
            raise UserError(f"base={base!r} {where}: expected the name of a preset or a .yaml file")
        yield from _preset_layers(find_preset(base, beside=path.parent), (*seen, path))
    yield where, _with_files({key: value for key, value in values.items() if key != "base"}, path.parent)


def _with_files(value: Any, folder: Path) -> Any:
    """Return `value` with the folder put before each `file.py:name` in it that a key such as `func` names.

    So a preset can name a plug-in file that lies beside it.
    """
    if isinstance(value, list):
        return [_with_files(item, folder) for item in value]
    if not isinstance(value, dict):
        return value
    found = {key: _with_files(item, folder) for key, item in value.items()}
    for key in ("func", "policy", "robot", "simulator", "id", "world_model", "encoder", "text_encoder"):
        source, _, name = str(found.get(key, "")).rpartition(":")
        if source.endswith(".py") and (folder / source).is_file():
            found[key] = f"{folder / source}:{name}"
    return found


def _override_layer(override: str, schema: Any) -> Layer:
    """Parse one `a.b=value` of the command line into nested groups."""
    key, equals, value = override.partition("=")
    if override.startswith("-"):
        name = key.lstrip("-")
        raise UserError(f"unexpected {override!r}; write overrides as key=value: {name}={value or '...'}")
    if not equals or not all(key.split(".")) or key.count(".") > MAX_DEPTH:
        raise UserError(f"unexpected {_shown(override)}; write overrides as key=value, for example seed=1")
    where = "on the command line"
    _check_group_of(key, schema, where)
    hint = _hint_of(key.split("."), schema)
    if get_origin(hint) in (list, tuple) and not value.lstrip().startswith("["):
        value = f"[{value}]"
    if hint == str | None and not value:
        value = "''"  # the shell has removed the quotes of `instruction=''`; YAML would read null
    parsed = parse(f"value: {value}", f"in the value of {key!r} {where}")
    if set(parsed) != {"value"}:
        raise UserError(f"{_shown(override)} {where}: expected one value; quote text that spans lines")
    nested: Any = parsed["value"]
    for part in reversed(key.split(".")):
        nested = {part: nested}
    return where, nested


def _check_group_of(key: str, schema: Any, where: str) -> None:
    """Refuse `env.max_steps` where a verb has `max_steps` itself, with that key as the remedy."""
    group, _, leaf = key.rpartition(".")
    inner = _hint_of(group.split("."), schema) if group else None
    if dataclasses.is_dataclass(inner) and leaf in get_type_hints(schema) and leaf not in get_type_hints(inner):
        if leaf not in dict(getattr(inner, "MOVED", ())):
            raise UserError(f"unknown key {_shown(key)} {where}; did you mean {leaf!r}?")


def _hint_of(path: Sequence[str], schema: Any) -> Any:
    """Return the type of the field at `path` of a schema; None if there is no such field or its type is open."""
    hint = schema
    for i, part in enumerate(path):
        if new := dict(getattr(hint, "MOVED", ())).get(part):
            return _hint_of([*new.split("."), *path[i + 1 :]], hint)
        if dataclasses.is_dataclass(hint):
            hint = get_type_hints(hint).get(part)
        else:
            hint = get_args(hint)[1] if get_origin(hint) in (dict, Mapping) else None
    return hint


def parse(text: str, where: str) -> dict[str, Any]:
    """Return the mapping in YAML `text`; refuse YAML features that a malicious file could abuse.

    Raises:
        UserError: the text is too long, not valid YAML or not a mapping, or uses a refused feature.
    """
    if len(text) > MAX_CHARACTERS:
        raise UserError(f"the YAML {where} has {len(text):,} characters; at most {MAX_CHARACTERS:,} are read")
    try:
        _check_tokens(text, where)
        values = OmegaConf.to_container(OmegaConf.create(text), resolve=False)
    except UserError:
        raise
    except AssertionError:  # OmegaConf's answer to a number alone
        raise UserError(f"the YAML {where} is one value; expected key: value lines") from None
    except (yaml.YAMLError, OmegaConfBaseException, RecursionError, ValueError) as error:
        raise UserError(f"cannot read the YAML {where}: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(values, dict):
        raise UserError(f"the YAML {where} is a list; expected key: value lines")
    return {str(key): value for key, value in values.items()}


def _check_tokens(text: str, where: str) -> None:
    """Refuse interpolation, aliases and deep nesting from the tokens alone, before any value is built."""
    depth = 0
    for token in yaml.scan(text):
        # OmegaConf would replace `${oc.env:SECRET}` in any file by an environment variable.
        if isinstance(token, yaml.ScalarToken) and "${" in token.value:
            raise UserError(f"{_shown(token.value)} {where}: interpolation is not allowed; write the value out")
        # Aliases of aliases can expand without bound. Below: the time to parse grows with the square of the depth.
        if isinstance(token, yaml.AliasToken | yaml.AnchorToken):
            raise UserError(
                f"{_shown(token.value)} {where}: YAML anchors and aliases are not allowed; write the value out"
            )
        depth += isinstance(token, _YAML_BEGIN) - isinstance(token, _YAML_END)
        if depth > MAX_DEPTH:
            raise UserError(f"the YAML {where} is nested more than {MAX_DEPTH} deep")


def _check_value(value: Any, hint: Any, key: str, where: str) -> None:
    """Raise `UserError` unless `value` fits the type `hint`; check groups and lists recursively."""
    arguments = get_args(hint)
    if get_origin(hint) is Annotated:  # Annotated[Any, one value, a group]: either of the two
        _check_value(value, arguments[2] if isinstance(value, dict) else arguments[1], key, where)
    elif get_origin(hint) in (Union, UnionType):
        if value is not None:
            _check_value(value, next(a for a in arguments if a is not NoneType), key, where)
    elif dataclasses.is_dataclass(hint):
        _check_group(value, hint, key, where)
    elif get_origin(hint) in (dict, Mapping):
        if not isinstance(value, dict):
            raise _unfit(key, value, "a group of keys", where)
        for name, item in value.items():
            _check_name(name, key, where)
            _check_value(item, arguments[1], f"{key}.{name}", where)
    elif get_origin(hint) in (list, tuple):
        if not isinstance(value, list):
            raise _unfit(key, value, f"a list such as [{value}]", where)
        for i, item in enumerate(value):
            _check_value(item, arguments[0], f"{key}[{i}]", where)
    elif get_origin(hint) is Literal:
        if value not in arguments:
            raise _unfit(key, value, f"one of {', '.join(map(str, arguments))}", where)
    elif hint is Any:
        _check_free(value, key, where)
    elif not _is_scalar(value, hint):
        raise _unfit(key, value, _SCALARS[hint], where)
    elif hint is int and value > (largest := LARGEST.get(key.rpartition(".")[2], LARGEST_OTHER)):
        raise _unfit(key, value, f"at most {largest:,}", where)


def _check_group(value: Any, schema: Any, key: str, where: str) -> None:
    if not isinstance(value, dict):
        raise _unfit(key, value, f"a group of keys ({', '.join(f.name for f in dataclasses.fields(schema))})", where)
    hints = get_type_hints(schema, include_extras=True)
    for name, item in value.items():
        full = f"{key}.{name}" if key else str(name)
        if name not in hints:
            raise UserError(f"unknown key {_shown(full)} {where}; {_suggestion(full, key, schema)}")
        _check_value(item, hints[name], full, where)


def _check_free(value: Any, key: str, where: str) -> None:
    """Refuse numbers that are not finite in a part whose type the schema leaves open."""
    if isinstance(value, dict):
        for name, item in value.items():
            _check_name(name, key, where)
            _check_free(item, f"{key}.{name}", where)
    elif isinstance(value, list):
        for i, item in enumerate(value):
            _check_free(item, f"{key}[{i}]", where)
    elif isinstance(value, float) and not math.isfinite(value):
        raise _unfit(key, value, _SCALARS[float], where)


def _check_name(name: Any, group: str, where: str) -> None:
    if not isinstance(name, str):
        raise UserError(f"{group} {where} has the key {name!r}; expected text, so write '{name}' in quotes")


def _is_scalar(value: Any, hint: type) -> bool:
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    return isinstance(value, hint) and not (hint is int and isinstance(value, bool))


def _unfit(key: str, value: Any, expected: str, where: str) -> UserError:
    return UserError(f"{key}={_shown(value)} {where}: expected {expected}")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _suggestion(key: str, group: str, schema: Any) -> str:
    """Return a hint for an unknown `key` of `group`, whose dataclass is `schema`: a similar key, or the known ones."""
    known = [f"{group}.{name}" if group else name for name in _known_keys(schema)]
    leaf = key.rpartition(".")[2]
    close = get_close_matches(key, known, n=1, cutoff=0.75) or [k for k in known if k.rpartition(".")[2] == leaf]
    if close:
        return f"did you mean {close[0]!r}?"
    return f"known: {', '.join(field.name for field in dataclasses.fields(schema))}"


def _known_keys(schema: Any) -> Iterator[str]:
    for name, hint in get_type_hints(schema).items():
        yield name
        if dataclasses.is_dataclass(hint):
            yield from (f"{name}.{key}" for key in _known_keys(hint))


def _run_checks(config: Any, prefix: str) -> None:
    """Call `check` of all nested dataclasses, then of the config; put the key of the group before each message."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            _run_checks(value, f"{prefix}{field.name}.")
    if hasattr(config, "check"):
        try:
            config.check()
        except UserError as error:
            raise UserError(f"{prefix}{error}") from None
