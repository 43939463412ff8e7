"""The one exception that means: tell the user, without a traceback."""


class UserError(Exception):
    """Something the person at the command line can put right; the message says what."""
