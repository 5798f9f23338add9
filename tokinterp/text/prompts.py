"""Prompts: token ids of many texts, with everything needed to say where in the text a token stands."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..settings import (
    LARGEST,
    anything,
    checked,
    count,
    flag,
    model,
    none,
    one_of,
    short,
    source,
    texts,
    tokenizer,
)
from ..settings.describe import tokenizer_hash
from .classes import TokenClasses, token_classes
from .spelled import Spelled
from .tokenise import Limits, Tokenised, check_ids, tokenise, unpack
from .vocabulary import Vocabulary

if TYPE_CHECKING:
    from ..models.base import Model


class Prompts(Spelled):
    """Numbered sequences of token ids, and their texts.

    Made with `from_texts`, `from_file` or `from_ids`. Ids and character offsets lie in one array each for all prompts
    (12 bytes a token); the texts are kept once, however many windows are cut from them.

    Attributes
    ----------
    token_ids : numpy.ndarray
        (token,) int32 ids of all prompts, one after the other.
    starts : numpy.ndarray
        (prompt + 1,) int64: prompt i is ``token_ids[starts[i]:starts[i + 1]]``.
    documents : numpy.ndarray
        (prompt,) int64 number of the text (in the order given) from which each prompt was cut.
    window_starts : numpy.ndarray
        (prompt,) int64 token of that text, BOS not counted, at which the prompt begins.
    chars : numpy.ndarray
        (prompt, 2) int64 characters of that text which the prompt covers.
    half : numpy.ndarray
        (prompt, 2) bool, whether the prompt begins, and whether it ends, inside a character of several tokens.
    bos : bool
        Whether a BOS token was put before each prompt (`from_ids`: whether each begins with it).
    truncated : numpy.ndarray
        (prompt,) bool, true where the rest of the text was cut off.
    dropped : numpy.ndarray
        Numbers of the texts (or windows of them) that were left out because they had fewer than ``min_tokens`` tokens
        or no character at all.
    note : str
        What was done to the tokens since (``"shuffle_blocks(level=3, seed=0)"``); part of the hash.
    origin : numpy.ndarray or None
        After a shuffle, (token,) int32: the position in the unshuffled prompt.
    vocabulary : Vocabulary
        What the ids stand for.

    Examples
    --------
    >>> import tokinterp as ti
    >>> model = ti.load_model()
    >>> prompts = ti.Prompts.from_texts(["The Nile flows north.", "Paris is in France."], model)
    >>> len(prompts), prompts.text(0)
    (2, 'The Nile flows north.')
    """

    @checked(texts=texts | none)
    def __init__(
        self,
        parts: Tokenised,
        vocabulary: Vocabulary,
        texts: Sequence[str] | None = None,
        *,
        bos: bool = False,
        note: str = "",
        origin: np.ndarray | None = None,
    ) -> None:
        # Read only, so that the hash stays that of what is measured.
        self.token_ids, self.starts = _fixed(parts.ids), _fixed(parts.starts)
        self.documents, self.window_starts = _fixed(parts.documents), _fixed(parts.window_starts)
        self.chars, self.half = _fixed(parts.chars), _fixed(parts.half)
        self.truncated, self.dropped = _fixed(parts.truncated), _fixed(parts.dropped)
        self._offsets = None if parts.offsets is None else _fixed(parts.offsets)
        self._texts = tuple(texts) if isinstance(texts, list) else texts
        self.vocabulary, self.bos, self.note = vocabulary, bos, note
        self.origin = None if origin is None else _fixed(origin)

    # -- making -----------------------------------------------------------------------------------------------
    @classmethod
    @checked(
        texts=texts,
        model_or_tokenizer=model | tokenizer,
        min_tokens=count(1),
        stride=count(1),
        bos=one_of("auto") | flag,
        on_long=one_of("error", "truncate", "window"),
        on_empty=one_of("error", "drop"),
    )
    def from_texts(
        cls,
        texts: Iterable[str],
        model_or_tokenizer: Model | Any,
        *,
        max_tokens: int | None = None,
        bos: bool | str = "auto",
        on_long: str | None = None,
        stride: int | None = None,
        min_tokens: int = 1,
        on_empty: str = "error",
        progress: bool = True,
    ) -> Prompts:
        """Tokenise texts.

        Parameters
        ----------
        texts : iterable of str
            The texts; their order gives the document numbers.
        model_or_tokenizer : Model or Hugging Face tokenizer
            A model brings its tokenizer, its context length and its vocabulary size.
        max_tokens : int, optional
            Longest prompt, BOS included. Without it, the context of the model.
        bos : {"auto", True, False}
            Whether each prompt begins with the BOS token. "auto" does what the tokenizer does by itself. Windows get
            one each; a text that begins with the BOS string itself gets no second one.
        on_long : {"error", "truncate", "window"}, optional
            What happens to a longer text. The default is "truncate" if ``max_tokens`` is given, else "error". "window"
            cuts it into prompts of ``max_tokens``, the last one shorter.
        stride : int, optional
            Tokens from the start of one window to that of the next; by default windows do not overlap.
        min_tokens : int
            Shortest prompt, BOS included; shorter ones are dropped and counted.
        on_empty : {"error", "drop"}
            What happens to a text without a character.
        progress : bool
            Show a progress bar if it takes longer than two seconds.

        Raises
        ------
        ValueError
            For an empty list, an empty text, a text longer than the limit where that is an error, ``bos=True`` without
            a BOS token, or if nothing is left after dropping.
        TypeError
            For a single string instead of a list, or a text that is none.

        Examples
        --------
        >>> import tokinterp as ti
        >>> model = ti.load_model()
        >>> prompts = ti.Prompts.from_texts(["One. Two. Three. Four."], model, max_tokens=5, on_long="window")
        >>> max(prompts.lengths)
        5
        """
        source = unpack(model_or_tokenizer)
        if source.tokenizer is None:
            raise ValueError(
                f"{source.name} has no tokenizer: give ids with Prompts.from_ids, or load one with the model"
            )
        vocabulary = Vocabulary(source.tokenizer, source.d_vocab)
        kept = list(texts)
        limits = Limits.make(source, vocabulary, max_tokens, bos, on_long, stride, min_tokens, on_empty)
        return cls(tokenise(kept, source, vocabulary, limits, progress), vocabulary, kept, bos=limits.bos)

    @classmethod
    @checked(ids=anything, model_or_tokenizer=model | tokenizer | none)
    def from_ids(
        cls, ids: Iterable[Sequence[int] | np.ndarray], model_or_tokenizer: Model | Any = None, *, bos: bool = False
    ) -> Prompts:
        """Take token ids as they are.

        Parameters
        ----------
        ids : iterable of sequences of int
            One sequence per prompt (lists, arrays or tensors on the CPU).
        model_or_tokenizer : Model or Hugging Face tokenizer, optional
            For the size of the vocabulary, the context length, the strings and the special tokens.
        bos : bool
            Put the BOS token before each prompt that does not begin with it.

        Raises
        ------
        ValueError
            For an empty list or prompt, an id outside the vocabulary, a prompt longer than the model's context.

        Examples
        --------
        >>> Prompts.from_ids([[5, 6, 7], [8]]).lengths
        [3, 1]
        """
        source = unpack(model_or_tokenizer)
        vocabulary = Vocabulary(source.tokenizer, source.d_vocab)
        arrays = check_ids(ids, source, vocabulary, bos)
        starts = np.concatenate([[0], np.cumsum([len(a) for a in arrays])]).astype(np.int64)
        parts = Tokenised.bare(np.concatenate(arrays), starts)
        begin = vocabulary.bos is not None and all(a[0] == vocabulary.bos for a in arrays)
        return cls(parts, vocabulary, bos=begin)

    @classmethod
    @checked(path=source, model_or_tokenizer=model | tokenizer, limit=count(1, LARGEST))
    def from_file(
        cls,
        path: str | Path | Sequence[str | Path] | Any,
        model_or_tokenizer: Model | Any,
        *,
        field: str = "text",
        per_line: bool = False,
        limit: int | None = None,
        split: str | None = None,
        encoding: str = "utf-8",
        **options: Any,
    ) -> Prompts:
        """Tokenise the texts of a file, of several files, or of a Hugging Face dataset.

        Parameters
        ----------
        path : path, list of paths, dataset, or name of a dataset on the hub
            ``.txt`` (one text per file), ``.jsonl``, ``.json`` (a list), ``.csv``, ``.tsv`` or ``.parquet``, also with
            ``.gz``, ``.bz2`` or ``.xz`` behind it; a folder that ``datasets`` wrote (``save_to_disk``), or a folder of
            such files. A hub name with a configuration is written ``"owner/name:configuration"``.
        model_or_tokenizer : Model or Hugging Face tokenizer
            See `from_texts`.
        field : str
            Name of the field or column with the text.
        per_line : bool
            One text per line of a ``.txt`` file.
        limit : int, optional
            Read only so many texts.
        split : str, optional
            Split of a dataset; needed where there are several and none is called train.
        encoding : str
            Of the file.
        **options
            ``max_tokens``, ``bos``, ``on_long``, ``stride``, ``min_tokens``, ``progress`` of `from_texts`. Empty
            records are dropped and counted, unless ``on_empty="error"``.

        Raises
        ------
        ValueError
            For a file that is not UTF-8 (or the encoding given), not whole, without the field; see `read_texts`.

        Examples
        --------
        >>> import tempfile, pathlib
        >>> import tokinterp as ti
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = pathlib.Path(folder, "a.txt")
        ...     _ = file.write_text("The Nile flows north.")
        ...     prompts = ti.Prompts.from_file(file, ti.load_model(), max_tokens=64)
        >>> prompts.text(0)
        'The Nile flows north.'
        """
        from .readers.files import read_texts

        texts = read_texts(path, field=field, per_line=per_line, limit=limit, split=split, encoding=encoding)
        if not any(texts):
            raise ValueError(f"path={path}: no text in it: give a file with at least one that is not empty")
        return cls.from_texts(texts, model_or_tokenizer, **{"on_empty": "drop", **options})

    def __repr__(self) -> str:
        few, many = (min(self.lengths), max(self.lengths)) if len(self) else (0, 0)
        notes = [f"{len(self)} prompts, {self.n_tokens} tokens, {few} to {many} each", "BOS" if self.bos else "no BOS"]
        if n := int(self.truncated.sum()):
            notes.append(f"{n} truncated")
        if n := len(self.dropped):
            notes.append(f"{n} too short and dropped")
        if self.note:
            notes.append(self.note)
        return f"Prompts({', '.join(notes)}, hash {self.hash[:8]})"

    @cached_property
    def hash(self) -> str:
        """SHA-256 of all that is read: ids, texts, offsets, document numbers, tokenizer, and what was done to them."""
        digest = self._ids_hash()
        if self.vocabulary.hash:
            digest.update(f"tokenizer {self.vocabulary.hash}".encode())
        bare, known = Tokenised.bare(self.token_ids, self.starts), self._told_by_ids()
        for name in ("documents", "window_starts", "half", "truncated", *(() if known else ("chars",))):
            if not np.array_equal(column := getattr(self, name), getattr(bare, name)):
                digest.update(name.encode() + np.ascontiguousarray(column, dtype="<i8").tobytes())
        for name, column in (("offsets", None if known else self._offsets), ("origin", self.origin)):
            if column is not None:
                digest.update(name.encode() + np.ascontiguousarray(column, dtype="<i8").tobytes())
        texts: Any = self._texts
        for document in () if known else np.unique(self.documents).tolist():
            text = texts[document].encode("utf-8", "surrogatepass")
            digest.update(f"{document} {len(text)}".encode() + text)
        return digest.hexdigest()

    @checked()
    def check_tokenizer(self, model: Model) -> None:
        """Refuse a model with another vocabulary; warn where the tokenizers differ in less than that."""
        mine, own = self.vocabulary.tokenizer, model.tokenizer
        if mine is not None and self.vocabulary.hash != tokenizer_hash(mine):
            raise ValueError(
                f"the tokenizer of the prompts ({type(mine).__name__}) was changed after they were made: make them "
                "anew, Prompts.from_texts(texts, model)"
            )
        if mine is None or own is None or mine is own or self.vocabulary.hash == tokenizer_hash(own):
            return
        if mine.get_vocab() != own.get_vocab():
            raise ValueError(
                f"model={model.info.id}: the prompts were made with another tokenizer ({type(mine).__name__}, "
                f"{len(mine)} tokens) than that "
                f"of {model.info.id} ({type(own).__name__}, {len(own)} tokens): make them with this model, "
                "Prompts.from_texts(texts, model)"
            )
        logging.getLogger("tokinterp").warning(
            "the prompts were made with a tokenizer of %s's vocabulary, but other rules or special tokens",
            model.info.id,
        )

    @property
    def classes(self) -> TokenClasses:
        """Class of every token of all prompts, found once; see `token_classes`."""
        return token_classes(self)

    def _told_by_ids(self) -> bool:
        """Whether texts and offsets follow from the ids: byte-level tokens that join to whole texts."""
        given: Any = self._texts
        if given is None or self.vocabulary.kind != "byte-level":
            return given is None
        texts = [given[d] for d in self.documents.tolist()]
        whole = not self.chars[:, 0].any() and self.chars[:, 1].tolist() == [len(t) for t in texts]
        content = self.token_ids[~self.vocabulary.special(self.token_ids)]
        tokens = b"".join(self.vocabulary.bytes(content)) if whole else b""
        return whole and tokens == "".join(texts).encode("utf-8", "surrogatepass")

    def __describe__(self) -> str:
        return self.hash

    @property
    def history(self) -> str:
        """What was done to the texts, in words; empty where each prompt is a whole text."""
        windows = np.flatnonzero(self.window_starts > 0)
        done = [
            self.note,
            f"windows of {len(np.unique(self.documents[windows]))} texts" if len(windows) else "",
            f"{n} of {len(self)} truncated" if (n := int(self.truncated.sum())) else "",
            f"{n} dropped" if (n := len(self.dropped)) else "",
        ]
        return "; ".join(d for d in done if d)

    # -- many prompts -----------------------------------------------------------------------------------------
    def __getitem__(self, which: int | slice | Sequence[int] | np.ndarray) -> Prompts:
        """Return some of the prompts as Prompts, renumbered from 0; ``documents`` keeps the number of their text."""
        if isinstance(which, int | np.integer) and -len(self) <= which < 0:  # as of any sequence: [-1] is the last
            which = int(which) + len(self)
        if isinstance(which, slice):
            chosen = np.arange(len(self))[which]
        elif (flags := _flags(which)) is not None:
            if flags.shape != (len(self),):
                raise IndexError(
                    f"which={short(which)}: a mask of shape {flags.shape} cannot choose from {len(self)} prompts"
                )
            chosen = np.flatnonzero(flags)
        else:
            chosen = self._numbers(which, "which")  # type: ignore[arg-type]
        if len(chosen) == len(self) and (chosen == np.arange(len(self))).all():
            rows: Any = slice(None)
        else:
            pieces = [np.arange(self.starts[i], self.starts[i + 1]) for i in chosen]
            rows = np.concatenate(pieces) if pieces else np.zeros(0, np.int64)
        starts = np.concatenate([[0], np.cumsum(np.diff(self.starts)[chosen])]).astype(np.int64)
        parts = Tokenised(
            self.token_ids[rows], starts, self.documents[chosen], self.window_starts[chosen], self.chars[chosen],
            self.half[chosen], None if self._offsets is None else self._offsets[rows], self.truncated[chosen],
            self.dropped,
        )  # fmt: skip
        origin = None if self.origin is None else self.origin[rows]
        out = Prompts(parts, self.vocabulary, self._texts, bos=self.bos, note=self.note, origin=origin)
        return self._give_marks(out, rows)


def _fixed(values: np.ndarray) -> np.ndarray:
    """Return a view that cannot be written to."""
    values = np.asarray(values).view()
    values.flags.writeable = False
    return values


def _flags(which: Any) -> np.ndarray | None:
    """Return a bool mask as an array; None for what are no bools."""
    if hasattr(which, "dtype"):
        return np.asarray(which) if str(which.dtype).endswith("bool") else None
    flags = isinstance(which, list | tuple) and which and all(isinstance(v, bool | np.bool_) for v in which)
    return np.array(which) if flags else None
