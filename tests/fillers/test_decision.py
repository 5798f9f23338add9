"""The verdict on fillers: used or not, and what it needs."""

import numpy as np
import pytest
import xarray as xr

import tokinterp as ti
from tokinterp.fillers.decision import CRITERIA, best_head, verdict
from tokinterp.stats.simultaneous import simultaneous_interval

QUESTIONS = ti.bundled_questions("cloze")[:16]


# -- verdict --------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_verdict_of_a_model_that_does_not_use_fillers(bundled):
    ds = verdict(bundled, QUESTIONS, n_fillers=6, n_boot=200)
    ti.check(ds)
    assert ds["criterion"].values.tolist() == list(CRITERIA)
    assert ds.attrs["verdict"] == "not shown"
    low = ds["value_interval"].sel(bound="lower")
    np.testing.assert_array_equal(ds["passed"], low > ds["bound_wanted"])


def test_verdict_of_a_model_that_does(monkeypatch, bundled):
    """All conditions met, and each one missing in turn."""

    from tokinterp.fillers import decision as v

    n = len(QUESTIONS)

    def fake(gain, drop, control, head):
        rng = np.random.default_rng(0)
        noise = rng.normal(size=n) * 0.01

        def insert(*_a, **_k):
            logp = xr.DataArray(np.zeros((n, 1, 2, 2)), dims=("prompt", "filler", "placement", "n_fillers"),
                                coords={"placement": ["post", "pre"], "n_fillers": [0, 6]})  # fmt: skip
            logp.loc[{"placement": "post", "n_fillers": 6}] = (gain + noise)[:, None]
            return xr.Dataset({"log_prob": logp})

        def intervene(*_a, kind, interventions, **_k):
            size = drop if kind == "dots" else control
            value = np.tile(-(size + noise), (len(interventions), 1))
            return xr.Dataset({"log_prob_change": (("intervention", "prompt"), value)},
                              {"intervention": list(interventions)})  # fmt: skip

        monkeypatch.setattr(v, "insert", insert)
        monkeypatch.setattr(v, "intervene", intervene)
        monkeypatch.setattr(v, "_best_head", lambda *_, **_k: ((0, 1), head, np.array([head - 0.1, head + 0.1])))
        return v.verdict(bundled, QUESTIONS, n_fillers=6).attrs["verdict"]

    assert fake(0.5, 0.5, 0.1, 2.0) == "used"
    for missing in ((-0.5, 0.5, 0.1, 2.0), (0.5, 0.5, 0.7, 2.0), (0.5, -0.1, -0.5, 2.0), (0.5, 0.5, 0.1, 1.05)):
        assert fake(*missing) == "not shown"


def test_verdict_needs_fillers_and_items(bundled):
    with pytest.raises(ValueError, match=r"n_fillers=0: give .* at least 1"):
        verdict(bundled, QUESTIONS, n_fillers=0)
    with pytest.raises(ValueError, match="several"):
        verdict(bundled, QUESTIONS[:1])


def test_a_verdict_goes_on_where_it_was_stopped(bundled, tmp_path, monkeypatch):
    from tokinterp.fillers import decision as v

    few, store, calls, whole = QUESTIONS[:3], tmp_path / "a.zarr", [], v.intervene
    asked = {"n_fillers": 2, "n_boot": 20}

    def stops(*args, **options):
        calls.append(options["kind"])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return whole(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(v, "intervene", stops)
        with pytest.raises(KeyboardInterrupt):
            verdict(bundled, few, store=store, **asked)
    assert sorted(p.name for p in (tmp_path / "a.zarr.verdict").iterdir()) == [
        "control.zarr",
        "insertion.zarr",
        "run.json",
    ]
    with pytest.raises(ValueError, match=r"differs in: verdict"):
        verdict(bundled, few, store=store, level=0.9, **asked)
    ds = verdict(bundled, few, store=store, **asked)
    assert [p.name for p in tmp_path.iterdir()] == ["a.zarr"]
    plain = verdict(bundled, few, **asked)
    np.testing.assert_array_equal(ds["value"], plain["value"])
    monkeypatch.setattr(v, "_decided", None)  # read, not made again
    assert verdict(bundled, few, store=store, **asked).identical(ds)


def test_the_head_criterion_may_be_of_more_items(bundled):
    few, more = QUESTIONS[:3], QUESTIONS[3:9]
    ds = verdict(bundled, few, head_questions=more, n_fillers=2, n_boot=20)
    alone, whole = (verdict(bundled, q, n_fillers=2, n_boot=20) for q in (few, [*few, *more]))
    np.testing.assert_array_equal(ds["value"][:5], alone["value"][:5])
    assert float(ds["value"][5]) == float(whole["value"][5])
    assert (ds.attrs["n_groups"], ds.attrs["n_head_items"]) == (3, 9)


def test_the_best_head_is_that_of_the_largest_lower_bound():
    rng = np.random.default_rng(0)
    each = rng.normal(1.0, 0.1, (20, 2, 2))
    each[:, 0, 1] += 1.0
    noise = rng.normal(size=20)
    each[:, 1, 0] = 3 + 30 * (noise - noise.mean())  # the largest mean and upper bound, and nothing sure
    head, value, (low, high) = best_head(each)
    assert head == (0, 1)
    assert value == pytest.approx(each[:, 0, 1].mean())
    assert low < value < high
    bounds = simultaneous_interval(each)
    assert (low, high) == tuple(bounds[:, 0, 1])
    assert best_head(np.ones((20, 2, 2)))[0] is None


def test_items_that_are_not_finite_everywhere_are_in_no_criterion(monkeypatch, bundled):
    """A mean of them would be NaN while its interval, which leaves them out, decides."""
    from tokinterp.fillers import decision as v

    n, rng = len(QUESTIONS), np.random.default_rng(0)

    def insert(*_a, **_k):
        logp = np.zeros((n, 1, 2, 2))
        logp[:, 0, 0, 1] = 1 + 0.1 * rng.normal(size=n)
        logp[0] = np.nan
        places = {"placement": ["post", "pre"], "n_fillers": [0, 6]}
        return xr.Dataset({"log_prob": (("prompt", "filler", "placement", "n_fillers"), logp)}, places)

    def intervene(*_a, kind, interventions, **_k):
        value = -(2 if kind == "dots" else 1) + 0.1 * rng.normal(size=(len(interventions), n))
        value[:, 1 if kind == "dots" else 2] = np.nan
        dims = ("intervention", "prompt")
        return xr.Dataset({"log_prob_change": (dims, value)}, {"intervention": list(interventions)})

    monkeypatch.setattr(v, "insert", insert)
    monkeypatch.setattr(v, "intervene", intervene)
    monkeypatch.setattr(v, "_best_head", lambda *_, **_k: ((0, 1), 2.0, np.array([1.9, 2.1])))
    ds = verdict(bundled, QUESTIONS, n_fillers=6, n_boot=200)
    assert ds.attrs["n_groups"] == n - 3
    low, high = ds["value_interval"].transpose("bound", ...).values
    assert ((low < ds["value"]) & (ds["value"] < high)).all()


def test_a_control_of_the_same_kind_is_refused(bundled):
    """The difference would be 0 for every item, and the answer always "not shown"."""
    with pytest.raises(ValueError, match=r"^kind='words': kind and control are the same: give two kinds"):
        verdict(bundled, QUESTIONS, n_fillers=2, kind="words")
