"""The verbs of the command line: each module that `rl.cli` names has `run(words)`; the work is done below."""
