"""Items are exact to the token, nothing inserted changes nothing, and the tests on pairs are those of the books."""

import numpy as np
import pytest

import tokinterp as ti
from tokinterp.behaviour.answers import ask, pad
from tokinterp.fillers.insertion import insert, insertion_tests
from tokinterp.kernels.divergence import compare
from tokinterp.text.items import build_items

QUESTIONS = ti.bundled_questions("cloze")[:12]


@pytest.fixture(scope="module")
def found(bundled):
    return insert(bundled, QUESTIONS, n_fillers=[2, 10], kinds=["dots", "words"])


# -- items ----------------------------------------------------------------------------------------------------


# -- answers --------------------------------------------------------------------------------------------------


# -- insertion ------------------------------------------------------------------------------------------------
def test_inserting_nothing_changes_nothing(found):
    ti.check(found)
    none = found.sel(n_fillers=0)
    for name in ("kl", "js", "flip", "entropy_change"):
        assert float(abs(none[name]).max()) == 0
    assert float(found["kl"].sel(n_fillers=10).min()) > 0


@pytest.mark.slow
def test_insertion_does_not_depend_on_the_batches(bundled, found):
    again = insert(bundled, QUESTIONS, n_fillers=[2, 10], kinds=["dots", "words"], batch_tokens=1)
    for name in found.data_vars:
        np.testing.assert_allclose(again[name], found[name], rtol=1e-4, atol=1e-4, err_msg=name)


def test_every_item_is_compared_with_itself_without_fillers(bundled):
    """Few base items to a batch, which the longer ones have to be parted again."""
    asked = QUESTIONS[:5]
    ds = insert(bundled, asked, n_fillers=[40], kinds=["dots"], placements=["post"], announce="", batch_tokens=120)
    plain, items = (build_items(bundled, asked, n_fillers=k) for k in (0, 40))
    for i in range(5):
        p, q = (ask(bundled, pad(x, [i])).log_probs for x in (items, plain))
        assert ds["kl"].sel(n_fillers=40)[i].item() == pytest.approx(float(compare(p, q)["kl"]), rel=1e-3)


def test_tests_of_an_insertion(found):
    t = insertion_tests(found, n_boot=200)
    ti.check(t)
    change = (found["log_prob"] - found["log_prob"].sel(n_fillers=0)).mean("prompt")
    np.testing.assert_allclose(t["log_prob_change"], change)
    low, high = t["log_prob_change_interval"]
    assert ((low <= t["log_prob_change"]) & (t["log_prob_change"] <= high)).all()
    assert np.isnan(t["mcnemar_p"].sel(n_fillers=0)).all()
    made = found.isel(prompt=slice(5)).copy(deep=True)  # three helped and one hurt
    made["correct"].loc[{"n_fillers": 0}] = np.array([0, 0, 0, 1, 1])[:, None, None]
    made["correct"].loc[{"n_fillers": 2}] = np.array([1, 1, 1, 0, 1])[:, None, None]
    two = insertion_tests(made, n_boot=20).sel(n_fillers=2)
    for name, value in (("helped", 3), ("hurt", 1), ("mcnemar_p", 0.625)):
        assert (two[name] == value).all()
    special = change.sel(placement="post") - change.sel(placement="pre")
    np.testing.assert_allclose(t["placement_specificity"], special.transpose("filler", "n_fillers"))


# -- stream and lens ------------------------------------------------------------------------------------------
