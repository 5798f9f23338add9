"""Every fit is stopped, killed, damaged and mistaken for another: it goes on to the same bits, or refuses."""

import json
import os
import shutil
from functools import cache

import pytest
import torch
from safetensors.torch import load_file, save_file
from stopped_fits import Killed, stopping
from tiny import some_prompts, tiny

import tokinterp as ti
from tokinterp.erasure.probe_settings import ProbeSettings
from tokinterp.files import paths
from tokinterp.files import whole as files
from tokinterp.files.paths import new_path
from tokinterp.fitted import load_tensors, save_tensors
from tokinterp.lens.tuned_lens import TunedLens
from tokinterp.memory.decoder import ContextDecoder
from tokinterp.results import dataset
from tokinterp.run import facts
from tokinterp.run.checkpoint import Checkpoint

torch.set_num_threads(1)
PROMPTS = some_prompts([40] * 6)
OTHERS = some_prompts([40] * 6, seed=1)
QUICK = ProbeSettings(rows=100, epochs=2)


def probes(store=None, prompts=PROMPTS, **options):
    options = {"method": "softmax", "settings": QUICK, "checkpoint_every": 0, "progress": False, **options}
    return ti.erasure.fit_probes(
        tiny(), prompts, layers=[0, 2], offsets=[-1, 0], validation=OTHERS, store=store, batch_tokens=40, **options
    )


def ridge(store=None, prompts=PROMPTS):
    return probes(store, prompts, method="ridge")


def published(store=None, prompts=PROMPTS):
    """Sums of gradients that wait for their step are kept too."""
    settings = ProbeSettings(rows=60, epochs=3, accumulate=3, plateau=1, clip=0.1, zeros=False, standardise=False)
    return probes(store, prompts, settings=settings)


def lens(store=None, prompts=PROMPTS):
    return ti.lens.fit_tuned_lens(
        tiny(), prompts, layers=[1, 2], steps=4, step_tokens=80, check_tokens=80, batch_tokens=80, store=store,
        checkpoint_every=0, progress=False,
    )  # fmt: skip


def decoder(store=None, prompts=PROMPTS):
    return ti.memory.fit_context_decoder(
        tiny(), prompts, steps=4, rows=8, max_prefix=4, warmup=2, store=store, checkpoint_every=0, progress=False
    )


FITS = (probes, ridge, published, lens, decoder)
READ = {lens: TunedLens.load, decoder: lambda path: ContextDecoder.load(path, tiny())}


def read(fit, path):
    return READ.get(fit, ti.erasure.TokenProbes.load)(path)


@pytest.fixture(scope="module")
def whole():
    return {fit: fit().digest for fit in FITS}


@pytest.fixture(scope="module")
def whole_of():
    return cache(lambda fit: fit().digest)


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize(("how", "error"), [("signal", KeyboardInterrupt), ("kill", Killed)])
@pytest.mark.slow
def test_a_fit_stopped_at_any_step_goes_on_to_the_same_bits(fit, how, error, whole, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        taken = stopping(patch, 0, how)
        fit()
        steps = len(taken)
    assert steps >= 4
    for number in (1, steps // 2, steps - 1, steps):
        store = tmp_path / f"{number}.safetensors"
        with monkeypatch.context() as patch:
            taken = stopping(patch, number, how)
            with pytest.raises(error):
                fit(store)
            assert not store.exists()
            before = len(taken)
            assert fit(store).digest == whole[fit], number
        again = len(taken) - before
        states = sum("states of" in said for said in taken[:before])  # the states of a group are read once more
        assert again <= steps - before + states + (1 if before <= states else 0), "finished steps were taken again"
        assert read(fit, store).digest == whole[fit]
        assert [p.name for p in tmp_path.iterdir() if p.name.startswith((f"{number}.", "."))] == [store.name]


@pytest.mark.parametrize("fit", [lens, decoder])
def test_a_fit_that_other_code_began_names_it_and_is_the_same(fit, whole_of, tmp_path, monkeypatch):
    store = tmp_path / "fit"
    monkeypatch.setattr(dataset, "git_commit", lambda: "a" * 40)
    with monkeypatch.context() as patch:
        stopping(patch, 3, "kill")
        with pytest.raises(Killed):
            fit(store)
    monkeypatch.setattr(dataset, "git_commit", lambda: "b" * 40)
    fit(store)
    found = read(fit, store)
    assert found.commits == ("a" * 40, "b" * 40)
    assert found.digest == whole_of(fit), "commits decide no number"


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.slow
def test_a_store_of_another_fit_is_refused(fit, tmp_path, monkeypatch):
    store = tmp_path / "fit"
    with monkeypatch.context() as patch:
        stopping(patch, 3 if fit in (ridge, lens, decoder) else 14, "kill")
        with pytest.raises(Killed):
            fit(store)
    with pytest.raises(ValueError, match="belongs to another run; it differs in: prompts"):
        fit(store, OTHERS)
    (tmp_path / "fit.partial" / "run.json").rename(tmp_path / "run.json")
    with pytest.raises(ValueError, match=r"run.json is missing, so that nothing says which run this is of"):
        fit(store, OTHERS)
    # Even with the facts of the other fit beside them, its files say whose they are.
    mine, other = json.loads((tmp_path / "run.json").read_text()), tmp_path / "fit.partial" / "run.json"
    other.write_text(json.dumps({**mine, "prompts": OTHERS.hash}))
    with pytest.raises(ValueError, match=r"state.safetensors belongs to another run"):
        fit(store, OTHERS)
    (tmp_path / "run.json").replace(other)
    fit(store)
    with pytest.raises(ValueError, match="belongs to another run; it differs in: prompts"):
        fit(store, OTHERS)


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.slow
def test_damage_is_noticed_on_resume_and_on_load(fit, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stopping(patch, 3 if fit in (ridge, lens, decoder) else 14, "kill")
        with pytest.raises(Killed):
            fit(tmp_path / "fit")
    flip(tmp_path / "fit.partial" / "state.safetensors")
    with pytest.raises(ValueError, match=r"state.safetensors is damaged"):
        fit(tmp_path / "fit")
    shutil.rmtree(tmp_path / "fit.partial")
    fit(tmp_path / "fit")
    tensors = [p for p in tmp_path.rglob("*") if p.is_file() and p.suffix != ".json"]
    for file in tensors:
        for damage in (flip, halve):
            good = file.read_bytes()
            damage(file)
            with pytest.raises(ValueError, match="damaged"):
                read(fit, tmp_path / "fit")
            with pytest.raises(ValueError, match="damaged"):
                fit(tmp_path / "fit")
            file.write_bytes(good)
    read(fit, tmp_path / "fit")


def flip(file):
    raw = bytearray(file.read_bytes())
    raw[-3] ^= 0x10
    file.write_bytes(bytes(raw))


def halve(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def test_facts_and_files_of_probes_belong_together(tmp_path):
    one, two = ridge(tmp_path / "one"), ridge(tmp_path / "two", OTHERS)
    assert one.digest != two.digest
    record = json.loads((tmp_path / "one" / "probes.json").read_text())
    (tmp_path / "one" / "probes.json").write_text(json.dumps({**record, "model": "somebody/else"}))
    with pytest.raises(ValueError, match="are not those that were written together"):
        ti.erasure.TokenProbes.load(tmp_path / "one")
    (tmp_path / "one" / "probes.json").write_text(json.dumps(record))
    ti.erasure.TokenProbes.load(tmp_path / "one")
    shutil.copy(tmp_path / "two" / "layer-002.safetensors", tmp_path / "one")
    with pytest.raises(ValueError, match="are not those that were written together"):
        ti.erasure.TokenProbes.load(tmp_path / "one")
    (tmp_path / "one" / "probes.json").write_text("{")
    with pytest.raises(ValueError, match="is damaged"):
        ti.erasure.TokenProbes.load(tmp_path / "one")


@pytest.mark.parametrize("kept", [False, True])
def test_weights_that_are_changed_in_place_are_other_probes(kept, tmp_path):
    fitted = ridge(tmp_path / "probes") if kept else ridge()
    fitted = ti.erasure.TokenProbes.load(tmp_path / "probes") if kept else fitted
    before, said = fitted.digest, str(fitted)
    fitted.weight(2, 0)
    assert fitted.digest == before
    fitted.weight(2, 0).mul_(2)
    assert fitted.digest != before
    assert str(fitted) != said
    saved = ti.erasure.TokenProbes.load(fitted.save(tmp_path / "changed"))
    assert saved.digest == fitted.digest
    assert torch.equal(saved.weight(2, 0), fitted.weight(2, 0))
    fitted.facts["method"] = "other"
    assert fitted.digest != saved.digest


def test_numbers_that_are_none_are_refused(tmp_path):
    fitted = ridge()
    known = fitted._parts[2]
    assert isinstance(known, dict)
    part = {k: v.clone() for k, v in known.items()}
    part["weight.0"][3, 4] = torch.nan
    with pytest.raises(ValueError, match=r"layer 2: NaN or infinite numbers in weight.0"):
        ti.erasure.TokenProbes([2], fitted.offsets, fitted.labels, {2: part}, fitted.facts)
    with pytest.raises(ValueError, match=r"weight.-1 is float32 .* and should be"):
        ti.erasure.TokenProbes([2], fitted.offsets, fitted.labels[1:], {2: known}, fitted.facts)
    with pytest.raises(ValueError, match="NaN or infinite numbers in weight"):
        probes(settings=ProbeSettings(lr=1e38, rows=100))
    made = lens()
    with pytest.raises(ValueError, match="NaN or infinite numbers in bias"):
        TunedLens(made.weight, made.bias * torch.inf, made.facts)
    made.weight[0, 0, 0] = torch.inf
    with pytest.raises(ValueError, match="is not written: NaN or infinite numbers in weight"):
        made.save(tmp_path / "lens.safetensors")
    save_tensors(tmp_path / "a", {"x": torch.tensor([torch.nan])}, "kind", {}, finite=False)
    with pytest.raises(ValueError, match="NaN or infinite numbers in x: fit it again"):
        load_tensors(tmp_path / "a", "kind", "example")
    assert list(tmp_path.iterdir()) == [tmp_path / "a"]


def test_maps_refuse_what_no_fit_gives(tmp_path):
    maps = ti.linearity.fit_linear_maps(tiny(), some_prompts([60] * 6), [0, 2], progress=False)
    maps.weight[0], maps.linearity[0] = torch.nan, torch.nan  # a fit that was refused
    assert ti.linearity.LinearMaps.load(maps.save(tmp_path / "maps")).digest == maps.digest
    for name in ("weight", "mean_in", "spread"):
        bad = {**vars(maps), name: getattr(maps, name).clone()}
        bad[name][1] = torch.inf
        with pytest.raises(ValueError, match=f"NaN or infinite numbers in {name}"):
            ti.linearity.LinearMaps(**bad)
    flip(tmp_path / "maps")
    with pytest.raises(ValueError, match="is damaged"):
        ti.linearity.LinearMaps.load(tmp_path / "maps")


def test_a_changed_header_of_a_file_is_noticed(tmp_path):
    file = lens(tmp_path / "lens.safetensors").save(tmp_path / "lens.safetensors")
    tensors, note = load_file(file), json.loads(read_header(file)["tokinterp"])
    note["facts"]["weights"] = "0" * 16
    save_file(tensors, file, {"tokinterp": json.dumps(note)})
    with pytest.raises(ValueError, match="its numbers or facts are not those that were written"):
        TunedLens.load(file)


def read_header(file):
    raw = file.read_bytes()
    return json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])["__metadata__"]


# -- the folder -----------------------------------------------------------------------------------------------
def test_one_owner_at_a_time(tmp_path):
    with (
        Checkpoint(tmp_path / "fit", {"a": 1}),
        pytest.raises(RuntimeError, match="another process is writing"),
        Checkpoint(tmp_path / "fit", {"a": 1}),
    ):
        pass
    assert not list(tmp_path.iterdir()), "a fit that kept nothing left its folder"


@pytest.mark.parametrize("fit", [ridge, lens])
def test_a_kill_while_clearing_up_leaves_nothing_to_take_up(fit, tmp_path, monkeypatch):
    def dies(*args, **options):
        raise Killed

    store = tmp_path / "fit"
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", dies)
        patch.setattr(paths.Path, "unlink", dies)
        with pytest.raises(Killed):
            fit(store)
    if not store.exists():  # probes: the folder is the result, and nothing had to be cleared
        fit(store)
    assert not (tmp_path / "fit.partial").exists()
    store.rename(tmp_path / "monday")
    fresh = fit(prompts=OTHERS).digest
    assert fit(store, OTHERS).digest == fresh
    assert sorted(p.name for p in tmp_path.iterdir()) == ["fit", "monday"], "litter was left"
    assert read(fit, tmp_path / "monday").digest == fit().digest


def test_the_same_call_sweeps_what_a_kill_at_the_end_left(tmp_path, monkeypatch):
    def dies(*args, **options):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", dies)
        with pytest.raises(Killed):
            lens(tmp_path / "fit")
    (litter,) = tmp_path.glob(".*")
    ridge(tmp_path / "probes")
    for name in ("lock", "run.json", "owner-000001.json"):  # and after a folder was renamed to its place
        (tmp_path / "probes" / name).write_text("{}")
    assert ridge(tmp_path / "probes").digest == ridge().digest
    assert not {"lock", "run.json", "owner-000001.json"} & {p.name for p in (tmp_path / "probes").iterdir()}
    shutil.rmtree(tmp_path / "probes")
    first = lens(tmp_path / "fit").digest
    assert not litter.exists()
    assert first == lens(tmp_path / "fit").digest
    assert [p.name for p in tmp_path.iterdir()] == ["fit"]


@pytest.mark.parametrize("exchange", [True, False])
def test_a_good_folder_is_replaced_in_one_step(exchange, tmp_path, monkeypatch):
    old, new = tmp_path / "p", ridge(prompts=OTHERS)
    first = ridge()
    first.save(old)
    if not exchange:
        monkeypatch.setattr(files, "_exchange", lambda a, b: False)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        new.save(old)
    seen = []
    remove = shutil.rmtree
    monkeypatch.setattr(
        shutil, "rmtree", lambda f, **o: (seen.append(ti.erasure.TokenProbes.load(old).digest), remove(f, **o))
    )
    new.save(old, overwrite=True)
    assert set(seen) == {new.digest}
    assert [p.name for p in tmp_path.iterdir()] == ["p"]
    (tmp_path / "thesis").mkdir()
    with pytest.raises(FileExistsError, match="something else than probes"):
        new.save(tmp_path / "thesis", overwrite=True)


def test_places_are_checked_before_the_run(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert new_path("~/fits/p") == tmp_path / "fits" / "p"
    for url in ("s3://bucket/p", "gs:/bucket/p", "https://x.org/p"):
        with pytest.raises(ValueError, match="is a URL"):
            new_path(url)
    (tmp_path / "file").write_text("x")
    with pytest.raises(NotADirectoryError, match="file is a file, not a folder"):
        new_path(tmp_path / "file" / "p")
    (tmp_path / "closed").mkdir(mode=0o500)
    if os.geteuid():
        with pytest.raises(PermissionError, match="cannot be written"):
            new_path(tmp_path / "closed" / "p")
    monkeypatch.setattr(facts, "fit_facts", lambda *a: pytest.fail("the fit began"))
    for fit in (probes, lens, decoder):
        with pytest.raises(ValueError, match="is a URL"):
            fit("s3://bucket/p")
    with pytest.raises(ValueError, match="checkpoint_every=-1"):
        ti.lens.fit_tuned_lens(tiny(), some_prompts([8]), checkpoint_every=-1)
