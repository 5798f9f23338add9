"""Scores of token probes: equal to counting by hand, the ceiling, planted erasure, refusals."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from planted import PlantedModel, planted_texts
from tiny import tiny, tiny_lm

import tokinterp as ti
from tokinterp.erasure.probe_scores import SUBSETS, ProbeScores, score_probes, token_subsets, word_lengths
from tokinterp.erasure.probes import ProbeSettings, TokenProbes, fit_probes
from tokinterp.models import wrap
from tokinterp.text.classes import CLASSES

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def texts():
    return [t.text for t in ti.bundled_texts()]


@pytest.fixture(scope="module")
def real(bundled, texts):
    """Probes of a trained model, and other text."""
    train = ti.Prompts.from_texts(texts[:14], bundled, max_tokens=70, progress=False)
    test = ti.Prompts.from_texts(texts[24:34], bundled, max_tokens=50, progress=False)
    settings = ProbeSettings(rows=128, epochs=12)
    probes = fit_probes(bundled, train, layers=[0, 3], offsets=[-1, 0, 1], settings=settings, progress=False)
    return bundled, probes, train, test


def spans_of(prompts, n=3):
    """The first words of every text, two by two, as spans of a kind."""
    records = []
    for d in np.unique(prompts.documents):
        edges = ti.Spans.words([prompts.document_text(int(d))])
        for k in range(0, 2 * n, 2):
            records.append({"document": int(d), "start": edges.start[k], "stop": edges.stop[k + 1], "kind": "pair"})
    return ti.Spans.from_records(records)


def by_hand(probes, model, train, prompts, layer, offset):
    """Rows (subsets, hit, top5, loss, seen, bigram) of every position with a label, one token after the other."""
    pairs = [(ids[t], ids[t + offset]) for ids in map(list, map(train.ids, range(len(train)))) for t in range(len(ids))
             if t >= 1 and 1 <= t + offset < len(ids)]  # fmt: skip
    labels = [int(b) for _, b in pairs]
    unigram = max(set(labels), key=lambda x: (labels.count(x), -x))
    follow = {}
    for a, b in pairs:
        follow.setdefault(int(a), []).append(int(b))
    classes = ti.text.token_classes(prompts)
    rows = []
    for i in range(len(prompts)):
        ids, batch = prompts.ids(i), ti.capture(model, prompts, [i], ti.resid([layer]))
        x = probes.standardise(batch.rows(layer), layer)
        logits = torch.log_softmax(x @ probes.weight(layer, offset).T, 1)
        word = []
        for t in range(len(ids)):
            name = classes.names[classes.codes[prompts.starts[i] + t]]
            word = [t] if name == "first piece" else [*word, t] if name in ("middle piece", "last piece") else word
            if t == 0 or not 1 <= t + offset < len(ids):
                continue
            source, label = int(ids[t]), int(ids[t + offset])
            seen = label in set(labels)
            where = {"all", name if name not in ("word", "stop word") else "single-token word"}
            where |= {"other"} if name != "last piece" else set()
            length = 1 if name in ("word", "stop word") else len(word) if name == "last piece" and word else 0
            where |= {f"last of {length}" if length < 4 else "last of 4+"} if length else set()
            where |= {"seen label" if seen else "unseen label"}
            where |= {"seen pair" if label in follow.get(source, []) else "unseen pair"}
            place = int(torch.searchsorted(probes.labels, label))
            order = logits[t].argsort(descending=True).tolist()
            best = follow.get(source)
            answer = max(set(best), key=lambda x: (best.count(x), -x)) if best else unigram
            hit, top = (seen and order[0] == place), (seen and place in order[:5])
            rows.append((where, hit, top, -float(logits[t, place]) if seen else 0, seen, answer == label,
                         unigram == label))  # fmt: skip
    return rows


@pytest.mark.parametrize("offset", [-1, 0, 1])
def test_scores_are_those_of_counting_token_by_token(real, offset):
    model, probes, train, test = real
    few = test[[0, 3, 5]]
    layer = probes.layers[-1]
    scores = score_probes(probes, model, few, layers=[layer], progress=False, batch_tokens=70)
    rows = by_hand(probes, model, train, few, layer, offset)
    checked = 0
    for name in scores["subset"].values:
        here, mine = scores.sel(subset=name, layer=layer, offset=offset), [r for r in rows if name in r[0]]
        n, seen = len(mine), sum(r[4] for r in mine)
        assert (int(here["n_positions"]), int(here["n_seen"])) == (n, seen), name
        if n:
            checked += 1
            assert float(here["accuracy"]) == pytest.approx(sum(r[1] for r in mine) / n)
            assert float(here["top5_accuracy"]) == pytest.approx(sum(r[2] for r in mine) / n)
            assert float(here["bigram_accuracy"]) == pytest.approx(sum(r[5] for r in mine) / n)
            assert float(here["unigram_accuracy"]) == pytest.approx(sum(r[6] for r in mine) / n)
            assert float(here["ceiling"]) == pytest.approx(seen / n)
        if seen:
            assert float(here["cross_entropy"]) == pytest.approx(sum(r[3] for r in mine) / seen, rel=1e-4, abs=1e-6)
            assert float(here["relative_accuracy"]) == pytest.approx(sum(r[1] for r in mine) / seen)
        else:
            assert np.isnan(here["cross_entropy"])
    assert checked >= 12


def test_every_label_of_the_training_text_was_seen(real):
    """At each offset by its own labels: the last token of a text is one behind others, and before none."""
    model, probes, train, _ = real
    found = score_probes(probes, model, train, layers=[0], progress=False, n_boot=2).sel(subset="all")
    assert (found["ceiling"] == 1).all()
    assert (found["n_seen"] == found["n_positions"]).all()


def test_the_gap_draws_both_of_its_subsets_together():
    """Documents differ much in accuracy and not at all in the gap."""
    m = ProbeScores.__new__(ProbeScores)
    m.subsets, m.layers, m.offsets, m.level, m.n_boot, m.seed = list(SUBSETS), [0], [0], 0.95, 300, 0
    m._documents, m.probes = np.arange(40), SimpleNamespace(text=None)  # pyright: ignore[reportAttributeAccessIssue]
    counts = np.full((40, len(SUBSETS), 1, 4), 100.0)
    hits = np.zeros((40, len(SUBSETS), 1, 1, 3))
    hits[..., 0] = np.random.default_rng(0).integers(30, 90, 40)[:, None, None, None]
    hits[:, SUBSETS.index("last piece"), ..., 0] -= 20
    found = m.derive({"prompt": np.arange(40), "_counts": counts, "_hits": hits})
    found = {k: v[..., SUBSETS.index("last piece"), 0, 0] for k, v in found.items() if v.ndim > 2}
    np.testing.assert_allclose([found["gap"], *found["gap_interval"]], 0.2)
    assert float(found["accuracy_interval"][1] - found["accuracy_interval"][0]) > 0.05


@pytest.mark.slow
def test_the_largest_gap_of_layers_without_one_seldom_excludes_nothing():
    m = ProbeScores.__new__(ProbeScores)
    m.subsets, m.level, m.n_boot, rng = ["other", "last piece"], 0.95, 300, np.random.default_rng(0)
    times, wrong, n = 200, np.zeros(2), np.full((40, 2, 1), 60.0)
    n[:, 1] = rng.integers(0, 20, (40, 1))
    for seed in range(times):
        hits = rng.binomial(np.repeat(n[:, :, None], 9, 2).astype(int), 0.5).astype(float)
        m.seed = seed
        out = m._gap(hits, n)
        gap, alone, band = (out[k][..., 1, :, 0] for k in ("gap", "gap_interval", "gap_band"))
        k = int(gap.argmax())
        assert band[0, k] < gap[k] < band[1, k]
        wrong += [band[0, k] > 0, alone[0, k] > 0]
    assert wrong[0] / times < 0.06
    assert wrong[1] / times > 0.12
    n[3:, 1] = 0  # two documents with both
    n[2, 1] = 0
    assert np.isnan(m._gap(hits * (n[:, :, None] > 0), n)["gap_band"]).all()


def test_the_embedding_probe_reaches_the_ceiling_of_seen_labels(real):
    """What it cannot know is what never was a label: Feucht et al. (2024), App.; sheet section 1."""
    model, probes, _, test = real
    found = score_probes(probes, model, test, layers=[0], offsets=[0], progress=False).sel(subset="all", layer=0)
    assert float(found["accuracy"][0]) == pytest.approx(float(found["ceiling"][0]), abs=0.005)


@pytest.mark.slow
def test_batches_stores_and_spans_do_not_change_the_numbers(real, tmp_path):
    model, probes, _, test = real
    spans = spans_of(test)
    whole = score_probes(probes, model, test, spans, progress=False)
    small = score_probes(
        probes, model, test, spans, progress=False, batch_tokens=1, store=tmp_path / "s.zarr", checkpoint_every=0
    )
    for name in whole.data_vars:
        np.testing.assert_allclose(small[name].values, whole[name].values, rtol=1e-5, err_msg=name)
    assert "last of pair" in whole["subset"].values
    tokens = spans.align(test)
    expected = sum(int(tokens.stop[k]) < test.lengths[tokens.prompt[k]] for k in np.flatnonzero(tokens.n_tokens > 1))
    assert int(whole["n_positions"].sel(subset="last of pair", offset=1)) == expected
    with pytest.raises(ValueError, match="belongs to another run"):
        score_probes(probes, model, test, progress=False, store=tmp_path / "s.zarr")


def test_intervals_are_over_documents(real):
    model, probes, _, test = real
    one = score_probes(probes, model, test, progress=False, n_boot=300)
    ok = one["accuracy"].notnull()
    assert bool((one["accuracy_interval"].sel(bound="lower") <= one["accuracy"] + 1e-12).where(ok, True).all())
    assert bool((one["accuracy_interval"].sel(bound="upper") >= one["accuracy"] - 1e-12).where(ok, True).all())
    assert one.attrs["n_documents"] == one.attrs["n_groups"] == len(test)
    assert f"over {len(test)} documents" in one["gap_interval"].attrs["long_name"]
    width = (one["accuracy_interval"].diff("bound")).sel(subset="all", layer=probes.layers[-1], offset=1)
    assert 0 < float(width.squeeze()) < 0.5
    # windows of one document are drawn together: of a single document there is no interval
    same = test[[0, 1, 2]]
    same.documents = np.zeros(3, np.int64)
    m = ProbeScores(probes, layers=[0], offsets=[0], n_boot=20)
    m.begin(model.info, test[[0, 1, 2]])
    m._documents = same.documents
    m.update(ti.capture(model, test, [0, 1, 2], ti.resid([0])))
    found = m.result()["accuracy_interval"].sel(subset="all").values
    assert np.isnan(found).all()
    assert m.result().attrs["n_groups"] == 1
    m._documents = np.arange(3)
    assert np.isfinite(m.result()["accuracy_interval"].sel(subset="all")).all()
    gap = one["gap"].sel(subset="last piece") - (
        one["accuracy"].sel(subset="other") - one["accuracy"].sel(subset="last piece")
    )
    assert float(np.abs(gap).max()) < 1e-12


class Forgetful(PlantedModel):
    """Nothing at all is left of what the planted model wipes."""

    def strength(self, ids):
        return super().strength(ids).clamp(min=0)


@pytest.mark.slow
def test_planted_erasure_is_found_where_it_was_planted():
    """From layer 3 on the last letter of a word is gone: there a fitted probe falls to the commonest letter."""
    model = Forgetful()
    train, test = (ti.Prompts.from_texts(planted_texts(n, seed=n), model) for n in (60, 30))
    settings = ProbeSettings(rows=64, epochs=30, lr=0.02)
    probes = fit_probes(model, train, layers=[0, 3], offsets=[-1, 0], settings=settings, progress=False)
    found = score_probes(probes, model, test, progress=False, n_boot=200)
    accuracy = found["accuracy"].sel(offset=0)
    kept = ["first piece", "middle piece", "single-token word", "other"]
    assert (accuracy.sel(layer=0, subset=[*kept, "last piece"]) == 1).all()
    assert (accuracy.sel(layer=3, subset=kept) == 1).all()
    classes = ti.text.token_classes(test)
    last = test.token_ids[classes.codes == classes.names.index("last piece")]
    most = np.unique(last, return_counts=True)[1].max() / len(last)
    assert 0 < float(accuracy.sel(layer=3, subset="last piece")) <= most < 0.4
    before = found["accuracy"].sel(offset=-1, layer=3)  # the letter before is gone wherever there is one
    assert float(before.sel(subset="last piece")) < 0.5 < 1 == float(before.sel(subset="first piece"))
    low, high = found["gap_interval"].sel(subset="last piece", layer=3, offset=0).values
    assert 0.5 < low <= float(found["gap"].sel(subset="last piece", layer=3, offset=0)) <= high < 1
    assert float(np.abs(found["gap"].sel(subset="last piece", layer=0)).max()) == 0


# -- refusals -------------------------------------------------------------------------------------------------
def test_refusals(real, texts):
    model, probes, _, test = real
    with pytest.raises(ValueError, match=r"layers=\[99\]: .*fitted at layers"):
        ProbeScores(probes, layers=[99])
    with pytest.raises(ValueError, match=r"offsets=\[-3\]: no probes"):
        score_probes(probes, model, test, offsets=[-3])
    other = wrap(tiny_lm("llama"), id="other")
    with pytest.raises(ValueError, match=r"with d_model=\d+, but other has"):
        score_probes(probes, other, ti.Prompts.from_ids([[3, 4, 5]]), progress=False)
    with pytest.raises(ValueError, match="has a word of several tokens"):
        score_probes(probes, model, ti.Prompts.from_texts(["! ? ."], model), progress=False)
    with pytest.raises(ValueError, match="level=1: give a number between"):
        ProbeScores(probes, level=1)
    with pytest.raises(ValueError, match="n_boot=0"):
        ProbeScores(probes, n_boot=0)
    word = ti.Prompts.from_texts(["Antidisestablishmentarianism"], model)
    assert token_subsets(word)[0][:2] == ["all", "other"]
    far = TokenProbes([0], [-len(word.ids(0))], probes.labels, {0: {}}, dict(probes.facts))
    with pytest.raises(ValueError, match="no token of these prompts has a label"):
        score_probes(far, model, word, progress=False)


def test_a_seen_label_without_a_row_to_fit_leaves_no_cross_entropy_where_it_occurs():
    model, texts = tiny(), ["rivers run to the sea", "the sea is wide in winter", "a river in the north"]
    prompts = ti.Prompts.from_texts(texts, model)
    fitted = fit_probes(model, prompts, layers=[1], offsets=[0], method="lda", progress=False)
    whole = score_probes(fitted, model, prompts, progress=False, n_boot=5).sel(layer=1, offset=0)
    assert whole["cross_entropy"].where(whole["n_seen"] > 0, 0).notnull().all()
    part = {n: fitted._get(1, n, torch.device("cpu")).clone() for n in ("weight.0", "bias.0", "mean", "scale")}  # pyright: ignore[reportOptionalMemberAccess]
    subsets, bits = token_subsets(prompts)
    lost = int(prompts.token_ids[np.flatnonzero(bits >> subsets.index("last piece") & 1)[0]])
    part["weight.0"][fitted.labels == lost] = 0.0
    part["bias.0"][fitted.labels == lost] = -torch.inf
    probes = TokenProbes([1], [0], fitted.labels, {1: part}, fitted.facts, fitted.text)
    found = score_probes(probes, model, prompts, progress=False, n_boot=5).sel(layer=1, offset=0)
    holds = {s: bool((prompts.token_ids[(bits >> n & 1) > 0] == lost).any()) for n, s in enumerate(subsets)}
    holds |= {"seen label": True, "seen pair": True}
    assert {True, False} == set(holds.values())
    for name in subsets:
        one = found.sel(subset=name)
        assert not np.isinf(one["cross_entropy"])
        assert bool(one["cross_entropy"].isnull()) == (holds[name] or not int(one["n_seen"])), name
        assert not holds[name] or one["cross_entropy_interval"].isnull().all()
        assert int(one["n_seen"]) == int(whole["n_seen"].sel(subset=name))


def test_words_end_in_the_prompt_in_which_they_began():
    """A loop over tokens; pieces of a word that began in the prompt before count for nothing."""
    code = {n: k for k, n in enumerate(CLASSES)}
    pieces = [code[n] for n in ("first piece", "middle piece", "last piece")]
    rng = np.random.default_rng(0)
    cut = 0
    for _ in range(50):
        codes = rng.choice([*pieces, *pieces, code["word"], code["stop word"], code["whitespace"]], 30)
        starts = np.array([0, *np.sort(rng.choice(np.arange(1, 30), 4, replace=False)), 30])
        wanted = np.zeros(30, np.int64)
        for a, b in itertools.pairwise(starts.tolist()):
            begun = None
            for t in range(a, b):
                if codes[t] == code["first piece"]:
                    begun = t
                elif codes[t] in (code["word"], code["stop word"]):
                    wanted[t] = 1
                elif codes[t] == code["last piece"]:
                    if begun is None:
                        cut += bool(np.isin(codes[:a], pieces[:1]).any())
                    else:
                        wanted[t] = int(np.isin(codes[begun : t + 1], pieces).sum())
        given = SimpleNamespace(codes=codes), SimpleNamespace(starts=starts)
        np.testing.assert_array_equal(word_lengths(*given), wanted)  # pyright: ignore[reportArgumentType]
    assert cut > 20
