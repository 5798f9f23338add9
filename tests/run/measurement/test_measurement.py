"""The verbs that all measurements share: sums are exact in their type, rows have no order, settings must agree."""

import numpy as np
import pytest
import torch
from tiny import Norms, Spread, some_prompts, tiny

import tokinterp as ti
from tokinterp.run.measurement import Measurement, choose_blocks, choose_layers
from tokinterp.scan import measurements


def fed(numbers, layers=(1, 3)):
    model, prompts = tiny(), some_prompts((5, 7, 4, 6))
    out = Norms(layers)
    out.begin(model.info, prompts)
    for n in numbers:
        out.update(ti.capture(model, prompts, n, out.sites(model.info)))
    return out


def test_merging_parts_in_any_order_is_seeing_all():
    whole = fed([[0, 1, 2, 3]]).result()
    for parts in (([[0, 1]], [[2], [3]]), ([[3], [1]], [[0, 2]])):
        one, other = map(fed, parts)
        one.merge(other)
        found = one.result()
        for name in ("norm", "mean_norm", "prompt", "position", "token_id"):
            np.testing.assert_allclose(found[name], whole[name], rtol=1e-5, err_msg=str(name))


def test_a_state_is_taken_up_where_it_was():
    one, again = fed([[0, 1]]), fed([])
    again.load(one.state())
    model, prompts = tiny(), some_prompts((5, 7, 4, 6))
    for m in (one, again):
        m.update(ti.capture(model, prompts, [2, 3], m.sites(model.info)))
    assert one.result().identical(again.result())
    state = one.state()
    one.sums["count"] += 5
    assert int(state["sums"]["count"]) == 22


def test_sums_are_float64_or_int64():
    m = Measurement()
    for _ in range(2):
        m.add("half", torch.tensor(2.0**-12, dtype=torch.float16))
        m.add("count", torch.tensor(200, dtype=torch.uint8))
    assert m.sums["half"].dtype == torch.float64
    assert (float(m.sums["half"]), int(m.sums["count"])) == (2.0**-11, 400)
    m.add("count", torch.tensor(0.5))
    assert float(m.sums["count"]) == 400.5


def test_rows_are_taken_once():
    m = Measurement()
    m.append(prompt=torch.tensor([3, 1]), value=torch.tensor([0.3, 0.1]))
    m.append(prompt=torch.tensor([2]), value=torch.tensor([0.2]))
    assert [c.tolist() for c in m.table("prompt", "value")] == [[1, 2, 3], pytest.approx([0.1, 0.2, 0.3])]
    assert m.take_rows()["prompt"].tolist() == [3, 1, 2]
    assert m.take_rows() == {}
    with pytest.raises(ValueError, match=r"has seen no batch yet: no rows named \['prompt'\]"):
        m.table("prompt")


def test_other_settings_and_kinds_are_not_merged():
    one = fed([[0]])
    assert one.settings() == {"layers": [1, 3], "per_token": True}
    for other in (fed([[1]], layers=(1, 2)), Spread()):
        with pytest.raises(ValueError, match="cannot merge"):
            one.merge(other)


def test_what_a_subclass_forgot_is_named():
    class Nothing(Measurement):
        pass

    for call, word in (
        (lambda m: m.sites(None), "which sites"), (lambda m: m.update(None), r"no update\(\)"),
        (lambda m: m.look(None, None, None), r"no look\(\)"), (lambda m: m.result(), r"no result\(\)"),
    ):  # fmt: skip
        with pytest.raises(NotImplementedError, match=f"Nothing .*{word}"):
            call(Nothing())


def test_layers_and_blocks_are_those_of_the_model():
    info = tiny().info
    assert choose_layers(None, info) == [0, 1, 2, 3]
    assert choose_blocks(None, info) == [0, 1, 2]
    with pytest.raises(ValueError, match="layers"):
        choose_layers([4], info)
    with pytest.raises(ValueError, match="blocks"):
        choose_blocks([3], info)


def test_one_name_is_one_quantity():
    """What a block adds is measured by two measurements, and what it leaves of the norm by one; numbers agree."""
    model, prompts = tiny(), some_prompts([9, 7, 8])
    owners = list(measurements().values())
    own = {name for name in ("norm_ratio", "relative_step") for m in owners if name in m.fields}
    assert own == {"norm_ratio", "relative_step"}
    assert [m.__name__ for m in owners if "norm_ratio" in m.fields] == ["Curvature"]
    assert sorted(m.__name__ for m in owners if "relative_step" in m.fields) == ["Curvature", "Linearity"]
    found = ti.measure(
        model,
        prompts,
        {"a": ti.geometry.Curvature(exclude=()), "b": ti.linearity.Linearity(exclude=())},
        progress=False,
    )
    np.testing.assert_allclose(found["a"]["relative_step"], found["b"]["relative_step"], rtol=1e-5)
    for i in range(3):
        x = [ti.capture(model, prompts, [i], ti.resid([n])).rows(n).double() for n in (0, 1)]
        step = ((x[1] - x[0]).norm(dim=1) / x[0].norm(dim=1)).mean()
        ratio = (x[1].norm(dim=1) / x[0].norm(dim=1)).mean()
        assert float(found["a"]["relative_step"][i, 0]) == pytest.approx(float(step), rel=1e-4)
        assert float(found["a"]["norm_ratio"][i, 0]) == pytest.approx(float(ratio), rel=1e-4)


def test_a_method_that_would_never_be_called_is_refused():
    with pytest.raises(TypeError, match=r"Early\.start\(\) is never called: .*begin\(info, prompts\)"):
        type("Early", (ti.Measurement,), {"start": lambda self, info, prompts: None})
    assert ti.erasure.ErasureScores.__init__.__kinds__["start"] is not None, "a setting may have the name"
