"""fit probes, measure -m erasure and vocabulary do what the library does, and say in one line what is wrong."""

import csv
import json
import shlex

import numpy as np
import pytest
import torch
import xarray as xr

import tokinterp as ti
from tokinterp.cli import main as cli
from tokinterp.erasure.vocabulary import contexts

TEXTS = [t.text for t in ti.bundled_texts("article")[:8]]


@pytest.fixture
def call(capsys):
    """Run a command line; return exit code, stdout and stderr."""

    def run(*arguments):
        with pytest.raises(SystemExit) as end:
            cli.main([str(a) for a in arguments])
        out, err = capsys.readouterr()
        return end.value.code, out, err

    return run


def measuring(model, out):
    return ["measure", model, out / "test.jsonl", "-m", "erasure", "-m", "probe_scores", "--set",
            f"probes={out / 'probes'}",
            "-o", out / "run.zarr", "--set", "erasure.start=1", "--set", "erasure.end=3", "--max-tokens", "90",
            "--device", "cpu"]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tiny_folder, tmp_path_factory):
    """Texts, and everything that the commands make of them."""
    out = tmp_path_factory.mktemp("erasure")
    for name, texts in (("train", TEXTS[:5]), ("test", TEXTS[5:])):
        (out / f"{name}.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts), encoding="utf-8")
    fit = ["fit", "probes", tiny_folder, out / "train.jsonl", "-o", out / "probes", "--layers", "1,3", "--set",
           "offsets=[-2,-1,0]", "--val", out / "test.jsonl", "--max-tokens", "80", "--device", "cpu"]  # fmt: skip
    for arguments in (fit, measuring(tiny_folder, out)):
        with pytest.raises(SystemExit) as end:
            cli.main([str(a) for a in arguments])
        assert end.value.code == 0
    return out


@pytest.fixture(scope="module")
def model(tiny_folder):
    return ti.load_model(tiny_folder, device="cpu")


def prompts_of(model, texts, n):
    return ti.Prompts.from_texts(texts, model, max_tokens=n, progress=False)


def test_fit_probes_is_the_library_call(folder, model):
    probes = ti.erasure.TokenProbes.load(folder / "probes", model)
    same = ti.erasure.fit_probes(
        model, prompts_of(model, TEXTS[:5], 80), layers=[1, 3], offsets=[-2, -1, 0],
        validation=prompts_of(model, TEXTS[5:], 80), progress=False,
    )  # fmt: skip
    assert (probes.layers, probes.offsets) == ([1, 3], [-2, -1, 0])
    for layer in probes.layers:
        for offset in probes.offsets:
            np.testing.assert_array_equal(probes.weight(layer, offset), same.weight(layer, offset))


def test_the_paper_settings_are_reached_by_name(call, folder, tiny_folder):
    out = folder / "paper"
    code, text, err = call(
        "fit", "probes", tiny_folder, folder / "train.jsonl", "-o", out, "--layers", "1", "--set", "offsets=[0]",
        "--val", folder / "test.jsonl", "--max-tokens", "20", "--set", "settings=feucht2024", "--device", "cpu",
    )  # fmt: skip
    assert code == 0, err
    assert "TokenProbes(tiny-llama, layers [1], offsets [0]" in text
    facts = ti.erasure.TokenProbes.load(out).facts
    assert facts["settings"]["warmup"] == 1999
    assert facts["bos"] is True


@pytest.mark.slow
def test_fit_probes_says_how_good_they_are_and_what_to_call_next(call, folder, model, tiny_folder, tmp_path):
    arguments = ["fit", "probes", tiny_folder, folder / "train.jsonl", "-o", tmp_path / "my probes", "--layers",
                 "0,2,3",
                 "--set", "offsets=[-2,-1,0]", "--set", "method=ridge"]  # fmt: skip
    code, out, err = call(*arguments, "--max-tokens", "80", "--device", "cpu")
    assert code == 0, err
    probes, prompts = ti.erasure.TokenProbes.load(tmp_path / "my probes"), prompts_of(model, TEXTS[:5], 80)
    right = total = 0
    for batch in ti.stream(model, prompts, ti.resid([2])):
        goal = batch.flatten(batch.labels(-1).masked_fill(batch.special, -1))
        goal = torch.where(torch.isin(goal, torch.tensor([-1, 1])), -1, goal)  # BOS is no label
        right += int((probes.read(batch.rows(2), 2, -1, goal).rank == 0).sum())
        total += int((goal >= 0).sum())
    table = [line.split() for line in out.splitlines()]
    assert ["offset", "-2", "-1", "0"] in table
    assert f"{right / total:.3f}" == next(line for line in table if line[:2] == ["layer", "2"])[3]
    command = shlex.split(err.strip().splitlines()[-1].partition("; next: ")[2])
    assert command[0] == "tokinterp"
    names = {"TEXTS": folder / "test.jsonl", "RUN.zarr": tmp_path / "run.zarr"}
    code, _, err = call(*(names.get(a, a) for a in command[1:]), "--max-tokens", "90", "--device", "cpu")
    assert code == 0, err
    assert set(ti.read(tmp_path / "run.zarr").children) == {"prompts", "probe_scores", "erasure"}


def test_too_little_text_is_said(call, folder, tiny_folder, tmp_path, caplog):
    arguments = ["fit", "probes", tiny_folder, folder / "train.jsonl", "-o", tmp_path / "p", "--layers", "1"]
    assert call(*arguments, "--max-tokens", "20", "--set", "offsets=[0]", "--device", "cpu")[0] == 0
    assert "100 tokens are little for probes of" in caplog.text
    assert "make 3 training steps at most" in caplog.text


def test_nothing_of_others_is_replaced(call, folder, tiny_folder, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter").write_text("x")
    code, _, err = call("fit", "probes", "/no/such/model", "bundled", "-o", tmp_path / "thesis")
    assert (code, "something else than what a fit wrote is there" in err) == (2, True)
    code, _, err = call("fit", "probes", "/no/such/model", "bundled", "-o", "s3://bucket/p")
    assert (code, "is a URL" in err or "is an address" in err) == (2, True)
    table = tmp_path / "table.txt"
    table.write_text("mine")
    code, _, err = call("vocabulary", folder / "run.zarr", "-o", table, "--min-psi", "none")
    assert (code, "is there already" in err, table.read_text()) == (2, True, "mine")
    code, _, err = call("vocabulary", folder / "run.zarr", "-o", table, "--min-psi", "none", "--overwrite")
    assert code == 0, err
    assert "psi" in table.read_text()


def test_measure_with_probes_is_the_library_call(folder, model):
    run = ti.read(folder / "run.zarr")
    probes = ti.erasure.TokenProbes.load(folder / "probes")
    asked = {
        "erasure": ti.erasure.ErasureScores(probes, start=1, end=3),
        "probe_scores": ti.erasure.ProbeScores(probes),
    }
    same = ti.measure(model, prompts_of(model, TEXTS[5:], 90), asked, progress=False)
    for name in asked:
        xr.testing.assert_equal(run[name].to_dataset(), same[name].to_dataset())


@pytest.mark.slow
def test_vocabulary_is_the_ranked_table_with_contexts(call, folder, model, tmp_path):
    prompts = prompts_of(model, TEXTS[5:], 90)
    found = ti.erasure.read_out(ti.read(folder / "run.zarr")["erasure"].to_dataset(), prompts, min_psi=None)
    file = tmp_path / "tables" / "vocabulary.csv"
    code, out, err = call("vocabulary", folder / "run.zarr", "-o", file, "--min-psi", "none", "--top", "3")
    assert code == 0, err
    rows = list(csv.DictReader(file.read_text(encoding="utf-8").splitlines(keepends=True)))
    assert len(rows) == found.sizes["rank"] > 3
    assert [r["ids"] for r in rows] == found["ids"].values.tolist()
    assert [int(r["count"]) for r in rows] == found["count"].values.tolist()
    np.testing.assert_allclose([float(r["psi"]) for r in rows], found["psi"])
    assert [r["context"] for r in rows] == contexts(found, prompts)
    assert [r["psi_low"] == "" for r in rows] == found["psi_interval"].sel(bound="lower").isnull().values.tolist()
    assert len(out.strip().splitlines()) == 4  # heading and three rows
    assert f"3 of {len(rows)} units" in err
    code, _, _ = call("vocabulary", folder / "run.zarr", "-o", tmp_path / "v.txt", "--min-psi", "none")
    assert code == 0
    assert len((tmp_path / "v.txt").read_text(encoding="utf-8").strip().splitlines()) == len(rows) + 1
    code, _, err = call("vocabulary", folder / "run.zarr", "--min-psi", "0.9")
    assert code == 2
    assert "mean psi above 0.9" in err


def test_texts_that_were_moved_are_named_and_other_texts_refused(call, folder, tmp_path):
    moved = tmp_path / "moved.jsonl"
    moved.write_bytes((folder / "test.jsonl").read_bytes())
    run = folder / "run.zarr"
    code, out, _ = call("vocabulary", run, "--texts", moved, "--min-psi", "none")
    assert code == 0
    assert "context" in out
    code, _, err = call("vocabulary", run, "--texts", folder / "train.jsonl")
    assert code == 2
    assert "other tokens now than those measured" in err


@pytest.mark.slow
def test_the_command_stands_in_the_result_which_the_same_command_only_reads(call, folder, tiny_folder):
    run = folder / "run.zarr"
    said = json.loads(ti.read(run).attrs["command"])
    assert said["texts"] == str((folder / "test.jsonl").resolve())
    assert not {"/", "\\"} & set(ti.read(run).attrs["model"])
    before = {f: f.stat().st_mtime_ns for f in run.rglob("*")}
    code, _, err = call(*measuring(tiny_folder, folder))
    assert code == 0, err
    assert {f: f.stat().st_mtime_ns for f in run.rglob("*")} == before


@pytest.mark.slow
def test_report_and_plot_show_erasure(call, folder, tmp_path):
    code, _, err = call("report", folder / "run.zarr", "-o", tmp_path / "page.html")
    assert code == 0, err
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count('class="text"') == 3  # one for each text
    code, _, err = call("plot", folder / "run.zarr", "-o", tmp_path / "figures")
    assert code == 0, err
    files = sorted(f.name for f in (tmp_path / "figures").iterdir())
    assert {"erasure.png", "erasure_in_units.png"} <= set(files)
    assert any(f.startswith("probe_scores") for f in files)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["measure", "MODEL", "TEST", "-m", "erasure", "-o", "x.zarr"], "erasure needs its setting probes"),
        (["measure", "MODEL", "TEST", "-m", "erasure", "-o", "x.zarr", "--set",
          "probes=/no/such"], "no finished probes"),
        (["measure", "MODEL", "TEST", "-m", "erasure", "-o", "x.zarr", "--set", "PROBES", "--set",
          "erasure.start=0", "--set", "erasure.end=2"], "the probes have no layer 0, only [1, 3]"),
        (["measure", "bundled", "TEST", "-m", "erasure", "-o", "x.zarr", "--set", "PROBES", "--set",
          "erasure.start=1", "--set", "erasure.end=3"], "d_model=32, but tokinterp/bundled has 192"),
        (["fit", "probes", "MODEL", "TEST", "-o", "p", "--set", "offsets=next"], "--set offsets='next': give a list"),
        (["fit", "probes", "MODEL", "TEST", "-o", "p", "--layers", "1,9"], "layer"),
        (["fit", "probes", "MODEL", "TEST", "-o", "p", "--set", "settings=mine"], "settings='mine': give 'default'"),
        (["fit", "probes", "MODEL", "TEST", "-o", "p", "--set", "settings=feucht2024"], "'feucht2024': these lower"),
        (["fit", "probes", "MODEL", "TEST", "-o", "p", "--max-gigabytes", "0.00001"], "needs"),
        (["vocabulary", "RUN", "-o", "v.xlsx"], "write .csv or .txt"),
        (["vocabulary", "RUN", "--min-psi", "high"], "write a number or none"),
        (["vocabulary", "RUN", "--result", "lens"], "no result of ErasureScores called 'lens'"),
        (["vocabulary", "RUN", "--texts", "/no/such.jsonl"], "no such file"),
        (["vocabulary", "RUN", "--model", "/no/such/model"], "--model '/no/such/model': cannot load it"),
        (["vocabulary", "/no/such.zarr"], "RUN /no/such.zarr: no result at"),
        (["vocabulary", "RUN", "--texts", ""], "--texts '': give a name, or leave it out"),
        (["measure", "MODEL", "TEST", "-m", "norms", "-o", "x.zarr", "--split", "train"], "--split 'train': "),
        (["measure", "MODEL", "TEST", "-m", "norms", "-o", "x.zarr", "--revision", "v2"], "--revision 'v2': a folder"),
        (["measure", "MODEL", "bundled", "-m", "norms", "-o", "x.zarr", "--split", "a"], "--split a: the bundled"),
    ],
)  # fmt: skip
@pytest.mark.slow
def test_errors_are_one_line(call, folder, tiny_folder, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    names = {
        "MODEL": tiny_folder,
        "TEST": folder / "test.jsonl",
        "PROBES": f"probes={folder / 'probes'}",
        "RUN": folder / "run.zarr",
    }
    code, _, err = call(*(names.get(a, a) for a in arguments))
    assert code in (1, 2)
    last = err.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert message in last
    assert not list(tmp_path.glob("*.zarr"))


def test_a_run_of_the_library_says_how_to_read_it(call, model, tmp_path):
    prompts = prompts_of(model, TEXTS[5:6], 40)
    probes = ti.erasure.fit_probes(model, prompts, layers=[1, 3], offsets=[0, -1, -2], progress=False)
    asked = {n: ti.erasure.ErasureScores(probes, start=1, end=3) for n in ("one", "two")}
    run = ti.measure(model, prompts, asked, progress=False)
    ti.write(run, tmp_path / "run.zarr")
    code, _, err = call("vocabulary", tmp_path / "run.zarr")
    assert code == 2
    assert "several results, one, two: choose one with --result" in err
    code, _, err = call("vocabulary", tmp_path / "run.zarr", "--result", "one")
    assert code == 1
    assert "read_out" in err
