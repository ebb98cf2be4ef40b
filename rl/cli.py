"""The command `wamtune`: a verb, then a preset, checkpoint, file or run folder, then `key=value`.

Loading this file imports the standard library alone: with a foreign `rewards` on the path nothing else can be trusted,
and `wamtune --help` should answer at once. Verbs are modules with `HELP` and `run(words)`, imported when called.
"""

from __future__ import annotations

import dataclasses
import errno
import importlib
import inspect
import re
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from typing import Any, get_type_hints

from rl.verbs.shadow import foreign_package

VERBS = {
    "ls": ("rl.verbs.ls", "list checkpoints, presets, reward terms and tasks"),
    "cp": ("rl.verbs.cp", "copy a preset or a checkpoint, to make it your own"),
    "pretrain": ("rl.verbs.pretrain", "collect episodes and learn to predict the world"),
    "tune": ("rl.verbs.tune", "learn to act from few demonstrations"),
    "train": ("rl.verbs.train", "post-train with PPO, in the simulator and in the dream"),
    "eval": ("rl.verbs.eval", "measure success, with intervals"),
    "dream": ("rl.verbs.dream", "draw what the model dreams beside what the simulator does"),
    "report": ("rl.verbs.report", "write the report of a run as one HTML file"),
    "check": ("rl.verbs.check", "check a preset and its reward terms without training"),
    "deploy": ("rl.verbs.deploy", "run a policy on a robot, compare two on it, or export one as ONNX"),
    "fit": ("rl.verbs.fit", "fit the simulator to episodes recorded on a robot"),
    "doctor": ("rl.verbs.doctor", "look at this installation and say what is missing"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return 0 if done, 2 after a mistake that one line explains, 130 if interrupted, 1 for a bug."""
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    hidden = foreign_package()
    if hidden is not None:
        return _fail(hidden, 2)
    from rewards.errors import UserError

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C, which a shell's background job ignores
    try:
        _dispatch([word for word in words if word != "--debug"])
    except UserError as error:
        return _fail(str(error), 2, debug)
    except KeyboardInterrupt:
        return _fail("interrupted", 130, debug)
    except Exception as error:
        return _fail(*_explained(error), debug)
    return 0


def _explained(error: Exception) -> tuple[str, int]:
    """Return a line and the exit code for what no verb expected: no memory, a full disk, a wrong name, or our bug."""
    # torch has no error of its own for the memory of the CPU.
    if isinstance(error, MemoryError) or ("allocate" in str(error) and "memory" in str(error)):
        return "out of memory; lower n_envs, n_steps, batch_size or the sizes of the model, or end other programs", 2
    if isinstance(error, OSError) and (error.filename is not None or error.errno == errno.ENOSPC):
        where = f"{error.filename}: " if error.filename is not None else ""
        return f"{where}{error.strerror}; check the name, its permissions and the free space", 2
    return f"unexpected {type(error).__name__}: {error}; this is a bug: run it again with --debug to see where", 1


def keys_of(schema: type) -> str:
    """Return a line for every key of a config schema: name, default, and the comment beside it in the source."""
    rows = list(_rows(schema, ""))
    width = max(len(key) for key, _ in rows)
    return "\n".join(f"  {key:<{width}}  {text}".rstrip() for key, text in rows)


def _dispatch(words: list[str]) -> None:
    from rewards.errors import UserError

    if not words or words[0] in ("-h", "--help", "help"):
        print(_overview())
        return
    verb, rest = words[0], words[1:]
    if verb not in VERBS:
        close = get_close_matches(verb, VERBS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(VERBS)}"
        raise UserError(f"unknown verb {verb!r}; {hint}")
    module = importlib.import_module(VERBS[verb][0])
    if {"-h", "--help"} & set(rest):
        print(module.HELP.strip())
        return
    for i, word in enumerate(rest):
        if word.startswith("-"):
            key, _, value = word.lstrip("-").partition("=")
            value = value or next((v for v in rest[i + 1 : i + 2] if "=" not in v), "...")
            raise UserError(f"unexpected {word!r}; options are written as key=value: {key}={value}")
    module.run(rest)


def _overview() -> str:
    verbs = "\n".join(f"  {name:<10}{summary}" for name, (_, summary) in VERBS.items())
    return f"""wamtune: RL post-training for world-action models.

wamtune VERB [PRESET | CHECKPOINT | FILE | RUN_FOLDER] [key=value ...] [--debug]

{verbs}

`wamtune VERB --help` lists the keys of a verb. Examples:
  wamtune ls
  wamtune train demo seed=1"""


def _fail(line: str, code: int, debug: bool = False) -> int:
    if debug:
        traceback.print_exc()
    else:
        print(f"wamtune: {' '.join(line.split())}", file=sys.stderr)
    return code


def _rows(schema: Any, prefix: str, defaults: Any = None) -> Iterator[tuple[str, str]]:
    comments = dict(re.findall(r"^    (\w+): .*?  # (.*)$", inspect.getsource(schema), flags=re.MULTILINE))
    hints = get_type_hints(schema)
    for field in dataclasses.fields(schema):
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        if defaults is not None:  # a group may be begun with values of its own
            default = getattr(defaults, field.name)
        if dataclasses.is_dataclass(default):
            yield from _rows(hints[field.name], f"{prefix}{field.name}.", default)
            continue
        shown = "" if default in ("???", "") else _as_yaml(default)
        yield f"{prefix}{field.name}={shown}", comments.get(field.name, "")


def _as_yaml(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return f"[{', '.join(map(str, value))}]" if isinstance(value, tuple) else str(value)


if __name__ == "__main__":
    sys.exit(main())
