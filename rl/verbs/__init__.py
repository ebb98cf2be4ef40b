"""The verbs of the command line: each module has `HELP` and `run(words)`, and leaves the work to the rooms below."""
