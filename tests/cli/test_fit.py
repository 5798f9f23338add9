"""Whatever the topics can fit is a command, and goes to the measurements that read it."""

import re
import shlex
from itertools import pairwise

import pytest
import torch

import tokinterp as ti
from tokinterp import scan
from tokinterp.cli import main as cli
from tokinterp.cli.fit import next_command
from tokinterp.cli.measurements import fit_called, make_measurements, settings_of
from tokinterp.cli.refusals import Usage

TEXTS = [t.text[:300] for t in ti.bundled_texts("article")[:4]]


@pytest.fixture
def call(capsys, tmp_path, tiny_folder):
    (tmp_path / "a.txt").write_text("\n".join(t.replace("\n", " ") for t in TEXTS))

    def run(kind, *arguments):
        given = ["fit", kind, tiny_folder, tmp_path / "a.txt", "--per-line", "--max-tokens", "90", "--device", "cpu"]
        with pytest.raises(SystemExit) as end:
            cli.main([str(a) for a in (*given, *arguments)])
        return end.value.code, *capsys.readouterr()

    return run


def test_every_fit_is_found_with_its_settings():
    assert {"erasure.probes", "lens.tuned_lens", "memory.context_decoder"} <= {*scan.fits()}
    for name, run in scan.fits().items():
        assert fit_called(name) is run
        assert fit_called(name.partition(".")[2].replace("_", "-")) is run
        assert all(means for _, _, means in settings_of(run))
        assert not {"model", "prompts", "store"} & {s for s, _, _ in settings_of(run)}
    with pytest.raises(Usage, match=r"kind=prober: unknown kind: there are .*did you mean 'probes'"):
        fit_called("prober")


@pytest.mark.slow
def test_a_lens_is_fitted_kept_and_measured_with(call, tmp_path, tiny_folder):
    file = tmp_path / "lens.safetensors"
    code, _, err = call("tuned-lens", "-o", file, "--layers", "1", "--set", "steps=2", "--seed", "3")
    assert code == 0, err
    model = ti.load_model(tiny_folder, device="cpu")
    prompts = ti.Prompts.from_texts([t.replace("\n", " ") for t in TEXTS], model, max_tokens=90)
    same = ti.lens.fit_tuned_lens(model, prompts, layers=[1], steps=2, seed=3, progress=False)
    kept = ti.lens.TunedLens.load(file)
    assert kept.layers == [1]
    torch.testing.assert_close(kept.tensors(), same.tensors())
    words = shlex.split(err.strip().splitlines()[-1].partition("; next: ")[2])
    settings = [b for a, b in pairwise(words) if a == "--set"]
    made = make_measurements(["lens"], settings)["lens"]
    assert list(made.variants) == ["normed", "tuned"]
    torch.testing.assert_close(made.tuned.tensors(), kept.tensors())
    stamp = file.stat().st_mtime_ns
    assert call("tuned-lens", "-o", file, "--layers", "1", "--set", "steps=2", "--seed", "3")[0] == 0
    assert file.stat().st_mtime_ns == stamp, "fitted again"


@pytest.mark.slow
def test_maps_and_a_decoder_go_to_the_measurements_that_read_them(call, tmp_path, tiny_folder):
    maps, decoder = tmp_path / "maps.safetensors", tmp_path / "decoder.safetensors"
    code, _, err = call("linear_maps", "-o", maps, "--set", "blocks=[0]")
    assert code == 0, err
    assert make_measurements(["nonlinearity"], [f"maps={maps}"])["nonlinearity"].maps.blocks == [0]
    code, _, err = call("context_decoder", "-o", decoder, "--set", "steps=1", "--set", "max_prefix=3")
    assert code == 0, err
    model = ti.load_model(tiny_folder, device="cpu")
    made = make_measurements(["memory.context"], [f"decoder={decoder}"], load=lambda: model)["context"]
    assert made.decoder.facts["weights"] == model.info.identity


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tuned_lens", "--set", "step=2"], "--set step: tuned_lens has no such setting; there are layers, .*'steps'"),
        (["tuned_lens", "--set", "steps=-2"], "--set steps=-2: give a whole number"),
        (["tuned_lens", "--val", "x.txt"], "--val x.txt: tuned_lens has no such setting"),
        (["linear_maps", "--layers", "1"], "--layers 1: linear_maps has no such setting"),
        (["probes", "--layers", "1-"], "--layers 1-: write numbers and ranges"),
        (["probes", "--checkpoint-every", "-1"], "--checkpoint-every -1.0: give"),
        (["lens"], "KIND lens: unknown kind: there are erasure.probes"),
    ],
)
def test_what_a_fit_does_not_take_is_said(call, tmp_path, arguments, message):
    code, _, err = call(*arguments, "-o", tmp_path / "x")
    assert code == 2
    assert len(err.splitlines()) == 1
    assert re.search(message, err), err


def test_the_next_command_asks_for_what_was_fitted(tiny_folder, tmp_path):
    model = ti.load_model(tiny_folder, device="cpu")
    lens = ti.lens.fit_tuned_lens(model, [TEXTS[0][:200]], layers=[1], steps=0, progress=False)
    words = shlex.split(next_command("m", tmp_path / "a b", lens, model))
    assert words[:6] == ["tokinterp", "measure", "m", "TEXTS", "-m", "lens"]
    assert f"tuned={tmp_path / 'a b'}" in words
