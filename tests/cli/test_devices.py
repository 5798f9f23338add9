"""One process for each device, and the job array of the documentation."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer
import xarray as xr
from conftest import ROOT

import tokinterp as ti
from tokinterp.cli import devices
from tokinterp.cli.main import main
from tokinterp.cli.refusals import Usage, asked


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("all", "torch sees no GPU here; name devices, for example --devices cpu,cpu"),
        ("cuda:0,cuda:1", "does not exist"),
        ("cpu,", "is no torch device"),
        ("gpu", "is no torch device"),
    ],
)
def test_devices_that_are_not_there_are_refused(text, message, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(Usage, match=message):
        devices.choose_devices(text)


def test_every_gpu_is_used_once(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    monkeypatch.setattr("tokinterp.models.hf.choose_device", lambda name: name)
    assert devices.choose_devices("all") == ["cuda:0", "cuda:1", "cuda:2"]
    assert devices.choose_devices("cuda:2, cuda:0") == ["cuda:2", "cuda:0"]
    for bad in ("cuda:1,cuda:1", "cuda,cuda:1"):
        with pytest.raises(Usage, match="name each GPU once and by number"):
            devices.choose_devices(bad)


def children(monkeypatch, *codes, words=("measure", "m", "t", "-o", "x", "--devices", "cpu,cpu", "--share=1/3")):
    """Stand in for the processes; return what was started."""
    started = []

    class Child:
        def __init__(self, given, **options):
            self.words, self.options, self.code = given[3:], options, codes[len(started)]
            self.signals = []
            started.append(self)
            if options["stderr"] is not None:
                options["stderr"].write(b"error: the disk is full\n")

        def poll(self):
            return self.code

        def send_signal(self, number):
            self.signals.append(number)

        def wait(self):
            self.code = 143 if self.code is None else self.code

    monkeypatch.setattr(devices, "subprocess", SimpleNamespace(Popen=Child, DEVNULL=None))
    monkeypatch.setattr(asked, "words", list(words))
    return started


def test_each_device_has_its_share_of_the_share(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(devices, "_cores", lambda: 8)
    started = children(monkeypatch, 0, 0)
    devices.run_on(["cpu", "cpu"], (1, 3))
    for k, child in enumerate(started):
        assert child.words == ["measure", "--device", "cpu", "--share", f"{2 + k}/6", "m", "t", "-o", "x"]
        assert child.options["env"]["OMP_NUM_THREADS"] == "4", "each process takes all cores"


def test_the_words_of_the_one_that_failed_are_shown_and_the_others_end(monkeypatch, capsys):
    started = children(monkeypatch, None, 1, None)
    with pytest.raises(typer.Exit) as end:
        devices.run_on(["cpu"] * 3, (0, 1))
    assert end.value.exit_code == 1
    assert [c.signals for c in started] == [[signal.SIGTERM], [], [signal.SIGTERM]]
    assert capsys.readouterr().err == "cpu (2 of 3): error: the disk is full\n"
    children(monkeypatch, -9, None)
    with pytest.raises(typer.Exit) as end:
        devices.run_on(["cpu"] * 2, (0, 1))
    assert end.value.exit_code == 137


def test_one_that_cannot_be_started_ends_the_others(monkeypatch):
    started = children(monkeypatch, None, None)
    start = devices.subprocess.Popen

    def popen(*given, **options):
        if started:
            raise OSError("too many processes")
        return start(*given, **options)

    devices.subprocess.Popen = popen
    with pytest.raises(OSError, match="too many processes"):
        devices.run_on(["cpu", "cpu"], (0, 1))
    assert [(c.signals, c.code) for c in started] == [([signal.SIGTERM], 143)]


def test_ctrl_c_is_passed_on_and_waited_for(monkeypatch):
    started = children(monkeypatch, None, None)
    monkeypatch.setattr(devices.time, "sleep", lambda _: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        devices.run_on(["cpu", "cpu"], (0, 1))
    assert [c.signals for c in started] == [[signal.SIGINT]] * 2


@pytest.mark.parametrize("other", [["--device", "cpu"], ["--device-map", "auto"], ["--overwrite"]])
def test_options_that_exclude_each_other(other, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        main(
            ["measure", "bundled", "bundled", "-m", "norms", "-o", str(tmp_path / "x.zarr"), "--devices", "cpu", *other]
        )
    assert (end.value.code, f"--devices cpu: {other[0]} does not go with it" in capsys.readouterr().err) == (2, True)


# -- processes ------------------------------------------------------------------------------------------------
def command(folder, text, out, *more):
    words = ["measure", folder, text, "--per-line", "-m", "curvature", "-o", out, "--max-tokens", "60", *more]
    return [sys.executable, "-m", "tokinterp", *map(str, words)]


def start(words, **more):
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(words, env=env, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **more)


@pytest.fixture
def text(tmp_path):
    file = tmp_path / "all.txt"
    file.write_text("\n".join(t.text[:120].replace("\n", " ") for t in ti.bundled_texts()[:24]))
    return file


@pytest.mark.slow
def test_two_processes_one_killed_and_taken_up_again(tiny_folder, text, tmp_path):
    """And a share that another model ran is refused; what comes out is the run of one process."""
    store = tmp_path / "run.zarr"
    more = ["--batch-tokens", "60", "--checkpoint-every", "0", "--device", "cpu"]
    first, second = (start(command(tiny_folder, text, store, *more, "--share", f"{i}/2")) for i in (0, 1))
    state = tmp_path / "run.zarr.partial" / "share-0-of-2" / "state.safetensors"
    while not state.exists() and first.poll() is None:
        time.sleep(0.005)
    first.kill()
    said = first.communicate()[1]
    assert first.returncode == -signal.SIGKILL, said
    said = second.communicate()[1]
    assert (second.returncode, "share 1 of 2 is finished; still to run: [0]" in said) == (0, True), said

    from tiny import byte_tokenizer, tiny_lm

    tiny_lm("llama", seed=1, max_position_embeddings=256).save_pretrained(tmp_path / "changed")
    byte_tokenizer().save_pretrained(tmp_path / "changed")
    words = command(tmp_path / "changed", text, store, *more, "--share", "0/2")[3:]
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2
    model = ti.load_model(tmp_path / "changed", device="cpu")
    prompts = ti.Prompts.from_file(text, model, per_line=True, max_tokens=60)
    with pytest.raises(ValueError, match=r"belongs to another run; it differs in: .*weights"):
        ti.measure(model, prompts, {"curvature": ti.geometry.Curvature()}, store=store, share=(0, 2), progress=False)

    for out in (store, tmp_path / "whole.zarr"):
        share = ["--share", "0/2"] if out == store else []
        with pytest.raises(SystemExit) as end:
            main(command(tiny_folder, text, out, *more, *share)[3:])
        assert end.value.code == 0
    found, whole = ti.read(store)["curvature"].to_dataset(), ti.read(tmp_path / "whole.zarr")["curvature"].to_dataset()
    xr.testing.assert_allclose(found, whole, rtol=1e-5)


@pytest.mark.slow
def test_a_process_for_each_device(tiny_folder, text, tmp_path):
    store = tmp_path / "run.zarr"
    both = start(command(tiny_folder, text, store, "--devices", "cpu,cpu"))
    out, err = both.communicate()
    assert (both.returncode, "curvature" in out) == (0, True), err
    assert ti.read(store)["prompts"].sizes["prompt"] == 24
    assert not list(tmp_path.glob("*.partial"))


SCRIPT = re.compile(r"^srun --unbuffered (tokinterp measure .*--share slurm)$", re.M)


@pytest.mark.slow
def test_the_job_array_of_the_documentation(tmp_path, monkeypatch, capsys):
    page = Path(ROOT, "docs", "howto", "many_gpus.md").read_text(encoding="utf-8")
    [line] = SCRIPT.findall(page)
    first, last = re.search(r"#SBATCH --array=(\d+)-(\d+)", page).groups()
    monkeypatch.chdir(tmp_path)
    for task in range(int(first), int(last) + 1):
        own = {"ID": task, "MIN": first, "MAX": last, "COUNT": int(last) - int(first) + 1, "STEP": 1}
        for name, value in own.items():
            monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))
        with pytest.raises(SystemExit) as end:
            main(shlex.split(line)[1:])
        assert end.value.code == 0, capsys.readouterr().err
    assert ti.read("shared.zarr")["prompts"].sizes["prompt"] == 4
