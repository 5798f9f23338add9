"""Figures of what the dots hold, who looks at them, and what is answered without them."""

import pytest
import torch

import tokinterp as ti
from tokinterp.fillers.tasks.dot_ablation import ablate_dots
from tokinterp.fillers.tasks.dot_probes import probe_contents
from tokinterp.fillers.tasks.dots import read_dots
from tokinterp.fillers.tasks.network import Network, build
from tokinterp.fillers.tasks.task import Task

TASK = Task(n=4, d=2, m=3)


@pytest.fixture(scope="module")
def lm():
    net = build(TASK, Network(2, 32, 2, 64), 0)
    with torch.no_grad():  # weights of size .02 make attention uniform and all answers alike
        for p in net.parameters():
            if p.ndim == 2:
                p *= 6
    return net


@pytest.fixture(scope="module")
def changed(lm):
    return ablate_dots({"net": lm}, TASK, prompts=40, random_trunk=True)


# -- figures --------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_figures_of_all_four_results(lm, changed):
    ds = probe_contents({"filler": lm}, TASK, examples=400, n_boot=20, targets=("pair sum", "match"))
    dots = read_dots(lm, TASK, prompts=5)
    names = [
        name
        for one in (ds, changed, dots["attention"].to_dataset(), dots["contents"].to_dataset())
        for name, _, figure in ti.plots.overview(one)
        if figure.axes
    ]
    assert names == [
        "map_pair_sum", "layers_pair_sum", "map_match", "layers_match", "ablation", "slots", "attention_answer",
        "attention_fillers", "dots",
    ]  # fmt: skip
    ax = ti.plots.dot_attention_by_block(dots["attention"].to_dataset())
    tops = [p.get_y() + p.get_height() for p in ax.patches]
    assert max(tops) == pytest.approx(1, abs=1e-5)
    assert len(ax.patches) == 4 * (2 * 2 + 1)  # two blocks of two heads, and uniform attention
