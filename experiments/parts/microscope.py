"""The parts of `experiments.microscope`: what is measured under one condition, and kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

import tokinterp as ti
from tokinterp.results.dataset import variable
from tokinterp.run.facts import fit_facts
from tokinterp.text import removal as words
from tokinterp.text import token_classes
from tokinterp.text.shuffle import shuffle_words

from ..runner.record import kept, stage
from .left_out import linearity_spread

CLASSES = (
    "article", "stop word", "punctuation", "digit", "word", "first piece", "middle piece", "last piece", "whitespace",
    "other",
)  # fmt: skip
DELETED = ("condition", "random", "random in class")


@dataclass
class Case:
    """One condition: network, prompts, class of every token of the text, the text itself, where things are kept."""

    model: Any
    prompts: ti.Prompts
    null: str
    labels: np.ndarray
    kept: Path | None = None
    progress: bool = False
    train: Callable[[], ti.Prompts] | None = None
    text: ti.Prompts | None = None

    def stage(self, what: str, ending: str = ".zarr") -> Path | None:
        """Return where something is kept."""
        if self.kept is not None:
            self.kept.mkdir(parents=True, exist_ok=True)
        return stage(self.kept, f"{what}.{self.null}{ending}")

    def measure(self, what: str, prompts: ti.Prompts, asked: Mapping[str, ti.Measurement]) -> dict[str, xr.Dataset]:
        """Measure, or read what was measured before."""
        tree = ti.measure(self.model, prompts, asked, store=self.stage(what), progress=self.progress)
        return {name: tree.children[name].to_dataset(inherit=False) for name in asked}

    def texts(self) -> ti.Prompts:
        """Return training prompts under the same condition."""
        assert self.train is not None
        return self.train()

    def moved(self) -> np.ndarray:
        """Return (token,) str classes of the tokens where they stand now."""
        if self.prompts.origin is None:
            return self.labels
        n = np.diff(self.prompts.starts)
        return self.labels[np.repeat(self.prompts.starts[:-1], n) + self.prompts.origin]


def labels_of(prompts: ti.Prompts) -> np.ndarray:
    """Return (token,) str: the class of each token, articles apart; "" for special tokens."""
    classes = token_classes(prompts)
    names = np.array(classes.names, dtype=object)[classes.codes]
    strings = [s.strip().lower() for i in range(len(prompts)) for s in prompts.strings(i)]
    names[np.isin(strings, sorted(words.ARTICLES)) & (names == "stop word")] = "article"
    names[names == "special"] = ""
    return names.astype(str)


# -- parts: a case and settings -> datasets by name -----------------------------------------------------------
def linearity(case: Case, settings: Any) -> dict[str, xr.Dataset]:
    """Linearity of the blocks and anisotropy, with and without BOS and massive rows; of the text their intervals."""
    out = case.measure("linearity", case.prompts, {
        "linearity": ti.linearity.Linearity(),
        "linearity_all": ti.linearity.Linearity(exclude=(), held_out=False),
        "spectrum": ti.geometry.Spectrum(components=1),
    })  # fmt: skip
    if case.null == "none":
        of = (case.model, case.prompts, out["linearity_all"], out["spectrum"])
        out["linearity_spread"] = kept(
            case.stage("linearity_spread"), fit_facts(case.model, case.prompts), lambda: linearity_spread(*of)
        )
    return out


def tokens(case: Case, settings: Any) -> dict[str, xr.Dataset]:
    """Nonlinearity and recall by class of token, and their correlation."""
    both = _tokens(case, settings)
    error, recall = both["nonlinearity"], both["recall"]
    gain = _gain(recall)
    out = {
        "nonlinearity": by_class(error, "nonlinearity_mean", case),
        "recall": by_class(recall.assign(gain=gain), "gain", case),
        "recall_layers": recall[["explained", "n_fitted"]],
    }
    pair = (error["nonlinearity_mean"], gain)
    out["recall_correlation"] = correlate(*pair, recall)
    return out


def memory(case: Case, settings: Any) -> dict[str, xr.Dataset]:
    """Contextual memory from a trained decoder, by class of token, and its correlation with nonlinearity."""
    decoder = ti.memory.fit_context_decoder(
        case.model, fragments(case.texts(), settings.max_prefix + 1, case.model), steps=settings.steps,
        rows=settings.rows, max_prefix=settings.max_prefix, lr=settings.lr, lr_new=settings.lr_new, seed=settings.seed,
        warmup=max(1, min(100, settings.steps // 10)), store=case.stage("decoder", ".safetensors"),
        progress=case.progress,
    )  # fmt: skip
    found = case.measure("memory", case.prompts, {"memory": ti.memory.ContextMemory(decoder)})["memory"]
    told = found["context_loss"] - found["context_loss_blank"]
    told.attrs = {"long_name": "cross-entropy of the prefix beyond that from the mean state", "units": "nat"}
    lengths = ["context_loss_by_length", "context_loss_blank_by_length", "n_by_length"]
    error = _tokens(case, settings)["nonlinearity"]["nonlinearity_mean"]
    out = {
        "memory": by_class(found.assign(told=told), "told", case),
        "memory_raw": by_class(found, "context_loss", case),
        "memory_length": found[lengths].copy(),
        "memory_correlation": correlate(error, found["context_loss"], found, told.rename("told")),
    }
    out["memory_length"].attrs["decoder"] = repr(decoder)
    return out


def lens(case: Case, settings: Any) -> dict[str, xr.Dataset]:
    """Curves of the logit lens: raw, normed and tuned."""
    tuned = ti.lens.fit_tuned_lens(
        case.model, case.texts(), steps=settings.lens_steps, step_tokens=settings.lens_tokens, seed=settings.seed,
        check_tokens=2 * settings.lens_tokens, store=case.stage("lens", ".safetensors"), progress=case.progress,
    )  # fmt: skip
    asked = {"lens": ti.lens.LogitLens(top=0, tokens=0, variants=("raw", "normed", "tuned"), tuned=tuned)}
    return case.measure("lens_curves", case.prompts[: settings.lens_prompts or len(case.prompts)], asked)


def removal(case: Case, settings: Any) -> dict[str, xr.Dataset]:
    """Loss of the words that are left after a deletion, beside random deletion of as many.

    Of shuffled text the words of the text are shuffled, not its tokens, so that the same words can be deleted.  Where a
    condition deletes a whole class there is no control within the class (NaN).
    """
    shuffled = case.null.startswith("shuffle")
    prompts = case.text if shuffled and case.text is not None else case.prompts
    prompts = prompts[: settings.removal_prompts or len(prompts)]
    if shuffled:
        prompts = shuffle_words(prompts, settings.seed)
    facts = {
        **fit_facts(case.model, prompts), "conditions": list(settings.conditions), "seed": settings.seed,
        "null": case.null,
    }  # fmt: skip
    return {"removal": kept(case.stage("removal"), facts, lambda: _removal(case, prompts, settings))}


def _removal(case: Case, prompts: ti.Prompts, settings: Any) -> xr.Dataset:
    texts = [prompts.text(i) for i in range(len(prompts))]
    rows = []
    for what in settings.conditions:
        first = [words.remove(t, what) for t in texts]
        anywhere = [words.remove_random(r, settings.seed + i) for i, r in enumerate(first)]
        kinds = [ti.behaviour.surviving_loss(case.model, r, progress=False) for r in (first, anywhere)]
        kinds.append(xr.full_like(kinds[0].astype(float), np.nan, dtype=float))
        matched = [words.can_match(r) for r in first]
        if any(matched):
            same = [words.remove_random(r, settings.seed + i, "class") if matched[i] else r
                    for i, r in enumerate(first)]  # fmt: skip
            loss = ti.behaviour.surviving_loss(case.model, same, progress=False).astype(float)
            kinds[2] = loss.where(xr.DataArray(matched, dims="prompt"))
        rows.append(xr.concat([k.astype(float) for k in kinds], "subset", combine_attrs="override"))
    out = xr.concat(rows, "variant", combine_attrs="override")
    out = out.assign_coords(
        variant=variable("variant", np.array(settings.conditions, dtype=object), "what is deleted", "1"),
        subset=variable("subset", np.array(DELETED, dtype=object), "how the units to delete are chosen", "1"),
    )
    for name, v in out.data_vars.items():
        v.attrs = {**rows[0][name].attrs, "missing": "NaN: a whole class is deleted, so it has no control"}
    return out


def mmlu(case: Case, settings: Any) -> dict[str, xr.Dataset]:
    """Accuracy on multiple-choice questions after deletions, with McNemar tests."""
    out = ti.behaviour.removal_accuracy(
        case.model, settings.questions(), settings.conditions, seed=settings.seed, on_long="skip"
    )
    whole = "share of items answered correctly on the whole question"
    return {"mmlu": out.assign(accuracy_original=variable((), out.attrs["accuracy_original"], whole, "1"))}


# -- what they share ------------------------------------------------------------------------------------------
def _tokens(case: Case, settings: Any) -> dict[str, xr.Dataset]:
    asked: dict[str, ti.Measurement] = {
        "nonlinearity": ti.linearity.TokenNonlinearity(),
        "recall": ti.memory.PrefixRecall(n_words=settings.n_words),
    }
    return case.measure("tokens", case.prompts, asked)


def _gain(recall: xr.Dataset) -> xr.DataArray:
    """Return (token,) recall beyond that of the mean bag of the same length, mean over layers from 1 on."""
    out = recall["recall"].sel(layer=recall["layer"] > 0).mean("layer") - recall["recall_base"]
    out.attrs = {"long_name": "recall of the prefix beyond its length, mean over layers", "units": "1"}
    return out.rename("gain")


def fragments(prompts: ti.Prompts, n: int, model: Any) -> ti.Prompts:
    """Cut prompts into fragments of so many tokens, BOS before each if they have it."""
    ids = []
    for i in range(len(prompts)):
        own = prompts.ids(i)[~prompts.special(i)]
        ids += [own[a : a + n] for a in range(0, len(own) - n + 1, n)] or ([own] if len(own) > 1 else [])
    return ti.Prompts.from_ids(ids, model, bos=prompts.bos)


def within(v: xr.DataArray, groups: np.ndarray) -> xr.DataArray:
    """Return a per-token variable about its mean over the tokens of the same group (prefix length, say)."""
    values, (_, place) = v.values.astype(float), np.unique(groups, return_inverse=True)
    ok = np.isfinite(values)
    total, n = np.bincount(place[ok], values[ok], place.max() + 1), np.bincount(place[ok], minlength=place.max() + 1)
    with np.errstate(invalid="ignore"):
        out = v.copy(data=values - (total / n)[place])
    out.attrs["long_name"] = f"{v.attrs.get('long_name', v.name)}, about the mean at that prefix length"
    return out


def by_class(ds: xr.Dataset, name: str, case: Case) -> xr.Dataset:
    """Return the profile of a variable over all of `CLASSES`, NaN for those with too few tokens."""
    one = ti.results.class_profile(ds, name, case.moved(), case.prompts)
    whole = one.reindex(subset=list(CLASSES), fill_value={"n_tokens": 0, "n_prompts": 0})
    for v in one.variables:
        whole[v].attrs = one[v].attrs
    return whole


def correlate(error: xr.DataArray, other: xr.DataArray, ds: xr.Dataset, told: xr.DataArray | None = None) -> xr.Dataset:
    """Correlate nonlinearity with another variable: as published, at equal place in the prompt, and with ``told``.

    Some prefixes are easier to write than others, whatever the token after them: what is left of the loss when that
    from the mean state is subtracted (``told``) is due to the token's own states.
    """
    places = [within(v, v["position"].values) for v in (error, other)]
    both = [ti.results.token_correlation(error, other), ti.results.token_correlation(*places)]
    names = ["published", "equal position"]
    if told is not None:
        both.append(ti.results.token_correlation(error, told))
        names.append("beyond the mean state")
    out = xr.concat(both, "variant", combine_attrs="override")
    out = out.assign_coords(variant=variable("variant", np.array(names, dtype=object), "what is taken out before", "1"))
    out.attrs = {**ds.attrs, "measurement": "token_correlation"}
    return out
