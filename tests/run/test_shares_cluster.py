"""A run in shares on the workers of a cluster."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
from stored_runs import LENGTHS, assert_same, measured
from tiny import Norms, byte_tokenizer, some_prompts, tiny_lm

import tokinterp as ti


class FakeClient:
    """What measure_on_cluster needs of a distributed.Client, on threads."""

    def submit(self, function, *values, pure):
        return function(*values)

    def map(self, function, values, pure, **common):
        held = [cell.cell_contents for cell in function.__closure__]
        assert not any(isinstance(value, ti.Prompts) for value in held), "the prompts travel with every share"
        with ThreadPoolExecutor(3) as pool:
            return list(pool.map(partial(function, **common), values))

    def gather(self, futures):
        return futures


def load_tiny():
    return ti.wrap(tiny_lm(), byte_tokenizer(), id="tiny-llama")


@pytest.mark.slow
def test_cluster_run_is_the_plain_run(tmp_path):
    which = {"norms": Norms(), "lens": ti.lens.LogitLens(tokens=None, top=2)}
    options = {"store": tmp_path / "run.zarr", "shares": 3, "progress": False}
    run = ti.measure_on_cluster(FakeClient(), load_tiny, some_prompts(LENGTHS), which, **options)
    assert_same(run, measured(which=which))
    again = ti.measure_on_cluster(FakeClient(), load_tiny, some_prompts(LENGTHS), which, **options)
    assert_same(again, run, exact=True)


@pytest.mark.slow
def test_cluster_of_dask(tmp_path, extras):
    from distributed import Client, LocalCluster

    which = {"norms": Norms()}
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        store = tmp_path / "run.zarr"
        run = ti.measure_on_cluster(client, load_tiny, some_prompts(LENGTHS), which, store=store, shares=3)
    assert_same(run, measured(which=which))
