"""The commands ``tokinterp fillers train`` and ``tokinterp fillers probe``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..files.escape import say


def train(
    output: Annotated[Path, typer.Option("-o", "--output", help="Store to write, RUN.zarr.")],
    folder: Annotated[Path, typer.Option(help="Where networks and progress are kept; the same command goes on.")],
    family: Annotated[str, typer.Option(help="match3 or match2.")] = "match3",
    n: Annotated[int, typer.Option("-n", help="Rows.")] = 8,
    d: Annotated[int, typer.Option("-d", help="Coordinates of a row.")] = 3,
    m: Annotated[int, typer.Option("-m", help="Modulus.")] = 10,
    mode: Annotated[str, typer.Option(help="strict (balanced labels) or released (as published).")] = "strict",
    fillers: Annotated[str, typer.Option(help="square (n**2), cot (length of the chain of thought) or a number.")] = (
        "square"
    ),
    mixture: Annotated[
        list[str], typer.Option("--mix", help="FORMAT=SHARE, several; filler=1 and parallel=1 by default.")
    ] = [],  # noqa: B006
    serial_quantile: Annotated[
        float | None, typer.Option(help="Drop longer serial chains from training; published: 0.95. By default none.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps; 10 million examples by default.")] = None,
    batch: Annotated[int, typer.Option(help="Examples per step.")] = 1024,
    rate: Annotated[float, typer.Option(help="Highest learning rate.")] = 3e-4,
    paper: Annotated[bool, typer.Option("--paper", help="The published schedule instead.")] = False,
    n_layers: Annotated[int, typer.Option(help="Blocks.")] = 4,
    d_model: Annotated[int, typer.Option(help="Width of the stream.")] = 384,
    n_heads: Annotated[int, typer.Option(help="Attention heads.")] = 6,
    seed: Annotated[list[int], typer.Option("--seed", help="One run each.")] = [0],  # noqa: B006
    test_examples: Annotated[int, typer.Option(help="Per format.")] = 2000,
    checkpoint_every: Annotated[float, typer.Option(help="Seconds between two checkpoints.")] = 120.0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the result that is there.")] = False,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; by default a GPU if there is one.")] = None,
) -> None:
    """Train small networks on Match3 or Match2 with fillers, without, or with a chain of thought."""
    from ..files.paths import new_path
    from ..fillers.tasks.last import last_evaluation
    from ..fillers.tasks.network import Network
    from ..fillers.tasks.schedule import Schedule
    from ..fillers.tasks.task import Task
    from ..fillers.tasks.training import train as run_training
    from ..models.hf import choose_device
    from ..results.dataset import variable
    from ..results.stores import write
    from ..run.fitting import new_place

    output, folder = new_place(output, overwrite), new_path(folder, "--folder")
    if folder.is_dir() and any(folder.iterdir()) and not any(folder.glob("seed-*.safetensors*")):
        raise FileExistsError(f"--folder {folder}: something else than networks is there: give another name")
    number = int(fillers) if fillers.removeprefix("-").isdecimal() else fillers
    task = Task(family, n, d, m, mode, number, serial_quantile=serial_quantile)
    forms = parse_mixture(mixture)
    if paper:
        schedule = Schedule.paper(no_filler=forms is not None and "filler" not in forms)
    else:
        schedule = Schedule.budget(10_000_000, batch) if steps is None else Schedule(steps=steps, batch=batch)
        schedule = Schedule(steps=schedule.steps, batch=batch, rate=rate, stop_at=0.995)
    shape = Network(n_layers, d_model, n_heads, 4 * d_model)
    f = None if serial_quantile is None else task.serial_filter
    if f is not None:
        say(
            f"serial chains above {f.limit} words are dropped: {f.dropped:.1%} of the examples; True: "
            f"{f.true_before:.1%} before, {f.true_after:.1%} after", err=True,
        )  # fmt: skip
    ds, _ = run_training(
        task, forms, network=shape, schedule=schedule, seeds=seed, folder=folder, device=choose_device(device),
        test_examples=test_examples, save_seconds=checkpoint_every,
    )  # fmt: skip
    if f is not None:
        ds["serial_dropped"] = variable((), f.dropped, "share of serial examples dropped as too long", "1")
    write(ds, output, overwrite=overwrite)
    for s in ds["seed"].values:
        last = last_evaluation(ds)["accuracy"].sel(seed=s, stratum="all")
        scores = ", ".join(f"{f} {float(a):.3f}" for f, a in zip(ds["format"].values, last.values, strict=True))
        say(f"{task.name} seed {s}: {scores} (majority {float(ds['majority'][0]):.3f})")
    say(f"written to {output}; networks in {folder}", err=True)


def probe(
    folder: Annotated[Path, typer.Argument(help="Where 'fillers train' kept networks trained with fillers.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Store to write, PROBE.zarr.")],
    control: Annotated[Path | None, typer.Option(help="Folder of networks trained without fillers.")] = None,
    kept: Annotated[str, typer.Option(help="Shares of the fillers kept.")] = "0,0.2,0.4,0.6,0.8,1",
    variant: Annotated[str, typer.Option(help="frozen, or released (the published one, which freezes nothing).")] = (
        "frozen"
    ),
    steps: Annotated[int, typer.Option(help="Optimiser steps of each probe.")] = 2000,
    batch: Annotated[int, typer.Option(help="Examples per step.")] = 256,
    rate: Annotated[float, typer.Option(help="Highest learning rate.")] = 1e-4,
    seed: Annotated[int | None, typer.Option(help="Which network; the first by default.")] = None,
    prompts: Annotated[int, typer.Option(help="Prompts whose dots are read, layer by layer.")] = 200,
    test_examples: Annotated[int, typer.Option(help="Examples of the test.")] = 2000,
    checkpoint_every: Annotated[float, typer.Option(help="Seconds between two checkpoints.")] = 60.0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the result that is there.")] = False,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; by default a GPU if there is one.")] = None,
) -> None:
    """Answer after a share of the fillers, and read what the dots hold; the same command goes on after a stop."""
    import xarray as xr

    from ..files.owner import discard
    from ..files.paths import local_path
    from ..fillers.tasks.dots import read_dots
    from ..fillers.tasks.linear_probes import linear_probe
    from ..fillers.tasks.probe import probe_fillers
    from ..fillers.tasks.schedule import Schedule
    from ..fillers.tasks.training import load_networks
    from ..models.hf import choose_device
    from ..results.stores import write
    from ..run.fitting import new_place

    output = new_place(output, overwrite)
    folder, control = local_path(folder, "folder"), None if control is None else local_path(control, "control")
    try:
        shares = [float(x) for x in kept.split(",")]
    except ValueError:
        raise ValueError(f"--kept {kept}: write shares such as 0,0.5,1") from None
    task, networks = load_networks(folder)
    seed = next(iter(networks)) if seed is None else seed
    if seed not in networks:
        raise ValueError(f"--seed {seed}: {folder} has seeds {', '.join(map(str, networks))}")
    trunks = {"fillers": networks[seed]}
    if control is not None:
        trunks["no fillers"] = next(iter(load_networks(control)[1].values()))
    place = choose_device(device)
    probes = output.with_name(output.name + ".probes")  # until the whole is written
    ds = probe_fillers(
        trunks, task, kept=shares, variant=variant, schedule=Schedule(steps=steps, batch=batch, rate=rate),
        device=place, test_examples=test_examples, store=probes, checkpoint_every=checkpoint_every,
    )  # fmt: skip
    linear = linear_probe(networks[seed], task, examples=test_examples, device=place)
    dots = read_dots(networks[seed], task, prompts=prompts)
    groups = {"probe": ds, "linear_probe": linear}
    groups |= {f"dots/{k}": v.to_dataset() for k, v in dots.items()}
    tree = xr.DataTree.from_dict(groups)
    tree.attrs = dict(ds.attrs)
    write(tree, output, overwrite=overwrite)
    discard(probes)
    for t in ds["trunk"].values:
        scores = ", ".join(f"{float(a):.3f}" for a in ds["accuracy"].sel(trunk=t).values)
        say(f"{t}: {scores} with {kept} of {task.n_fillers} fillers (majority {float(ds['majority']):.3f})")
    say(f"written to {output}", err=True)


def parse_mixture(texts: list[str]) -> dict[str, float] | None:
    """Return format -> share of ``["filler=1", "parallel=1"]``; None of an empty list.

    Raises
    ------
    ValueError
        For a text that is not FORMAT=SHARE.
    """
    out: dict[str, float] = {}
    for text in texts:
        form, _, share = text.partition("=")
        try:
            out[form] = float(share or "1")
            if not form:
                raise ValueError
        except ValueError:
            raise ValueError(f"--mix {text}: write FORMAT=SHARE, for example filler=0.5") from None
    return out or None
