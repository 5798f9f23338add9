"""LogitLens: what each layer would answer if the model stopped there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..kernels import lens
from ..kernels.roc import auroc
from ..models.embeddings import head_in
from ..run.measurement import Field, Measurement
from ..run.sites import resid
from ..settings import checked, names

if TYPE_CHECKING:
    from ..models.info import ModelInfo
    from ..run.batch import Batch
    from ..run.sites import Site
    from ..text.prompts import Prompts
    from .jacobian import JacobianLens
    from .tuned_lens import TunedLens

VARIANTS = ("raw", "normed", "tuned", "jacobian")
BUFFERS = 4  # blocks of rows x vocab alive at once: logits, their exponentials, the last layer's probabilities, head

POSITIONS = "those with a next token in the prompt"
LENS = (
    "nostalgebraist 2020, interpreting GPT: the logit lens; Razzhigaev et al. 2025, arXiv 2502.15007, section 3.4 (raw)"
)
QUANTITIES = ("cross_entropy", "entropy", "kl", "confidence", "agreement", "accuracy")
BLT = "Pagnoni et al. 2024, Byte Latent Transformer, arXiv 2412.09871, section 2.3"
EACH, WHOLE, TOP = ("layer", "variant"), ("variant",), ("layer", "variant", "rank")


@checked(variants=names(*VARIANTS, least=1))
class LogitLens(Measurement):
    """Decode the stream of every layer with the model's own head and compare with the next token and the last layer.

    Parameters
    ----------
    layers : iterable of int, optional
        Layers to decode; all by default.  The last layer is read in any case, to compare with.  Every fourth,
        ``range(0, model.info.n_layers + 1, 4)``, costs a fourth and has the values that all layers have there.
    top : int
        Most probable tokens kept per layer and token (0: none).
    variants : sequence of str
        ``"normed"``: final norm, then head (the usual logit lens).  ``"raw"``: head without the norm at the layers
        before the last (Razzhigaev et al. 2025, arXiv 2502.15007, section 3.4).  ``"tuned"``: translator of ``tuned``,
        final norm, then head.  ``"jacobian"``: mean Jacobian of ``jacobian``, final norm, then head.  At the last
        layer all are the model's logits.
    tokens : int, optional
        Values of single tokens are kept for the prompts numbered below this; None keeps all (the result grows with the
        corpus), 0 none.  The means per prompt are of all prompts.
    exclude : sequence of str
        Positions left out of the means: ``"special"``, where a special token is the *input*, and ``"massive"``, rows
        that `tokinterp.kernels.massive.massive_rows` finds at that layer.  None by default, as in the Hugging Face
        loss.
    tuned : TunedLens, optional
        Translators of the variant ``"tuned"``, see `tokinterp.lens.fit_tuned_lens`.
    jacobian : JacobianLens, optional
        Jacobians of the variant ``"jacobian"``, see `tokinterp.lens.fit_jacobian_lens`.
    boundaries : bool
        Whether to say how well the entropy tells the beginning of a word from its inside, too; needs texts.

    Notes
    -----
    Everything is in nat.  The last position of a prompt has no next token: its values are kept per token
    (cross-entropy NaN, rank -1), and it takes no part in any mean.  A layer *agrees* with the final answer when no
    token is more probable there than the last layer's most probable one, and is *accurate* when none is more probable
    than the true next token; ties, which bfloat16 logits have, count for it.  The mean of ``cross_entropy`` at the last
    layer weighted by ``n_positions`` is the Hugging Face loss.  Means of the earlier layers are over the same positions
    unless ``exclude`` has ``"massive"``.

    The layer contribution of Razzhigaev et al. (section 3.3) is ``token_cross_entropy`` of the variant ``"raw"``; their
    released code plots another number under that name, ``token_confidence``: -log p of the layer's own most probable
    token.

    ``boundary_auroc``: probability that the entropy of the prediction is higher before the first token of a word than
    before a later one (see `tokinterp.text.token_classes`), of the same prompt; ``spike_auroc``: the same for its rise
    over the entropy one place earlier.  Both rules cut bytes into patches in Pagnoni et al. 2024.

    Memory: logits of some tokens at a time, up to a 16th of the run's ``memory``, however long the prompts are.

    Examples
    --------
    >>> import tokinterp as ti
    >>> model = ti.load_model()
    >>> run = ti.measure(model, ["The Nile flows north."], {"lens": ti.lens.LogitLens(top=3)}, progress=False)
    >>> loss = run["lens"]["cross_entropy"].sel(variant="normed").mean("prompt")
    >>> bool(loss[-1] < loss[0])
    True
    """

    positions: int | None = None  # all of them, and products as the model computes them: see QuickLens
    products: str = "model"
    first = ("cross_entropy", "entropy", "kl", "agreement", "accuracy", "token_cross_entropy")
    fields = {
        "n_targets": Field(("prompt",), "positions with a next token"),
        "n_positions": Field(("prompt", *EACH), "positions that take part in the means"),
        "cross_entropy": Field(
            ("prompt", *EACH), "mean cross-entropy of the true next token", "nat", LENS,
            short="next-token cross-entropy", range=(0, None),
        ),
        "entropy": Field(
            ("prompt", *EACH), "mean entropy of the prediction", "nat", short="entropy of the prediction",
            range=(0, None),
        ),
        "kl": Field(
            ("prompt", *EACH), "mean KL divergence of the layer's prediction from the last layer's, KL(last || layer)",
            "nat", short="KL(last layer ‖ layer)", range=(0, None),
        ),
        "confidence": Field(
            ("prompt", *EACH), "mean -log p of the most probable token (confidence in the released code)", "nat", LENS
        ),
        "agreement": Field(
            ("prompt", *EACH), "share of positions whose most probable token is the last layer's",
            short="share answering as the last layer",
        ),
        "accuracy": Field(
            ("prompt", *EACH), "share of positions whose most probable token is the true next token",
            short="share answering correctly",
        ),
        "boundary_auroc": Field(
            ("prompt", *EACH), "probability of a higher entropy before the first token of a word than inside", "1", BLT,
            short="AUROC of entropy for word starts", range=(0, 1), chance=0.5, beside=("spike_auroc",),
        ),
        "spike_auroc": Field(
            ("prompt", *EACH), "probability of a larger rise of the entropy there", "1", BLT,
            short="AUROC of its rise", range=(0, 1), chance=0.5,
        ),
        "first_layer": Field(("prompt", *WHOLE), "mean first layer whose most probable token is the last layer's"),
        "stable_layer": Field(
            ("prompt", *WHOLE), "mean layer from which on the most probable token stays the last layer's"
        ),
        "token_cross_entropy": Field(
            ("token", *EACH), "cross-entropy of the true next token", "nat", LENS, short="next-token cross-entropy",
            range=(0, None),
        ),
        "token_entropy": Field(
            ("token", *EACH), "entropy of the prediction", "nat", short="entropy of the prediction", range=(0, None),
        ),
        "token_kl": Field(
            ("token", *EACH), "KL(last layer || layer) of the predictions", "nat", short="KL(last layer ‖ layer)",
            range=(0, None),
        ),
        "token_confidence": Field(
            ("token", *EACH), "-log p of the most probable token (confidence in the released code)", "nat", LENS
        ),
        "token_first_layer": Field(("token", *WHOLE), "first layer whose most probable token is the last layer's"),
        "token_stable_layer": Field(
            ("token", *WHOLE), "layer from which on the most probable token stays the last layer's"
        ),
        "target_rank": Field(("token", *EACH), "tokens more probable than the true next one, -1 without one"),
        "top_id": Field(("token", *TOP), "most probable next tokens"),
        "top_prob": Field(("token", *TOP), "their probability"),
    }  # fmt: skip

    def __init__(
        self,
        layers: Iterable[int] | None = None,
        top: int = 5,
        variants: Sequence[str] = ("normed",),
        tokens: int | None = 64,
        exclude: Sequence[str] = (),
        tuned: TunedLens | None = None,
        jacobian: JacobianLens | None = None,
        boundaries: bool = False,
    ) -> None:
        super().__init__()
        self.boundaries = boundaries
        self.layers, self.top, self.variants, self.tokens = layers, top, variants, tokens
        self.exclude, self.tuned, self.jacobian = exclude, tuned, jacobian
        for name, fitted in (("tuned", tuned), ("jacobian", jacobian)):
            if (name in self.variants) != (fitted is not None):
                raise ValueError(
                    f"the variant {name!r} and {name}= go together: LogitLens(variants=('normed', {name!r}), "
                    f"{name}=lens) with lens from tokinterp.lens.fit_{name}_lens or {name.capitalize()}Lens.load"
                )

    def sites(self, info: ModelInfo) -> list[Site]:
        """Return the stream at the layers and at the last one."""
        return resid(sorted({*self.at_layers(info), info.n_layers}))

    def begin(self, info: ModelInfo, prompts: Prompts) -> None:
        """Check layers and ``top`` against the model, and that some prompt has a next token."""
        super().begin(info, prompts)
        self._head: Callable[[torch.Tensor], torch.Tensor] | None = None
        for fitted in (self.tuned, self.jacobian):
            if fitted is not None:
                fitted.check_use(info, self.at_layers(info))
        if self.top > info.d_vocab:
            raise ValueError(f"top={self.top}: {info.id} has only {info.d_vocab} tokens")
        if max(prompts.lengths) < 2:
            raise ValueError("every prompt has a single token, so there is no next token: give longer prompts")
        if self.boundaries:
            self._begins = prompts.classes.mask("word", "stop word", "first piece")
            self._inside = prompts.classes.mask("middle piece", "last piece")
            if not self._inside.any():
                raise ValueError("boundaries=True: no word of the prompts has several tokens")

    # -- one batch --------------------------------------------------------------------------------------------
    def update(self, batch: Batch) -> None:
        """Decode a batch block by block."""
        layers, device = self.at_layers(), batch.device
        decoded = batch.tokens.drawn(self.positions)
        n, shape = len(decoded), (len(layers), len(self.variants))
        flat = batch.flatten(torch.arange(batch.ids.numel(), device=device, dtype=torch.int64).view_as(batch.ids))
        flat, target = flat[decoded], batch.flatten(batch.labels(1))[decoded]
        chosen = torch.isin(decoded, batch.tokens.below(self.tokens)).nonzero()[:, 0]  # rows of the tables
        kept = chosen.cpu().numpy()
        values = {q: torch.empty(n, *shape, device=device, dtype=torch.float32) for q in QUANTITIES}
        table = {"target_rank": torch.empty(len(kept), *shape, dtype=torch.int32, device=device)}
        if self.top:
            table["top_id"] = torch.empty(len(kept), *shape, self.top, dtype=torch.int32, device=device)
            table["top_prob"] = torch.empty(len(kept), *shape, self.top, device=device, dtype=torch.float32)
        size = self._block_rows(device)
        with torch.inference_mode():
            for start in range(0, n, size):
                rows = slice(start, min(start + size, n))
                a, b = np.searchsorted(kept, (rows.start, rows.stop))
                here = torch.from_numpy(kept[a:b] - start).to(device)
                for layer, v, found, listed in self._decode(batch, layers, flat[rows], target[rows], here):
                    for q in QUANTITIES:
                        values[q][rows, layer, v] = getattr(found, q).float()
                    for name, column in listed.items():
                        table[name][a:b, layer, v] = column
        places = torch.tensor([*layers, self.info.n_layers], device=device, dtype=torch.int64)
        first, stable = (places[index] for index in lens.first_and_stable(values["agreement"] > 0))
        self._append_prompts(batch, layers, decoded, values, first, stable)
        if self.tokens != 0:
            columns = {q: values[q] for q in ("cross_entropy", "entropy", "kl", "confidence")}
            columns.update(first_layer=first, stable_layer=stable)
            columns = {f"token_{name}": column[chosen] for name, column in columns.items()}
            self.keep_rows(batch, decoded[chosen], **columns, **table)

    def _block_rows(self, device: torch.device) -> int:
        a_row = 4 * BUFFERS * self.info.d_vocab
        fit = max(1, self.memory // 16 // a_row)
        if device.type != "cpu":
            return fit
        return min(fit, max(2**27 // a_row, 128))  # so many that the product does not wait for the head

    def _decode(
        self, batch: Batch, layers: list[int], index: torch.Tensor, target: torch.Tensor, kept: torch.Tensor,
    ) -> Iterator[tuple[int, int, lens.Lens, dict[str, torch.Tensor]]]:  # fmt: skip
        """Decode a block of rows: the last layer first, once, then each earlier layer and variant against it."""
        model = batch.model
        if self.products == "bfloat16" and self._head is None:
            self._head = head_in(model, torch.bfloat16)
        head = self._head or model.head

        def rows(layer: int) -> torch.Tensor:
            x = batch.resid(layer)
            return x.reshape(-1, x.shape[-1]).index_select(0, index)

        last = self.info.n_layers
        z = head(model.normed(rows(last)))
        found, final, columns = lens.read_logits(z, target, None, kept, self.top)
        if last in layers:
            for v in range(len(self.variants)):
                yield layers.index(last), v, found, columns
        for i, layer in enumerate(layers):
            if layer == last:
                continue
            stream = rows(layer)
            for v, variant in enumerate(self.variants):
                x = stream
                fitted = {"tuned": self.tuned, "jacobian": self.jacobian}.get(variant)
                if fitted is not None:
                    x = fitted.translate(x, layer)
                z = head(x if variant == "raw" else model.normed(x))
                found, _, columns = lens.read_logits(z, target, final, kept, self.top)
                yield i, v, found, columns

    def _append_prompts(
        self, batch: Batch, layers: list[int], decoded: torch.Tensor, values: dict[str, torch.Tensor],
        first: torch.Tensor, stable: torch.Tensor,
    ) -> None:  # fmt: skip
        """Average over the positions of each prompt that have a next token and are not excluded."""
        width = batch.ids.shape[1]
        takes_part = torch.arange(width, device=batch.device, dtype=torch.int64) < batch.mask.sum(1, keepdim=True) - 1
        by_layer = torch.stack([takes_part & batch.kept(self.exclude, n) for n in layers], dim=-1)[..., None]

        def padded(rows: torch.Tensor) -> torch.Tensor:  # NaN for what is not decoded, as for what is no number
            every = rows.new_full((len(batch.tokens), *rows.shape[1:]), torch.nan if rows.is_floating_point() else 0)
            return batch.tokens.spread(every.index_copy(0, decoded, rows))

        finite = torch.stack([padded(values[q]).isfinite() for q in ("cross_entropy", "entropy", "kl")]).all(0)
        weight = by_layer & finite  # (prompt, position, layer, variant)

        def mean(column: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
            total = padded(column).masked_fill(~weight, 0).sum(1, dtype=torch.float64)
            return total / weight.sum(1)  # 0/0 is NaN: no position takes part

        everywhere = weight.all(2)
        edges = self._boundaries(batch, padded(values["entropy"]), weight) if self.boundaries else {}
        self.keep(
            batch,
            n_targets=batch.mask.sum(1) - 1,
            n_positions=weight.sum(1),
            first_layer=mean(first, everywhere),
            stable_layer=mean(stable, everywhere),
            **{q: mean(values[q], weight) for q in QUANTITIES},
            **edges,
        )

    def _boundaries(self, batch: Batch, entropy: torch.Tensor, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return (prompt, layer, variant) how well entropies, and their rises, tell what follows."""
        begins, inside = (batch.tokens.of_stream(x).roll(-1, 1)[:, None, None] for x in (self._begins, self._inside))
        rise = entropy.diff(dim=1, prepend=torch.full_like(entropy[:, :1], torch.nan))
        out = {}
        for name, value in (("boundary_auroc", entropy), ("spike_auroc", rise)):
            known = (weight & ~value.isnan()).movedim(1, -1)
            out[name] = auroc(value.movedim(1, -1), known & begins, known & inside)
        return out

    # -- the outcome ------------------------------------------------------------------------------------------
    def coords(self) -> Mapping[str, Any]:
        """Return variants and ranks."""
        return {
            "variant": (np.array(self.variants), "how a layer is decoded", "1"),
            "rank": (np.arange(self.top), "order by probability, 0 first", "1"),
        }

    def notes(self) -> Mapping[str, Mapping[str, Any]]:
        """Return which positions take part in the means."""
        few = "" if self.positions is None else f"at most {self.positions} a prompt, drawn from "
        said = few + POSITIONS + (f"; without {', '.join(self.exclude)}" if self.exclude else "")
        means = [n for n, f in self.fields.items() if f.table == "prompt" and n != "n_targets"]
        return {name: {"positions": said} for name in means}
