"""One valid call of every public function, class and method, so that tests can spoil one argument at a time."""

from __future__ import annotations

import functools
import importlib
import json
import tempfile
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import xarray as xr
from tiny import byte_tokenizer, tiny_lm

import tokinterp as ti
from tokinterp import fillers
from tokinterp.lexicon import cases
from tokinterp.scan import topics

SPACES = (
    "", ".run.edits", ".plots", ".text", ".models", ".results", ".sklearn", *(f".{t}" for t in topics()),
    ".fillers.tasks", ".erasure.plots", ".geometry.plots", ".lens.plots", ".attention.plots",
)  # fmt: skip
TASK = fillers.tasks.Task(n=4, d=2, m=3)
PAIRS = [("The river", " in"), ("One and", " to"), ("Go", " the"), ("Let it be", " and")] * 3
TEXTS = [
    "The river to the sea and the singing in the morning, into the evening.",
    "One thing and the other thing are in the bring to ringing of the king.",
    "Nothing in the world is as soft as the river, and nothing so strong.",
    "Sing to the king, bring the ring, and sting nothing in the spring river.",
]


def public() -> list[tuple[str, Any]]:
    """Every function and class of the public namespaces, once, by the shortest name it can be called by."""
    found: dict[int, tuple[str, Any]] = {}
    for end in SPACES:
        space = importlib.import_module(f"tokinterp{end}")
        own = [n for n, v in vars(space).items() if n[0] != "_" and getattr(v, "__module__", "") == space.__name__]
        for name in getattr(space, "__all__", own):
            value = getattr(space, name)
            if callable(value) and value.__module__.startswith("tokinterp"):
                found.setdefault(id(value), (name, value))
    return sorted(found.values(), key=lambda pair: (pair[1].__module__, pair[0]))


class World:
    """What the calls are made with: a tiny model, texts, results; each made once, when it is first needed."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp())

    def path(self, name: str) -> Path:
        return self.folder / name

    def file(self, name: str, content: str) -> Path:
        (self.folder / name).write_text(content)
        return self.folder / name

    @cached_property
    def lm(self) -> Any:
        return tiny_lm("llama", max_position_embeddings=256)

    @cached_property
    def model(self) -> Any:
        return ti.wrap(self.lm, byte_tokenizer(), id="tiny")

    @cached_property
    def prompts(self) -> ti.Prompts:
        return ti.Prompts.from_texts(TEXTS, self.model, max_tokens=40, progress=False)

    @cached_property
    def spans(self) -> ti.Spans:
        return ti.Spans.words(TEXTS)

    @cached_property
    def lexicon(self) -> ti.lexicon.Lexicon:
        return ti.lexicon.Lexicon.of(ti.Prompts.from_texts(TEXTS * 2, self.model, progress=False))

    @cached_property
    def cases(self) -> ti.lexicon.Cases:
        return cases.typo_cases(self.lexicon, min_letters=1, min_context=1, n_words=3)

    @cached_property
    def probes(self) -> ti.erasure.TokenProbes:
        offsets = [-2, -1, 0]
        return ti.erasure.fit_probes(
            self.model, self.prompts, layers=[0, 1, 2, 3], offsets=offsets, method="ridge", progress=False
        )

    @cached_property
    def run(self) -> xr.DataTree:
        small: dict[str, Any] = {"scales": (2, 4), "small": "nan"}
        near: dict[str, Any] = {"k": (1, 2), "small": "nan"}
        asked = {
            "mass": ti.attention.AttentionMass(), "sinks": ti.attention.AttentionSinks(tokens=8),
            "first": ti.attention.FirstTokenAttention(),
            "cosine": ti.geometry.CosineSimilarity(), "curvature": ti.geometry.Curvature(tokens=8),
            "entropy": ti.geometry.MatrixEntropy(),
            "dimension": ti.geometry.IntrinsicDimension(**small, k=4, tokens=64),
            "graph": ti.geometry.NeighbourGraph(**near),
            "imbalance": ti.geometry.InformationImbalance(**near), "overlap": ti.geometry.NeighbourOverlap(**near),
            "lens": ti.lens.LogitLens(tokens=None), "linearity": ti.linearity.Linearity(),
            "logits": ti.geometry.LogitDimension(**small),
            "nonlinearity": ti.linearity.TokenNonlinearity(tokens=64), "norms": ti.geometry.TokenNorms(tokens=64),
            "pieces": ti.lexicon.PieceAttention(min_position=1), "pooled": ti.geometry.PooledStates(),
            "similarity": ti.geometry.LayerSimilarity(),
            "spectrum": ti.geometry.Spectrum(), "erasure": ti.erasure.ErasureScores(self.probes, start=1, end=3,
            tokens=None),
        }  # fmt: skip
        return ti.measure(self.model, self.prompts, asked, progress=False)

    @cached_property
    def halves(self) -> list[xr.DataTree]:
        asked = {"curvature": ti.geometry.Curvature()}
        return [ti.measure(self.model, self.prompts[[n]], asked, progress=False) for n in (0, 1)]

    @cached_property
    def chatting(self) -> Any:
        tokenizer = byte_tokenizer()
        tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
        return tokenizer

    def ds(self, name: str) -> xr.Dataset:
        return self.run[name].to_dataset(inherit=True)

    @cached_property
    def network(self) -> Any:
        from tokinterp.fillers.tasks.network import build

        net = build(TASK, fillers.tasks.Network(2, 32, 2, 64), 0)
        with torch.no_grad():
            for p in net.parameters():
                if p.ndim == 2:
                    p *= 6
        return net

    @cached_property
    def aligned(self) -> Any:
        return self.spans.align(self.prompts)

    @cached_property
    def classes(self) -> Any:
        return ti.text.token_classes(self.prompts, self.spans)

    @cached_property
    def items(self) -> Any:
        return ti.text.build_items(self.model, PAIRS[:2], n_fillers=2, kind=" x")

    @cached_property
    def representations(self) -> Any:
        return ti.sklearn.TokenRepresentations(self.model, 1).fit(TEXTS)

    @cached_property
    def tuned(self) -> Any:
        return ti.lens.TunedLens.identity(self.model.info)

    @cached_property
    def jacobian(self) -> Any:
        facts = {"model": "a", "weights": "", "layers": [2], "to": 3, "n_prompts": 1}
        return ti.lens.JacobianLens(torch.zeros(1, 32, 32), facts)

    @cached_property
    def linear_maps(self) -> Any:
        return ti.linearity.LinearMaps(
            torch.zeros(1, 32, 32),
            torch.zeros(1, 32),
            torch.zeros(1, 32),
            torch.ones(1),
            torch.ones(1),
            {"model": "a", "weights": "b", "blocks": [0], "n": 5},
        )

    @cached_property
    def saved_probes(self) -> Path:
        return self.probes.save(self.path("probes"))

    @cached_property
    def saved_lens(self) -> Path:
        return self.tuned.save(self.path("lens.safetensors"))

    @cached_property
    def saved_maps(self) -> Path:
        return self.linear_maps.save(self.path("maps.safetensors"))

    @cached_property
    def store(self) -> Path:
        return ti.write(self.ds("curvature"), self.path("store.zarr"))

    @cached_property
    def authors(self) -> Path:
        torch.save({"fc.weight": torch.zeros(320, 32)}, self.path("layer0_tgtidx0.ckpt"))
        return self.path("layer0_tgtidx0.ckpt")

    @cached_property
    def many(self) -> ti.Prompts:
        texts = [" ".join(TEXTS[i % 4].split()[i % 5 :]) for i in range(16)]
        return ti.Prompts.from_texts(texts, self.model, max_tokens=40, progress=False)

    @cached_property
    def many_run(self) -> xr.DataTree:
        asked = {
            "dimension": ti.geometry.IntrinsicDimension(scales=(2,), k=4, small="nan"),
            "lens": ti.lens.LogitLens(),
        }
        return ti.measure(self.model, self.many, asked, progress=False)

    @cached_property
    def dot_attention(self) -> xr.Dataset:
        from tokinterp.fillers.tasks.contents import filler_prompts
        from tokinterp.fillers.tasks.network import as_model

        model = as_model(self.network, TASK)
        asked = {"a": fillers.tasks.DotAttention(4, 2, 3)}
        return ti.measure(model, filler_prompts(TASK, model, 4), asked, progress=False)["a"].to_dataset()

    @property
    def pipeline(self) -> Any:
        """Stands for a spaCy pipeline that finds nothing."""

        class Nothing:
            def pipe(self, texts):
                return [SimpleNamespace(text=t, ents=[]) for t in texts]

        return Nothing()

    def new(self, name: str) -> Path:
        """A path where nothing is yet."""
        self.counter = getattr(self, "counter", 0) + 1
        return self.path(f"{self.counter}-{name}")

    @cached_property
    def made(self) -> dict[str, Any]:
        """Results of functions, by name of the function; made from the recipes themselves."""
        return {}

    def result(self, name: str) -> Any:
        if name not in self.made:
            function, arguments = CALLS[name](self)
            self.made[name] = function(**arguments)
        return self.made[name]


Call = tuple[Callable[..., Any], dict[str, Any]]


def _call(name: str, /, **arguments: Any) -> Callable[[World], Call]:
    """A call by dotted name; values that are functions of one argument called ``w`` are made when needed."""

    def make(w: World) -> Call:
        made = {k: v(w) if getattr(v, "__name__", "") == "<lambda>" and v.__code__.co_varnames == ("w",) else v
                for k, v in arguments.items()}  # fmt: skip
        return _find(name, w), made

    return make


@functools.wraps(ti.sklearn.TokenRepresentations)
def _made_and_fitted(**settings: Any) -> Any:
    return ti.sklearn.TokenRepresentations(**settings).fit(TEXTS)


def _find(name: str, w: World) -> Any:
    """What a dotted name stands for: in a public namespace, or of an object of the world (``prompts.text``)."""
    first, *rest = name.split(".")
    if name == "TokenRepresentations":  # it looks at its settings in fit, as scikit-learn asks
        return _made_and_fitted
    found: Any = None
    for end in SPACES if not hasattr(World, first) else ():
        space = importlib.import_module(f"tokinterp{end}")
        if first in getattr(space, "__all__", vars(space)):
            found = getattr(space, first)
            break
    found = getattr(w, first) if found is None else found
    for part in rest:
        found = getattr(found, part)
    return found


M: dict[str, Any] = {"model": lambda w: w.model}
MP: dict[str, Any] = {**M, "prompts": lambda w: w.prompts}
COPIES: dict[str, Any] = {**M, "prompts": lambda w: w.prompts, "spans": lambda w: w.spans, "n": 2, "length": 12,
                          "sizes": [2]}  # fmt: skip
MC: dict[str, Any] = {**M, "cases": lambda w: w.cases}
Q: dict[str, Any] = {**M, "questions": PAIRS, "n_fillers": 4, "kind": " x", "exact": False}
CORPUS: dict[str, Any] = {
    "cloud": lambda w: w.result("corpus_cloud"), "near": lambda w: w.result("corpus_neighbours"),
}  # fmt: skip
S = ti.Site("resid", 1)
ITEMS = [
    ti.behaviour.Item("the river to the", ("north", "in"), 0),
    ti.behaviour.Item("and the moon", ("is", "rises", "to"), 2),
]


def _flores(w: World) -> str:
    folder = Path(tempfile.mkdtemp())
    for split in ("dev", "devtest"):
        (folder / split).mkdir()
        (folder / split / f"eng_Latn.{split}").write_text("The river.\n", encoding="utf-8")
    return str(folder)


def _ds(name: str) -> dict[str, Any]:
    return {"ds": lambda w: w.ds(name)}


def _of(name: str) -> dict[str, Any]:
    return {"ds": lambda w: w.result(name)}


def _conditions(w: World) -> dict[str, Any]:
    return {"a": ti.Condition(w.prompts), "b": ti.Condition(w.prompts, [ti.edits.zero(S)])}


def _networks(w: World) -> Path:
    _training(w)
    return w.path("networks")


def _training(w: World) -> xr.Dataset:
    from tokinterp.fillers.tasks.training import train

    if "training" not in w.made:
        schedule = fillers.tasks.Schedule(steps=2, batch=8, rate=1e-3, evaluations=2)
        network = fillers.tasks.Network(1, 16, 2, 16)
        w.made["training"], _ = train(
            TASK, schedule=schedule, network=network, test_examples=20, device="cpu", progress=False,
            folder=w.path("networks"),
        )  # fmt: skip
    return w.made["training"]


def _shuffled(w: World) -> xr.Dataset:
    prompts = ti.text.shuffle_blocks(w.prompts, 2)
    return ti.measure(w.model, prompts, {"e": ti.erasure.ErasureScores(w.probes, start=1, end=3)}, progress=False)[
        "e"
    ].to_dataset()


def _decoder(w: World) -> Any:
    return w.result("fit_context_decoder")


def _accuracy(w: World) -> xr.Dataset:
    return w.result("score_probes")


def _long(w: World) -> Any:
    if "long" not in w.made:
        w.made["long"] = ti.wrap(tiny_lm("llama", max_position_embeddings=1024), byte_tokenizer(), id="long")
    return w.made["long"]


def _ciphered(w: World) -> xr.Dataset:
    if "ciphered" not in w.made:
        asked = {"d": ti.behaviour.Decipherment(w.prompts, layers=[3])}
        conditions = ti.behaviour.cipher_conditions(w.prompts)
        w.made["ciphered"] = ti.measure_conditions(w.model, conditions, asked, progress=False)["d"].to_dataset()
    return w.made["ciphered"]


def _cute(w: World) -> Path:
    (folder := w.path("cute")).mkdir(exist_ok=True)
    (folder / "spell.tsv").write_text("input1\tlabel\nthe\tt h e\n")
    return folder


def _mmlu(w: World) -> Path:
    folder = w.path("mmlu")
    (folder / "test").mkdir(parents=True, exist_ok=True)
    (folder / "test" / "anatomy_test.csv").write_text("Which?,w,x,y,z,C\nSecond?,w,x,y,z,A\n")
    return folder


def _dots(w: World) -> xr.DataTree:
    return w.result("read_dots")


def _fitted(w: World) -> Any:
    return ti.sklearn.TokenRepresentations(w.model, 1).fit(TEXTS)


def _word_set(w: World) -> Any:
    from tokinterp.lexicon.word_ends import WordSet

    last = np.repeat(np.arange(10, 34), 4)
    return WordSet([(7, int(b)) for b in last], (last % 2).astype(bool), (last // 2) % 3)


def _removal(w: World) -> Any:
    return ti.text.remove(TEXTS[0], "stop words")


def _hf(w: World) -> Path:
    folder = w.path("hf")
    if not folder.exists():
        w.lm.save_pretrained(folder)
        byte_tokenizer().save_pretrained(folder)
    return folder


def _ax(w: World) -> Any:
    return ti.plots.figure()[1].flat[0]


ASKED = ti.behaviour.CuteItem("spell", ("the",), "t h e")
CONLL = "The O\nNile B-LOC\n. O\n"
CONLLU = "# text = Go!\n1\tGo\tgo\tVERB" + "\t_" * 6 + "\n2\t!\t!\tPUNCT" + "\t_" * 6 + "\n"
LEX = "# text = Go!\n1\tGo\tgo\tVERB" + "\t_" * 15 + "\n2\t!\t!\tPUNCT" + "\t_" * 15 + "\n"
PARTS = "word,lang,type,norm\nbook-shelf,en,positive,book-shelf\n"
MWES = '{"tokens": ["by", "and", "by"], "mwes": [{"indices": [0, 2]}]}'
JSONL = json.dumps({"text": "The Nile.", "spans": [{"start": 4, "stop": 8, "type": "LOC"}]}) + "\n"

CALLS: dict[str, Callable[[World], Call]] = {
    n: _call(n, **a)
    for n, a in {
        # models, sites, passes
        "load_model": {"name_or_folder": lambda w: _hf(w), "device": "cpu"},
        "load_tokenizer": {"name_or_folder": lambda w: _hf(w)},
        "wrap": {"obj": lambda w: w.lm, "tokenizer": byte_tokenizer(), "id": "a"},
        "untrained": M, "Modules": {"blocks": "model.layers", "norm": "model.norm"},
        "Site": {"name": "resid", "at": 1}, "Site.parse": {"text": "resid.1"}, "resid": {"layers": [0, 1]},
        "capture": {**MP, "numbers": [0], "sites": [S]}, "stream": {**MP, "sites": [S]},
        "states": {**MP, "layers": [0, 1]},
        "model.run": {"ids": torch.tensor([[5, 6, 7]]), "sites": [S]}, "model.unembed": {"resid": torch.zeros(1, 32)},
        "measure": {**MP, "measurements": {"n": ti.geometry.TokenNorms(tokens=0)}, "progress": False},
        "measure_nulls": {**MP, "measurements": {"n": ti.geometry.TokenNorms(tokens=0)}, "nulls": ["none"],
        "progress": False},
        "Condition": {"prompts": lambda w: w.prompts},
        "measure_conditions": {**M, "conditions": lambda w: _conditions(w), "progress": False,
                               "measurements": {"n": ti.geometry.TokenNorms(tokens=0)}},
        "contrast": {"ds": lambda w: w.result("measure_conditions")["n"].to_dataset(), "condition": "b", "minus": "a",
                     "n_boot": 5},
        # edits
        "SiteEdit": {"site": S, "op": "zero"}, "KnockOut": {"queries": None, "keys": [0]},
        "zero": {"site": S}, "mean_ablate": {"site": S}, "knock_out": {"keys": [0]},
        "add": {"site": S, "value": torch.ones(32)}, "replace": {"site": S, "value": torch.ones(32)},
        "scale": {"site": S, "factor": 0.5}, "apply": {"site": S, "function": torch.relu},
        "fill": {"site": S, "value": torch.zeros(2, 32), "positions": [0, 1]},
        "renumber": {"places": np.arange(9)}, "Renumber": {"places": np.arange(9)},
        "mark": {"prompts": lambda w: w.prompts, "name": [[0, 1]] * 4},
        "patch": {"site": S, "donor": [1, 0]}, "Patch": {"site": S, "op": "patch", "donor": 0},
        "select_positions": {"positions": [0], "ids": torch.tensor([[5, 6]]), "mask": torch.ones(1, 2).bool()},
        # text
        "Prompts.from_texts": {"texts": TEXTS, "model_or_tokenizer": lambda w: w.model, "max_tokens": 40},
        "Prompts.from_ids": {"ids": [[5, 6], [7]], "model_or_tokenizer": lambda w: w.model},
        "Prompts.from_file": {
            "path": lambda w: w.file("a.txt", TEXTS[0]), "model_or_tokenizer": lambda w: w.model, "max_tokens": 40,
        },
        "prompts.text": {"i": 0}, "prompts.offsets": {"i": 0}, "prompts.strings": {"i": 0}, "prompts.ids": {"i": 0},
        "prompts.special": {"i": 0}, "prompts.padded": {"numbers": [0, 1]}, "prompts.batches": {"batch_tokens": 40},
        "prompts.document_text": {"document": 0}, "prompts.__getitem__": {"which": [0, 1]},
        "prompts.check_tokenizer": M,
        "read_texts": {"path": lambda w: w.file("a.txt", TEXTS[0])},
        "Spans": {
            "document": np.array([0]), "start": np.array([0]), "stop": np.array([3]), "kind": np.array(["word"]),
            "type": np.array([""]), "texts": TEXTS,
        },
        "Spans.from_records": {"records": [{"document": 0, "start": 0, "stop": 3, "kind": "word"}], "texts": TEXTS},
        "Spans.words": {"texts": TEXTS}, "Spans.find": {"texts": TEXTS, "words": ["the"]},
        "spans.where": {"mask": np.arange(3)}, "spans.of_kind": {"kind": "word"},
        "spans.align": {"prompts": lambda w: w.prompts},
        "TokenSpans": {
            "spans": lambda w: w.spans, "span": np.array([0]), "prompt": np.array([0]), "start": np.array([1]),
            "stop": np.array([2]), "unaligned": np.array([1]), "reasons": ["truncated"],
        },
        "aligned.where": {"mask": np.arange(3)}, "aligned.last_tokens": {"prompts": lambda w: w.prompts},
        "token_classes": {"prompts": lambda w: w.prompts}, "classes.mask": {"names": ("word",)},
        "read_conll": {"file": lambda w: w.file("a.conll", CONLL)},
        "read_conllu": {"file": lambda w: w.file("a.conllu", CONLLU)},
        "read_compounds": {"file": lambda w: w.file("c.csv", PARTS)},
        "compound_spans": {"compounds": [("bookshelf", ["book", "shelf"])], "texts": ["A bookshelf."]},
        "read_wordnet": {"file": lambda w: w.file("w.tsv", "lemma\tsynset\nseal\t1-n\nsea\t1-n\ngo\t1-n\n")},
        "read_coam": {"file": lambda w: w.file("m.jsonl", MWES)},
        "read_conllulex": {"file": lambda w: w.file("a.lex", LEX)},
        "read_spans_jsonl": {"file": lambda w: w.file("s.jsonl", JSONL)},
        "spacy_spans": {"texts": TEXTS, "pipeline": lambda w: w.pipeline},
        "bundled_texts": {"kind": "story"}, "bundled_spans": {"kind": "story"}, "bundled_questions": {"kind": "cloze"},
        "check_texts": {}, "find_words": {"text": "Go now."}, "find_units": {"text": "Go now."},
        "remove": {"text": TEXTS[0], "what": "stop words"},
        "remove_random": {"removal": lambda w: _removal(w), "seed": 0},
        "random_ids": {"prompts": lambda w: w.prompts}, "shuffle_words": {"prompts": lambda w: w.prompts},
        "shuffle_blocks": {"prompts": lambda w: w.prompts, "level": 2},
        "augment_prompts": {"prompts": lambda w: w.prompts},
        "Vocabulary": {"tokenizer": byte_tokenizer(), "size": 320},
        "prompts.vocabulary.bytes": {"ids": [5, 6]}, "prompts.vocabulary.strings": {"ids": [5, 6]},
        "prompts.vocabulary.special": {"ids": np.array([5, 6])},
        "Lexicon.of": {"prompts": lambda w: w.prompts}, "lexicon.distinct": {"n_words": 3},
        "Lexicon": {
            "prompts": lambda w: w.prompts, "ids": [(5,)], "text": ["a"], "prompt": np.array([0]),
            "start": np.array([1]),
        },
        "Cases": {
            "context": [[1]], "pieces": [(5, 6)], "whole": [(7,)], "other": [(8,)], "text": ["a"], "written": ["a"],
            "kind": np.array(["split"]), "detail": np.array(["2 pieces"]), "vocabulary": lambda w: w.prompts.vocabulary,
        },
        "cases.prompts": {"spelled": "whole"}, "cases.__getitem__": {"which": [0]},
        "natural_cases": {"lexicon": lambda w: w.lexicon, "sizes": (2, 3, 4, 5, 6), "min_letters": 1, "min_context": 1},
        "split_cases": {"lexicon": lambda w: w.lexicon, "min_letters": 1, "min_context": 1},
        "typo_cases": {"lexicon": lambda w: w.lexicon, "min_letters": 1, "min_context": 1},
        # measurements that need something
        "Field": {"dims": ("prompt", "layer"), "long_name": "a"},
        "DotAttention": {"n": 4, "d": 2, "m": 3}, "Measurement": {},
        "ContextMemory": {"decoder": lambda w: _decoder(w)}, "ErasureScores": {"probes": lambda w: w.probes},
        "Feucht2024Scores": {"probes": lambda w: w.probes},
        "ProbeScores": {"probes": lambda w: w.probes}, "PerCloud": {"estimator": ti.geometry.cluster_count},
        # functions that measure
        "augmentation_metrics": {**MP, "draws": 2, "progress": False},
        "corpus_cloud": {**MP, "layers": [0, 1], "progress": False},
        "corpus_neighbours": {"cloud": lambda w: w.result("corpus_cloud"), "k": 8, "progress": False},
        "corpus_dimension": {"near": lambda w: w.result("corpus_neighbours"), "scales": (2, 4), "k": 8},
        "corpus_overlap": {**CORPUS, "k": (1, 8)}, "corpus_imbalance": CORPUS,
        "compare_models": {"one": lambda w: w.model, "two": lambda w: w.model, "texts": TEXTS * 2, "k": 3,
                           "max_tokens": 40, "progress": False},
        "fit_context_decoder": {**MP, "steps": 1, "rows": 4, "max_prefix": 3, "warmup": 1, "progress": False},
        "canonicity": MC, "repeat_words": MC, "retrieve_words": MC,
        "patchscope": {**M, "source": lambda w: w.prompts}, "Target": {"ids": (1, 5, 6), "positions": (1,)},
        "Target.make": {"template": "identity", **M},
        "Answers": {"answers": [[5]]}, "AnswerStates": {"sizes": [1]},
        "continuations": {**MP, "n_tokens": 2},
        "repetition_conditions": {**M, "n": 2, "length": 4, "copies": 3, "kept": [1]},
        "distance_conditions": {**M, "n": 2, "length": 4, "copies": 3, "distances": [1]},
        "cipher": {"prompts": lambda w: w.prompts}, "cipher_conditions": {"prompts": lambda w: w.prompts},
        "half_life": {"ds": lambda w: _ciphered(w), "n_boot": 3},
        "CuteItem": {"task": "spell", "inputs": ("the",), "label": "t h e"}, "cute_prompt": {"item": ASKED},
        "cute_items": {"tasks": ["spell"], "words": ["the"]}, "read_cute": {"path": lambda w: _cute(w)},
        "score_cute": {"model": lambda w: _long(w), "items": [ASKED], "n_tokens": 2},
        "word_tokens": {**M, "n_words": 4},
        "spelling_probe": {**M, "words": lambda w: ti.lexicon.word_tokens(w.model), "layers": [0], "split": "word",
                           "folds": 2},
        "patching_sweep": {**M, "clean": lambda w: w.prompts, "corrupted": lambda w: w.prompts,
                           "answers": [[5]] * 4, "at": [1], "progress": False},
        "Item": {"question": "a", "options": ("b", "c"), "answer": 0}, "multiple_choice": {**M, "items": ITEMS},
        "read_mmlu": {"path": lambda w: _mmlu(w)},
        "removal_accuracy": {**M, "items": ITEMS, "conditions": ["stop words"]},
        "surviving_loss": {**M, "removals": lambda w: [_removal(w)]},
        "fit_probes": {**MP, "layers": [1], "offsets": [0], "method": "ridge", "progress": False},
        "future_tokens": {**MP, "test": lambda w: w.prompts, "layers": [1], "offsets": [1, 2], "method": "lda"},
        "topic_probe": {**M, "prompts": lambda w: w.many, "labels": ["a", "b", "c", "b"] * 4, "layers": [1],
                        "positions": [3], "folds": 2},
        "score_probes": {"probes": lambda w: w.probes, **MP},
        "TokenProbes": {
            "layers": [1], "offsets": [0], "labels": torch.tensor([5, 6]), "facts": {"d_model": 32, "d_vocab": 320},
            "parts": {1: {"weight.0": torch.zeros(2, 32)}},
        },
        "TokenProbes.load": {"path": lambda w: w.saved_probes}, "probes.save": {"path": lambda w: w.new("p")},
        "probes.weight": {"layer": 1, "offset": 0}, "probes.bias": {"layer": 1, "offset": 0},
        "probes.standardise": {"resid": torch.zeros(2, 32), "layer": 1},
        "probes.read": {"resid": torch.zeros(2, 32), "layer": 1, "offset": 0, "targets": torch.tensor([5, 6])},
        "probes.predict": {"resid": torch.zeros(2, 32), "layer": 1, "offset": 0},
        "probes.classes": {"targets": torch.tensor([5, 6]), "offset": 0},
        "read_feucht2024": {"paths": lambda w: (w.authors,)},
        "fit_tuned_lens": {**MP, "steps": 1, "progress": False},
        "fit_linear_maps": {**MP, "progress": False},
        "fit_jacobian_lens": {**MP, "skip": 2, "layers": [2], "progress": False},
        "jacobian_space": {**MP, "lens": lambda w: w.result("fit_jacobian_lens"), "layers": [2], "k": 2},
        "steer": {"lens": lambda w: w.result("fit_jacobian_lens"), **M, "token": 70, "layer": 2, "amount": 1.0},
        "swap": {"lens": lambda w: w.result("fit_jacobian_lens"), **M, "one": 70, "other": 90, "layer": 2},
        "project_out": {"lens": lambda w: w.result("fit_jacobian_lens"), **M, "tokens": [70], "layer": 2},
        "JacobianLens": {"weight": torch.zeros(1, 32, 32),
                         "facts": {"model": "a", "weights": "b", "layers": [2], "to": 3, "n_prompts": 1}},
        "JacobianLens.load": {"path": lambda w: w.jacobian.save(w.path("j.safetensors"))},
        "jacobian.save": {"path": lambda w: w.new("j.safetensors")},
        "TunedLens": {"weight": torch.zeros(2, 32, 32), "bias": torch.zeros(2, 32),
                      "facts": {"model": "a", "weights": "b", "layers": [0, 1]}},
        "tuned.save": {"path": lambda w: w.new("t.safetensors")}, "TunedLens.load": {"path": lambda w: w.saved_lens},
        "TunedLens.identity": {"info": lambda w: w.model.info},
        "LinearMaps": {"weight": torch.zeros(1, 32, 32), "mean_in": torch.zeros(1, 32), "mean_out": torch.zeros(1, 32),
                       "spread": torch.ones(1), "linearity": torch.ones(1),
                       "facts": {"model": "a", "weights": "b", "blocks": [0], "n": 5}},
        "LinearMaps.load": {"path": lambda w: w.saved_maps}, 
        "linear_maps.save": {"path": lambda w: w.new("m.safetensors")},
        "word_probe": {**M, "items": lambda w: _word_set(w), "n_boot": 5},
        "words_and_nonwords": {"lexicon": lambda w: w.lexicon, "min_letters": 1, "sizes": (2, 3, 4, 5, 6, 7),
                               "parts": 2},
        "read_out": {"ds": lambda w: w.ds("erasure"), "prompts": lambda w: w.prompts, "min_psi": None, "n_boot": 5},
        "permutation_threshold": {"shuffled": lambda w: _shuffled(w)},
        "psi_of_spans": {"ds": lambda w: w.ds("erasure"), "prompts": lambda w: w.prompts,
                         "units": lambda w: w.aligned, "n_boot": 5},
        "evaluate": {"vocabulary": lambda w: w.result("read_out"), "units": lambda w: w.aligned,
                     "prompts": lambda w: w.prompts, "k": [1, 2]},
        "cluster_count": {"points": np.random.default_rng(0).normal(size=(30, 3))},
        "airi_twonn": {"points": np.random.default_rng(0).normal(size=(30, 3))},
        "skean2025_entropy": {"points": np.random.default_rng(0).normal(size=(30, 3))},
        "skean2025_frobenius": {"points": np.random.default_rng(0).normal(size=(30, 3))},
        "homology_dimension": {"points": np.random.default_rng(0).normal(size=(60, 3)), "repeats": 1, "sizes": 4},
        "TokenRepresentations": {"model": lambda w: w.model},
        "representations.fit": {"texts": TEXTS}, "representations.transform": {"texts": TEXTS},
        "representations.fit_transform": {"texts": TEXTS}, "representations.rows": {"texts": TEXTS},
        "representations.set_params": {"layer": 1}, "representations.set_output": {"transform": "pandas"},
        # results
        "read": {"path": lambda w: w.store},
        "write": {"data": lambda w: w.ds("curvature"), "path": lambda w: w.new("w.zarr")},
        "check": {"data": lambda w: w.run}, "summary": _ds("curvature"),
        "join_runs": {"runs": lambda w: w.halves}, "with_labels": {"data": lambda w: w.ds("curvature")},
        "table": {"data": lambda w: w.ds("curvature"), "variables": ["curvature"]},
        "cite": {"data": lambda w: w.ds("curvature")},
        "chat_texts": {"conversations": [[{"role": "user", "content": "Go."}]],
                       "model_or_tokenizer": lambda w: w.chatting},
        "concat_models": {"results": lambda w: {"a": w.ds("curvature"), "b": w.ds("curvature")}},
        "report": {"run": lambda w: w.ds("curvature"), "path": lambda w: w.new("r.html")},
        "diff_erank": {"untrained": lambda w: w.ds("entropy"), "trained": lambda w: w.ds("entropy")},
        "prompt_covariates": {"prompts": lambda w: w.many},
        "dimension_loss_correlation": {"dimension": lambda w: w.many_run["dimension"].to_dataset(),
                                       "lens": lambda w: w.many_run["lens"].to_dataset(), "controls": ()},
        "seed_agreement": {"results": lambda w: [w.ds("erasure"), w.ds("erasure").assign_attrs(weights="b")]},
        "class_profile": {**_ds("nonlinearity"), "name": "nonlinearity_mean", "classes": lambda w: w.classes,
                          "prompts": lambda w: w.prompts, "least": 2, "n_boot": 5},
        "mcnemar": {"first": [True, False], "second": [True, True]},
        "span_labels": {"spans": lambda w: w.aligned, "prompts": lambda w: w.prompts},
        "token_correlation": {"a": lambda w: w.ds("lens")["token_cross_entropy"].isel(layer=0, variant=0), "n_boot": 5,
                              "b": lambda w: w.ds("lens")["token_cross_entropy"].isel(layer=1, variant=0)},
        # fillers
        "Task": {"n": 4, "d": 2}, "Network": {}, "Schedule": {}, "Policy": {"kind": "window"},
        "keep_only": {"policy": lambda w: ti.attention.Policy("window")},
        "insert": {**M, "questions": PAIRS, "n_fillers": [2], "kinds": [" x"], "exact": False},
        "verdict": {**Q, "control": " y", "n_boot": 20},
        "insertion_tests": {**_of("insert"), "n_boot": 20},
        "intervene": Q, "build_items": Q, "read_fillers": Q, "cell_clusters": {**Q, "n_clusters": 2, "groups": 3},
        "filler_states": Q, "filler_probes": {**Q, "folds": 2}, "shift": {**Q, "n_fillers": [2]}, "routing": Q,
        "equation_questions": {"n": 2}, "letter_questions": {"n": 2}, "fact_questions": {"n": 2},
        "massive_effects": MP, "massive_roles": {**MP, "sets": {"first": "first"}},
        "registers": {**MP, "n_registers": [1]},
        "detokenisation_scores": {**MP, "offsets": 4, "suffixes": 3, "bigrams": 2, "texts": 2, "length": 6},
        "copy_prompts": COPIES, "induction_scores": COPIES,
        "copying_scores": {**COPIES, "blocks": [0], "control": False},
        "Copies": {"entities": [(5, 6)],
                   **{k: lambda w: w.prompts for k in ("repeated", "shuffled", "clean", "corrupted")}},
        "word_lists": {**M, "pairs": [("king", "KING"), ("sea", "SEA")], "length": 2},
        "without_heads": {"heads": [(0, 1)]},
        "head_ablation": {**M, "heads": [(0, 1)], "counts": [1], "draws": 1,
                          "tasks": lambda w: {"a": (w.prompts, [[5]] * len(w.prompts))}},
        "read_head_scores": {"path": lambda w: w.file("heads.json", "[[0, 0]]")},
        "write_head_scores": {"path": lambda w: w.new("scores.json"), "scores": {"score": [[0.5]]}},
        "route_graph": MP, "draw_route": _of("route_graph"),
        "policy_loss": {**MP, "window": 4}, "sentinels": {**MP, "kinds": ["dots"], "chunk": 5},
        "segment_probe": {"model": lambda w: w.model, "prompts": lambda w: w.many, "least": 2,
                                                  "folds": 2},
        "separator_windows": MP,
        "read_dots": {"lm": lambda w: w.network, "task": TASK, "prompts": 3},
        "ablate_dots": {"trunks": lambda w: {"net": w.network}, "task": TASK, "prompts": 4},
        "probe_contents": {"trunks": lambda w: {"net": w.network}, "task": TASK, "slots": [0, 1], "layers": [0],
                           "examples": 100, "n_boot": 5, "random_trunk": False},
        "linear_probe": {"lm": lambda w: w.network, "task": TASK, "positions": [4], "examples": 60},
        "probe_fillers": {"trunks": lambda w: {"net": w.network}, "task": TASK, "kept": (0.0, 1.0),
                          "schedule": fillers.tasks.Schedule(steps=1, batch=4), "test_examples": 8,
                          "random_trunk": False,
                          "progress": False},
        "items.mark": {"part": "filler"}, "items.positions": {"rows": [0], "width": 9, "part": "filler"},
        # tokenizers
        "byte_probabilities": {"models": lambda w: w.model, "texts": ["in"]},
        "next_bytes": {"models": lambda w: w.model, "prompts": ["in"]},
        "sample_bytes": {"models": lambda w: w.model, "prompts": ["in"], "n_bytes": 1},
        "resegment": {"prompts": lambda w: w.prompts, "how": "bytes"},
        "segmentations": {"prompts": lambda w: w.prompts, "ways": ["bytes"]},
        "agreement": {"model": lambda w: w.model, "pairs": [("the river", "to river")], "ways": ["bytes"]},
        "class_axis": {"model": lambda w: w.model, "first": ["river", "the", "and"], "second": ["to", "in", "ing"],
                       "ways": ["bytes"], "folds": 3},
        "token_reachability": {"tokenizer": lambda w: byte_tokenizer()},
        "token_categories": {"tokenizer": lambda w: byte_tokenizer()},
        "tokenizer_overview": {"tokenizers": lambda w: {"bytes": byte_tokenizer()}, "corpora": {"en": TEXTS}},
        "tokenizer_metrics": {"tokenizers": lambda w: {"bytes": byte_tokenizer()}, "corpora": {"en": TEXTS}},
        "flores": {"folder": lambda w: _flores(w)},
        "segment_words": {"tokenizer": lambda w: byte_tokenizer(), "words": ["river", "sing"]},
        "boundary_scores": {"tokenizer": lambda w: byte_tokenizer(),
                            "resources": {"mine": [("singing", ["sing", "ing"]), ("sing", ["sing"])]}},
        "chunkability": {"tokenizer": lambda w: byte_tokenizer(), "words": ["river", "sing", "king"],
                         "kinds": ["W", "W", "W"], "measures": {"rt": [1.0, 2.0, 3.0]}},
        "derivational_coverage": {"tokenizer": lambda w: byte_tokenizer(), "morphemes": ["ing", "xyz"]},
        "compound_splits": {"tokenizer": lambda w: byte_tokenizer(), "compounds": [("riverbed", ["river", "bed"])]},
        "decompounding_scores": {"tokenizer": lambda w: byte_tokenizer(), "found": [["river", "bed"], ["sea"]],
                                 "gold": [["river", "bed"], ["sea"]]},
        "infer_mixture": {"tokenizer": lambda w: byte_tokenizer(), "sources": {"a": TEXTS[:2], "b": TEXTS[2:]}},
        "MarkovSource": {"transition": [[0.9, 0.1], [0.1, 0.9]]},
        "token_unigram_loss": {"source": lambda w: ti.tokenizers.MarkovSource([[0.9, 0.1], [0.1, 0.9]]),
                               "sizes": [2, 4], "n_train": [3], "n_test": 2, "length": 20},
        "embedding_indicators": M, "whitened_unembedding": M,
        "token_concepts": {**M, "prompts": lambda w: w.many, "token": byte_tokenizer()(" the")["input_ids"][-1],
                           "layer": 1, "n_concepts": 2, "held_out": 0.0, "methods": ["k-means", "simple"]},
        "token_features": {**M, "prompts": lambda w: w.many, "labels": ["a", "b", "c", "b"] * 4, "layer": 1, "steps": 3,
                           "n_features": 4},
        "ConceptScores": {"concepts": {"a": ["river", "sea"], "b": ["king", "ring"]}, "max_tokens": 8},
        "guided_decoding": {**MP, "concepts": {"a": [" river"], "b": [" to"]}, "guide": "a", "n_tokens": 1, "k": 2},
        "word_frames": {**M, "concepts": {"a": ["river", "sea"], "b": ["king", "ring"]}},
        "repeat_templates": {}, "repeat_tokens": {**M, "templates": {"a": "{token}\n{token}"}, "n_tokens": 1},
        "load_networks": {"folder": lambda w: _networks(w)},
        "train": {"task": TASK, "network": fillers.tasks.Network(1, 16, 2, 16), "test_examples": 20, "progress": False,
                  "schedule": fillers.tasks.Schedule(steps=1, batch=4), "device": "cpu"},
        # plots
        "draw": {"result": lambda w: w.ds("norms")}, "curves": {**_ds("curvature"), "names": "curvature"},
        "rows": {**_of("intervene"), "names": "log_prob_change", "dim": "intervention"},
        "maps": {**_ds("mass"), "name": "mass"}, "tokens": {**_ds("lens"), "name": "token_cross_entropy"},
        "lens_table": _ds("lens"), "imbalance_plane": _ds("imbalance"),
        "erasure_map": _ds("erasure"), "psi_distribution": _ds("erasure"),
        "precision_recall": {"scores": lambda w: w.result("evaluate")},
        "figure": {}, "panel_letters": {"axes": lambda w: [_ax(w)]}, "paper_style": {},
        "save": {"fig": lambda w: _ax(w), "path": lambda w: w.new("f.pdf")},
    }.items()
}  # fmt: skip


def add_measurements(calls: dict[str, Callable[[World], Call]]) -> None:
    """Add the measurements that need no argument."""
    for name, value in public():
        if isinstance(value, type) and issubclass(value, ti.Measurement):
            calls.setdefault(name, _call(name))


def call(name: str, w: World) -> Call:
    """A function and good arguments for it."""
    return CALLS[name](w)
