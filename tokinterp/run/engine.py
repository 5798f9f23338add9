"""One pass over the prompts, many measurements: batches, checkpoints, resume, progress, several machines."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from ..files.paths import new_path
from ..models.base import Model
from ..models.steady import check_steady, current, steady
from ..results import dataset, remote, stores
from ..results.documents import with_documents
from ..settings import checked, mapping, share, short
from ..text.prompts import Prompts
from .checkpoint import Checkpoint, alone, share_folder
from .edits import Edit, KnockOut, Renumber, SiteEdit
from .edits.ready import check_places
from .facts import Facts, fingerprint
from .loop import Measurements, Runner, read_progress, take_up
from .measurement import MEMORY, Measurement, fresh
from .signals import at_once
from .sites import INNER
from .stream import AllNonfiniteError, report_nonfinite
from .trial import try_out


@at_once()
@checked(share=share, notes=mapping())
@steady
def measure(
    model: Model,
    prompts: Prompts | Sequence[str],
    measurements: Measurements,
    *,
    store: str | Path | None = None,
    edits: Sequence[Edit] = (),
    batch_tokens: int | None = None,
    checkpoint_every: float = 60.0,
    share: tuple[int, int] = (0, 1),
    memory: int = MEMORY,
    notes: Mapping[str, str] | None = None,
    progress: bool = True,
) -> xr.DataTree:
    """Run a model over prompts once and give every batch to every measurement.

    Parameters
    ----------
    model : Model
        From :func:`load_model` or :func:`wrap`.
    prompts : Prompts or sequence of str
        What to run it on; texts are turned into prompts with the model's tokenizer.
    measurements : mapping of name -> Measurement
        The names become the groups of the result.  The measurements themselves stay as they are: a run fills copies.
    store : path, optional
        zarr folder for the result.  While the run goes on, finished rows and running sums are kept in
        ``STORE.partial``; the same call after a crash or Ctrl-C goes on from there and ends in the same numbers.
        If the finished result is there already, it is read and returned.  On this file system (``~`` is the home
        folder); one process at a time may write it.  For a URL that fsspec writes to (``s3://bucket/run.zarr``) what is
        unfinished lies in ``~/.cache/tokinterp``, and the result is copied when it is whole; shares need a file system.
    edits : sequence of Edit
        What to change during each pass.
    batch_tokens : int, optional
        Padded tokens per batch; by default what fits comfortably.  Halved when a GPU runs out of memory.
    checkpoint_every : float
        Seconds between two checkpoints.
    share : (int, int)
        (i, n): run only the i-th of n shares of the prompts, for n machines that write to one store; whichever call
        comes after the last share has finished merges them.  Until then an empty tree is returned.
    memory : int
        Bytes that measurements may take beside the model and a batch of its activations, 8 GiB by default: they cut
        their work into blocks that fit, and what cannot be cut (running sums, kept states) is refused before the run.
        It decides no number.
    notes : mapping of str to str, optional
        Kept among the attributes of the result beside its provenance: what the texts are, who measured.  They decide
        no number, so that they may differ when a run goes on; a finished result keeps those it has.
    progress : bool
        Show a bar with tokens per second and the time left.

    Returns
    -------
    xarray.DataTree
        One group per measurement, and a group ``prompts`` with ``n_tokens`` and ``first_nonfinite_layer`` of every
        prompt (-1 where all activations were finite; other prompts are left out of every measurement).

    Raises
    ------
    ValueError
        For settings that do not fit the model or the prompts, before anything is run; for a store of another run
        (names what differs); if every prompt gives NaN or infinite activations.
    RuntimeError
        If another process is writing the store, or the model was changed meanwhile.
    OSError
        If the store cannot be written; what is finished is kept.
    KeyboardInterrupt
        After Ctrl-C, once the batch in progress has been finished and kept.  SIGTERM, SIGHUP, SIGUSR1 and SIGUSR2 (a
        scheduler's time limit or its warning, ``timeout``, a closed terminal) do the same, and end a process that does
        not catch it with status 128 + the number of the signal: 143 after SIGTERM.  A second signal stops at once.

    Examples
    --------
    >>> import tokinterp as ti
    >>> model = ti.load_model()
    >>> run = ti.measure(model, ["The Nile flows north."], {"lens": ti.lens.LogitLens(layers=[4])}, progress=False)
    >>> list(run.children)
    ['prompts', 'lens']
    """
    i, n = share
    if (url := remote.address(store, "store")) is not None:
        if n > 1:
            raise ValueError(
                f"store={url!r}: shares meet on a file system: give a path, and copy with tokinterp.write()"
            )
        return remote.through(url, lambda place: measure(
            model, prompts, measurements, store=place, edits=edits, batch_tokens=batch_tokens,
            checkpoint_every=checkpoint_every, memory=memory, notes=notes, progress=progress,
        ))  # fmt: skip
    path = None if store is None else store_path(store)
    if not isinstance(prompts, Prompts):
        prompts = Prompts.from_texts(prompts, model)
    if len(prompts) == 0:
        raise ValueError("prompts=[]: no prompts to measure: the list is empty")
    said = _check_notes(notes, dataset.provenance(model.info, prompts, {}, ""))
    if n > len(prompts) or (n > 1 and store is None):
        raise ValueError(f"share={share}: {len(prompts)} prompts make at most as many shares, and shares need a store=")
    check_edits(model, prompts, edits)
    facts = run_facts(model, prompts, measurements, edits)
    prompts.check_tokenizer(model)
    if (there := Checkpoint(path, facts)).finished:
        return _finished(there)
    given, measurements = measurements, fresh(measurements, memory)
    for m in measurements.values():
        m.begin(model.info, prompts)
        if n > 1 and m.passes > 1:
            raise ValueError(f"{type(m).__name__} reads the prompts {m.passes} times: it cannot be run in shares")
    _check_sites(model, measurements)
    try_out(model, prompts, fresh(given, memory), edits)
    with Checkpoint(path, facts, checkpoint_every, share=share) as keep:
        if keep.finished:  # by another process, between our looking and locking
            return _finished(keep)
        runner = Runner(model, prompts, range(i, len(prompts), n), measurements, edits, keep, progress)
        runner.run(batch_tokens)
        check_steady()
        if keep.path is None:
            return _result(model, prompts, measurements, runner.bookkeeping, facts, edits, said)
        with alone(keep.partial, str(keep.path)):
            if stores.exists(keep.path):  # another share was the last one, and has merged them
                return _finished(keep)
            if missing := [k for k in range(n) if not share_finished(keep.partial, k, n)]:
                print(f"share {i} of {n} is finished; still to run: {missing}", file=sys.stderr)
                return xr.DataTree()
            _merge_shares(keep, runner.everything)
            try:
                tree = _result(model, prompts, measurements, runner.bookkeeping, facts, edits, said)
            except AllNonfiniteError:
                keep.discard()
                raise
            made = keep.made()
            for node in tree.subtree:
                node.attrs.update(made)
            keep.finish(partial(stores.write, tree))
            del tree, node  # before it is read back
        return stores.read(keep.path)


def store_path(store: str | Path, name: str = "store") -> Path:
    """Return where a store is to be, whole, so that nothing changes with the working folder.

    Raises
    ------
    ValueError, TypeError, ImportError, FileExistsError
        If nothing can be stored under that name; before anything is run.
    """
    path = stores.target(store, name)
    if path.is_file() and path.suffix != ".nc":
        raise FileExistsError(f"{name}={str(path)!r} is a file: choose the name of a new folder, such as run.zarr")
    if path.is_dir() and not (path / "zarr.json").is_file():
        raise FileExistsError(f"{name}={str(path)!r} is a folder that is no result: choose the name of a new one")
    return path.absolute()


def _check_notes(notes: Any, provenance: Mapping[str, Any]) -> dict[str, str]:
    """Return notes as a dictionary; refuse what would pass for provenance, or what no file can hold."""
    if notes is None:
        return {}
    if not isinstance(notes, Mapping) or not all(isinstance(x, str) for pair in notes.items() for x in pair):
        raise TypeError(f"notes={short(notes)}: give names and texts, such as {{'texts': 'articles of May'}}")
    if taken := sorted(
        {*notes} & {*provenance, "facts", "digests", "measurement", "source_commits", "source_versions"}
    ):
        raise ValueError(f"notes: {', '.join(map(repr, taken))} is provenance, which the run itself writes: rename it")
    dataset.check(xr.Dataset(attrs={**notes, **provenance}))
    return dict(notes)


def check_store(store: str | Path, name: str = "store") -> Path:
    """Return `store_path`; refuse a place where no result of `measure` can be, before the model is loaded.

    Raises
    ------
    ValueError, TypeError, ImportError, OSError
        If nothing can be stored there, or something else is.
    """
    path = store_path(store, name)
    new_path(path, name)
    if stores.exists(path):
        _facts(stores.read(path), path)
    return path


def _facts(tree: xr.DataTree, path: Path) -> Facts:
    """Return what a finished result was made of."""
    if "facts" not in tree.attrs:
        raise ValueError(f"{path} is a result, but not of measure(): choose another store")
    return json.loads(tree.attrs["facts"])


def run_facts(model: Model, prompts: Prompts, measurements: Measurements, edits: Sequence[Edit]) -> Facts:
    """Return all that decides the numbers of a run, as JSON types, of the model as it is now."""
    info = current(model)
    return {
        "tokinterp": dataset.numbers_version(),
        "weights": info.weights,
        **info.facts,
        **getattr(model, "passes", {}),
        "dtype": info.dtype,
        "backend": info.backend,
        "device": info.device.split(":")[0],
        "tokenizer": info.tokenizer,
        "prompts": prompts.hash,
        "edits": [e.describe() for e in edits],
        "measurements": {k: m.__describe__() for k, m in measurements.items()},
    }


def check_edits(model: Model, prompts: Prompts, edits: Sequence[Edit]) -> None:
    """Refuse edits that do not fit the model or the prompts, before anything is run."""
    longest = max(prompts.lengths)
    for e in edits:
        if not isinstance(e, SiteEdit | KnockOut | Renumber):
            raise TypeError(
                f"{e!r} is no edit: make one with tokinterp.run.edits.replace, add, zero, mean_ablate, knock_out"
            )
        if isinstance(e, SiteEdit):
            e.check(longest, None if e.site.name in INNER else model.info.d_model)
        if not isinstance(e, Renumber):
            e.fit(longest, longest)
    model.check((), edits)
    check_places(edits, prompts)


def _check_sites(model: Model, measurements: Measurements) -> None:
    """Refuse sites that the model does not have."""
    for name, m in measurements.items():
        try:
            model.check(m.sites(model.info))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None


def _result(
    model: Model, prompts: Prompts, measurements: Measurements, book: Measurement, facts: Facts, edits: Sequence[Edit],
    notes: Mapping[str, str],
) -> xr.DataTree:  # fmt: skip
    """Label everything and return the tree."""
    number, n_tokens, layer = book.table("prompt", "n_tokens", "nonfinite")
    _check_once(number, len(prompts))
    bad = {int(p): int(at) for p, at in zip(number, layer, strict=True) if at >= 0}
    report_nonfinite(bad, len(number), model, "; first_nonfinite_layer names them all")
    v = dataset.variable
    per_prompt = xr.Dataset(
        {
            "n_tokens": v("prompt", n_tokens, "tokens of the prompt, special tokens counted", "token"),
            "first_nonfinite_layer": v("prompt", layer, "first layer with NaN or infinite values, -1 where none", "1"),
            "prompt_hash": v("prompt", prompts.prompt_hashes()[number], "hash of the token ids of the prompt", "1"),
        },
        coords={"prompt": v("prompt", number, "number of the prompt in the input", "1")},
    )
    mark = fingerprint(facts)
    seeds = {k: int(getattr(m, "seed", 0) or 0) for k, m in measurements.items()}
    per_prompt.attrs = dataset.provenance(model.info, prompts, facts["measurements"], mark, edits=edits)
    # Not in the root: groups inherit its coordinates, and a measurement may lack prompts that were left out.
    root = xr.Dataset(attrs={**notes, **per_prompt.attrs, "facts": json.dumps(facts, sort_keys=True)})
    nodes = {"/": root, "/prompts": with_documents(per_prompt, prompts)}
    for name, m in measurements.items():
        ds = m.result()
        m.rows = {}  # they are in the dataset now: not both of all measurements
        if "token" in ds.dims and "text" not in ds.coords:
            ds = ds.assign_coords(text=v("token", _token_strings(prompts, ds), "token as a string", "1"))
        if "top_id" in ds:  # what the ids stand for, so that a result can be read without its model
            ids = np.unique(ds["top_id"].values)
            strings = v("vocab", np.array(prompts.vocabulary.strings(ids), dtype=object), "token as a string", "1")
            ds = ds.assign_coords(vocab=v("vocab", ids, "token id", "1"), vocab_text=strings)
        notes = getattr(model, "notes", lambda _: {})(m.sites(model.info))
        own = {**notes, **ds.attrs}
        ds.attrs = {**dataset.provenance(model.info, prompts, m.settings(), mark, seeds[name], edits), **own}
        ds.attrs["measurement"] = type(m).__name__
        if m.passes > 1:
            ds.attrs["readings"] = m.passes  # values of single prompts depend on all that were read
        nodes["/" + name] = with_documents(ds, prompts)
    tree = xr.DataTree.from_dict(nodes)
    dataset.check(tree)
    return tree


def _check_once(number: np.ndarray, n: int) -> None:
    """Refuse a result in which a prompt is missing or counted twice."""
    times = np.bincount(number, minlength=n)
    if len(bad := np.flatnonzero(times != 1)):
        raise RuntimeError(
            f"the checkpoints have {len(number)} rows for {n} prompts (prompt {bad[0]} {times[bad[0]]} times), as "
            "if two processes had written them at once: delete the .partial folder and start the run anew"
        )


def _token_strings(prompts: Prompts, ds: xr.Dataset) -> np.ndarray:
    number, position = ds["token_prompt" if "token_prompt" in ds.coords else "prompt"].values, ds["position"].values
    out = np.empty(len(number), dtype=object)
    order = np.argsort(number, kind="stable")
    found, starts = np.unique(number[order], return_index=True)
    for p, here in zip(found, np.split(order, starts[1:]), strict=False):
        strings = prompts.strings(int(p))
        out[here] = [strings[k] for k in position[here]]
    return out


def _finished(keep: Checkpoint) -> xr.DataTree:
    assert keep.path is not None
    tree = stores.read(keep.path)
    keep.belongs(_facts(tree, keep.path))
    return tree


def share_finished(root: Path, i: int, n: int) -> bool:
    """Return whether a share of the prompts is whole, in the folder of the run."""
    return read_progress(share_folder(root, (i, n))).finished


def _merge_shares(keep: Checkpoint, measurements: dict[str, Measurement]) -> None:
    """Merge the sums of the finished shares, one after the other, into the measurements; rows stay in their files."""
    n = keep.share[1]
    for k in range(n):
        part = measurements if k == 0 else {name: copy.copy(m) for name, m in measurements.items()}
        share = Checkpoint(keep.path, keep.facts, share=(k, n))
        take_up(share, part, "cpu", with_rows=True)
        keep.commits |= share.commits
        if k:
            for name, m in measurements.items():
                m.merge(part[name])
    for m in measurements.values():
        m.sorted_in = keep.partial  # what is larger than memory may be sorted there, too
