"""PerCloud: anybody's estimator on the token cloud of each prompt and layer."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..kernels.duplicates import first_of_kind
from ..kernels.state import neutral
from ..run.measurement import Field, Measurement
from ..settings import checked, count, one_of, positive, refuse, short
from ..settings.describe import in_words
from .clouds import check_sizes

if TYPE_CHECKING:
    from ..models.info import ModelInfo
    from ..run.batch import Batch
    from ..text.prompts import Prompts

CLOUD = ("prompt", "layer")
LEAST = 2  # points that an estimator gets
LONGEST = 160  # bytes kept of a reason
OWN = {
    "reason", "n_points", "n_used", "prompt", "layer", "token", "position", "token_id", "token_prompt", "text", "site",
    "relative_depth",
}  # fmt: skip
"""What the result has beside the values."""


class AnswerError(TypeError):
    """An estimator that returns something else than numbers."""


@checked()
class PerCloud(Measurement):
    """Run an estimator on the cloud of token vectors of each prompt at each layer.

    Parameters
    ----------
    estimator : object or callable
        An object with ``fit(points)``: any estimator of scikit-dimension, any of scikit-learn; a copy of it is fitted
        to every cloud.  Or a function of (n, d) float64 points that returns a number, n numbers
        (the value of the cloud is then their mean), or a pair of both.
    read : str, optional
        Attribute that holds the answer after ``fit``, a number or one number per point.  By default ``dimension_`` and,
        where it is there, ``dimension_pw_`` (scikit-dimension).
    layers : iterable of int, optional
        Layers to look at; all by default.
    name : str
        Name of the variable in the result; values per point are ``NAME_token``.
    units : str
        Of the values.
    tokens : int, optional
        Values per point are kept for the prompts numbered below this; None keeps all, 0 none.
    distinct : bool
        Whether copies of a point are removed first, as for all dimensions here (they break estimators that rest on
        neighbours); a copy then has the value of the point that it equals.
    exclude : sequence of str
        Tokens left out: ``"special"``, ``"massive"`` (rows found at that layer).

    Notes
    -----
    An estimator that fails on a cloud, or gives no finite number, leaves NaN, and ``reason`` says what it said; where
    it only warns, the value is kept and ``reason`` has the warning.  It runs on the CPU, cloud by cloud: in general it
    takes longer than everything else in the pass.

    Examples
    --------
    >>> import numpy as np
    >>> import tokinterp as ti
    >>> model = ti.load_model()
    >>> spread = ti.geometry.PerCloud(lambda points: float(points.std()), layers=[0, 4], name="spread")
    >>> run = ti.measure(model, ["The Nile flows north. Paris is in France."], {"spread": spread}, progress=False)
    >>> run["spread"]["spread"].shape
    (1, 2)
    """

    fields = {
        "reason": Field(CLOUD, "why a value is missing, or what the estimator warned of"),
        "n_points": Field(CLOUD, "tokens in the cloud, duplicates counted"),
        "n_used": Field(CLOUD, "points that the estimator got"),
        "_said": Field((*CLOUD, "byte"), "the reason, in bytes"),
    }

    def __init__(
        self,
        estimator: Any,
        read: str | None = None,
        layers: Iterable[int] | None = None,
        name: str = "value",
        units: str = "1",
        tokens: int | None = 0,
        distinct: bool = True,
        exclude: Sequence[str] = ("special",),
    ) -> None:
        super().__init__()
        if isinstance(estimator, type):
            raise TypeError(f"estimator={short(estimator)}: that is a class; write {estimator.__name__}()")
        if not hasattr(estimator, "fit") and not callable(estimator):
            raise TypeError(
                f"estimator={short(estimator)}: give an object with fit(points) or a function of the points"
            )
        if not name.isidentifier() or name.startswith("_"):
            refuse("name", name, "it becomes a variable of the result: use letters and digits, and _ inside")
        if name in OWN or f"{name}_token" in OWN:
            refuse("name", name, f"the result has {', '.join(sorted(OWN))} of its own: choose another name")
        self.estimator, self.read, self.name, self.units = estimator, read, name, units
        self.layers, self.tokens, self.distinct, self.exclude = layers, tokens, distinct, exclude
        what = type(estimator).__name__
        if not hasattr(estimator, "fit"):
            what = getattr(estimator, "__name__", what)
        self.fields = {
            name: Field(CLOUD, f"{name} of the token cloud by {what}", units),
            **type(self).fields,
            f"{name}_token": Field(("token", "layer"), f"{name} at the token by {what}", units),
        }

    def begin(self, info: ModelInfo, prompts: Prompts) -> None:
        """Check layers and lengths."""
        super().begin(info, prompts)
        check_sizes(prompts, self.exclude, LEAST, "nan", "an estimate needs")

    # -- one batch --------------------------------------------------------------------------------------------
    def update(self, batch: Batch) -> None:
        """Estimate, cloud by cloud."""
        layers = self.at_layers()
        shape = (len(batch), len(layers))
        value = np.full(shape, np.nan)
        counts = np.zeros((*shape, 2), np.int64)
        reason = np.zeros((*shape, LONGEST), np.uint8)
        local = np.full((*batch.ids.shape, len(layers)), np.nan)
        for j, layer in enumerate(layers):
            stream, mask = batch.points(layer), batch.kept(self.exclude, layer)
            first = first_of_kind(stream, mask) if self.distinct else None
            for i, n in enumerate(batch.lengths):
                keep = mask[i, :n].cpu().numpy()
                itself = np.arange(n)
                place = itself if first is None else first[i, :n].cpu().numpy()
                chosen = np.flatnonzero(keep & (place == itself))
                points = stream[i, :n][torch.from_numpy(chosen).to(stream.device)].double().cpu().numpy()
                whole, each, text = self._estimate(points)
                value[i, j], counts[i, j] = whole, (keep.sum(), len(chosen))
                coded = text.encode()[:LONGEST]
                reason[i, j, : len(coded)] = np.frombuffer(coded, np.uint8)
                if each is not None:
                    full = np.full(n, np.nan)
                    full[chosen] = each
                    local[i, :n, j] = np.where(keep, full[place], np.nan)
        columns = {self.name: value, "n_points": counts[..., 0], "n_used": counts[..., 1], "_said": reason}
        if self.tokens != 0:
            columns[f"{self.name}_token"] = local
        self.keep(batch, **{n: torch.from_numpy(c).to(batch.device) for n, c in columns.items()})

    def _estimate(self, points: np.ndarray) -> tuple[float, np.ndarray | None, str]:
        """Return the value of a cloud, the values of its points (if any), and what went wrong (or nothing)."""
        if len(points) < LEAST:
            return np.nan, None, f"{len(points)} points, least is {LEAST}"
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            try:
                whole, each = self._answer(points)
            except (ImportError, AnswerError):  # the same for every cloud
                raise
            except Exception as error:  # an estimator may raise anything, and one cloud must not end the run
                return np.nan, None, " ".join(f"{type(error).__name__}: {error}".split())
        text = " ".join(f"warning: {said[0].message}".split()) if said else ""
        if not np.isfinite(whole) and (each is None or not np.isfinite(each).any()):
            return np.nan, each, text or f"the estimator gave {whole}"
        return float(whole) if np.isfinite(whole) else np.nan, each, text

    def _answer(self, points: np.ndarray) -> tuple[float, np.ndarray | None]:
        if not hasattr(self.estimator, "fit"):
            answers = self.estimator(points)
            answers = answers if isinstance(answers, tuple) else (answers,)
        else:
            fitted = copy.deepcopy(self.estimator)
            fitted.fit(points)
            names = [self.read] if self.read else [n for n in ("dimension_", "dimension_pw_") if hasattr(fitted, n)]
            if not names:
                raise AttributeError(f"{type(fitted).__name__} has no dimension_ after fit: name its answer with read=")
            answers = tuple(getattr(fitted, n) for n in names)
        whole, each = np.nan, None
        for answer in answers:
            if answer is None:
                continue
            try:
                answer = np.asarray(answer, dtype=np.float64)
            except (TypeError, ValueError):
                raise AnswerError(
                    f"estimator={short(self.estimator)}: it answers with {short(answer)}: let it return a number, an "
                    "array of one for each point, or both"
                ) from None
            if answer.size == 1 and (answer.ndim == 0 or len(points) > 1):
                whole = float(answer.reshape(()))
            elif answer.shape == (len(points),):
                each = np.where(np.isfinite(answer), answer, np.nan)
            else:
                raise ValueError(f"answer of shape {answer.shape} for {len(points)} points")
        if each is not None and not np.isfinite(whole) and len(answers) == 1:
            whole = float(np.nanmean(each)) if np.isfinite(each).any() else np.nan
        return whole, each

    # -- the outcome ------------------------------------------------------------------------------------------
    def derive(self, found: Mapping[str, np.ndarray]) -> Mapping[str, Any]:
        """Return the reasons as strings."""
        reason = np.empty(found["_said"].shape[:2], dtype=object)
        for at in np.ndindex(*reason.shape):
            reason[at] = found["_said"][at].tobytes().rstrip(b"\0").decode("utf-8", "ignore").replace("\0", "")
        return {"reason": reason}

    def notes(self) -> Mapping[str, Mapping[str, Any]]:
        """Return what is left out, and the estimator."""
        left = {"exclude": ", ".join(self.exclude) or "nothing"}
        return {"n_points": left, self.name: {"estimator": in_words(self.estimator)}}


@checked(alpha=positive, sizes=count(2), repeats=count(1))
@neutral()
def homology_dimension(
    points: np.ndarray, alpha: float = 1.0, sizes: int = 12, repeats: int = 5, seed: int = 0
) -> float:
    """Estimate the persistent-homology dimension (degree 0) of a cloud, for `PerCloud`.

    The sum E(n) of the edges of the minimum spanning tree of n points, each to the power alpha, grows like
    n ** (1 - alpha / d); d is read off the slope over subsamples of N / 2 to N points.

    Parameters
    ----------
    points : numpy.ndarray
        (point, d) distinct points, at least 32.
    alpha : float
        Power of the edges, below the dimension; 1 is usual.
    sizes, repeats : int
        Sizes of subsamples, and subsamples of each.
    seed : int
        Of the subsamples.

    Returns
    -------
    float
        Infinite, and so NaN with a reason in `PerCloud`, where the slope is 1 or more.

    Raises
    ------
    ValueError
        For fewer than 32 points or an alpha that is not positive.

    References
    ----------
    Schweinhart 2020, Advances in Mathematics 372, 107291; Birdal et al. 2021, arXiv 2111.13171 (the fit).

    Examples
    --------
    >>> plane = np.random.default_rng(0).random((300, 2))
    >>> bool(abs(homology_dimension(plane) - 2) < 0.5)
    True
    """
    from scipy.sparse.csgraph import minimum_spanning_tree
    from scipy.spatial.distance import cdist

    n = len(points)
    if n < 32 or not alpha > 0:
        raise ValueError(f"{n} points, alpha = {alpha}: take at least 32 points and a positive power")
    distances = cdist(points, points)
    random = np.random.default_rng(seed)
    x, y = [], []
    for size in np.unique(np.linspace(n // 2, n, sizes).round().astype(int)):
        total = []
        for _ in range(repeats if size < n else 1):
            some = random.choice(n, size, replace=False)
            tree = minimum_spanning_tree(distances[np.ix_(some, some)])
            total.append((tree.data**alpha).sum())
        x.append(np.log(size))
        y.append(np.log(np.mean(total)))
    slope = np.polyfit(x, y, 1)[0]
    return alpha / (1 - slope) if slope < 1 else np.inf


@checked(method=one_of("hdbscan", "kmeans"), least=count(2), largest=count(2))
@neutral()
def cluster_count(points: np.ndarray, method: str = "hdbscan", least: int = 5, largest: int = 10, seed: int = 0) -> int:
    """Count the clusters of a cloud, for `PerCloud`.

    Parameters
    ----------
    points : numpy.ndarray
        (point, d) points, more than ``least``.
    method : str
        ``"hdbscan"``: the clusters that HDBSCAN finds, without its noise: 0, or 2 and more, never 1; in a single
        round cloud it finds none, or a few by chance.  ``"kmeans"``: the k from 2 to ``largest`` whose k-means
        partition has the largest mean silhouette, and 1 where that is below 0.25 ("no substantial structure").
    least : int
        Smallest number of points of a cluster of HDBSCAN.
    largest : int
        Largest k of k-means.
    seed : int
        Of k-means.

    Returns
    -------
    int

    Raises
    ------
    ValueError
        For an unknown method or too few points.

    Notes
    -----
    Copies of a token are a cluster where there are enough of them; `PerCloud` takes them out unless
    ``distinct=False``.  Distances grow alike in many dimensions, and HDBSCAN then calls everything noise: compare with
    shuffled text (`tokinterp.measure_nulls`) before a count is read as structure.

    References
    ----------
    Campello, Moulavi and Sander 2013, PAKDD (HDBSCAN); Rousseeuw 1987, J. Comput. Appl. Math. 20, 53 (silhouette);
    Kaufman and Rousseeuw 1990, Finding Groups in Data, table 4 of chapter 2 (0.25).

    Examples
    --------
    >>> from functools import partial
    >>> import tokinterp as ti
    >>> blobs = np.random.default_rng(0).normal(0, 0.1, (60, 3)) + np.repeat(np.eye(3), 20, axis=0)
    >>> cluster_count(blobs), cluster_count(blobs, "kmeans")
    (3, 3)
    >>> count = ti.geometry.PerCloud(partial(ti.geometry.cluster_count, method="kmeans", largest=4), layers=[4],
    ...     name="clusters")
    >>> run = ti.measure(ti.load_model(), ["The Nile flows north, they say."], {"count": count}, progress=False)
    >>> 1 <= run["count"]["clusters"].item() <= 4
    True
    """
    few = least if method == "hdbscan" else 2
    if len(points) <= few:
        raise ValueError(f"{len(points)} points: {method} needs more than {few} here")
    if method == "hdbscan":
        from sklearn.cluster import HDBSCAN

        settings: dict[str, Any] = {"min_cluster_size": least, "copy": True}
        return int(HDBSCAN(**settings).fit(points).labels_.max() + 1)
    from sklearn.cluster import KMeans
    from sklearn.metrics import silhouette_score

    settings, best = {"n_init": 3, "random_state": seed}, {}
    for k in range(2, min(largest, len(points) - 1) + 1):
        labels = KMeans(k, **settings).fit(points).labels_
        best[k] = float(silhouette_score(points, labels))
    k = max(best, key=lambda k: best[k])
    return k if best[k] >= 0.25 else 1
