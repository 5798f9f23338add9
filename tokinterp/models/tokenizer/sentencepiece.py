"""Tokenizers of which only SentencePiece's ``tokenizer.model`` is there.

transformers 5 converts such a file with two errors: merges are ranked by vocabulary index instead of by score (for
Llama 2 runs of spaces, which have the lowest score but low indices, come first), and without a configuration beside
it the space before the text is left out.  Both change ids without a word.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CONTROL, USER_DEFINED, BYTE = 3, 4, 6


def sentencepiece_tokenizer(file: str | Path, bos: bool = True) -> Any | None:
    """Return the tokenizer of a SentencePiece BPE file, with the ids that SentencePiece gives.

    Parameters
    ----------
    file : str or path
        ``tokenizer.model``.
    bos : bool
        Whether the BOS of the file is put before every text.

    Returns
    -------
    PreTrainedTokenizerFast or None
        With offsets.  None for what this does not convert: unigram models, text normalisation, a prefix together with
        user-defined symbols.

    Raises
    ------
    ValueError
        If ``sentencepiece`` is not installed.
    """
    try:
        from sentencepiece import sentencepiece_model_pb2
    except ImportError as error:
        raise ValueError(f"{file} needs sentencepiece: pip install 'tokinterp[sentencepiece]'") from error
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
    from transformers import PreTrainedTokenizerFast

    proto = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    proto.ParseFromString(Path(file).read_bytes())
    spec, trainer = proto.normalizer_spec, proto.trainer_spec
    own = [p.piece for p in proto.pieces if p.type == USER_DEFINED]
    other = spec.precompiled_charsmap or spec.remove_extra_whitespaces or trainer.treat_whitespace_as_suffix
    # tokenizers would write the prefix after every symbol too
    if trainer.model_type != 2 or other or (own and spec.add_dummy_prefix):
        return None
    pieces = {p.piece: i for i, p in enumerate(proto.pieces)}
    unknown = proto.pieces[trainer.unk_id].piece
    tokenizer = Tokenizer(
        models.BPE(
            vocab=pieces,
            merges=merges_by_score(proto.pieces),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=trainer.byte_fallback,
        )
    )
    prefix = [normalizers.Prepend("▁")] if spec.add_dummy_prefix else []
    tokenizer.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", "▁")])
    strip = [decoders.Strip(content=" ", left=1)] if spec.add_dummy_prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    special = [p.piece for p in proto.pieces if p.type == CONTROL] + [unknown]
    tokenizer.add_special_tokens([AddedToken(s, normalized=False, special=True) for s in special])
    tokenizer.add_tokens([AddedToken(s, normalized=False) for s in own])
    names = {"unk_token": unknown}
    for name, i in (("bos_token", trainer.bos_id), ("eos_token", trainer.eos_id), ("pad_token", trainer.pad_id)):
        if i >= 0:
            names[name] = proto.pieces[i].piece
    if bos and "bos_token" in names:
        first = names["bos_token"]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[first, "$A"], pair=[first, "$A", first, "$B"], special_tokens=[(first, trainer.bos_id)]
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


HARD = (
    "The Nile's 12,345 boats (c. 1999) aren't old.", " a  space", "two\n\nlines\tand a tab ", "déjà vu ﬁne №5 ½ Ａ",
    "Вот слово, 水は青い。그 물 यह पानी هذا 😀", "x" * 40, "▁ mark", "",
)  # fmt: skip


def proved_tokenizer(file: Path) -> Any:
    """Return the tokenizer of any SentencePiece file, if it gives the ids of SentencePiece on texts of many kinds.

    Raises
    ------
    ValueError
        If the file is none, `sentencepiece` is not installed, or the ids differ.
    """
    name = f"name_or_folder={str(file)!r}"
    made = None
    try:
        made = sentencepiece_tokenizer(file) or _normalising_tokenizer(file)
        import sentencepiece

        own = sentencepiece.SentencePieceProcessor(model_file=str(file))
    except ValueError:
        raise
    except Exception as error:  # protobuf's own
        raise ValueError(
            f"{name}: neither tokenizer.json, nor a SentencePiece model, nor ranks of tiktoken "
            f"({type(error).__name__}): give the folder of the tokenizer"
        ) from None
    for text in HARD:
        if made(text, add_special_tokens=False)["input_ids"] != own.encode(text):
            raise ValueError(
                f"{name}: SentencePiece gives other ids for {text!r} than what it is converted to here: give a folder "
                "with tokenizer.json"
            )
    return made


def _normalising_tokenizer(file: Path) -> Any:
    """Return the tokenizer of a SentencePiece file of either kind that changes texts before it divides them."""
    from sentencepiece import sentencepiece_model_pb2
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    proto = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    proto.ParseFromString(file.read_bytes())
    spec, trainer = proto.normalizer_spec, proto.trainer_spec
    fallback = trainer.byte_fallback
    if trainer.model_type == 1:
        pieces = [(p.piece, p.score) for p in proto.pieces]
        model: Any = models.Unigram(pieces, trainer.unk_id, fallback)
    else:
        known = {p.piece: n for n, p in enumerate(proto.pieces)}
        unknown = proto.pieces[trainer.unk_id].piece
        model = models.BPE(
            known, merges_by_score(proto.pieces), unk_token=unknown, fuse_unk=True, byte_fallback=fallback
        )
    tokenizer = Tokenizer(model)
    steps: list[Any] = [normalizers.Precompiled(spec.precompiled_charsmap)] if spec.precompiled_charsmap else []
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    tokenizer.normalizer = normalizers.Sequence(steps)
    scheme = "always" if spec.add_dummy_prefix else "never"
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", scheme, split=trainer.split_by_whitespace)
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace("▁", scheme)])
    special = [p.piece for p in proto.pieces if p.type == CONTROL] + [proto.pieces[trainer.unk_id].piece]
    tokenizer.add_special_tokens([AddedToken(s, normalized=False, special=True) for s in special])
    own = [p.piece for p in proto.pieces if p.type == USER_DEFINED]
    tokenizer.add_tokens([AddedToken(s, normalized=False) for s in own])
    at = {"bos_token": trainer.bos_id, "eos_token": trainer.eos_id, "pad_token": trainer.pad_id,
          "unk_token": trainer.unk_id}  # fmt: skip
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **{name: proto.pieces[i].piece for name, i in at.items() if i >= 0}
    )


def merges_by_score(pieces: Any) -> list[tuple[str, str]]:
    """Return every split of a piece into two pieces, those of the highest score first."""
    score = {p.piece: p.score for p in pieces if p.type not in (CONTROL, BYTE)}
    merges = []
    for place, (piece, value) in enumerate(score.items()):
        splits = [(piece[:n], piece[n:]) for n in range(1, len(piece))]
        merges += [(-value, place, n, pair) for n, pair in enumerate(splits) if pair[0] in score and pair[1] in score]
    return [pair for *_, pair in sorted(merges)]


def read_tokenizer(source: str, *, revision: str | None = None, trust_remote_code: bool = False) -> Any:
    """Return the tokenizer of a folder or hub name, converted here where there is only ``tokenizer.model``."""
    from transformers import AutoTokenizer
    from transformers.utils.hub import cached_file

    def path(name: str) -> str | None:
        found = cached_file(
            source,
            name,
            revision=revision,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
            _raise_exceptions_for_gated_repo=False,
        )
        return found if isinstance(found, str) else None

    if path("tokenizer.json") is None and (model := path("tokenizer.model")) is not None:
        settings = path("tokenizer_config.json")
        config = {} if settings is None else json.loads(Path(settings).read_text(encoding="utf-8"))
        made = None if "auto_map" in config else sentencepiece_tokenizer(model, bos=config.get("add_bos_token", True))
        if made is not None:
            made.chat_template = config.get("chat_template")
            made.name_or_path = source
            return made
    return AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=trust_remote_code)
