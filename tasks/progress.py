"""One look for long work: bar, rate and time left on a terminal, a line now and then in a log file."""

from __future__ import annotations

import sys

from tqdm import tqdm


def progress(label: str, total: int, unit: str, initial: int = 0, silent: bool = False) -> tqdm:
    """A progress bar.

    Args:
        label: What is being done, for example the stage's name.
        total: How many units there are.
        unit: What one unit is called.
        initial: Units that an earlier run has already done.
        silent: Show nothing.

    Returns:
        A tqdm bar: `update(n)`, `set_postfix_str(text)`, usable as a context manager.
    """
    on_terminal = sys.stderr.isatty()
    return tqdm(
        desc=label,
        total=total,
        unit=unit,
        initial=initial,
        disable=silent,
        mininterval=0.2 if on_terminal else 10.0,
        dynamic_ncols=on_terminal,
        ascii=not on_terminal,
    )
