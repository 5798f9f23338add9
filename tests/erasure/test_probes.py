"""Token probes: the gradient by hand, the fit, the published loop, closed forms, files and refusals."""

import few_probes
import numpy as np
import pytest
import torch
from few_probes import FAST, text
from tiny import byte_tokenizer, tiny_lm

import tokinterp as ti
from tokinterp.erasure import probes as fitting
from tokinterp.erasure.probe_states import capture_states
from tokinterp.erasure.probe_text import label_ids
from tokinterp.erasure.probe_training import Job
from tokinterp.erasure.probes import ProbeSettings, TokenProbes, fit_probes
from tokinterp.models import wrap

torch.set_num_threads(1)
model, fitted = few_probes.model, few_probes.fitted


def job_of(targets, n_classes, s, validation=None, starts=(0,), offsets=None):
    n = targets.shape[1]
    offsets = offsets or list(range(len(targets)))
    return Job(targets, validation, np.array([*starts, n]), np.arange(n), n_classes, offsets, s, 0, torch.float32)


# -- the fit --------------------------------------------------------------------------------------------------


def test_a_crash_loses_no_finished_layer(model, tmp_path, monkeypatch):
    options = {"layers": [0, 1, 3], "offsets": [0], "settings": FAST, "progress": False, "memory": 240_000}
    whole = fit_probes(model, text(), **options)
    real, runs = fitting.train, []

    def watched(states, *rest):
        runs.append(list(states))
        if len(runs) == 2:
            raise RuntimeError("killed")
        return real(states, *rest)

    monkeypatch.setattr(fitting, "train", watched)
    with pytest.raises(RuntimeError, match="killed"):
        fit_probes(model, text(), store=tmp_path / "p", **options)
    assert not (tmp_path / "p").exists()
    with pytest.raises(FileNotFoundError, match="no finished probes"):
        TokenProbes.load(tmp_path / "p")
    with pytest.raises(ValueError, match="differs in: offsets"):
        fit_probes(model, text(), store=tmp_path / "p", **{**options, "offsets": [1]})
    again = fit_probes(model, text(), store=tmp_path / "p", **options)
    assert runs == [[0], [1], [1], [3]]
    assert again.digest == whole.digest
    assert fit_probes(model, text(), store=tmp_path / "p", **options).digest == whole.digest
    assert len(runs) == 4
    with pytest.raises(ValueError, match="differs in: prompts"):
        fit_probes(model, text(seed=5), store=tmp_path / "p", **options)


def test_factored_probes_stay_in_the_span_of_the_unembedding(model):
    probes = fit_probes(
        model, text(), layers=[0], offsets=[0], method="factored", settings=ProbeSettings(rows=64, epochs=20, lr=0.02),
        progress=False,
    )  # fmt: skip
    head = model.head(torch.eye(32)).T[probes.labels]
    found = torch.linalg.lstsq(head, probes.weight(0, 0)).solution
    torch.testing.assert_close(head @ found, probes.weight(0, 0), atol=1e-4, rtol=1e-3)
    batch = next(iter(ti.stream(model, text(seed=1), ti.resid([0]))))
    right = (probes.read(batch.rows(0), 0, 0, batch.tokens.ids).rank == 0).float().mean()
    assert right > 0.95


def test_what_is_trained_is_what_it_says(monkeypatch):
    """Sources are no special tokens, classes those of each offset; the frozen head has mean square rows of 1."""

    class Seen(Exception):
        pass

    jobs = []

    def catch(states, held, job, *_):
        jobs.append(job)
        raise Seen

    monkeypatch.setattr(fitting, "train", catch)
    model = wrap(tiny_lm("llama"), byte_tokenizer(), id="tiny")
    prompts = ti.Prompts.from_texts(["the river ran to the north"] * 3, model)
    for bos in (False, True):
        asked = {"method": "factored", "layers": [1], "offsets": [-1, 0], "settings": ProbeSettings(bos=bos)}
        with pytest.raises(Seen):
            fit_probes(model, prompts, **asked, progress=False)
    plain, with_bos = jobs
    special = prompts.special_mask
    assert special.sum() == 3
    assert plain.usable.tolist() == np.flatnonzero(~special).tolist()
    assert with_bos.usable.tolist() == list(range(prompts.n_tokens))
    for row, offset in enumerate((-1, 0)):
        labels = label_ids(prompts, offset)
        known = np.unique(prompts.token_ids[~special])
        wanted = [int(np.searchsorted(known, x)) if x >= 0 else -1 for x in labels]
        assert plain.targets[row].tolist() == wanted
    rows = model.lm.get_output_embeddings().weight.detach()[known]
    np.testing.assert_allclose(plain.head, rows / rows.square().sum(1).mean().sqrt(), rtol=1e-5)


def test_prompts_with_nan_states_are_left_out_and_named(caplog):
    lm = tiny_lm("llama")
    lm.model.embed_tokens.weight.data[60] = torch.nan
    good = text(6)
    bad = ti.Prompts.from_ids([*(good.ids(i) for i in range(6)), [*([5] * 20), 60]])
    probes = fit_probes(wrap(lm, id="nan"), bad, layers=[1], offsets=[0, -1], settings=FAST, progress=False)
    assert "1 of 7 prompts give NaN or infinite activations and are left out (prompt 6:" in caplog.text
    assert bool(probes.weight(1, -1).isfinite().all())
    states = capture_states(wrap(lm, id="nan"), bad, [1], torch.float32, 30, lambda _: None, True)
    assert states.finite.tolist() == [True] * good.n_tokens + [False] * 21
    assert bool(states.rows[1][good.n_tokens :].eq(states.rows[1][-1]).all()), "nothing is written for it"


# -- text -----------------------------------------------------------------------------------------------------


# -- files and refusals ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "svm"}, "method='svm': give one of 'softmax'"),
        ({"settings": "fast"}, "settings='fast': give 'default' or 'feucht2024', or a ProbeSettings"),
        ({"settings": "feucht2024"}, "give validation="),
        ({"layers": [4]}, r"layers=\[4\]"),
        ({"offsets": []}, "offsets=\\[\\]: give a list"),
        ({"offsets": [60]}, "offset 60: no token of these prompts has a label"),
        ({"states": "int8"}, "states='int8': give one of 'float32'"),
        ({"method": "lda", "shrinkage": 0}, "shrinkage=0: give a number above 0"),
    ],
)
def test_bad_settings_are_refused_before_the_model_runs(model, monkeypatch, options, message):
    monkeypatch.setattr(type(model), "run", lambda *a, **k: pytest.fail("the model was run"))
    with pytest.raises(ValueError, match=message):
        fit_probes(model, text(), progress=False, **options)


def test_ids_outside_the_vocabulary_are_refused(model):
    with pytest.raises(ValueError, match="id 400 is not in the vocabulary of tiny"):
        fit_probes(model, ti.Prompts.from_ids([[4, 400, 3]]), progress=False)
