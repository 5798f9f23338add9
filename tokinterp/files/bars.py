"""The bar that all long work shows: how much a second and the time left; nothing in pipes and files."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm


def watched() -> bool:
    """Return whether someone looks at what is written to stderr: a terminal, or a notebook."""
    return sys.stderr.isatty() or type(sys.stderr).__module__.startswith("ipykernel")


def progress_bar(progress: bool, total: int, **options: Any) -> tqdm:
    """Return a bar; one that shows nothing without ``progress``, or where nobody looks.

    Parameters
    ----------
    progress : bool
        Whether a bar is wanted.
    total : int
        How much there is to do.
    **options
        Of tqdm: ``unit``, ``desc``, ``initial``.

    Examples
    --------
    >>> with progress_bar(False, 2) as bar:
    ...     bar.update()
    """
    scaled = options.get("unit") == "tok"
    return tqdm(total=total, disable=not (progress and watched()), dynamic_ncols=True, unit_scale=scaled, **options)
