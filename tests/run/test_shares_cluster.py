"""A run in shares on the workers of a Dask cluster."""

import os
import signal
import threading
from functools import partial

import pytest
from conftest import needs_extras
from stored_runs import LENGTHS, assert_same, measured
from tiny import Norms, byte_tokenizer, some_prompts, tiny_lm

import tokinterp as ti
from tokinterp.run import shares as shares_module
from tokinterp.run.facts import partial_folder
from tokinterp.run.shares import _watch

pytestmark = needs_extras
LOADED = []


def load_tiny(seed=0):
    LOADED.append(threading.get_ident())
    return ti.wrap(tiny_lm(seed=seed), byte_tokenizer(), id="tiny-llama")


@pytest.fixture(scope="module")
def client():
    from distributed import Client, LocalCluster

    one = {"n_workers": 2, "threads_per_worker": 2, "processes": False, "dashboard_address": ":0"}
    with LocalCluster(**one) as cluster, Client(cluster) as found:
        yield found


def on_cluster(client, store, which=None, load=load_tiny, prompts=None, **options):
    prompts = some_prompts(LENGTHS) if prompts is None else prompts
    given = {"shares": 5, "progress": False, **options}
    return ti.measure_on_cluster(client, load, prompts, which or {"norms": Norms()}, store=store, **given)


@pytest.mark.slow
def test_cluster_run_is_the_plain_run_and_loads_a_model_once_per_worker(client, tmp_path):
    which = {"norms": Norms(), "lens": ti.lens.LogitLens(tokens=None, top=2)}
    LOADED.clear()
    run = on_cluster(client, tmp_path / "run.zarr", which)
    assert_same(run, measured(which=which))
    assert len(LOADED) == 1, "a model was loaded for every share, or every thread of a process"
    assert not shares_module._here, "the model stays on the workers after the run"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run.zarr"]
    again = on_cluster(client, tmp_path / "run.zarr", which)
    assert_same(again, run, exact=True)


def test_a_share_reads_only_its_own_prompts(client, tmp_path, monkeypatch):
    from tokinterp.run.loop import Runner

    seen, read = [], Runner._capture

    def watched(self, places, *given):
        seen.append((type(self.whole.token_ids.base).__name__, [self.numbers[p] for p in places]))
        return read(self, places, *given)

    monkeypatch.setattr(Runner, "_capture", watched)
    on_cluster(client, tmp_path / "run.zarr", shares=3)
    assert sorted(n for _, numbers in seen for n in numbers) == list(range(len(LENGTHS)))
    assert {kind for kind, _ in seen} == {"memmap"}, "all ids were copied, instead of read where they are looked at"


def test_what_a_share_raises_comes_once_and_nothing_stays(client, tmp_path):
    with pytest.raises(ValueError, match="layers"):
        on_cluster(client, tmp_path / "run.zarr", {"norms": ti.geometry.TokenNorms(layers=[99])})
    assert not list(tmp_path.iterdir())
    assert not shares_module._here


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_token": 9}, "no option 'batch_token': it takes edits, batch_tokens, "),
        ({"share": (0, 2)}, "no option 'share'"),
        ({"shares": 8}, "shares=8: 7 prompts make at most as many shares"),
        ({"prompts": ["The Nile"]}, "prompts="),
    ],
)
def test_settings_are_refused_before_anything_is_sent(tmp_path, options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        on_cluster(None, tmp_path / "run.zarr", **options)


def test_shares_of_a_changed_model_are_refused(client, tmp_path):
    store = tmp_path / "run.zarr"
    assert not measured(which={"norms": Norms()}, model=load_tiny(), store=store, share=(0, 2)).children
    with pytest.raises(ValueError, match=r"belongs to another run; it differs in: .*weights"):
        on_cluster(client, store, load=partial(load_tiny, seed=1), shares=2)
    run = on_cluster(client, store, shares=2)
    assert_same(run, measured(which={"norms": Norms()}))


def run_share(call, load, store, i=0):
    class Prompts:
        @staticmethod
        def prompts():
            return some_prompts(LENGTHS)

    given = (Prompts, load, {"norms": Norms()}, {})
    return shares_module._run_share(i, given, store=store, shares=2, call=call)


def test_a_worker_keeps_nothing_of_a_call_that_has_ended(tmp_path):
    """Whether its share was waiting, or loading the model, or the process that called was killed."""

    def slow():
        shares_module._forget("ended")  # as from another thread
        return load_tiny()

    run_share("ended", slow, tmp_path / "a.zarr")
    assert not shares_module._here, "the model of a call that ended while it was loaded stays"
    LOADED.clear()
    with pytest.raises(RuntimeError, match="share 1 is not begun"):
        run_share("ended", load_tiny, tmp_path / "a.zarr", 1)
    assert not LOADED
    run_share("killed", load_tiny, tmp_path / "b.zarr")
    run_share("new", load_tiny, tmp_path / "c.zarr")
    assert [*shares_module._here] == ["new"], "two models on one device"
    shares_module._forget("new")
    assert not shares_module._here


class Future:
    def __init__(self, status):
        self.status = status

    def done(self):
        return self.status in ("finished", "error")


def test_the_bar_counts_what_the_checkpoints_of_all_shares_say(tmp_path, monkeypatch):
    from tokinterp.files import bars

    store, shown = tmp_path / "run.zarr", []
    measured(which={"norms": Norms()}, store=store, share=(0, 2))
    futures = [Future("pending"), Future("pending")]

    class Bar:
        n, disable = 0, False

        def update(self, more):
            self.n += more
            shown.append(self.n)
            assert len(shown) < 9, "it never ends"
            futures[:] = [Future("finished")] * 2

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

    monkeypatch.setattr(bars, "tqdm", lambda **_: Bar())
    monkeypatch.setattr("distributed.wait", lambda futures, timeout: (_ for _ in ()).throw(TimeoutError))
    _watch(futures, partial_folder(store), 7, 1, True)
    assert shown == [4, 7], "prompts 0, 2, 4, 6 are those of share 0"


def load_and_die(mark):
    """Load the model; the first worker that has finished two batches is killed, and prompts that are read are noted."""
    from tokinterp.run.checkpoint import Checkpoint
    from tokinterp.run.loop import Runner

    save, read, count = Checkpoint.save, Runner._capture, iter(range(99))

    def saved(self, *given):
        save(self, *given)
        if next(count) == 1 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    def noted(self, places, *given):
        with open(mark.with_name("seen"), "a") as f:
            f.write("".join(f"{self.numbers[p]}\n" for p in places))
        return read(self, places, *given)

    Checkpoint.save, Runner._capture = saved, noted
    return load_tiny()


@pytest.mark.slow
def test_the_share_of_a_lost_worker_goes_on_from_its_checkpoint(tmp_path):
    """In two processes, of which the first to have finished two batches of its share is killed."""
    from distributed import Client, LocalCluster

    mark, prompts = tmp_path / "mark", some_prompts([12] * 12)
    options = {"batch_tokens": 24, "checkpoint_every": 0, "shares": 2, "prompts": prompts}
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        run = on_cluster(client, tmp_path / "run.zarr", load=partial(load_and_die, mark), **options)
    assert mark.exists(), "no worker was killed"
    assert sorted(map(int, (tmp_path / "seen").read_text().split())) == list(range(12)), "prompts were read twice"
    assert_same(run, measured(prompts, which={"norms": Norms()}, batch_tokens=24))
