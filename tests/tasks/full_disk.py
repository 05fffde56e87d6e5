"""What a full disk does, without a disk of its own."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager


def limit_files(most_bytes: int) -> None:
    """No file may become larger from now on, -1: as large as before; Python ignores SIGXFSZ, so writing raises."""
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard if most_bytes < 0 else most_bytes, hard))


@contextmanager
def small_files(most_bytes: int) -> Iterator[None]:
    """No file may become larger inside; as it was afterwards."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    limit_files(most_bytes)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
