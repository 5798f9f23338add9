"""Items are exact to the token, nothing inserted changes nothing, and the tests on pairs are those of the books."""

import numpy as np
import pytest
import xarray as xr
from answering import ask, pad
from scipy import stats

import tokinterp as ti
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


def made_insertion():
    """Twelve items, three kinds, two placements, four numbers of fillers, of which the results are made up."""
    rng = np.random.default_rng(0)
    shape = (12, 3, 2, 4)
    logp = 0.3 * rng.normal(size=shape) + np.array([0, 0.4, 1.5, 2.0])
    logp[:, 1] = logp[:, 1, :, :1] - np.array([0, 1, 2, 3])  # loses with every filler
    dims = ("prompt", "filler", "placement", "n_fillers")
    ds = xr.Dataset(
        {"log_prob": (dims, logp), "correct": (dims, rng.integers(0, 2, shape).astype(float)),
         "rank": (dims, rng.integers(0, 9, shape).astype(float)),
         "announced_log_prob": ("prompt", logp[:, 0, 0, 0] + 1)},
        {"n_fillers": [0, 2, 5, 10], "placement": ["pre", "post"], "filler": ["a", "b", "c"]},
        {"fingerprint": "f", "measurement": "insert"},
    )  # fmt: skip
    return ds, logp


def test_insertion_tests_are_those_of_loops(monkeypatch):
    from tokinterp.fillers import insertion

    monkeypatch.setattr(insertion, "derived", lambda ds, *_a, **_k: ds)
    ds, logp = made_insertion()
    found = insertion_tests(ds, n_boot=50)
    change = (logp - logp[..., :1]).mean(0)
    right = ds["correct"].values
    for f in range(3):
        for p in range(2):
            at = {"filler": f, "placement": p}
            curve = change[f, p]
            half = [k for k, c in zip((0, 2, 5, 10), curve, strict=True) if c >= max(curve) / 2]
            wanted = half[0] if max(curve) > 0 else np.nan
            np.testing.assert_equal(float(found["half_k"].isel(at)), wanted)
            trend = stats.spearmanr([0, 2, 5, 10], curve).statistic
            assert float(found["monotonicity"].isel(at)) == pytest.approx(trend)
            for k in range(4):
                one = found.isel(at | {"n_fillers": k})
                assert float(one["reciprocal_rank"]) == pytest.approx(np.mean(1 / (1 + ds["rank"].values[:, f, p, k])))
                above, below = ((s * (logp[:, f, p, k] - logp[:, f, p, 0]) > 0).sum() for s in (1, -1))
                if above + below:
                    p_sign = stats.binomtest(int(above), int(above + below)).pvalue
                    assert float(one["sign_p"]) == pytest.approx(p_sign)
                else:
                    assert np.isnan(one["sign_p"])
                helped = ((right[:, f, p, k] > 0) & (right[:, f, p, 0] == 0)).sum()
                assert int(one["helped"]) == helped
    gain = (right - right[..., :1]).mean(0)
    for p in range(2):
        for k in range(4):
            wanted = np.var(gain[:, p, k], ddof=1)
            assert float(found["type_variance"].isel(placement=p, n_fillers=k)) == pytest.approx(wanted)
    special = found["placement_specificity"].transpose("filler", "n_fillers").values
    np.testing.assert_allclose(special, change[:, 1] - change[:, 0], atol=1e-12)
    assert float(found["announced_change"]) == pytest.approx(1)


def test_items_that_are_not_finite_are_no_wrong_answers(found):
    """They are left out of every number, not counted as wrong without and with fillers."""
    made = found.copy(deep=True)
    for name in made.data_vars:
        made[name] = made[name].astype(float)
        made[name][:2] = np.nan
    tests, wanted = (insertion_tests(ds, n_boot=50) for ds in (made, found.isel(prompt=slice(2, None))))
    xr.testing.assert_allclose(tests, wanted)
    assert (tests.attrs["n_groups"], tests["accuracy"].isnull().any()) == (len(QUESTIONS) - 2, False)
    made["log_prob"][:] = np.nan
    with pytest.raises(ValueError, match="no item is finite"):
        insertion_tests(made)


def test_items_that_are_not_exact_may_have_demonstrations(monkeypatch, bundled):
    """Those without fillers were built as if all had to be exact."""
    seen = []

    def built(*_a, exact=True, **_k):
        seen.append(exact)
        return build_items(*_a, exact=exact, **_k)

    monkeypatch.setattr("tokinterp.fillers.insertion.build_items", built)
    insert(bundled, QUESTIONS[:2], n_fillers=[2], kinds=["dots"], demonstrations=QUESTIONS[2:3], exact=False)
    assert not any(seen)
