"""The one exception a user meets. It sits here because `rewards` is the bottom of the import order."""


class UserError(ValueError):
    """Report bad input in one line: what, where, what was expected, what to do.

    The command line prints the message alone and exits with code 2; everything else is a bug and keeps its traceback.
    """
