"""TokenRepresentations: texts in, captured features out, for a scikit-learn Pipeline."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from .geometry.pooled import POOLING, PooledStates
from .models import load_model
from .models.base import Model
from .run.engine import measure
from .settings import checked, count, exclude, model, none, one_of, several, short, string, strings
from .settings.kinds import Kind
from .text.prompts import Prompts

CONTAINERS = ("default", "pandas")
LAYER = Kind("one layer, a whole number of at least 0; put several side by side in a FeatureUnion", count().take)
SETTINGS = {
    "model": model | string | none, "layer": LAYER, "pooling": one_of(*POOLING),
    "classes": several(string) | string | none,
    "exclude": exclude, "max_tokens": count(1) | none, "batch_tokens": count(1) | none,
}  # fmt: skip
"""What the settings may be; looked at in ``fit``, since scikit-learn's clone wants them kept as they are given."""


__all__ = ["TokenRepresentations"]


class TokenRepresentations:
    """A scikit-learn transformer from texts to the stream of a layer.

    Probing a layer with any classifier of scikit-learn is three lines, see the example.

    Parameters
    ----------
    model : Model or str, optional
        A loaded model, or what `load_model` takes; None is the bundled one.  Clones share it.
    layer : int
        Blocks applied, 0..n_layers.
    pooling : str
        ``"mean"`` of the tokens of a text, its ``"last"`` token, or all ``"tokens"``, one row each (see `rows`).
    classes : sequence of str, optional
        Only tokens of these classes take part, for example ``"word"`` or ``["last piece", "word"]``.
    exclude : sequence of str
        Tokens left out; see `PooledStates`.
    max_tokens : int, optional
        Longest prompt, cut there; by default a text longer than the context of the model is an error.
    batch_tokens : int, optional
        Padded tokens per batch.

    Attributes
    ----------
    model_ : Model
        After ``fit``.
    n_features_out_ : int
        After ``fit``: d_model.

    Notes
    -----
    ``fit`` learns nothing from the texts.  In ``cross_val_score`` every fold runs the model again; where that is slow,
    call ``transform`` once and cross-validate what comes after it, or give the Pipeline ``memory=``.

    Examples
    --------
    >>> import tokinterp as ti
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.pipeline import make_pipeline
    >>> texts, labels = ["a cat", "a dog", "two cats", "two dogs"], [0, 0, 1, 1]
    >>> probe = make_pipeline(ti.sklearn.TokenRepresentations(layer=3), LogisticRegression()).fit(texts, labels)
    >>> probe.predict(texts).tolist()
    [0, 0, 1, 1]
    """

    def __init__(
        self,
        model: Model | str | None = None,
        layer: int = 1,
        pooling: str = "mean",
        classes: Sequence[str] | None = None,
        exclude: Sequence[str] = ("special",),
        max_tokens: int | None = None,
        batch_tokens: int | None = None,
    ) -> None:
        # As given: scikit-learn compares settings by identity after a clone.
        self.model = model
        self.layer = layer
        self.pooling = pooling
        self.classes = classes
        self.exclude = exclude
        self.max_tokens = max_tokens
        self.batch_tokens = batch_tokens

    # -- what scikit-learn asks of an estimator ---------------------------------------------------------------
    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the settings."""
        names = [n for n in inspect.signature(type(self).__init__).parameters if n != "self"]
        return {n: getattr(self, n) for n in names}

    def set_params(self, **params: Any) -> TokenRepresentations:
        """Change settings; ``fit`` before the next ``transform``.

        Raises
        ------
        ValueError
            For a setting that there is not.
        """
        known = self.get_params()
        if unknown := sorted(set(params) - set(known)):
            raise ValueError(
                f"{unknown[0]}={short(params[unknown[0]])}: no such setting: the settings are {', '.join(known)}"
            )
        for name, value in params.items():
            setattr(self, name, value)
        return self

    @checked(transform=one_of(*CONTAINERS))
    def set_output(self, *, transform: str | None = None) -> TokenRepresentations:
        """Choose what `transform` and `fit_transform` return.

        Parameters
        ----------
        transform : str, optional
            ``"default"`` (an array) or ``"pandas"`` (a data frame with the names of `get_feature_names_out` and the
            index of the texts, if they have one and are the rows); None changes nothing.  Unless chosen here,
            ``sklearn.set_config(transform_output=...)`` counts.

        Raises
        ------
        ValueError
            For anything else.

        Examples
        --------
        >>> frame = TokenRepresentations(layer=2).set_output(transform="pandas").fit_transform(["a cat", "a dog"])
        >>> frame.columns[:2].tolist()
        ['layer2_channel0', 'layer2_channel1']
        """
        if transform is not None:
            self._output = transform
        return self

    def __sklearn_clone__(self) -> TokenRepresentations:
        copy = type(self)(**self.get_params())  # a deep copy would double the weights of the model
        return copy.set_output(transform=getattr(self, "_output", None))

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import InputTags, Tags, TargetTags, TransformerTags

        return Tags(
            estimator_type=None, target_tags=TargetTags(required=False), transformer_tags=TransformerTags(),
            input_tags=InputTags(one_d_array=True, two_d_array=False, string=True), requires_fit=True,
        )  # fmt: skip

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "model_")

    def __repr__(self) -> str:
        defaults = inspect.signature(type(self).__init__).parameters
        changed = [f"{k}={v!r}" for k, v in self.get_params().items() if v is not defaults[k].default]
        return f"{type(self).__name__}({', '.join(changed)})"

    # -- the four verbs of a transformer ----------------------------------------------------------------------
    def fit(self, texts: Iterable[str], y: Any = None) -> TokenRepresentations:
        """Load the model and check the settings against it.

        Raises
        ------
        ValueError
            For a layer, a pooling or a class that there is not.
        TypeError
            For a single text instead of a list.
        """
        _as_texts(texts)
        for name, kind in SETTINGS.items():
            kind(name, getattr(self, name))
        model: Any = load_model(self.model) if self.model is None or isinstance(self.model, str) else self.model
        if self.layer > model.info.n_layers:
            raise ValueError(f"layer={self.layer}: {model.info.id} has layers 0 to {model.info.n_layers}")
        self.model_ = model
        self.n_features_out_ = int(model.info.d_model)
        return self

    def transform(self, texts: Iterable[str]) -> Any:
        """Return (text, d_model) float32 features; (token, d_model) with ``pooling="tokens"``.

        An array, or what `set_output` says.

        Raises
        ------
        ValueError
            If a text has no token that takes part, or gives NaN or infinite activations.
        """
        return self._contained(self.rows(texts)[0], getattr(texts, "index", None))

    def fit_transform(self, texts: Iterable[str], y: Any = None, **fit_params: Any) -> Any:
        """Call `fit`, then `transform`."""
        texts = texts if hasattr(texts, "__array__") else _as_texts(texts)  # an iterator is read once
        return self.fit(texts, y).transform(texts)

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Return (d_model,) names such as ``"layer3_channel17"``."""
        self._check_fitted()
        return np.array([f"layer{self.layer}_channel{c}" for c in range(self.n_features_out_)], dtype=object)

    def rows(self, texts: Iterable[str]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Return what `transform` does, and what each row stands for.

        Returns
        -------
        features : numpy.ndarray
            (row, d_model) float32.
        labels : dict
            ``text`` (row,): number of the text; with ``pooling="tokens"`` also ``position``, ``token_id`` and
            ``string``.

        Examples
        --------
        >>> features, labels = TokenRepresentations(layer=2, pooling="tokens").fit([""]).rows(["the cat", "a dog"])
        >>> len(features) == len(labels["text"]) == len(labels["string"])
        True
        """
        self._check_fitted()
        kept = _as_texts(texts)
        prompts = Prompts.from_texts(kept, self.model_, max_tokens=self.max_tokens, progress=False)
        if len(prompts) != len(kept):
            raise ValueError(f"{len(kept)} texts became {len(prompts)} prompts: give a larger max_tokens=")
        ask = {"states": PooledStates([int(self.layer)], self.pooling, self.classes, self.exclude)}
        run = measure(self.model_, prompts, ask, batch_tokens=self.batch_tokens, progress=False)
        ds = run["states"].to_dataset()
        features = ds["state"].values[:, 0]
        if self.pooling == "tokens":
            labels = {n: ds[n].values for n in ("position", "token_id")}
            return features, {"text": ds["token_prompt"].values, **labels, "string": ds["text"].values}
        missing = sorted(set(range(len(kept))) - set(ds["prompt"].values.tolist()))
        empty = ds["prompt"].values[(ds["n_rows"].values == 0).any(1)]
        if missing or len(empty):
            first = missing[0] if missing else int(empty[0])
            why = "gives NaN or infinite activations" if missing else "has no token that takes part (classes, exclude)"
            raise ValueError(f"text {first} {why}: drop it")
        return features, {"text": ds["prompt"].values}

    def _contained(self, features: np.ndarray, index: Any) -> Any:
        """Return features as an array or a data frame; ``index`` of a pandas object, or the method of a list."""
        kind = getattr(self, "_output", None) or _configured()
        if kind == "default":
            return features
        if kind not in CONTAINERS:
            raise ValueError(f"transform_output={kind!r}: choose from {', '.join(CONTAINERS)}")
        import pandas as pd

        own = isinstance(index, pd.Index) and self.pooling != "tokens"
        return pd.DataFrame(features, columns=self.get_feature_names_out(), index=index if own else None)

    def _check_fitted(self) -> None:
        if not hasattr(self, "model_"):
            from sklearn.exceptions import NotFittedError

            raise NotFittedError("this TokenRepresentations has no model yet: call fit first")


def _configured() -> str:
    """Return the output that scikit-learn, if it is in use, is told to give everywhere."""
    sklearn = sys.modules.get("sklearn")
    return "default" if sklearn is None else sklearn.get_config()["transform_output"]


def _as_texts(texts: Any) -> list[str]:
    column = getattr(texts, "ndim", 1) == 2 and hasattr(texts, "reshape")  # as ColumnTransformer hands it over
    return strings("texts", texts.reshape(-1) if column else texts)
