"""Claims about training follow from planted checkpoints: which is the last, which the control, whose interval."""

import numpy as np
import pytest
import xarray as xr

import tokinterp as ti
from experiments import training
from experiments.runner.claims import Number


def scores(gap, accuracy, half=0.05, n=50, other=None):
    """Planted numbers of last pieces and others at offsets -1 and 0; those of offset 0 are larger by 1."""
    by = ("subset", "layer", "offset")
    values = {k: np.array([v, w])[..., None] + [0, 1]
              for k, v, w in (("gap", gap, gap), ("accuracy", accuracy, other or accuracy))}  # fmt: skip
    variables = {k: (by, v) for k, v in values.items()}
    for name, of in (("gap_band", "gap"), ("gap_interval", "gap"), ("accuracy_interval", "accuracy")):
        wide = half if name != "gap_interval" else half / 5
        variables[name] = (("bound", *by), np.stack([values[of] - wide, values[of] + wide]))
    variables["n_positions"] = (("subset", "offset"), [[n, n]] * 2)
    return xr.Dataset(
        variables,
        {"subset": ["last piece", "other"], "layer": [0, 1, 2], "offset": [-1, 0], "bound": ["lower", "upper"]},
    )


def of_training(**last):
    return {
        "step_20/scores": scores((9, 9, 9), (0.1, 0.6, 0.3)), "untrained/scores": scores((0, 0.02, 0), (0.1, 0.1, 0.1)),
        "step_100/scores": scores((0.9, 0.1, 0.3), (0.1, 0.8, 0.2), **last),
    }  # fmt: skip


def test_checkpoints_are_ordered_by_their_steps_and_the_untrained_network_is_the_first():
    found = {f"{n}/scores": xr.Dataset() for n in ("step_100", "trained", "step9", "untrained", "step_020")}
    assert training.checkpoints(found) == ["untrained", "step9", "step_020", "step_100", "trained"]


def test_the_gap_is_the_last_checkpoints_behind_the_embedding_less_the_untrained_networks_at_that_layer():
    found = training.read_out(of_training(), "last piece", -1)
    first, *_ = found
    assert first == "layer 2, last checkpoint less untrained"
    wide = np.hypot(0.05, 0.05)
    assert found[first][:3] == pytest.approx((0.3, 0.3 - wide, 0.3 + wide))  # the bands for all layers at once
    assert found["untrained"].value == 0
    assert [k for k in found if "by layer" in k] == [f"{n}, gap by layer" for n in ("untrained", "step_20", "step_100")]
    assert np.isnan(training.read_out(of_training(n=29), "last piece", -1).popitem()[1].value)


def test_what_is_gathered_and_what_is_forgotten_again():
    found = training.gathered(of_training())
    assert found["layer 1, last checkpoint less untrained"].value == pytest.approx(0.7)
    lost = training.forgotten(of_training())
    assert [*lost] == ["step_100", "step_20", "untrained"]
    assert [lost[n].value for n in lost] == pytest.approx([0.6, 0.3, 0.0])


def test_the_layer_is_chosen_on_other_tokens_than_it_is_judged_on():
    """The best of many layers that differ by chance alone lies above the last."""
    planted = of_training(other=(0.9, 0.1, 0.1))
    assert "layer 0, last checkpoint less untrained" in training.gathered(planted)
    assert training.forgotten(planted)["step_100"].value == pytest.approx(-0.1)


def test_a_difference_of_networks_has_an_interval_wider_than_each():
    assert training.less(Number(3, 2.7, 3.3), Number(1, 0.6, 1.4))[:3] == pytest.approx((2, 1.5, 2.5))
    assert training.less(Number(3, 2, 3), Number(1, 1, 4))[:3] == pytest.approx((2, 2 - 10**0.5, 2))


def test_psi_is_that_of_the_deepest_end_layer():
    units = {
        end: xr.Dataset(
            {"auroc": ("subset", [value]), "n_spans": ("subset", [40]),
             "auroc_interval": (("bound", "subset"), [[value - 0.1], [value + 0.1]])},
            {"subset": ["word"], "bound": ["lower", "upper"]},
        )
        for end, value in ((2, 0.9), (10, 0.6))
    }  # fmt: skip
    found = of_training() | {f"step_100/end_{end}": ds for end, ds in units.items()}
    found |= {f"{n}/end_2": units[2] for n in ("untrained", "step_20")}
    assert training.marked(found, "word")["step_100"][:3] == pytest.approx((0.6, 0.5, 0.7))
    assert np.isnan(training.marked(found, "name")["step_100"].value)


def test_a_checkpoint_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"checkpoints=step_7: .*has no such folder"):
        training.Settings(model=str(tmp_path)).network("step_7")
    with pytest.raises(ValueError, match="checkpoints=step_7: the bundled model has none"):
        training.Settings().network("step_7")
    with pytest.raises(ValueError, match="name a trained one"):
        training.Settings(checkpoints=("untrained",)).network("untrained")


def test_the_untrained_network_has_the_shape_of_the_last_checkpoint_and_other_weights(tmp_path):
    shape = {"checkpoints": ("untrained", "trained")}
    blank, trained = (training.Settings(**shape).network(n) for n in shape["checkpoints"])
    assert blank.info.n_layers == trained.info.n_layers == ti.load_model().info.n_layers
    assert blank.info.identity != trained.info.identity
