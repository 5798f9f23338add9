"""Shares of one run that several machines ran, brought into one folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from ..files.owner import discard, is_owned, private_name
from ..files.paths import new_path
from .checkpoint import claim, partial_folder, read_progress


def gather_shares(stores: Sequence[Path], output: Path) -> list[int]:
    """Copy the finished shares of unfinished stores into that of another, and return the numbers of those lacking.

    `measure` with any share and this store then merges them and writes the result.

    Parameters
    ----------
    stores : sequence of Path
        Where the shares were to be stored, each on a machine of its own.
    output : Path
        Where the whole is to be stored.

    Raises
    ------
    ValueError
        If they are shares of different runs (names what differs), or the run has no shares.
    """
    output = new_path(output, "output").absolute()
    root = partial_folder(output)
    for store in stores:
        folder = partial_folder(store)
        if not (folder / "run.json").is_file():
            raise ValueError(f"stores: {store} is no unfinished run of shares")
        facts = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        claim(root, facts)
        for share in sorted(folder.glob("share-*-of-*")):
            place = root / share.name
            if not read_progress(share).finished or is_owned(share) or (place / "progress.json").is_file():
                continue
            new = private_name(place, "new")
            shutil.copytree(share, new, ignore=shutil.ignore_patterns("lock", "owner-*.json"))
            discard(place)
            new.rename(place)
    n = int(json.loads((root / "run.json").read_text(encoding="utf-8"))["shares"])
    return [i for i in range(n) if not read_progress(root / f"share-{i}-of-{n}").finished]
