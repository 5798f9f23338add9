"""The command line does what the library does, and says in one line what is wrong."""

import inspect
import json
import os
import re
import sys

import numpy as np
import pytest
import xarray as xr
from typer.main import get_command

import tokinterp as ti
from tokinterp import scan
from tokinterp.cli import main as cli
from tokinterp.cli import measure as measure_module
from tokinterp.cli import options, results
from tokinterp.cli.measurements import measurement_class
from tokinterp.lens.lens import LogitLens

COMMAND = {"measure": ["measure"], "fit": ["fit", "probes"]}
TEXTS = [t.text[: 100 + 20 * n] for n, t in enumerate(ti.bundled_texts("dialogue")[:4])]


@pytest.fixture
def call(capsys):
    """Run a command line; return exit code, stdout and stderr."""

    def run(*arguments):
        with pytest.raises(SystemExit) as end:
            cli.main([str(a) for a in arguments])
        out, err = capsys.readouterr()
        return end.value.code, out, err

    return run


@pytest.fixture
def texts(tmp_path):
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps({"body": t}) + "\n" for t in TEXTS), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def stored(tiny_run, tmp_path_factory):
    tree = tiny_run.copy()
    del tree["dimension"], tree["spectrum"]
    return ti.write(tree, tmp_path_factory.mktemp("runs") / "run.zarr")


@pytest.mark.parametrize(("given", "then"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_waiting_threads_sleep_unless_told_otherwise(given, then, call, monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", given or "")
    if given is None:
        monkeypatch.delenv("OMP_WAIT_POLICY")
    assert call("--help")[0] == 0
    assert os.environ["OMP_WAIT_POLICY"] == then


@pytest.mark.slow
def test_measure_is_the_library_call(call, tiny_folder, texts, tmp_path):
    store = tmp_path / "run.zarr"
    code, out, err = call(
        "measure", tiny_folder, texts, "-m", "lens", "-m", "spectrum", "-m", "dimension", "-o", store,
        "--field", "body", "--max-tokens", "90", "--limit", "3", "--layers", "0,2-3",
        "--set", "lens.top=1", "--set", "dimension.scales=[2,4]", "--set", "dimension.k=5",
        "--device", "cpu", "--batch-tokens", "200",
    )  # fmt: skip
    assert code == 0, err
    run = ti.read(store)
    model = ti.load_model(tiny_folder, device="cpu")
    prompts = ti.Prompts.from_texts(TEXTS[:3], model, max_tokens=90)
    same = ti.measure(model, prompts, {"lens": LogitLens(layers=[0, 2, 3], top=1)}, progress=False, batch_tokens=200)
    xr.testing.assert_equal(run["lens"].to_dataset(), same["lens"].to_dataset())
    assert run["dimension"]["scale"].values.tolist() == [2, 4]
    assert run["spectrum"]["layer"].values.tolist() == [0, 2, 3]
    for name in ("lens (LogitLens)", "3 prompts", "cross entropy (nat)"):
        assert name in out + err
    last = float(run["lens"]["cross_entropy"].sel(layer=3).mean())
    assert f"{last:.4g}" in out  # the table shows the numbers of the run

    again, _, err = call("measure", tiny_folder, texts, "-m", "lens", "-o", store, "--field", "body")
    assert again == 2
    assert "belongs to another run" in err


@pytest.mark.slow
def test_windows_and_bundled_texts(call, tiny_folder, tmp_path):
    store = tmp_path / "run.zarr"
    options = ["--limit", "1", "--max-tokens", "64", "--stride", "60", "--min-tokens", "20", "--bos", "no"]
    code, _, err = call("measure", tiny_folder, "bundled", "-m", "lens", "-o", store, *options)
    assert code == 0, err
    run = ti.read(store)
    assert run["prompts"].sizes["prompt"] > 10
    assert run["prompts"]["n_tokens"].values.min() >= 20
    assert "no BOS" in err


@pytest.mark.slow
def test_report_plot_and_show_read_a_store(call, stored, tmp_path):
    code, _, err = call("report", stored, "-o", tmp_path / "page.html", "--title", "All about tokens")
    assert code == 0, err
    assert "All about tokens" in (tmp_path / "page.html").read_text(encoding="utf-8")
    code, out, _ = call("plot", stored, "-o", tmp_path / "figures", "--prompt", "1")
    files = sorted(f.name for f in (tmp_path / "figures").iterdir())
    assert code == 0
    assert files == [
        "lens_accuracy.png",
        "lens_cross_entropy.png",
        "lens_table.png",
        "lens_token_cross_entropy_tokens.png",
    ]
    assert len(out.split()) == len(files)
    code, out, _ = call("show", stored)
    assert code == 0
    assert "tiny-llama" in out
    assert "lens (LogitLens)" in out
    assert "\n      3 " in out  # a row for each layer


def test_show_says_how_far_an_unfinished_run_has_come(call, tiny_folder, tmp_path, monkeypatch):
    update, seen = LogitLens.update, []

    def failing(self, batch):
        if len(seen) == 2:
            raise RuntimeError("the power went off")
        seen.append(batch)
        update(self, batch)

    monkeypatch.setattr(LogitLens, "update", failing)
    model = ti.load_model(tiny_folder, device="cpu")
    prompts, asked = ti.Prompts.from_texts(TEXTS, model, max_tokens=64), {"lens": LogitLens()}
    store = tmp_path / "run.zarr"
    with pytest.raises(RuntimeError, match="power"):
        ti.measure(model, prompts, asked, store=store, batch_tokens=64, checkpoint_every=0, progress=False)
    code, out, _ = call("show", store)
    assert code == 0
    assert "unfinished" in out
    assert "lens (LogitLens)" in out
    assert "2 prompts done" in out


def test_show_says_how_far_walks_fits_and_conditions_have_come(call, tiny_folder, tmp_path, monkeypatch):
    model, seen = ti.load_model(tiny_folder, device="cpu"), []
    prompts = ti.Prompts.from_texts(TEXTS, model, max_tokens=32)
    own = type(model).run

    def failing(self, *given, **options):
        seen.append(1)
        if len(seen) == failing.last:
            raise RuntimeError("the power went off")
        return own(self, *given, **options)

    monkeypatch.setattr(type(model), "run", failing)
    options = {"batch_tokens": 32, "checkpoint_every": 0, "progress": False}
    makers = {
        "walk.zarr": (lambda **kept: ti.behaviour.continuations(model, prompts, 2, **kept), "continuations"),
        "lens.safetensors": (lambda **kept: ti.lens.fit_tuned_lens(model, prompts, steps=1, **kept), "a fit"),
        "both.zarr": (lambda **kept: ti.measure_conditions(
            model, {n: ti.Condition(prompts) for n in "ab"}, {"lens": LogitLens()}, **kept), "lens (LogitLens)"),
    }  # fmt: skip
    for name, (make, says) in makers.items():
        seen.clear()
        failing.last = 10**6
        make(**options)
        failing.last, _ = len(seen), seen.clear()
        with pytest.raises(RuntimeError, match="power"):
            make(**options, store=tmp_path / name)
        code, out, _ = call("show", tmp_path / name)
        assert code == 0
        assert f"{name} is unfinished" in out
        assert says in out
        assert "after " in out or "parts finished" in out or "prompts done" in out, out


def test_show_says_how_far_each_share_of_each_condition_has_come(call, tiny_folder, tmp_path):
    model, store = ti.load_model(tiny_folder, device="cpu"), tmp_path / "both.zarr"
    conditions = {n: ti.Condition(ti.Prompts.from_texts(TEXTS, model, max_tokens=32)) for n in "ab"}
    ti.measure_conditions(model, conditions, {"lens": LogitLens()}, store=store, share=(1, 2), progress=False)
    _, out, _ = call("show", store)
    assert [line.split() for line in out.splitlines()[-2:]] == [
        [f"{n}-{name}.zarr", "share-1-of-2", "finished"] for n, name in enumerate("ab")
    ]


def test_load_says_what_a_model_is_and_offers(call, tiny_folder):
    code, out, _ = call("load", tiny_folder, "--device", "cpu")
    assert code == 0
    for word in ("LlamaForCausalLM", "layers 0 to 3", "blocks 0 to 2", "mlp_out", "hooks of others  none"):
        assert word in out
    assert not re.search(r"[{}\[\]]", out), "raw facts"
    assert max(map(len, out.splitlines())) < 140


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"-m": "lenz"}, "--measurement lenz: unknown measurement: there are attention.coverage, "),
        ({"-m": "lenz"}, "did you mean 'lens'?"),
        ({"-m": "linearity", "--layers": "2,3"}, "--layers 2,3: linearity has no such setting; it has blocks, "),
        ({"-m": "erasure", "--set": "probes=/no/such/folder"}, "/no/such/folder"),
        ({"--limit": "0"}, "--limit 0: give a whole number of at least 1"),
        ({"--stride": "0"}, "--stride 0: give a whole number"),
        ({"--on-long": "cut"}, "--on-long 'cut': give"),
        ({"--batch-tokens": "0"}, "--batch-tokens 0: give"),
        ({"--checkpoint-every": "nan"}, "--checkpoint-every nan: give"),
        ({"--share": "²/³"}, "--share ²/³: write I/N"),
        ({"MODEL": "/no/such/folder"}, "MODEL '/no/such/folder': there is no such folder"),
        ({"TEXTS": "/no/such/file.txt"}, "TEXTS /no/such/file.txt: no such file"),
        ({"--measurement": "lens"}, "-m lens is given twice: name each measurement once"),
        ({"--layers": "0,9"}, "layers"),
        ({"--layers": "last"}, "write numbers and ranges"),
        ({"--layers": "0,3-2"}, "write numbers and ranges"),
        ({"--layers": "0-999999999"}, "write numbers and ranges"),
        ({"--set": "probes=somewhere"}, "--set probes: lens has no setting probes; there are layers, "),
        ({"-m": "erasure"}, "-m erasure needs its setting probes: --set probes=VALUE, with what tokinterp fit probes"),
        ({"--seed": "3"}, "--seed 3: lens draws nothing"),
        ({"--stride": "4", "--on-long": "error"}, "--stride 4: --on-long error makes no windows"),
        ({"--device": "cuda:99"}, "--device 'cuda:99' does not exist"),
        ({"--dtype": "int8"}, "--dtype 'int8' is no floating-point dtype"),
        ({"--backend": "jax"}, "--backend 'jax': give"),
        ({"--bos": "maybe"}, "give one of 'auto', 'yes', 'no'"),
        ({"--field": "titel"}, "titel"),
        ({"--max-tokens": "100000"}, "100000"),
        ({"--min-tokens": "5000"}, "5000"),
        ({"--set": "lens.tops=1"}, "--set lens.tops: lens has no setting tops; there are "),
        ({"--set": "lens.tops=1"}, "did you mean 'top'?"),
        ({"--set": "lens.top=abc"}, "--set lens.top='abc': give a whole number"),
        ({"--set": "lens.top=NaN"}, "--set lens.top=nan: give a whole number"),
        ({"--set": "lens.layers=12"}, "has layers 0 (before the first block) to 3"),
        ({"--set": "lens.layers=1.5"}, "--set lens.layers=1.5: give "),
        ({"--set": "lens.layers=" + "[" * 100_000}, "--set lens.layers='[["),
        ({"--set": "spectrum.layers=[1]"}, "NAME.SETTING=VALUE"),
        ({"--on-long": "error", "--max-tokens": "8"}, "8"),
    ],
)
@pytest.mark.slow
def test_bad_input_is_one_line_and_leaves_nothing(call, tiny_folder, texts, tmp_path, change, message):
    store = tmp_path / "run.zarr"
    options = {"-m": "lens", "-o": store, "--field": "body", **change}
    model, file = options.pop("MODEL", tiny_folder), options.pop("TEXTS", texts)
    code, _, err = call("measure", model, file, *[x for pair in options.items() for x in pair])
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert (code, len(lines)) == (2, 1), err
    assert message in lines[0]
    assert "Traceback" not in err
    assert not list(tmp_path.glob("run*"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"TEXTS": "/no/such/file.txt"}, "/no/such/file.txt: no such file"),
        ({"--field": "titel"}, "line 1: no field 'titel'; there are body"),
        ({"--bos": "maybe"}, "--bos 'maybe': give one of 'auto', 'yes', 'no'"),
        ({"--min-tokens": "0"}, "--min-tokens 0: give"),
        ({"-o": "OTHER"}, "is a result, but not of measure()"),
        ({"-o": "FILE/run.zarr"}, "is a file, not a folder"),
        ({"-o": "s3://bucket/run.zarr"}, "--output 's3://bucket/run.zarr' is a URL"),
        ({"--layers": "²"}, "--layers ²: write numbers and ranges"),
        ({"COMMAND": "fit", "--set": "offsets=[0,0]"}, "--set offsets=[0, 0]: give each once"),
        ({"COMMAND": "fit", "--set": "method=lasso"}, "--set method='lasso': give one of"),
        ({"COMMAND": "fit", "--max-gigabytes": "nan"}, "--max-gigabytes nan: give"),
        ({"COMMAND": "fit", "--val": "/no/such/file.txt"}, "/no/such/file.txt: no such file"),
    ],
)
@pytest.mark.slow
def test_what_is_wrong_is_said_before_the_model_is_loaded(call, texts, stored, tmp_path, monkeypatch, change, message):
    monkeypatch.setattr(options, "load_named", lambda *_, **__: pytest.fail("the model was loaded"))
    ti.write(ti.read(stored)["lens"].to_dataset(), tmp_path / "other.zarr")
    named = {"OTHER": tmp_path / "other.zarr", "FILE/run.zarr": texts / "run.zarr"}
    given = {"-o": tmp_path / "run.zarr", "--field": "body", **change}
    given["-o"] = named.get(given["-o"], given["-o"])
    command, file = given.pop("COMMAND", "measure"), given.pop("TEXTS", texts)
    given |= {"-m": "lens"} if command == "measure" else {}
    code, _, err = call(*COMMAND[command], "bundled", file, *[x for pair in given.items() for x in pair])
    assert (code, err.count("\n")) == (2, 1), err
    assert message in err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"MODEL": "/no/such/folder"},
            "MODEL '/no/such/folder': there is no such folder: give a folder with config.json",
        ),
        ({"MODEL": "EMPTY"}, "has no config.json: is it a Hugging Face model folder?"),
        ({"--device": "cuda:99"}, "--device 'cuda:99' does not exist"),
        ({"COMMAND": "fit", "MODEL": "EMPTY"}, "has no config.json"),
    ],
)
def test_a_wrong_model_is_said_before_the_texts_are_read(call, texts, tmp_path, monkeypatch, change, message):
    monkeypatch.setattr(options, "read_named", lambda *_, **__: pytest.fail("the texts were read"))
    (tmp_path / "EMPTY").mkdir()
    monkeypatch.chdir(tmp_path)
    given = {"-o": tmp_path / "run.zarr", **change}
    command, model = given.pop("COMMAND", "measure"), given.pop("MODEL", "bundled")
    given |= {"-m": "lens"} if command == "measure" else {}
    code, _, err = call(*COMMAND[command], model, texts, *[x for pair in given.items() for x in pair])
    assert (code, err.count("\n")) == (2, 1), err
    assert message in err


@pytest.mark.parametrize("name", scan.measurements())
@pytest.mark.slow
def test_every_setting_of_a_measurement_can_be_looked_up(call, name):
    settings = inspect.signature(measurement_class(name)).parameters
    code, out, _ = call("measurements", name)
    assert code == 0
    for setting, parameter in settings.items():
        line = next(x for x in out.splitlines() if x.split()[:1] == [setting])
        assert ("needed" in line) == (parameter.default is parameter.empty)
    code, out, _ = call("measure", "-m", name, "--help")
    assert code == 0
    assert f"Settings of {name} (--set {name}.SETTING=VALUE)" in out
    assert all(re.search(rf"^  {setting} ", out, re.MULTILINE) for setting in settings)


def test_measurements_are_listed(call):
    code, out, _ = call("measurements")
    assert code == 0
    names = [line.split()[0] for line in out.splitlines() if line]
    assert names == ["measurements,", *scan.measurements(), "fits,", *scan.fits()]
    assert "tokinterp measurements NAME" in call("measure", "--help")[1]
    assert call("measurements", "lenz")[0] == 2


def test_the_type_of_a_figure_is_no_path(call, tmp_path):
    code, _, err = call("plot", tmp_path, "--format", "/../../evil.png")
    assert (code, "--format '/../../evil.png': give one of 'png'" in err) == (2, True), err


def test_traceback_on_request_and_usage(call, tmp_path):
    code, _, err = call("show", tmp_path / "none.zarr")
    assert (code, err.count("\n")) == (2, 1)
    code, _, err = call("show", tmp_path / "none.zarr", "--traceback")
    assert code == 2
    assert "Traceback" in err
    code, _, err = call("measure", "bundled")
    assert code == 2
    code, out, _ = call("--help")
    assert code == 0
    for name in get_command(cli.application()).commands:  # type: ignore[attr-defined]
        assert name in out


def test_ctrl_c_exits_with_130_and_the_hint(call, tiny_folder, texts, tmp_path, monkeypatch):
    def interrupted(self, batch):
        import signal

        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(LogitLens, "update", interrupted)
    store = tmp_path / "run.zarr"
    arguments = ["measure", tiny_folder, texts, "-m", "lens", "-o", store, "--field", "body", "--batch-tokens", "128"]
    code, _, err = call(*arguments)
    assert code == 130
    assert "the same call goes on from there" in err
    assert "Traceback" not in err
    monkeypatch.undo()
    assert not store.exists()


@pytest.mark.slow
def test_demo_ends_in_a_report_figures_and_a_store(call, tiny_folder, tmp_path, monkeypatch):
    model = ti.load_model(tiny_folder, device="cpu")
    prompts = ti.Prompts.from_texts([t * 2 for t in TEXTS], model, max_tokens=256)
    monkeypatch.setattr(measure_module, "demo_input", lambda: (model, prompts))
    code, _, err = call("demo", "--out", tmp_path / "demo")
    assert code == 0, err
    assert (tmp_path / "demo" / "report.html").stat().st_size > 50_000
    assert (tmp_path / "demo" / "erasure.html").stat().st_size > 50_000
    assert len(list((tmp_path / "demo" / "figures").glob("*.png"))) == 14
    assert sorted(ti.read(tmp_path / "demo" / "run.zarr").children) == ["dimension", "lens", "prompts", "spectrum"]
    monkeypatch.setattr(results, "draw_all", lambda *_: [])
    monkeypatch.setattr(sys.modules["tokinterp.results.report"], "report", lambda _, path: path)
    for kind in (LogitLens, ti.erasure.ProbeScores):
        monkeypatch.setattr(kind, "update", lambda *_: pytest.fail("measured again"))
    code, _, err = call("demo", "--out", tmp_path / "demo")  # once more, over what is there
    assert code == 0, err


def test_no_command_replaces_what_is_not_its_own(call, stored, tmp_path, monkeypatch):
    for place, work in ((options, "load_named"), (measure_module, "demo_input"), (results, "draw_all")):
        monkeypatch.setattr(place, work, lambda *_, **__: pytest.fail("the work began"))
    monkeypatch.setattr(
        sys.modules["tokinterp.results.report"], "report", lambda *_, **__: pytest.fail("the work began")
    )
    file, folder = tmp_path / "thesis.html", tmp_path / "thesis"
    file.write_text("mine")
    (folder / "run.zarr").mkdir(parents=True)
    (folder / "a.png").write_text("mine")
    for arguments, message in (
        (["report", stored, "-o", file], "is there already: give another name, or --overwrite"),
        (["report", stored, "-o", folder, "--overwrite"], "is no plain file but a folder"),
        (["report", stored, "-o", file / "page.html"], "is a file, not a folder"),
        (["report", stored, "-o", "s3://bucket/page.html"], "is a URL"),
        (["plot", stored, "-o", folder], "has png files already (a.png): give another folder, or --overwrite"),
        (["plot", stored, "-o", file, "--overwrite"], "is a file: give the name of a folder"),
        (
            ["plot", stored, "-o", tmp_path / "new", "--format", "exe"],
            "--format 'exe': give one of 'png', 'pdf', 'svg'",
        ),
        (["demo", "-o", folder], "something is there that no demo wrote"),
        (["demo", "-o", file], "something is there that no demo wrote"),
    ):
        code, _, err = call(*arguments)
        assert (code, message in err, err.count("\n")) == (2, True, 1), (arguments, err)
    assert (file.read_text(), (folder / "a.png").read_text()) == ("mine", "mine")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a.png", "run.zarr", "thesis", "thesis.html"]


@pytest.mark.slow
def test_what_a_command_may_replace(call, stored, tmp_path, monkeypatch):
    done = []
    monkeypatch.setattr(results, "draw_all", lambda run, folder, *_: done.append(folder) or [])
    folder = tmp_path / "figures"
    folder.mkdir()
    (folder / "a.png").write_text("mine")
    assert call("plot", stored, "-o", folder, "--overwrite")[0] == 0
    assert call("plot", stored, "-o", folder, "--format", "pdf")[0] == 0
    assert done == [folder, folder]
    page = tmp_path / "page.html"
    page.write_text("old")
    monkeypatch.setattr("tokinterp.plots.views.pictures_of", lambda *_: [])
    assert call("report", stored, "-o", page, "--overwrite")[0] == 0
    assert page.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


@pytest.mark.slow
def test_short_texts_are_nan_and_counted(call, tiny_folder, texts, tmp_path):
    store = tmp_path / "run.zarr"
    arguments = ["--field", "body", "--set", "dimension.scales=[2,32]"]
    code, out, err = call("measure", tiny_folder, texts, "-m", "dimension", "-o", store, *arguments)
    assert code == 0, err
    assert "lack some estimate" in out
    dimension = ti.read(store)["dimension"]["dimension"]
    assert np.isfinite(dimension.sel(scale=2)).all()
    assert dimension.sel(scale=32).isnull().any()
