"""``tokinterp tokenizers``: several tokenizers on the same texts, as a table and a page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from ..files.escape import in_one_line, say
from . import options as o
from .refusals import Usage

if TYPE_CHECKING:
    import xarray as xr

SHOWN = ("n_tokens", "fertility", "chars_per_token", "bytes_per_token", "single_words", "renyi_efficiency", "premium")


def tokenizers(
    names: Annotated[list[str], Argument(help="Tokenizers: names on the hub, folders, files, or 'bundled'.")],
    texts: Annotated[
        list[str], Option("--texts", help="FILE, or LANGUAGE=FILE; several times.  Without it, the bundled texts.")
    ] = [],  # noqa: B006
    base_lang: Annotated[str | None, Option(help="Language that premiums are of; files are parallel then.")] = None,
    output: Annotated[Path, Option("-o", "--output", help="HTML page to write.")] = Path("tokenizers.html"),
    worst: Annotated[int, Option(min=1, help="Words listed for each tokenizer.")] = 10,
    jobs: Annotated[int, Option(min=1, help="Processes.")] = 1,
    overwrite: o.Overwrite = False,
) -> None:
    """Compare tokenizers on texts: lengths, premiums, scripts, ranks, the words that cost most."""
    import xarray as xr

    from ..files.paths import new_file
    from ..models.tokenizer import load_tokenizer
    from ..results.report import report
    from ..tokenizers import tokenizer_metrics, tokenizer_overview

    output = new_file(output, overwrite)
    corpora = read_corpora(texts)
    if base_lang is not None and base_lang not in corpora:
        raise Usage(f"--base-lang {base_lang}: the texts are of {', '.join(corpora)}: write --texts {base_lang}=FILE")
    made: dict[str, Any] = {}
    for name in names:
        short = Path(name).name or name
        made[name if short in made else short] = load_tokenizer(None if name == o.BUNDLED else name)
    metrics = tokenizer_metrics(made, corpora, base_lang=base_lang, n_jobs=jobs)
    overview = tokenizer_overview(made, corpora, worst=worst)
    say(as_text(metrics, overview))
    tree = xr.DataTree.from_dict({"metrics": metrics.isel(corpus=0), "overview": overview})
    path = report(tree, output, title=f"Tokenizers: {', '.join(made)}")
    say(f"written to {path}", err=True)


COMMANDS = (tokenizers,)


def read_corpora(texts: list[str]) -> dict[str, Any]:
    """Return language -> texts of ``FILE`` or ``LANGUAGE=FILE``; the bundled texts where none are given."""
    from ..text import bundled_texts

    out: dict[str, Any] = {}
    for given in texts:
        lang, equals, file = given.rpartition("=")
        lang = lang if equals else Path(file).stem
        if not lang or lang in out:
            raise Usage(f"--texts {given}: {'a language twice' if lang else 'no language'}: write LANGUAGE=FILE")
        out[lang] = [t.text for t in bundled_texts()] if file == o.BUNDLED else file
    return out or {"en": [t.text for t in bundled_texts()]}


def as_text(metrics: xr.Dataset, overview: xr.Dataset) -> str:
    """Return the numbers of all tokenizers and languages as an aligned table, then the words that cost most."""
    columns = [n for n in SHOWN if n in metrics]
    rows = [["tokenizer", "lang", "vocab_size", *columns]]
    for name in metrics["tokenizer"].values.tolist():
        for lang in metrics["lang"].values.tolist():
            one = metrics.sel(tokenizer=name, lang=lang).isel(corpus=0)
            values = [f"{one[c].item():,.0f}" if c == "n_tokens" else f"{one[c].item():.3f}" for c in columns]
            rows.append([name, lang, f"{one['vocab_size'].item():,}", *values])
    widths = [max(len(r[k]) for r in rows) for k in range(len(rows[0]))]
    lines = ["  ".join([*(x.ljust(w) for x, w in zip(r[:2], widths[:2], strict=True)),
                        *(x.rjust(w) for x, w in zip(r[2:], widths[2:], strict=True))]) for r in rows]  # fmt: skip
    lines.append("\nWords that cost most (tokens x occurrences)")
    for name in overview["tokenizer"].values.tolist():
        one = overview.sel(tokenizer=name)
        cells = zip(
            one["word"].values.tolist(), one["n_tokens"].values.tolist(), one["count"].values.tolist(), strict=True
        )
        lines.append(f"{name}: " + ", ".join(f"{in_one_line(w)} ({n} x {k})" for w, n, k in cells))
    return "\n".join(lines)
