"""A planted language: words of letters, a model that forgets the letters at their ends, probes that read it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from tokinterp.erasure.kernels.softmax import Reading
from tokinterp.erasure.token_probes import TokenProbes
from tokinterp.fitted import digest_of
from tokinterp.models.info import ModelInfo
from tokinterp.run.sites import Site
from tokinterp.text import Prompts

LETTERS = "aeioklmnt"
WORDS = ["kato", "mi", "tane", "lomi", "no", "ketal", "tim", "on"]
SINGLE = ["a", "e"]
SHARP = 20.0


def letter_tokenizer() -> Any:
    """One token per character, BOS first."""
    names = ["<s>", " ", *LETTERS]
    tok = Tokenizer(models.WordLevel({t: n for n, t in enumerate(names)}, unk_token="<s>"))
    tok.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tok.decoder = decoders.Fuse()
    tok.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tok, bos_token="<s>")


def planted_texts(n: int, words: int = 12, seed: int = 0, first: list[str] = WORDS) -> list[str]:
    """Random texts of words and of single letters; the first word is one of ``first``."""
    rng = np.random.default_rng(seed)
    every = WORDS + SINGLE
    return [" ".join([rng.choice(first), *rng.choice(every, words - 1)]) for _ in range(n)]


class PlantedModel:
    """Stream: which token stands here, one and two places before; each wiped inside words from layer ``end`` on.

    A letter of a word forgets the letters of the word before it, the last one also itself; spaces and letters that are
    a word of their own forget themselves a little.
    """

    def __init__(self, n_layers: int = 4, end: int = 3) -> None:
        self.tokenizer = letter_tokenizer()
        self.vocab, self.end = len(self.tokenizer), end
        self.info = ModelInfo(
            id="planted", revision="local", weights="planted", architecture="Planted", backend="hf", n_layers=n_layers,
            n_heads=1, d_model=3 * self.vocab, d_vocab=self.vocab, max_tokens=512, dtype="float32", device="cpu",
            tokenizer="letters",
        )  # fmt: skip
        self.device = torch.device("cpu")

    def check(self, sites, edits=()):
        for site in sites:
            site.check(self.info)

    def run(self, ids, sites, *, mask=None, edits=(), position_ids=None, consume=None):
        return {site: self.stream(ids, site.at >= self.end) for site in sites}

    def stream(self, ids: torch.Tensor, late: bool) -> torch.Tensor:
        eye = torch.eye(self.vocab)
        blocks = [eye[ids.roll(i, 1)] for i in range(3)]
        if late:
            strength = self.strength(ids)
            blocks = [b * strength[..., i, None] for i, b in enumerate(blocks)]
        return torch.cat(blocks, -1)

    def strength(self, ids: torch.Tensor) -> torch.Tensor:
        """(prompt, position, back) what is left of each one-hot block: 1 all, -0.2 nothing."""
        letter, place = ids >= 2, torch.arange(ids.shape[1])
        begin = torch.where(letter, 0, place + 1).cummax(1).values  # of the word that a letter is of
        last = letter & ~torch.cat([letter[:, 1:], torch.zeros_like(letter[:, :1])], 1)
        out = torch.ones(*ids.shape, 3)
        for back in (1, 2):
            out[..., back].masked_fill_(letter & (place - back >= begin), -0.2)
        out[..., 0].masked_fill_(last & (place > begin), -0.2)
        little = np.log(0.7 / 0.3 * (self.vocab - 1)) / SHARP  # its probability falls to 0.7
        out[..., 0].masked_fill_(~letter | (last & (place == begin)), little)
        return out


class LinearProbes(TokenProbes):
    """What erasure needs of token probes: a weight (label, d_model) for each layer and offset."""

    def __init__(self, weights: dict[tuple[int, int], torch.Tensor], labels: Any) -> None:
        self.facts = {"model": "planted"}
        self.weights = weights
        self.labels = torch.as_tensor(labels, dtype=torch.int64)
        self.layers = sorted({layer for layer, _ in weights})
        self.offsets = sorted({offset for _, offset in weights})

    @property
    def digest(self):
        return digest_of({f"{n}/{i}": w for (n, i), w in self.weights.items()}, self.labels.tolist())

    @classmethod
    def random(cls, layers, offsets, d, labels, seed=0, scale=1.0):
        g = torch.Generator().manual_seed(seed)
        return cls({(n, i): scale * torch.randn(len(labels), d, generator=g) for n in layers for i in offsets}, labels)

    @classmethod
    def planted(cls, model: PlantedModel, layers, offsets=(0, -1, -2)):
        v = model.vocab
        weights = {}
        for offset in offsets:
            w = torch.zeros(v, 3 * v)
            w[:, -offset * v : (1 - offset) * v] = SHARP * torch.eye(v)
            weights |= {(layer, offset): w for layer in layers}
        return cls(weights, range(v))

    def weight(self, layer, offset):
        return self.weights[layer, offset]

    def _scores(self, rows, layer, offset, targets):
        logits = rows.float() @ self.weight(layer, offset).T
        place = torch.searchsorted(self.labels, targets).clamp(max=len(self.labels) - 1)
        return logits, place, self.labels[place] == targets

    def check_model(self, info):
        width = next(iter(self.weights.values())).shape[-1]
        if width != info.d_model:
            raise ValueError(f"probes of another model: {width} wide, and {info.id} is {info.d_model} wide")

    def standardise(self, rows, layer):
        return rows

    def read(self, rows, layer, offset, targets, *, standardised=False, rank=True):
        logits, place, known = self._scores(rows, layer, offset, targets)
        found = logits.log_softmax(-1).gather(1, place[:, None])[:, 0]
        higher = (logits > logits.gather(1, place[:, None])).sum(1)
        return Reading(found.masked_fill(~known, torch.nan), torch.where(known, higher, -1))


def planted_spans(prompts: Prompts) -> set[tuple[int, int, int]]:
    """(prompt, start, stop) of the words of two or more letters."""
    out = set()
    for i in range(len(prompts)):
        strings, begin = prompts.strings(i), None
        for t, s in enumerate([*strings, " "]):
            if s in LETTERS and begin is None:
                begin = t
            elif s not in LETTERS and begin is not None:
                if t - begin > 1:
                    out.add((i, begin, t))
                begin = None
    return out


__all__ = ["LinearProbes", "PlantedModel", "Site", "planted_spans", "planted_texts"]
