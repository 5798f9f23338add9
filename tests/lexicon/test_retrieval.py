"""The inner lexicon of a planted model, attention against the library's own; plots."""

import dataclasses
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from tiny import byte_tokenizer, tiny, tiny_lm
from with_model import as_tree, settings

import tokinterp as ti
from experiments import inner_lexicon as experiment
from experiments.runner.claims import evaluate
from figures import inner_lexicon as picture
from tokinterp import plots
from tokinterp.lexicon import retrieval as inner_lexicon
from tokinterp.lexicon import word_ends
from tokinterp.lexicon.cases import natural_cases, split_cases, typo_cases
from tokinterp.lexicon.piece_attention import PieceAttention
from tokinterp.lexicon.retrieval import VARIANTS, canonicity, repeat_words, retrieve_words
from tokinterp.lexicon.word_ends import WordSet, word_probe, words_and_nonwords
from tokinterp.lexicon.words import Lexicon
from tokinterp.models.info import ModelInfo

WORDS = ["the", "and", "river", "to", "in"]  # tokens of their own
OTHERS = ["rocket", "tower", "train", "table", "arrow", "apple", "island", "iron", "robin", "ridge", "animal"]
FOUND = 2  # layer at which the planted model puts the pieces together


def some_texts(n=12, words=14, seed=0):
    draw = np.random.default_rng(seed)
    return [" ".join(draw.choice([*WORDS, *WORDS, *OTHERS], words)) for _ in range(n)]


@cache
def some_lexicon():
    return Lexicon.of(ti.Prompts.from_texts(some_texts(), byte_tokenizer(), max_tokens=64))


class PlantedModel:
    """Orthogonal embeddings; from a layer on, pieces that make up one token become that token, and words are marked."""

    def __init__(self, lexicon, n_layers=3):
        self.tokenizer, self.vocabulary = byte_tokenizer(), lexicon.prompts.vocabulary
        self.size = len(self.tokenizer)
        strings = self.vocabulary.strings(range(self.size))
        self.token = {s: n for n, s in enumerate(strings)}
        self.known = {f" {t}" for t in lexicon.text}
        self.info = ModelInfo(
            id="planted", revision="local", weights="planted", architecture="Planted", backend="hf", n_layers=n_layers,
            n_heads=1, d_model=self.size + 1, d_vocab=self.size, max_tokens=64, dtype="float32", device="cpu",
            tokenizer="bytes",
        )  # fmt: skip
        self.device = torch.device("cpu")
        self.matrix = torch.eye(self.size, self.size + 1)
        module = torch.nn.Embedding.from_pretrained(self.matrix)
        self.lm = SimpleNamespace(get_input_embeddings=lambda: module, get_output_embeddings=lambda: module)

    def normed(self, x):
        return x / x.norm(dim=-1, keepdim=True)

    def run(self, ids, sites, **_):
        out = {}
        for site in sites:
            x = self.matrix[ids].clone()
            if site.at >= FOUND:
                for b, row in enumerate(ids.tolist()):
                    word = ""
                    for t, s in enumerate(self.vocabulary.strings(row)):
                        word = s if s.startswith(" ") else word + s
                        if word in self.token:
                            x[b, t] = self.matrix[self.token[word]]
                        if word in self.known:
                            x[b, t, -1] = 3
            out[site] = x
        return out


@pytest.fixture(scope="module")
def lexicon():
    return some_lexicon()


@pytest.fixture(scope="module")
def planted(lexicon):
    return PlantedModel(lexicon)


@pytest.fixture(scope="module")
def cases(lexicon):
    options = {"min_letters": 2, "min_context": 1}
    return split_cases(lexicon, **options) + typo_cases(lexicon, **options)


# -- retrieval ----------------------------------------------------------------------------------------------------
def test_planted_words_are_found_at_their_layer(planted, cases):
    split = cases[cases.kind == "split"]
    found = retrieve_words(planted, split)
    ti.check(found)
    assert found["variant"].values.tolist() == list(VARIANTS)
    dot = found.sel(product="dot") if "product" in found.dims else found
    late = found["layer"].values >= FOUND
    assert (dot["retrieved"].values[:, late] == 1).all()
    assert (dot["retrieved"].values[:, ~late] == 0).all()
    assert (found["first_layer"] == FOUND).all()
    assert found["word"].values.tolist() == split.text
    typos = retrieve_words(planted, cases[cases.kind == "typo"])
    assert (typos["retrieved"] == 0).all()
    assert typos["first_layer"].isnull().all()


def test_one_token_words_are_their_embeddings_at_layer_0(planted, cases):
    whole = dataclasses.replace(cases, pieces=cases.whole)
    assert (retrieve_words(planted, whole, [0])["retrieved"] == 1).all()
    near = canonicity(planted, whole)
    np.testing.assert_allclose(near["canonicity"], 1, atol=1e-6)
    assert (near["closer"] == 1).all()


def test_only_the_closest_of_all_is_retrieved(planted, cases, monkeypatch):
    def ranks(points, matrix, target):
        return torch.arange(len(points)) % 4 - 1, torch.arange(len(points)) % 4

    monkeypatch.setattr(inner_lexicon, "target_ranks", ranks)
    found = retrieve_words(planted, cases[:8], [1, 2], ["input, raw, dot", "input, raw, cosine"], batch_tokens=10**6)
    assert {-1, 0, 1, 2, 3} == {*found["rank"].values.ravel().tolist()}
    np.testing.assert_array_equal(found["retrieved"], (found["rank"] == 0).where(found["rank"] >= 0))
    np.testing.assert_array_equal(found["first_layer"], np.where((found["rank"] == 0).any("layer"), 1, np.nan))


@torch.no_grad()
def test_variants_of_a_real_network_equal_a_loop(cases):
    model = ti.wrap(tiny_lm("llama", tie_word_embeddings=False), byte_tokenizer(), id="untied")
    few = cases[::17]
    found = retrieve_words(model, few, [0, 2, 3], batch_tokens=90)
    matrices = {
        "input": model.lm.get_input_embeddings().weight, "output": model.lm.get_output_embeddings().weight
    }  # fmt: skip
    for n in range(len(few)):
        ids = torch.tensor([[*few.context[n], *few.pieces[n]]])
        acts = model.run(ids, ti.resid([0, 2, 3]))
        for layer in (0, 2, 3):
            state = acts[ti.Site("resid", layer)][0, -1]
            for variant in VARIANTS:
                matrix, norm, product = variant.split(", ")
                scores = matrices[matrix] @ (model.normed(state) if norm == "normed" else state)
                scores = scores / matrices[matrix].norm(dim=-1) if product == "cosine" else scores
                rank = int((scores > scores[few.whole[n][0]]).sum())
                assert int(found["rank"].sel(layer=layer, variant=variant)[n]) == pytest.approx(rank, abs=1)
    part = retrieve_words(model, few, [2], ["output, normed, dot"])
    assert (part["rank"].values[:, 0, 0] == found["rank"].sel(layer=2, variant="output, normed, dot").values).all()


def test_canonicity_is_the_cosine_in_the_same_context(cases):
    model, few = tiny(), cases[::11]
    found = canonicity(model, few, [1, 3], batch_tokens=90)
    ti.check(found)

    def last(before, word):
        with torch.no_grad():
            acts = model.run(torch.tensor([[*before, *word]]), ti.resid([1, 3]))
        return np.stack([acts[ti.Site("resid", n)][0, -1].double().numpy() for n in (1, 3)])

    rows = [
        np.stack([last(c, w) for c, w in zip(few.context, column, strict=True)])
        for column in (few.pieces, few.whole, few.other)
    ]
    for variant, shift in (("raw", 0), ("centred", rows[1].mean(0))):
        a, b, c = (r - shift for r in rows)
        lengths = [np.linalg.norm(x, axis=-1) for x in (a, b, c)]
        own, control = ((a * x).sum(-1) / lengths[0] / n for x, n in ((b, lengths[1]), (c, lengths[2])))
        np.testing.assert_allclose(found["canonicity"].sel(variant=variant), own, atol=1e-5)
        np.testing.assert_allclose(found["control"].sel(variant=variant), control, atol=1e-5)
        np.testing.assert_array_equal(found["closer"].sel(variant=variant), own > control)


def test_planted_canonicity_is_one_from_its_layer_on(planted, cases):
    split = cases[cases.kind == "split"]
    near = canonicity(planted, split).sel(variant="raw")
    late = near["layer"].values >= FOUND
    np.testing.assert_allclose(near["canonicity"].values[:, late], 1, atol=1e-6)
    assert (near["canonicity"].values[:, ~late] == 0).all()
    assert (near["control"].values[:, late] < 0.95).all()


def test_words_are_repeated_by_a_patchscope(lexicon):
    cases = natural_cases(lexicon, (5,), min_context=1, n_words=6)
    found = repeat_words(tiny(), cases, [0, 2])
    assert found["success"].shape == (len(cases), 2)
    assert found.sizes["step"] == 5
    assert found["word"].values.tolist() == cases.text
    plain = ti.lexicon.patchscope(tiny(), cases.prompts(), "repeat", [0, 2], n_tokens=5)
    assert (found["generated"] == plain["generated"]).all()


# -- words and non-words ------------------------------------------------------------------------------------------
def test_planted_words_are_told_from_nonwords_at_their_layer(bundled):
    texts = [t.text for t in ti.bundled_texts("story")[:6]]
    lexicon = Lexicon.of(ti.Prompts.from_texts(texts, byte_tokenizer(), max_tokens=64, on_long="window"))
    items = words_and_nonwords(lexicon, 300, sizes=(2, 3, 4, 5), canonical=False, parts=3)
    found = word_probe(PlantedModel(lexicon), items, n_boot=50)
    ti.check(found)
    last = found["accuracy"].sel(subset="last")
    assert (last.sel(layer=[FOUND, 3]) == 1).all()
    np.testing.assert_allclose(last.sel(layer=[0, 1]), 0.5, atol=0.01)  # the token says nothing
    low, high = found["accuracy_interval"].sel(subset="last", layer=0).values
    assert low <= 0.5 <= high
    assert (found["accuracy_interval"].sel(subset="last", layer=FOUND) == 1).all()
    again = word_probe(PlantedModel(lexicon), items, [FOUND], n_boot=50)
    assert float(again["accuracy"][0, 0]) == float(last.sel(layer=FOUND))


@pytest.mark.slow
def test_an_untrained_network_cannot_tell_words(bundled):
    texts = [t.text for t in ti.bundled_texts("article")]
    lexicon = Lexicon.of(ti.Prompts.from_texts(texts, bundled, max_tokens=1024, on_long="window"))
    blank = word_probe(ti.untrained(bundled), words_and_nonwords(lexicon, 600), [0, 8], n_boot=20)
    np.testing.assert_allclose(blank["accuracy"], 0.5, atol=0.04)
    items = words_and_nonwords(lexicon, 1200)
    trained = word_probe(bundled, items, [8], n_boot=20)["accuracy"].sel(layer=8)
    assert float(trained.sel(subset="last")) > 0.56
    assert float(trained.sel(subset="last")) > float(trained.sel(subset="penultimate")) + 0.03


def test_layer_groups_and_batches_change_nothing(lexicon, monkeypatch):
    ids = [(5, 6, 7), (8, 9), (5, 9), (8, 6, 7), (10, 11), (12, 13), (10, 13), (12, 11)]
    items = WordSet(ids, np.array([1, 1, 0, 0, 1, 1, 0, 0], bool), np.array([0, 0, 0, 0, 1, 1, 1, 1]))
    whole = word_probe(tiny(), items, k=2, n_boot=20)
    monkeypatch.setattr(word_ends, "STATES", 1)
    split = word_probe(tiny(), items, k=2, n_boot=20, batch_tokens=1)
    np.testing.assert_array_equal(whole["accuracy"], split["accuracy"])
    assert whole["n_words"].values.tolist() == [4, 4]
    assert whole["n_tokens"].values.tolist() == [4, 5]


# -- bad input ----------------------------------------------------------------------------------------------------
def test_bad_input(planted, cases, lexicon):
    with pytest.raises(ValueError, match=r"variants=\['raw'\]: 'raw' is none of 'input, raw, dot',"):
        retrieve_words(planted, cases, variants=["raw"])
    natural = natural_cases(lexicon, (5, 6), min_context=1)
    for function in (retrieve_words, canonicity):
        with pytest.raises(ValueError, match=r"has [456] tokens: give words that are one token"):
            function(planted, natural)
        with pytest.raises(ValueError, match=r"layers=\[7\]: planted has layers 0"):
            function(planted, cases, [7])
        with pytest.raises(ValueError, match="there is no case"):
            function(planted, cases[:0])
    narrow = ti.wrap(tiny_lm("opt_post_norm"), byte_tokenizer())
    with pytest.raises(ValueError, match=r"the input embedding of .* has width 16, its stream 32: leave out"):
        retrieve_words(narrow, cases)
    fine = WordSet([(1, 2), (3, 4), (5, 6)], np.array([True, False, True]), np.array([0, 1, 0]))
    bad = [
        (fine._replace(ids=[(1,), (3, 4), (5, 6)]), {}, "item 0 has 1 tokens"),
        (fine._replace(is_word=np.array([True, True, True])), {}, "3 words and 0 non-words in 2 parts"),
        (fine._replace(part=np.array([0, 0, 0])), {}, "2 words and 1 non-words in 1 parts"),
        (fine._replace(part=np.array([0, 1])), {}, "3 items, 3 kinds and 2 parts"),
        (fine, {"k": 4}, "k=4: the other parts have 1 items or more"),
        (fine, {"places": ["first"], "k": 1}, r"places=\['first'\]: 'first' is none of 'last', 'penultimate'"),
    ]
    for items, change, message in bad:
        with pytest.raises(ValueError, match=message):
            word_probe(planted, items, **change)
    with pytest.raises(ValueError, match=r"sizes=\(1,\): give .* at least 2"):
        PieceAttention((1,))
    with pytest.raises(ValueError, match=r"blocks=\[3\]: tiny-llama has blocks 0 to 2"):
        ti.measure(tiny(), lexicon.prompts, {"p": PieceAttention(blocks=[3])}, progress=False)
    with pytest.raises(ValueError, match=r"none of the 12 prompts has a word of \[40\] tokens"):
        ti.measure(tiny(), lexicon.prompts, {"p": PieceAttention((40,))}, progress=False)


# -- experiment, figure, plots ------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def results():
    model = ti.wrap(tiny_lm("llama", max_position_embeddings=128), byte_tokenizer(), id="tiny")
    texts = [*some_texts(30, 25), *(t.text for t in ti.bundled_texts("story")[:3])]
    sizes = {"n_words": 10, "n_probe": 100, "min_letters": 2, "attention_prompts": None}
    return as_tree(experiment.run(settings(experiment.PRESETS["tiny"], model, texts, **sizes)))


@pytest.mark.slow
def test_the_experiment_gives_every_group_of_both_models(results):
    assert set(results.children) == {"trained", "untrained"}
    for name in ("trained", "untrained"):
        assert set(results[name].children) == {"probe", "split", "canonicity", "natural", "pieces"}
    assert results["untrained/split"].attrs["model"] == "tiny, untrained"
    found = evaluate(experiment.CLAIMS, {n.path.strip("/"): n.to_dataset() for n in results.leaves})
    rows = {row["claim"]: row["numbers"] for row in found}
    assert len(rows) == len(experiment.CLAIMS)
    probe = results["trained/probe"].to_dataset().sel(subset="last", layer=2)
    number = rows["words can be told from non-words at their last piece"]["trained"]
    assert number["value"] == pytest.approx(float(probe["accuracy"]))
    assert number["interval"] == pytest.approx(probe["accuracy_interval"].values.tolist())
    split = results["trained/split"]["retrieved"]
    (best, *_) = rows["the whole word is read from the last piece by a reverse logit lens"].values()
    assert best["value"] == pytest.approx(float(split.max("layer").mean("prompt").max()))
    closer = results["trained/canonicity"]["closer"].sel(variant="raw", layer=2)
    numbers = rows["the last piece of a re-split word comes to resemble the whole word"]
    assert numbers["trained"]["value"] == pytest.approx(float(closer.mean()))
    kind = str(closer["detail"].values[0])
    assert numbers[f"trained, {kind}"]["value"] == pytest.approx(float(closer[closer["detail"].values == kind].mean()))
    seen = results["trained/pieces"]["attention"].isel(pieces=0)
    early, late = (seen.isel(block=part).mean("block") for part in ([0], [1, 2]))
    numbers = rows["attention from the last piece to earlier ones peaks early and then drops"]
    assert numbers["first half less second half"]["value"] == pytest.approx(float((early - late).mean()))


@pytest.mark.slow
def test_the_figure_and_its_parts(results, tmp_path):
    fig = picture.compose(results)
    assert isinstance(fig, Figure)
    assert fig.get_size_inches()[0] <= 7
    assert [ax.get_xlabel() for ax in fig.axes] == ["layer"] * 4 + ["block"] * 2
    own = results["trained/probe"]["accuracy"].sel(subset="last").values
    np.testing.assert_allclose(fig.axes[0].lines[0].get_ydata(), own)
    assert plots.save(fig, tmp_path / "a.png").stat().st_size > 1000
    ax = plots.curves(results["trained/natural"].to_dataset(), "success")
    assert ax.get_ylabel().split() == ["share", "decoded", "as", "expected"]
    near, probe, pieces = (results[f"trained/{n}"].to_dataset() for n in ("canonicity", "probe", "pieces"))
    ax = plots.curves(near, "closer", by="kind", select={"variant": "centred"})
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["split", "typo", "chance"]
    ax = plots.curves(probe, "accuracy", select={"subset": "last"})
    np.testing.assert_allclose(ax.lines[0].get_ydata(), probe["accuracy"].sel(subset="last"))
    assert [p.name for p in plots.draw(pieces)] == ["attention"]
