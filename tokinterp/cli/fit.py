"""``tokinterp fit``: whatever the topics can fit to a model, found by scanning them."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Option

from .. import scan
from ..files.escape import say
from . import options as o
from .measurements import fit_called, fit_of, parameters_of, settings_of
from .refusals import Usage

if TYPE_CHECKING:
    from ..erasure.token_probes import TokenProbes
    from ..models.base import Model
    from ..text.prompts import Prompts

Fitted = Annotated[Path, Option("-o", "--output", help="File or folder to write; the same command goes on.")]


def fit(
    kind: Annotated[str, typer.Argument(help="probes, tuned_lens, ...: `tokinterp measurements` lists the fits.")],
    model: o.ModelName,
    texts: Annotated[str, typer.Argument(help="Training texts: file, dataset, or 'bundled'.")],
    output: Fitted,
    settings: Annotated[
        list[str], Option("--set", help="SETTING=VALUE, several times: `tokinterp measurements KIND` tells them.")
    ] = [],  # noqa: B006
    layers: o.Layers = None,
    seed: o.Seed = None,
    val: Annotated[str | None, Option(help="Other texts for early stopping.")] = None,
    field: o.Field = "text",
    limit: o.Limit = None,
    per_line: o.PerLine = False,
    split: o.Split = None,
    max_tokens: o.MaxTokens = None,
    min_tokens: o.MinTokens = 2,
    on_long: o.OnLong = None,
    stride: o.Stride = None,
    bos: o.Bos = "auto",
    batch_tokens: o.BatchTokens = None,
    max_gigabytes: Annotated[float | None, Option(help="Memory for states and weights.")] = None,
    checkpoint_every: o.CheckpointEvery = 60.0,
    backend: o.Backend = "hf",
    dtype: o.Dtype = None,
    device: o.Device = None,
    device_map: o.DeviceMap = None,
    revision: o.Revision = None,
    trust_remote_code: o.TrustCode = False,
) -> None:
    """Fit probes, a tuned lens, maps or a decoder to a model, for the measurements that read them."""
    given = dict(locals())
    from ..files.paths import new_path

    run = fit_called(kind)
    asked = chosen(kind, run, given)
    output = new_path(output, "--output")
    if output.exists() and not (output.is_file() or (output / "probes.json").is_file()):
        raise FileExistsError(f"--output {output}: something else than what a fit wrote is there: give another name")
    source = o.Input(model, texts, given, *([] if val is None else [val]))
    loaded, (prompts, *held) = source.load(), source.prompts()
    say(f"{loaded}\n{prompts}", err=True)
    kept = {"store": output} if "checkpoint_every" in asked else {}
    try:
        fitted = run(loaded, prompts, **asked, **kept, **({"validation": held[0]} if held else {}))
    except ValueError as error:
        of_set = str(error).partition("=")[0] in [s for _, s, _ in o.parse_settings(settings)]
        raise Usage(f"--set {error}") if of_set else error from None
    if not kept:
        fitted.save(output)
    say(str(fitted))
    if hasattr(fitted, "offsets"):
        say(f"accuracy on {val or 'the training texts; give --val for others'} (share whose first guess is right):")
        say(accuracy_text(fitted, loaded, held[0] if held else prompts))
    say(f"written to {output}; next: {next_command(model, output, fitted, loaded)}", err=True)


COMMANDS = (fit,)


def chosen(kind: str, run: Any, given: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a fit that the command line gives.

    Raises
    ------
    Usage
        For an option or a setting that the fit does not have.
    """
    from ..settings import check, like, positive

    known, there = parameters_of(run), [s for s, _, _ in settings_of(run)]
    out: dict[str, Any] = {}
    for of, setting, value in o.parse_settings(given["settings"]):
        if setting not in there or of not in ("", kind):
            raise Usage(f"--set {f'{of}.' if of else ''}{setting}: {kind} has no such setting; there are "
                        f"{', '.join(there)}{like(setting, there)}")  # fmt: skip
        try:
            check(run, **{setting: value})
        except ValueError as error:
            raise Usage(f"--set {error}") from None
        out[setting] = value
    flags = {"layers": "layers", "seed": "seed", "val": "validation", "batch_tokens": "batch_tokens",
             "max_gigabytes": "memory"}  # fmt: skip
    for option, name in flags.items():
        if (value := given[option]) is None:
            continue
        if name not in known:
            raise Usage(
                f"--{option.replace('_', '-')} {value}: {kind} has no such setting; there are {', '.join(there)}"
            )
        if option == "val" and not value.strip():
            raise Usage(f"--val {value!r}: give a file, a dataset, or 'bundled'")
        if option == "layers":
            value = o.parse_layers(value)
        if option == "max_gigabytes":
            value = int(positive("max_gigabytes", value) * 2**30)
        if option != "val":
            out[name] = value
    if "checkpoint_every" in known:
        out["checkpoint_every"] = given["checkpoint_every"]
    check(run, **{k: v for k, v in out.items() if k in ("layers", "seed", "batch_tokens", "checkpoint_every")})
    return out


def next_command(model: str, output: Path, fitted: Any, loaded: Model) -> str:
    """Return a command that measures other texts with what was fitted, as far as its layers and offsets allow."""
    there = [(n, s) for n, k in scan.measurements().items() for s in parameters_of(k)
             if (made := fit_of(k, s)) and isinstance(fitted, made[1]) and not n.endswith(".published")]  # fmt: skip
    more: list[str] = []
    if hasattr(fitted, "offsets"):
        there = [(n, s) for n, s in there if n != "erasure.erasure" or _spans(fitted)]
        more = _ends(fitted, loaded) if _spans(fitted) else []
    if type(fitted).__name__ == "TunedLens":
        more = ["--set", shlex.quote('lens.variants=["normed","tuned"]')]
    words = ["tokinterp", "measure", shlex.quote(model), "TEXTS"]
    for name, _ in there:
        words += ["-m", name.partition(".")[2]]
    return " ".join([*words, *more, "--set", shlex.quote(f"{there[0][1]}={output}"), "-o", "RUN.zarr"])


def _spans(probes: TokenProbes) -> bool:
    return len(probes.layers) > 1 and {0, -1, -2} <= set(probes.offsets)


def _ends(probes: TokenProbes, loaded: Model) -> list[str]:
    """Return the settings of erasure for the layers that the probes have."""
    from ..erasure.erasure import default_layers

    first, last = default_layers(loaded.info.n_layers)
    start = min(probes.layers[:-1], key=lambda n: abs(n - first))
    end = min((n for n in probes.layers if n > start), key=lambda n: abs(n - last))
    given = {"start": (start, first), "end": (end, last)}
    return [w for n, (is_, usual) in given.items() if is_ != usual for w in ("--set", f"erasure.{n}={is_}")]


def accuracy_text(probes: TokenProbes, model: Model, prompts: Prompts, max_tokens: int = 20_000) -> str:
    """Return a table of how often each probe is right, by layer and offset, on about so many tokens."""
    from ..erasure.probe_scores import score_probes

    some = prompts[: max(1, int((prompts.starts[1:] <= max_tokens).sum()))]
    right = score_probes(probes, model, some, n_boot=1, progress=False)["accuracy"].sel(subset="all")
    lines = [f"layer {n:<4}" + "".join(f"{float(x):8.3f}" for x in right.sel(layer=n)) for n in probes.layers]
    return "\n".join(["offset    " + "".join(f"{k:8d}" for k in right["offset"].values), *lines])
