"""All measurements of the dots in one pass."""

from tokinterp.fillers.tasks.dots import read_dots
from tokinterp.fillers.tasks.network import Network, build
from tokinterp.fillers.tasks.task import Task

TASK = Task(n=4, d=2, m=5)


def test_dots_are_measured_alone():
    run = read_dots(build(TASK, Network(2, 32, 2, 64), 0), TASK, prompts=5)
    assert set(run.children) >= {"contents", "dimension", "spectrum", "lens"}
    assert (run["dimension"]["n_points"] == TASK.n_fillers).all()
    assert (run["spectrum"]["n"].sel(subset="regular") == 5 * TASK.n_fillers).all()
