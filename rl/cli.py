"""The command `wamtune`: a verb, then a preset, checkpoint, file or run folder, then `key=value`.

This file imports only the standard library at first: with a foreign `rewards` package on the path nothing else can be
trusted, and help and typing errors should be answered at once. Verbs are modules with `run(words)`, imported when they
are called. Their help is in `rl.verbs.help`, and `rl.verbs.words` checks their words first.
"""

from __future__ import annotations

import errno
import importlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Sequence

from rl.shadow import foreign_package

VERBS = {
    "ls": ("rl.verbs.ls", "list checkpoints, presets, reward terms and tasks"),
    "cp": ("rl.verbs.cp", "copy a preset or a checkpoint, to make it your own"),
    "collect": ("rl.verbs.collect", "record episodes of scripted experts in a simulator"),
    "pretrain": ("rl.verbs.pretrain", "collect episodes and learn to predict the world"),
    "tune": ("rl.verbs.tune", "learn to act from few demonstrations"),
    "train": ("rl.verbs.train", "post-train with PPO, in the simulator and in the dream"),
    "sweep": ("rl.verbs.sweep", "train many times with other values of some keys, and show which were best"),
    "eval": ("rl.verbs.eval", "measure success, with intervals"),
    "rank": ("rl.verbs.rank", "order checkpoints by success in one dream, corrected by real episodes"),
    "dream": ("rl.verbs.dream", "draw what the model dreams beside what the simulator does"),
    "play": ("rl.verbs.play", "drive the dream in a browser, beside the simulator"),
    "report": ("rl.verbs.report", "write the report of a run as one HTML file"),
    "check": ("rl.verbs.check", "check a preset and its reward terms without training"),
    "deploy": ("rl.verbs.deploy", "run a policy on a robot, compare two on it, or export one as ONNX"),
    "serve": ("rl.verbs.serve", "answer with a policy, and its dream, over a network"),
    "fit": ("rl.verbs.fit", "fit the simulator to episodes recorded on a robot"),
    "doctor": ("rl.verbs.doctor", "look at this installation and say what is missing"),
    "completion": ("rl.verbs.completion", "print what makes a shell complete commands, presets and keys"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return 0 if done, 2 after a mistake that one line explains, 130 if interrupted, 1 for a bug.

    141 is the exit code of a program whose output pipe was closed.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    hidden = foreign_package()
    if hidden is not None:
        return _fail(hidden, 2)
    from rewards.errors import UserError

    if threading.current_thread() is threading.main_thread():
        # SIGTERM acts as Ctrl-C, which does not reach background jobs of a shell.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        _dispatch([word for word in words if word != "--debug"])
        sys.stdout.flush()
    except UserError as error:
        return _fail(str(error), 2, debug)
    except KeyboardInterrupt:
        return _fail("interrupted", 130, debug)
    except BrokenPipeError:  # the reader of the output has closed it, as `head` does
        # The interpreter flushes stdout once more at exit; send that to /dev/null.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except Exception as error:
        return _fail(*_explained(error), debug)
    return 0


def _explained(error: Exception) -> tuple[str, int]:
    """Return a message and the exit code for an unexpected error: out of memory, files, a plug-in, or a bug of ours."""
    # torch has no exception type of its own for CPU memory, so look at the text.
    if isinstance(error, MemoryError) or ("allocate" in str(error) and "memory" in str(error)):
        return "out of memory; lower n_envs, n_steps, batch_size or the sizes of the model, or end other programs", 2
    if isinstance(error, OSError) and (error.filename is not None or error.errno == errno.ENOSPC):
        where = f"{error.filename}: " if error.filename is not None else ""
        return f"{where}{error.strerror}; check the name, its permissions and the free space", 2
    from rewards.plugins import plugin_line

    if at := plugin_line(error):
        return f"{at} raised {type(error).__name__}: {error}; correct it there; --debug shows the whole traceback", 2
    return f"unexpected {type(error).__name__}: {error}; this is a bug: run it again with --debug to see where", 1


def _dispatch(words: list[str]) -> None:
    """Print help, or check the words and run their verb."""
    from rewards.errors import UserError, closest_or_known

    if not words:
        from rl.verbs.first_screen import screen

        print(screen())
        return
    if words[0] in ("-h", "--help", "help"):
        print(_overview())
        return
    verb, rest = words[0], words[1:]
    if verb not in VERBS:
        raise UserError(f"unknown verb {verb!r}; {closest_or_known(verb, VERBS)}")
    if {"-h", "--help"} & set(rest):
        from rl.verbs.help import HELP

        print(HELP[verb])
        return
    for i, word in enumerate(rest):
        if word.startswith("-"):
            key, _, value = word.lstrip("-").partition("=")
            value = value or next((v for v in rest[i + 1 : i + 2] if "=" not in v), "...")
            raise UserError(f"unexpected {word!r}; options are written as key=value: {key}={value}")
    # Several processes of torchrun find a mistake together, when they have joined, so that one line tells of it.
    if _is_one_of_several():
        if verb not in TOGETHER:
            raise UserError(
                f"{verb}: it runs in one process; leave torchrun out, only {', '.join(TOGETHER)} run in several"
            )
    else:
        from rl.verbs.words import check_words

        check_words(verb, rest)
    importlib.import_module(VERBS[verb][0]).run(rest)


TOGETHER = "pretrain", "tune", "train"
"""Verbs that several processes of torchrun can do together."""


def _is_one_of_several() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ["WORLD_SIZE"]) > 1


def _overview() -> str:
    verbs = "\n".join(f"  {name:<12}{summary}" for name, (_, summary) in VERBS.items())
    return f"""wamtune: RL post-training for world-action models.

wamtune VERB [PRESET | CHECKPOINT | FILE | RUN_FOLDER] [key=value ...] [--debug]

{verbs}

`wamtune` alone says what to do next in this folder, and `wamtune VERB --help` lists the keys of a verb. Examples:
  wamtune ls
  wamtune train demo seed=1"""


def _fail(line: str, code: int, debug: bool = False) -> int:
    """Print the error as one line, with `debug` as a traceback; return `code`."""
    if debug:
        traceback.print_exc()
    else:
        print(f"wamtune: {' '.join(line.split())}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
