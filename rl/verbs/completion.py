"""`wamtune completion`: a script that lets bash or zsh complete verbs, presets, checkpoints, keys and files."""

from __future__ import annotations

import shlex

from rewards.errors import UserError
from rl.verbs.help import HELP, SCHEMAS, key_names
from rl.verbs.ls import KINDS
from rl.verbs.words import presets_of
from world_model.checkpoint import builtin_checkpoints

SCRIPT = """_wamtune() {{
  local current=${{COMP_WORDS[COMP_CWORD]}} words=""
  if [ "$COMP_CWORD" -eq 1 ]; then
    words={verbs}
  else
    case "${{COMP_WORDS[1]}}" in
{cases}
    esac
  fi
  COMPREPLY=($(compgen -W "$words" -- "$current"))
  [ "$COMP_CWORD" -eq 1 ] || COMPREPLY+=($(compgen -f -- "$current"))
  case "${{COMPREPLY[0]}}" in
    *=) type compopt >/dev/null 2>&1 && compopt -o nospace ;;
  esac
}}
complete -o filenames -F _wamtune wamtune
"""
"""Works in bash, and in zsh through `bashcompinit`."""

ZSH = "autoload -U +X compinit && compinit\nautoload -U +X bashcompinit && bashcompinit\n"

CHECKPOINTS = ("eval", "rank", "dream", "play", "deploy", "serve", "cp")
"""Verbs whose first words are checkpoints."""

OTHERS = {"ls": [*KINDS], "completion": ["bash", "zsh"]}
"""Verb -> its words, for verbs without keys."""


def run(words: list[str]) -> None:
    """Print the script for the shell `words[0]`."""
    if words not in (["bash"], ["zsh"]):
        raise UserError("completion needs a shell: wamtune completion bash, or wamtune completion zsh")
    cases = "\n".join(f"      {verb}) words={shlex.quote(' '.join(words_of(verb)))} ;;" for verb in HELP)
    script = SCRIPT.format(verbs=shlex.quote(" ".join(HELP)), cases=cases)
    print((ZSH if words == ["zsh"] else "") + script, end="")


def words_of(verb: str) -> list[str]:
    """Return what may follow a verb: presets and checkpoints first, then keys with their `=`."""
    checkpoints = [*builtin_checkpoints(), "latest"] if verb in CHECKPOINTS else []
    keys = [f"{key}=" for schema in SCHEMAS.get(verb, ()) for key in key_names(schema)]
    return [*OTHERS.get(verb, []), *presets_of(verb), *checkpoints, *dict.fromkeys(keys)]
