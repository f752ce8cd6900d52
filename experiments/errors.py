"""The one exception that the command line shows as a message instead of a traceback."""


class UsageError(ValueError):
    """A mistake in what the user asked for. The message says what was expected, what came, and how to fix it."""


class Diverged(UsageError):
    """A training that came to scores that are NaN or infinite."""
