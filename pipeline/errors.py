"""The one exception a user is meant to read."""


class PipelineError(Exception):
    """Something the user can mend: the message says what happened, where, and the way out.

    Stage command lines print it as one line, without a traceback, and exit with status 1.
    """


class Stopped(PipelineError):
    """A stage ended because it was asked to (SIGTERM), after saving its work: the same command continues."""
