"""A planted network that reads its fillers: what must break it breaks it, what must not does not."""

import numpy as np
import pytest
import torch
from answering import ask, pad
from filler_reader import CUE, FILLER, QUESTIONS, filler_reader

from tokinterp.fillers.decision import verdict
from tokinterp.fillers.insertion import insert
from tokinterp.fillers.interventions import ALL, intervene
from tokinterp.fillers.routes import routing
from tokinterp.run import edits as E
from tokinterp.text.items import build_items

ASKED = {"n_fillers": 4, "kind": FILLER, "cue": CUE}
NOTHING, OTHER = -np.log(320), -20.0  # all tokens alike; the other answer


@pytest.fixture(scope="module")
def model():
    return filler_reader()


@pytest.fixture(scope="module")
def found(model):
    return intervene(model, QUESTIONS, **ASKED, width=1, interventions=[i for i in ALL if "places" not in i])


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("insertion", -NOTHING),
        ("deletion", NOTHING),
        ("knock-out", NOTHING),
        ("knock-out of the answer", NOTHING),
        ("knock-out of the answer, blocks 0-0", 0),
        ("knock-out of the answer, blocks 1-1", NOTHING),
        ("blind fillers", NOTHING),
        ("mean ablation", np.log(0.5)),
        ("zero ablation", NOTHING),
        ("patch of layer 0", NOTHING),
        ("patch of layer 1", NOTHING),
        ("patch of layer 2", 0),
    ],
)
def test_interventions_change_what_was_planted(found, name, change):
    np.testing.assert_allclose(found["log_prob_change"].sel(intervention=name), change, atol=1e-3)


@pytest.mark.parametrize("name", ["resample ablation", "transplant", "transplant of the question"])
def test_fillers_of_another_item_bring_its_answer(found, name):
    assert (found["log_prob_change"].sel(intervention=name) < OTHER).all()
    assert (found["flip"].sel(intervention=name) == 1).all()
    if name.startswith("transplant"):
        assert (found["donor_change"].sel(intervention=name) > -OTHER).all()


def test_hiding_the_wrong_way_round_changes_nothing(model):
    """Fillers from the question, the question from the answer, and the cue from the fillers: no head reads there."""
    items = build_items(model, QUESTIONS, **ASKED)
    batch = pad(items, range(len(items)))
    rows, width = range(len(items)), batch.ids.shape[1]
    fillers, question = (torch.from_numpy(items.positions(rows, width, p)) for p in ("filler", "question"))
    whole = ask(model, batch).log_prob
    for keys, queries in ((fillers, question), (question, batch.answering), (batch.answering, fillers)):
        torch.testing.assert_close(ask(model, batch, [E.knock_out(keys, queries)]).log_prob, whole)
    torch.testing.assert_close(whole, torch.zeros_like(whole), atol=1e-3, rtol=0)


def test_what_is_put_back_changes_nothing_at_all(model):
    same = intervene(model, [QUESTIONS[2]] * 3, **ASKED, interventions=["resample ablation", "mean ablation"])
    assert float(same.sel(intervention="resample ablation")["kl"].max()) == 0
    assert float(abs(same["log_prob_change"]).max()) < 1e-6


def test_the_window_of_all_blocks_is_all_blocks(model):
    ds = intervene(model, QUESTIONS, **ASKED, width=2, interventions=["windows", "knock-out of the answer"])
    one, other = ds["kl"].values
    assert ds["intervention"].values[0].endswith("blocks 0-1")
    np.testing.assert_array_equal(one, other)
    assert (one > 10).all()


def test_a_resampled_item_is_the_next_one(model):
    """A, A, B: the first gets the fillers of its like, the second those of B, B those of the first."""
    a, b = ("zA", "a"), ("zB", "b")
    ds = intervene(model, [a, a, b], **ASKED, interventions=["resample ablation"])
    np.testing.assert_allclose(ds["log_prob_change"][0] < OTHER, [False, True, True])


def test_fillers_help_behind_the_question_and_of_the_right_kind_alone(model):
    ds = insert(model, QUESTIONS, n_fillers=[4], kinds=[FILLER, "y"], cue=CUE, announce="")
    for kind in (FILLER, "y"):
        for place in ("post", "pre"):
            one = ds.sel(filler=kind, placement=place, n_fillers=4)
            helps = (kind, place) == (FILLER, "post")
            np.testing.assert_allclose(one["log_prob"], 0 if helps else NOTHING, atol=1e-3)
    best = ds.sel(filler=FILLER, placement="post", n_fillers=4)
    assert (best["rank"] == 0).all()
    assert (best["correct"] == 1).all()


def test_the_verdict_is_used_and_names_the_head(model):
    ds = verdict(model, QUESTIONS, **ASKED, control="y", n_boot=100)
    assert ds.attrs["verdict"] == "used"
    assert ds.attrs["best_head"] == "block 1, head 0"
    # all that is left beside sink and self falls on the fillers, of which the question's tokens are the rest of chance
    items = build_items(model, QUESTIONS, **ASKED)
    share = [4 / (len(ids) - 2) for ids in items.ids]
    assert float(ds["value"][5]) == pytest.approx(np.mean([1 / s for s in share]), rel=1e-2)
    np.testing.assert_allclose(ds["value"][:5], [-NOTHING, -NOTHING, -NOTHING, np.log(2), np.log(2)], atol=2e-3)
    other = verdict(model, QUESTIONS, n_fillers=4, kind="y", control=FILLER, cue=CUE, n_boot=100)
    assert other.attrs["verdict"] == "not shown"


def test_routes_lead_through_the_fillers(model):
    ds = routing(model, QUESTIONS, **ASKED)
    assert (ds["fillers_to_question"].isel(block=0) > 0.99).all()
    assert (ds["answer_to_fillers"].isel(block=1) > 0.99).all()
    assert (ds["answer_to_fillers"].isel(block=0) < 0.01).all()
    np.testing.assert_allclose(ds["routed"].isel(block=1), 1, atol=0.01)
    assert (ds["direct"].isel(block=1) < 0.01).all()
