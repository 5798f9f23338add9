"""LayerSimilarity: how alike the layers are as geometries of the same tokens."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..kernels.moments import BLOCK_ROWS
from ..kernels.state import neutral
from ..run.measurement import Field, Measurement
from ..settings import checked, count, names, one_of, refuse
from ..stats.jackknife import jackknife_error
from ..stats.resample import LEAST
from .kernels import similarity as sim

if TYPE_CHECKING:
    from ..models.info import ModelInfo
    from ..run.batch import Batch
    from ..text.prompts import Prompts

SONG = "Song et al. 2012, JMLR 13, 1393, eq. 5; Kornblith et al. 2019, arXiv 1905.00414"
TEXTS: dict[str, tuple[str, str]] = {
    "cka": ("linear CKA, biased", "Kornblith et al. 2019, arXiv 1905.00414, eq. 3"),
    "cka_debiased": ("linear CKA, debiased", SONG),
    "cka_rbf": ("CKA with a Gaussian kernel, biased", "Kornblith et al. 2019, arXiv 1905.00414"),
    "cka_rbf_debiased": ("CKA with a Gaussian kernel, debiased", SONG),
    "procrustes": ("orthogonal Procrustes similarity", "Williams et al. 2021, arXiv 2110.14739; Schoenemann 1966"),
    "rsa": ("Spearman correlation of pairwise distances", "Kriegeskorte et al. 2008, Front. Syst. Neurosci. 2, 4"),
    "mutual_neighbours": ("mutual k nearest neighbours by cosine", "Huh et al. 2024, arXiv 2405.07987, section 3"),
}
PAIR = ("layer", "other_layer")
PAIR_FIELDS = {
    **{name: Field(PAIR, text, "1", source, range=(0, 1)) for name, (text, source) in TEXTS.items()},
    **{
        f"{name}_null": Field(PAIR, f"{text}, rows of the other layer permuted", "1", source)
        for name, (text, source) in TEXTS.items()
    },
    **{
        f"{name}_error": Field(PAIR, f"jackknife standard error over prompts of: {text}", "1", source)
        for name, (text, source) in TEXTS.items()
        if name in ("cka", "cka_debiased")
    },
}
OVER = ("sample", "prompt", "corpus")


@checked(measures=names(*sim.MEASURES, least=1), over=one_of(*OVER), sample=count(8), k=count(1))
class LayerSimilarity(Measurement):
    """Similarity of every layer with every other: CKA, orthogonal Procrustes, RSA, shared neighbours.

    Parameters
    ----------
    layers : iterable of int, optional
        Layers to compare; all by default.
    measures : sequence of str
        ``"cka"`` (linear, biased and debiased), ``"procrustes"``, ``"rsa"``; ``"rbf"`` (CKA with a Gaussian kernel as
        wide as the median distance of the sample, biased and debiased) and ``"neighbours"`` (mutual k nearest
        neighbours by cosine) on request.
    over : str
        Which rows linear CKA compares.  ``"sample"``: the seeded sample of tokens, all prompts together.  ``"prompt"``:
        the tokens of one prompt at a time, HSIC averaged over prompts before the ratio (minibatch CKA, Nguyen et al.
        2021, with the prompt as the batch): every token counts, in memory layers x n x n, but only differences within
        prompts are seen.  ``"corpus"``: all tokens together, from streamed d x d cross-products of every pair of
        layers; exact, and costly: layers^2 / 2 d^2 float64 numbers and products per token.
    sample : int
        Tokens in the sample on which everything else is computed (Procrustes excepted with ``over="corpus"``).
    exclude : sequence of str
        Tokens left out: ``"special"`` ones and ``"massive"`` rows (found at any of the layers, so that all layers have
        the same rows); one massive token decides a CKA.
    null : bool
        Whether to add ``..._null``: the same on the sample with the rows of the other layer permuted.  What is not
        debiased does not become 0 there: subtract it in thought.
    k : int
        Neighbours of ``"neighbours"``; independent layers share k / (rows - 1).
    seed : int
        Of the sample and of the permutation.

    Notes
    -----
    The debiased CKA uses the unbiased HSIC of Song et al. 2012; use it where rows are fewer than about ten times the
    channels (Murphy et al. 2024): biased CKA of independent noise goes to 1 there.  It may be negative.  From Gram
    matrices (n x n, exact for any width) for a sample or prompt, from cross-products (d x d) for the corpus: the two
    agree on the same rows.

    Procrustes is 1 - min |XQ - Y|^2 / 2 over orthogonal Q, of centred rows with Frobenius norm 1.  It is not the
    "Procrustes similarity" of Razzhigaev et al. (an unconstrained linear map: `Linearity`).  RSA is the Spearman
    correlation of the pairwise Euclidean distances.

    Memory: 38 x layers x n^2 bytes for a sample of n tokens, whatever the number of prompts.

    Examples
    --------
    >>> import tokinterp as ti
    >>> model = ti.load_model()
    >>> texts = [t.text for t in ti.bundled_texts("story")[:2]]
    >>> prompts = ti.Prompts.from_texts(texts, model, max_tokens=128)
    >>> run = ti.measure(model, prompts, {"similarity": ti.geometry.LayerSimilarity(sample=128)}, progress=False)
    >>> cka = run["similarity"]["cka_debiased"]
    >>> cka.dims, bool(cka.sel(layer=3, other_layer=4) > cka.sel(layer=0, other_layer=4))
    (('layer', 'other_layer'), True)
    """

    first = ("cka_debiased", "procrustes", "rsa", "cka_rbf_debiased", "mutual_neighbours")
    fields = {
        "n_rows": Field(("prompt",), "tokens that take part"),
        "n_sample": Field((), "tokens in the sample"),
        **PAIR_FIELDS,
        "_hsic": Field(("prompt", "layer", "other_layer", "debiased"), "HSIC of the tokens of a prompt"),
    }

    def __init__(
        self,
        layers: Iterable[int] | None = None,
        measures: Sequence[str] = ("cka", "procrustes", "rsa"),
        over: str = "sample",
        sample: int = 1024,
        exclude: Sequence[str] = ("special", "massive"),
        null: bool = False,
        k: int = 10,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.layers, self.measures, self.over, self.sample = layers, tuple(measures), over, sample
        self.exclude = tuple(exclude)
        self.null, self.k, self.seed = null, k, seed
        if k >= sample:
            refuse("k", k, f"give a number of neighbours from 1 to sample - 1 = {sample - 1}")

    @property
    def _sampled(self) -> list[str]:
        """What is computed on the sample."""
        streamed = {"sample": (), "prompt": ("cka",), "corpus": ("cka", "procrustes")}[self.over]
        return [m for m in self.measures if m not in streamed]

    def begin(self, info: ModelInfo, prompts: Prompts) -> None:
        """Check layers and memory, and draw the sample of tokens."""
        super().begin(info, prompts)
        count, d, n = len(self.at_layers()), info.d_model, min(self.sample, sum(prompts.lengths))
        if count < 2:
            raise ValueError("one layer cannot be compared with another: give at least two")
        need = count * (4 * d * n + 24 * n**2) if self._sampled else 0
        if self.over == "corpus":
            need += 4 * count * (count + 1) * d**2 + 8 * count**2 * d
        elif self.over == "prompt":
            need += 12 * count * max(prompts.lengths) ** 2
        if need > self.memory:
            raise ValueError(
                f"comparing {count} layers of {d} channels over={self.over!r} with a sample of {n} tokens needs "
                f"{need / 2**30:.1f} GiB: choose fewer layers=, a smaller sample=, over='sample', or raise "
                f"memory={self.memory} of the run"
            )
        lengths = np.asarray(prompts.lengths)
        allowed = np.ones(lengths.sum(), bool)
        if "special" in self.exclude:
            allowed = ~prompts.special_mask
        places = np.flatnonzero(allowed)
        if len(places) < 8:
            raise ValueError(f"the prompts have {len(places)} tokens to compare layers with: at least 8 are needed")
        random = np.random.default_rng(self.seed)
        chosen = np.sort(random.permutation(places)[: self.sample])
        starts = np.concatenate([[0], np.cumsum(lengths)])
        self._picked = np.split(chosen, np.searchsorted(chosen, starts[1:-1]))
        self._picked = [c - s for c, s in zip(self._picked, starts[:-1], strict=True)]

    # -- one batch --------------------------------------------------------------------------------------------
    def update(self, batch: Batch) -> None:
        """Take the sampled rows and add to the sums."""
        layers = self.at_layers()
        keep = batch.kept(self.exclude, *layers)
        columns = {"n_rows": keep.sum(1)}
        if "cka" in self.measures and self.over == "prompt":
            columns["_hsic"] = self._of_each(batch, layers, keep)
        self.keep(batch, **columns)
        if self._sampled:
            self._take_sample(batch, layers, keep)
        if self.over == "corpus":
            self._add_corpus(batch, layers, keep)

    def _take_sample(self, batch: Batch, layers: list[int], keep: torch.Tensor) -> None:
        width, picked = batch.ids.shape[1], [self._picked[n] for n in batch.numbers]
        flat = torch.from_numpy(np.concatenate([p + b * width for b, p in enumerate(picked)])).to(batch.device)
        numbers = np.repeat(np.asarray(batch.numbers, np.int64), [len(p) for p in picked])
        self.append(
            sample_prompt=torch.from_numpy(numbers),
            sample_position=torch.from_numpy(np.concatenate(picked)),
            sample_keep=keep.flatten()[flat],
            sample_rows=torch.stack([batch.points(n).flatten(0, 1)[flat].float() for n in layers], dim=1),
        )

    def _of_each(self, batch: Batch, layers: list[int], keep: torch.Tensor) -> torch.Tensor:
        """Return (prompt, layer, layer, debiased or not) the HSIC of the tokens of each prompt."""
        found = []
        for b, n in enumerate(batch.lengths):
            part = keep[b, :n]
            x = torch.stack([batch.points(layer)[b, :n].double() for layer in layers])
            x = (x - (x * part[:, None]).sum(1, keepdim=True) / part.sum().clamp_min(1)) * part[:, None]
            with neutral():
                grams = x @ x.mT
                found.append(torch.stack([sim.hsic(grams, debiased, keep=part) for debiased in (False, True)], dim=-1))
        return torch.stack(found)

    def _add_corpus(self, batch: Batch, layers: list[int], keep: torch.Tensor) -> None:
        index, d = keep.flatten().nonzero()[:, 0], self.info.d_model
        pairs = [(i, j) for i in range(len(layers)) for j in range(i, len(layers))]
        if "cross" not in self.sums:
            count = len(layers)
            zeros = {"count": (), "first": (count, d), "cross": (len(pairs), d, d), "by": (count, count, d),
                     "size": (count,), "both": (count, count)}  # fmt: skip
            for name, shape in zeros.items():
                self.sums[name] = torch.zeros(shape, dtype=torch.float64, device=batch.device)
        for rows in index.split(BLOCK_ROWS):
            x = [batch.points(n).flatten(0, 1)[rows].double() for n in layers]
            size = torch.stack([(y * y).sum(1) for y in x])
            self.sums["count"] += len(rows)
            self.sums["size"] += size.sum(1)
            self.sums["both"] += size @ size.T
            for i, y in enumerate(x):
                self.sums["first"][i] += y.sum(0)
                self.sums["by"][i] += size @ y
            for place, (i, j) in enumerate(pairs):
                self.sums["cross"][place].addmm_(x[i].T, x[j])

    # -- the outcome ------------------------------------------------------------------------------------------
    def derive(self, found: Mapping[str, np.ndarray]) -> Mapping[str, Any]:
        """Return the similarities of all pairs of layers."""
        out: dict[str, Any] = {}
        if self._sampled:
            out["n_sample"], values = self._of_sample()
            out.update(values)
        if "_hsic" in found:
            out.update(self._of_prompts(found["_hsic"]))
        if self.over == "corpus":
            out.update(self._of_corpus(len(self.at_layers())))
        return out

    def notes(self) -> Mapping[str, Mapping[str, Any]]:
        """Return of which rows each number is."""
        out = {}
        for name in PAIR_FIELDS:
            base = name.removesuffix("_null").removesuffix("_error")
            streamed = base in ("cka", "cka_debiased") or (base == "procrustes" and self.over == "corpus")
            out[name] = {"rows": self.over if streamed and not name.endswith("_null") else "sample"}
        return out

    def _of_sample(self) -> tuple[int, dict[str, np.ndarray]]:
        _, _, keep, rows = self.table("sample_prompt", "sample_position", "sample_keep", "sample_rows")
        cuda = self.info.device.startswith("cuda") and torch.cuda.is_available()
        x = torch.from_numpy(rows[keep]).to(self.info.device if cuda else "cpu")
        asked, count = self._sampled, x.shape[1]
        if len(x) <= max(4, self.k if "neighbours" in asked else 0):
            names = [name for m in asked for name in sim.MEASURES[m]]
            return len(x), {name: np.full((count, count), np.nan) for name in names}
        sets = list(x.unbind(1))
        found = {k: v.cpu().numpy() for k, v in sim.compare_sets(sets, None, asked, self.k).items()}
        if self.null:
            order = torch.from_numpy(np.random.default_rng(self.seed + 1).permutation(len(x))).to(x.device)
            mixed = sim.compare_sets(sets, [y[order] for y in sets], asked, self.k)
            found.update({f"{k}_null": v.cpu().numpy() for k, v in mixed.items()})
        return len(x), found

    def _of_prompts(self, each: np.ndarray) -> dict[str, np.ndarray]:
        each = each[np.isfinite(each).all((1, 2, 3))]
        whole = torch.from_numpy(each.sum(0))
        found: dict[str, np.ndarray] = {}
        for which, name in enumerate(("cka", "cka_debiased")):
            found[name] = sim.cka(whole[..., which]).numpy()
            without = sim.cka((whole - torch.from_numpy(each))[..., which]).numpy()
            few = len(each) < LEAST
            found[f"{name}_error"] = found[name] * np.nan if few else jackknife_error(without, 1, len(each))
        return found

    def _of_corpus(self, count: int) -> dict[str, np.ndarray]:
        s = self.sums
        found = {
            n: torch.empty(count, count, dtype=torch.float64, device="cpu")
            for n in ("cka", "cka_debiased", "procrustes")
        }
        places = ((i, j) for i in range(count) for j in range(i, count))
        for place, (i, j) in enumerate(places):
            pair = sim.PairSums(
                s["count"], s["first"][i], s["first"][j], s["cross"][place], s["size"][i], s["size"][j],
                s["by"][i, j], s["by"][j, i], s["both"][i, j],
            )  # fmt: skip
            found["cka"][i, j] = found["cka"][j, i] = sim.hsic_from_sums(pair)
            found["cka_debiased"][i, j] = found["cka_debiased"][j, i] = sim.hsic_from_sums(pair, debiased=True)
            if "procrustes" in self.measures:
                found["procrustes"][i, j] = found["procrustes"][j, i] = sim.nuclear_norm(sim.centred_cross(pair))
        out = {}
        if "cka" in self.measures:
            out = {n: sim.cka(found[n]).numpy() for n in ("cka", "cka_debiased")}
        if "procrustes" in self.measures:  # the nuclear norm of a layer with itself is its squared Frobenius norm
            out["procrustes"] = sim.cka(found["procrustes"]).numpy()
        return out
