"""The failures that a stage expects: what is wrong and what to do next, without a traceback."""

from __future__ import annotations


class StageError(RuntimeError):
    """A stage cannot go on; its text says what is wrong and what the user does next."""


class SegmentationError(ValueError):
    """A clip cannot be segmented; `code` is the reason for the table."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code
