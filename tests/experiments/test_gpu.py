"""The command for a GPU machine: on a CPU at tiny sizes, with steps that fail and hang."""

import json
import os
import subprocess
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import torch
from conftest import ROOT

from experiments.gpu import __main__ as command
from experiments.gpu import job as jobs
from experiments.gpu import lists
from experiments.gpu.__main__ import main
from experiments.gpu.children import run_child
from experiments.gpu.job import Job, timed
from experiments.gpu.llama import SHAPE, operations
from experiments.gpu.pack import pack
from experiments.gpu.steps import STEPS, Step, chosen, share


def job(tmp_path, **changed):
    facts = {"device": "cpu", "tiny": True, "seconds": 60.0, "out": tmp_path, "work": tmp_path, "data": tmp_path}
    said = {"command": "c", "commit": "abc+", "code": "x"}
    return Job(**{"name": "one", "module": "m", **facts, **said, **changed})


def test_steps_are_chosen_by_letter_or_name_and_share_the_time():
    assert chosen("a,clouds") == ["tests", "clouds"]
    assert chosen("clouds tests") == ["tests", "clouds"]
    with pytest.raises(ValueError, match="--steps nothing: there are a, b"):
        chosen("a,nothing")
    steps = {"x": Step("x", "b", limit=30), "y": Step("y", "c", weight=3), "z": Step("z", "c", weight=1)}
    assert [share(n, list("xyz")[i:], steps, 100.0) for i, n in enumerate("xyz")] == [30.0, 75.0, 100.0]
    assert share("y", list("yxz"), steps, 100.0) == 52.5  # what x may take is kept for it
    assert sum(s.limit for s in STEPS.values()) < 430  # of nine minutes


@pytest.mark.slow
def test_lines_for_a_gpu_are_found_in_code_and_not_in_words(tmp_path):
    (tmp_path / "tokinterp").mkdir()
    text = '"""On cuda."""\n\ndef f(x):\n    """cuda"""\n    # torch.cuda\n    if x.is_cuda:\n        return 1\n'
    text += '    try:\n        return x.device.type == "cuda"\n    except torch.OutOfMemoryError:\n'
    text += '        torch.cuda.empty_cache()\n    raise ValueError("no cuda here")\n'
    (tmp_path / "tokinterp" / "a.py").write_text(text)
    assert lists.cuda_paths(tmp_path) == [
        "tokinterp/a.py:6: if x.is_cuda:",
        'tokinterp/a.py:9: return x.device.type == "cuda"',
        "tokinterp/a.py:10: except torch.OutOfMemoryError:",
        "tokinterp/a.py:11: torch.cuda.empty_cache()",
    ]
    assert any("loop.py" in line and "OutOfMemoryError" in line for line in lists.cuda_paths())


def test_wheels_are_what_the_command_needs_and_a_bare_machine_lacks():
    names = lists.wheels()
    assert {n.split("==")[0] for n in names} >= {"zarr", "numcodecs", "donfig"}
    assert all("==" in n for n in names)
    assert not {"torch", "transformers", "numpy", "typer"} & {n.split("==")[0] for n in names}
    assert lists.absent() == []
    assert lists.pip_line(names).endswith(f"-d WHEELS {' '.join(names)}")


def test_tests_that_take_a_device_are_found():
    assert "tests/geometry/test_norms.py" in lists.device_tests()
    assert "tests/test_imports.py" not in lists.device_tests()
    assert lists.missing() == []


@pytest.mark.slow
def test_a_child_that_fails_or_hangs_is_told_and_leaves_nothing_running(tmp_path):
    log = tmp_path / "log"

    def run(code, seconds=60.0):
        return run_child([sys.executable, "-c", code], log, seconds)

    assert run("print(1)") == ""
    assert run("raise ValueError('so')") == "exit code 1: ValueError: so"
    assert run("import os; os.kill(os.getpid(), 11)") == "killed by SIGSEGV"
    mark = tmp_path / "mark"
    forks = f"import os, time; pid = os.fork(); open({str(mark)!r}, 'a').write(f'{{os.getpid()}} '); time.sleep(60)"
    started = time.monotonic()
    assert run(forks, 3.0) == "hung: stopped after 3 s"
    assert time.monotonic() - started < 20
    time.sleep(0.2)
    for pid in map(int, mark.read_text().split()):
        status = Path(f"/proc/{pid}/status")
        assert not status.exists() or "zombie" in status.read_text()


def test_each_row_is_on_the_disk_at_once_and_an_unfinished_step_keeps_its_rows(tmp_path):
    one = job(tmp_path)
    one.row("first", seconds=2.0)
    found = json.loads((tmp_path / "one.json").read_text())
    assert found["status"] == "running"
    assert found["rows"] == {"first": {"seconds": 2.0}}
    assert (found["commit"], found["dirty"], found["command"]) == ("abc", True, "c")
    assert found["versions"]["torch"] == torch.__version__
    assert not job(tmp_path).wants("first")
    assert job(tmp_path, code="y").wants("first")
    assert job(tmp_path, again=True).wants("first")
    assert not job(tmp_path, code="y").wants("second", needs=61.0)
    one.write("done")
    assert job(tmp_path).wants("first")


def test_floor_is_the_larger_of_operations_and_bytes_at_measured_rates(tmp_path):
    assert job(tmp_path).against(1.0, {"bfloat16": 1.0}) == {}
    rates = job(tmp_path, name="ceilings")
    for name, rate in (("copy", 100.0), ("bfloat16", 10.0), ("float64", 5.0)):
        rates.row(name, rate=rate)
    one = job(tmp_path)
    assert one.against(8.0, {"bfloat16": 10.0, "float64": 5.0}) == {"floor": 2.0, "ratio": 4.0}
    assert one.against(8.0, {"bfloat16": 10.0}, moved=400.0) == {"floor": 4.0, "ratio": 2.0}
    assert job(tmp_path, code="y").against(1.0, {"bfloat16": 1.0}) == {}  # other code: measured again first


@pytest.mark.slow
def test_times_are_medians_without_the_first_call():
    waits = iter([0.3, 0.001, 0.1, 0.001])
    found = timed(lambda: time.sleep(next(waits)), torch.device("cpu"), rounds=3)
    assert found["rounds"] == 3
    assert found["seconds"] < 0.1 <= found["high"] < 0.3
    assert timed(lambda: time.sleep(0.02), torch.device("cpu"), rounds=3, most=0.03)["rounds"] == 0


def test_operations_of_the_pass_are_those_of_its_parameters():
    lm = 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    cost = operations(SHAPE, 8, 1024)
    assert cost["forward"]["bfloat16"] == pytest.approx(2 * lm * 8192, rel=0.03)
    assert cost["lens"]["bfloat16"] == 33 * cost["head"]["bfloat16"]


OF_THEIR_OWN = {"machine", "tests", "fails", "hangs"}


def some_steps_here(monkeypatch):
    """Run the steps that neither fail nor start tests in this process: another would import for seconds."""

    def run(call, log, seconds, env=None):
        if json.loads(call[-1])["name"] in OF_THEIR_OWN:
            return run_child(call, log, seconds, env)
        assert call[1:3] == ["-m", jobs.__name__]
        with monkeypatch.context() as patch, log.open("a") as out, redirect_stdout(out):
            patch.setattr(sys, "argv", call[-2:])
            jobs.main()
        return ""

    monkeypatch.setattr(command, "run_child", run)


@pytest.mark.slow
def test_end_to_end_with_a_step_that_fails_and_one_that_hangs(tmp_path, capsys, monkeypatch):
    some_steps_here(monkeypatch)
    out, work = tmp_path / "out", tmp_path / "work"
    faults = {"fails": Step("tests.gpu_faults", "f", limit=60), "hangs": Step("tests.gpu_faults", "f", limit=9)}
    steps = {"tests": STEPS["tests"], **faults, **STEPS}
    del steps["full"]  # as narrow
    words = ["--device", "cpu", "--tiny", "--minutes", "10", "--out", str(out), "--work", str(work)]
    assert main([*words, "--steps", ",".join(steps)], steps) == 1
    said = capsys.readouterr().out
    records = {p.stem: json.loads(p.read_text()) for p in out.glob("*.json")}
    assert {records[k]["status"] for k in set(steps) - set(faults)} <= {"done", "unfinished"}
    assert all(records[k]["rows"] for k in steps)
    assert records["fails"]["status"] == records["hangs"]["status"] == "failed"
    assert records["fails"]["rows"] == {"before": {"seconds": 1.0}}
    assert records["dots"]["rows"]["filler/seed-0"] == {"finished": True}
    assert "fails: FAILED: RuntimeError: CUDA error: made up" in said
    assert "hangs: FAILED: hung: stopped after 9 s" in said
    assert "tokinterp/run/loop.py" in said
    assert "zarr==" in said
    row = records["llama"]["rows"]["measure all"]
    assert row["ratio"] == pytest.approx(row["seconds"] / row["floor"])
    assert "llama: measure all" in said
    assert str(tmp_path) not in json.dumps(records)
    assert records["summary"]["steps"]["ceilings"] == "done"
    assert main([*words, "--steps", "ceilings,clouds"], steps) == 0
    assert "clouds: done before" in capsys.readouterr().out
    assert json.loads((out / "clouds.json").read_text())["created"] == records["clouds"]["created"]


@pytest.mark.slow
def test_without_a_gpu_nothing_is_started_and_the_way_out_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert main(["--out", str(tmp_path / "out"), "--work", str(tmp_path / "work"), "--steps", "a"]) == 2
    said = capsys.readouterr().out
    assert "machine: FAILED: exit code 1" in said
    assert "--device cpu --tiny" in said
    assert not (tmp_path / "out" / "tests.json").exists()


@pytest.mark.slow
def test_the_shell_script_starts_it():
    script = [str(ROOT / "experiments" / "gpu.sh"), "--list"]
    done = subprocess.run(script, capture_output=True, text=True, env={**os.environ, "PYTHON": sys.executable})
    assert done.returncode == 0, done.stderr
    assert "python -m pip download --no-deps" in done.stdout


def test_what_leaves_the_machine_is_put_back_by_cat_and_tar(tmp_path):
    out, work, there = tmp_path / "o", tmp_path / "w", tmp_path / "packed"
    files = {"narrow/model/model.safetensors": 3000, "narrow/resume.pt": 90_000, "narrow/log.jsonl": 50, "x.log": 10}
    for name, size in {**files, "full/step_000100.pt": 5, "site/zarr.py": 5}.items():
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        (work / name).write_bytes(os.urandom(size))
    out.mkdir()
    (out / "llama.json").write_text("{}")
    assert pack(out, work, there, total=60_000, part=9_000) == ["work/narrow/resume.pt"]
    assert all(p.stat().st_size <= 9_000 for p in there.iterdir())
    assert len(list(there.iterdir())) > 1
    assert pack(out, work, there, total=400_000, part=9_000) == []
    subprocess.run(f"cat {there}/packed.* | tar x -C {tmp_path}", shell=True, check=True)
    assert (tmp_path / "out" / "llama.json").read_text() == "{}"
    for name in files:
        assert (tmp_path / "work" / name).read_bytes() == (work / name).read_bytes()
    assert not (tmp_path / "work" / "site").exists()
