"""The failures that a stage expects: what is wrong and what to do next, without a traceback."""

from __future__ import annotations


class StageError(RuntimeError):
    """A stage cannot go on; its text says what is wrong and what the user does next."""
