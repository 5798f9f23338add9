"""What runs a model over texts: measure, demo; and load, which only proves what a model offers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Option

from ..files.escape import say
from . import options as o
from .measurements import ShowsSettings, make_measurements
from .refusals import Usage

if TYPE_CHECKING:
    import xarray as xr

    from ..models import HookedLM, ModelInfo
    from ..text.prompts import Prompts


def measure(
    model: o.ModelName,
    texts: o.Texts,
    measurement: Annotated[list[str], Option("-m", "--measurement", help="What to measure, several times.")],
    output: o.Output,
    settings: o.Settings = [],  # noqa: B006
    layers: o.Layers = None,
    seed: o.Seed = None,
    field: o.Field = "text",
    limit: o.Limit = None,
    per_line: o.PerLine = False,
    split: o.Split = None,
    max_tokens: o.MaxTokens = None,
    min_tokens: o.MinTokens = 1,
    on_long: o.OnLong = None,
    stride: o.Stride = None,
    bos: o.Bos = "auto",
    share: Annotated[
        str, Option(help="Run only part I/N of the prompts, I from 0; 'slurm': by the job array's task.")
    ] = "0/1",
    batch_tokens: o.BatchTokens = None,
    checkpoint_every: o.CheckpointEvery = 60.0,
    overwrite: Annotated[bool, Option("--overwrite", help="Replace the result of another run that is there.")] = False,
    backend: o.Backend = "hf",
    dtype: o.Dtype = None,
    device: o.Device = None,
    devices: Annotated[
        str | None, Option(help="A process for each device, by shares: all (GPUs), or cuda:0,cuda:1.")
    ] = None,
    device_map: o.DeviceMap = None,
    revision: o.Revision = None,
    trust_remote_code: o.TrustCode = False,
) -> None:
    """Run a model over texts once and measure; the same command after a crash or Ctrl-C goes on."""
    given = dict(locals())
    from ..results import stores
    from ..results.tables import summary_text
    from ..run.engine import check_store
    from ..run.engine import measure as run_measure
    from ..run.facts import OtherRunError
    from ..settings import check
    from .devices import choose_devices, run_on

    part = o.parse_share(share)
    check(run_measure, batch_tokens=batch_tokens, checkpoint_every=checkpoint_every)
    output = check_store(output, "--output")
    if devices is not None:
        for name, other in (("--device", device), ("--device-map", device_map), ("--overwrite", overwrite)):
            if other:
                raise Usage(f"--devices {devices}: {name} does not go with it; leave one of them out")
        run_on(choose_devices(devices), part)
        if stores.exists(output):
            say(summary_text(stores.read(output)))
        return
    source = o.Input(model, texts, given)
    asked = make_measurements(measurement, settings, layers, seed, source.load)
    loaded, [prompts] = source.load(), source.prompts()
    say(f"{loaded}\n{prompts}", err=True)
    for attempt in range(2):
        try:
            run = run_measure(
                loaded, prompts, asked, store=output, batch_tokens=batch_tokens, checkpoint_every=checkpoint_every,
                share=part, notes={"command": source.command()},
            )  # fmt: skip
            break
        except OtherRunError:
            if not overwrite or attempt:
                raise
            remove_other(output)
    if run.children:  # else other shares are still to run, as measure() has said
        say(summary_text(run))
        say(f"written to {output}; look at it with: tokinterp report {output} -o report.html", err=True)


measure.command_class = ShowsSettings  # type: ignore[attr-defined]


def remove_other(output: Path) -> None:
    """Delete what another run wrote, finished or not.

    Raises
    ------
    RuntimeError
        If a process is still writing it.
    """
    from ..files.owner import discard
    from ..run.facts import in_use, partial_folder

    partial = partial_folder(output)
    if partial.is_dir() and in_use(partial):
        raise RuntimeError(f"--output {output}: another process is writing there: wait for it, or give another name")
    for place in (partial, output):
        discard(place)


def load(
    model: o.ModelName, backend: o.Backend = "hf", dtype: o.Dtype = None, device: o.Device = None,
    device_map: o.DeviceMap = None, revision: o.Revision = None, trust_remote_code: o.TrustCode = False,
) -> None:  # fmt: skip
    """Load a model, prove its sites by value, and say what it is and what it offers."""
    given = dict(locals())
    from ..results.tables import columns
    from ..run.sites import SITES
    from ..settings.describe import numbered

    loaded = o.load_named(model, **{k: given[k] for k in o.PLACE})
    say(columns(about_model(loaded.info)))
    say("\nsites, verified by value:")
    places = {s: f"{'layers' if s == 'resid' else 'blocks'} {numbered(at)}" for s, at in loaded.offered.items()}
    say(columns([(s, f"{places[s]}: {SITES[s]}") for s in SITES if s in loaded.offers]))
    if lacking := [s for s in SITES if s not in loaded.offers]:
        say(f"not offered by {loaded.info.architecture}: {', '.join(lacking)}")


def about_model(info: ModelInfo) -> list[tuple[str, str]]:
    """Return what a model is, as rows of a name and words."""
    hooks = info.facts.get("hooks") or []
    return [
        ("model", f"{info.id} ({info.architecture}, revision {info.revision})"),
        ("loaded with", f"{info.backend}, {info.dtype} on {info.device}"),
        ("blocks", f"{info.n_layers} with {info.n_heads} attention heads"),
        ("stream", f"{info.d_model} channels"),
        ("vocabulary", f"{info.d_vocab:,} tokens (tokenizer {info.tokenizer or 'none'})"),
        ("context", f"up to {info.max_tokens:,} tokens"),
        ("identity", f"{info.identity} (weights {info.weights})"),
        ("hooks of others", ", ".join(map(str, hooks)) or "none"),
    ]


def demo(
    output: Annotated[Path, Option("-o", "--output", "--out", help="Folder: new, empty, or that of a demo.")] = Path(
        "tokinterp-demo"
    ),
) -> None:
    """Measure the bundled models on the bundled texts: two reports and figures, in about a minute.

    Dimension, spectrum and lens of the model that reads best; and which tokens the narrow one forgets at the ends of
    words, beside an untrained network. Numbers that an earlier demo left in the folder are used again.
    """
    from ..models import load_model
    from ..models.untrained import untrained
    from ..results.report import report as write_report
    from ..results.tables import columns, summary_text
    from ..run.engine import measure as run_measure
    from .results import draw_all

    output = demo_folder(output)
    model, prompts = demo_input()
    say(f"{model}\n{prompts}", err=True)
    run = run_measure(
        model, prompts, make_measurements(["dimension", "spectrum", "lens"], []), store=output / "run.zarr"
    )
    say(summary_text(run))
    narrow = load_model("bundled/narrow", device="cpu")
    kept, blank = forgetting(narrow, output / "erasure"), forgetting(untrained(narrow), output / "erasure_untrained")
    say("\nhow many of its tokens can be read from the stream of the narrow model, by layer:")
    rows = []
    for name, done in (("trained", kept), ("untrained", blank)):
        for subset in ("other", "last piece"):
            read = done["scores"].to_dataset()["accuracy"].sel(subset=subset, offset=0)
            rows.append((f"{name}, {subset}", " ".join(f"{v:.2f}" for v in read.values)))
    say(columns(rows))
    pages = [write_report(run, output / "report.html"), write_report(kept, output / "erasure.html")]
    figures = draw_all(run, output / "figures") + draw_all(kept, output / "figures")
    say("\n" + "\n".join(f"{page}: open it in a browser" for page in pages))
    say(f"{output / 'figures'}: {len(figures)} figures")
    say(f"{output / 'run.zarr'}, {output / 'erasure' / 'run.zarr'}: the numbers, for tokinterp.read()")


def forgetting(model: HookedLM, folder: Path) -> xr.DataTree:
    """Fit probes on three quarters of the bundled texts; return what they read, and psi, on the others."""
    from ..erasure import ErasureScores, ProbeScores, fit_probes
    from ..run.engine import measure as run_measure
    from ..text import Prompts, bundled_texts

    texts = [t.text for t in bundled_texts()]
    fit, test = (Prompts.from_texts(part, model, max_tokens=256, progress=False) for part in (texts[:54], texts[54:]))
    probes = fit_probes(model, fit, offsets=[-2, -1, 0], method="lda", store=folder / "probes", progress=False)
    asked = {"scores": ProbeScores(probes), "erasure": ErasureScores(probes, start=4, end=8)}
    return run_measure(model, test, asked, store=folder / "run.zarr", progress=False)


def demo_folder(folder: Path) -> Path:
    """Return the folder of a demo, marked as one, so that a later demo may write into it again.

    Raises
    ------
    FileExistsError
        If something else is in it.
    """
    from ..files.paths import new_path
    from ..files.whole import write_text

    found = new_path(folder, "--output")
    mark = found / "demo.txt"
    if not mark.is_file():
        if found.exists() and not (found.is_dir() and not any(found.iterdir())):
            raise FileExistsError(f"--output {found}: something is there that no demo wrote; give another name")
        write_text(mark, "Written by tokinterp demo, which replaces what it wrote here when it is called again.\n")
    return found


def demo_input() -> tuple[HookedLM, Prompts]:
    """Return the model and prompts of the demo: the bundled ones."""
    from ..models import load_model
    from ..text import Prompts, bundled_texts

    model = load_model(device="cpu")
    texts = [t.text for t in bundled_texts("article")][:24]
    return model, Prompts.from_texts(texts, model, max_tokens=400, progress=False)


COMMANDS = (measure, load, demo)
