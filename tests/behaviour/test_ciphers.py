"""Ciphers over tokens, and what is read of the plain text: theorems, a planted decipherer, and a loop."""

import numpy as np
import pytest
import torch
from by_hand import losses, streams
from contract import LENGTHS as CONTRACT
from contract import assert_contract
from every import fitted, models, texts
from tiny import some_prompts, tiny

import tokinterp as ti
from tokinterp.behaviour import Decipherment, TokenLoss, cipher, cipher_conditions
from tokinterp.behaviour.ciphers import pairs

LENGTHS = [12, 9, 14, 2]


def test_a_key_is_a_bijection_of_the_symbols_of_each_prompt():
    prompts = ti.text.mark(some_prompts([60, 60, 40]), some=[[0, 4], [3, 9], [5, 5]])
    some = list(range(3, 200))
    for symbols in (None, some):
        secret = cipher(prompts, symbols)
        keys = []
        for i in range(3):
            plain, made = prompts.ids(i), secret.ids(i)
            own = np.isin(plain, some) if symbols else plain > 2
            assert (made[~own] == plain[~own]).all()
            assert np.isin(made[own], symbols or range(3, 320)).all()
            key = dict(zip(plain.tolist(), made.tolist(), strict=True))
            assert all(key[a] == b for a, b in zip(plain.tolist(), made.tolist(), strict=True))
            assert len(set(key.values())) == len(key)
            keys.append(key)
        shared = set(keys[0]) & set(keys[1]) - {1}
        assert any(keys[0][a] != keys[1][a] for a in shared)
        assert secret.marks["some"].tolist() == prompts.marks["some"].tolist()
        assert cipher(prompts[[1]], symbols).ids(0).tolist() == secret.ids(1).tolist()
        assert cipher(prompts, symbols, seed=1).hash != secret.hash


def test_bands_keep_how_often_a_symbol_occurs():
    often = [5] * 8 + [8] * 7 + [6] * 2 + [7]
    prompts = ti.Prompts.from_ids([[1, *often]] * 1, tiny())
    made = [set(cipher(prompts, [5, 6, 7, 8], bands=2, seed=s).ids(0)[1:16].tolist()) for s in range(9)]
    assert all(m == {5, 8} for m in made)
    assert {tuple(cipher(prompts, [5, 6, 7, 8], seed=s).ids(0)) for s in range(40)} >= {(1, *often)}


def test_every_key_is_equally_likely():
    prompts = ti.Prompts.from_ids([[1, 5, 6, 7]], tiny())
    found = [tuple(cipher(prompts, [5, 6, 7], seed=s).ids(0)[1:].tolist()) for s in range(600)]
    counts = np.unique(found, axis=0, return_counts=True)[1]
    assert len(counts) == 6
    assert ((counts - 100) ** 2 / 100).sum() < 20.5  # chi-square of 5, p = 0.001


def test_a_key_of_tokens_that_do_not_occur_changes_nothing():
    model, prompts = tiny(), some_prompts(LENGTHS)
    absent = np.setdiff1d(np.arange(3, 320), prompts.token_ids)
    plain, same = (ti.measure(model, p, {"l": TokenLoss()}, progress=False)["l"]["loss"].values
                   for p in (prompts, cipher(prompts, absent)))  # fmt: skip
    assert plain.tolist() == same.tolist()


def by_hand(model, plain, given, layer, symbols):
    """(target, prompt, place) whether each token is the most probable symbol of a layer, NaN where none counts."""
    out = np.full((4, len(given), max(given.lengths)), np.nan)
    said = np.full(out.shape[1:], -1)
    for i in range(len(given)):
        x, y = plain.ids(i).tolist(), given.ids(i).tolist()
        with torch.no_grad():
            z = model.unembed(streams(model, y)[layer].float())
        for t in range(len(y)):
            said[i, t] = max(symbols, key=lambda s, t=t: float(z[t, s]))
            for k, token in enumerate(
                (x[t], x[t + 1] if t + 1 < len(x) else -1, y[t], y[t + 1] if t + 1 < len(y) else -1)
            ):
                out[k, i, t] = float(said[i, t] == token) if token in symbols else np.nan
    return out, said


def test_shares_and_losses_are_those_of_a_loop():
    model, prompts = tiny(), some_prompts([20, 9, 14, 2], seed=3)
    symbols = list(range(3, 180))
    given = cipher_conditions(prompts, symbols)
    asked = {"d": Decipherment(prompts, symbols), "l": TokenLoss()}
    run = ti.measure_conditions(model, given, asked, progress=False)
    ti.check(run)
    starts = [0, 1, 2, 4, 8, 16]
    assert run["d"]["place"].values.tolist() == starts
    for name, c in given.items():
        ds = run["d"].to_dataset().sel(condition=name)
        own = [losses(model, c.prompts.ids(i)) for i in range(4)]
        for layer in (0, 3):
            right, _said = by_hand(model, prompts, c.prompts, layer, symbols)
            for i in range(4):
                for k, (a, b) in enumerate(zip(starts, [*starts[1:], 99], strict=True)):
                    for target in range(4):
                        wanted = right[target, i, a:b]
                        there = np.isfinite(wanted)
                        assert int(ds["n_places"][i, target, k]) == there.sum()
                        mean = wanted[there].mean() if there.any() else np.nan
                        share = float(ds["share"].sel(layer=layer)[i, target, k])
                        assert share == pytest.approx(mean, nan_ok=True)
                    nexts = [t for t in range(a, min(b, len(own[i]))) if c.prompts.ids(i)[t + 1] in symbols]
                    mean = np.mean([own[i][t] for t in nexts]) if nexts else np.nan
                    assert float(ds["loss"][i, k]) == pytest.approx(mean, rel=1e-4, nan_ok=True)
    plain = run["d"].to_dataset().sel(condition="plain")
    np.testing.assert_array_equal(plain["loss"], plain["plain_loss"])
    np.testing.assert_array_equal(plain["share"].sel(target="plain"), plain["share"].sel(target="cipher"))
    assert plain.attrs["uniform_chance"] == pytest.approx(1 / len(symbols))


def test_readings_keep_the_contract():
    plain = some_prompts(CONTRACT)
    ds = assert_contract(lambda: Decipherment(plain, list(range(3, 200))), prompts=cipher(plain, list(range(3, 200))))
    assert ds.attrs["n_symbols"] == 197


def test_pairs_are_all_pairs():
    draw = torch.Generator().manual_seed(0)
    said, wanted = torch.randint(3, 9, (2, 3, 30), generator=draw)
    wanted[torch.rand(3, 30, generator=draw) < 0.3] = -1
    kind = torch.randint(0, 2, (3, 30), generator=draw)
    found = pairs(said, wanted, kind, 3)
    for i in range(3):
        for k in range(3):
            at = [t for t in range(30) if kind[i, t] == k and wanted[i, t] >= 0]
            every = [float(said[i, a] == wanted[i, b]) for a in at for b in at if a != b]
            assert float(found[i, k]) == pytest.approx(np.mean(every) if every else np.nan, nan_ok=True)


def test_a_planted_reading_is_found_and_a_blind_one_is_at_its_null():
    """Readings of the key are above what pairs of other places give; those that only know frequencies are not."""
    draw = np.random.default_rng(0)
    often = draw.choice([5, 5, 5, 5, 6, 6, 7, 8, 9], (40, 33))
    prompts = ti.Prompts.from_ids(often, tiny())
    m = Decipherment(prompts)
    m.begin(tiny().info, prompts)
    plain = torch.from_numpy(often)
    said = {
        "knows": plain,
        "frequent": torch.full_like(plain, 5),
        "blind": torch.from_numpy(draw.choice(often.ravel(), often.shape)),
    }
    for name, reading in said.items():
        target = plain.expand(4, -1, -1)
        found = m._shares(target, reading[None].expand(2, 1, -1, -1), torch.zeros(2, *plain.shape, dtype=torch.float64))
        gain = (found["share"] - found["share_null"])[:, 0, 0, -2]  # positions 16 to 31
        if name == "knows":
            assert (found["share"] == 1)[..., :6].all()
            assert gain.mean() > 0.5
        elif name == "frequent":
            assert gain.abs().max() < 1e-12
            assert found["share"][:, 0, 0, -2].mean() > 0.3  # far above one of five symbols
        else:
            assert abs(gain.mean()) < 3.5 * gain.std() / len(gain) ** 0.5


def test_probes_read_the_plain_text_of_the_cipher():
    model, prompts, probes = models()[0], texts(), fitted()["probes"]
    given = {"plain": ti.Condition(prompts), "cipher": ti.Condition(cipher(prompts))}
    asked = {"d": Decipherment(prompts, probes=probes)}
    ds = ti.measure_conditions(model, given, asked, progress=False)["d"].to_dataset()
    share = ds["probe_share"].sel(layer=0)
    assert float(share.sel(condition="plain").mean()) > 0.9  # probes of the embedding say the token itself
    assert float(share.sel(condition="cipher").mean()) < 0.2
    c = given["cipher"].prompts
    with torch.no_grad():
        said = probes.predict(streams(model, c.ids(1))[2].float(), 2, 0)[:, 0].numpy()
    hit = (said == prompts.ids(1))[1:]  # the first is BOS
    at = np.frexp(np.arange(1, len(hit) + 1))[1]
    for k in range(1, 6):
        assert float(ds["probe_share"].sel(layer=2, condition="cipher")[1, k]) == pytest.approx(hit[at == k].mean())


def test_a_lens_is_put_before_the_norm():
    model, prompts = tiny(), some_prompts(LENGTHS)
    plain = ti.measure(model, prompts, {"d": Decipherment()}, progress=False)["d"].to_dataset()
    same = ti.lens.TunedLens.identity(model.info)
    lens = ti.measure(model, prompts, {"d": Decipherment(lens=same)}, progress=False)["d"].to_dataset()
    np.testing.assert_array_equal(plain["share"], lens["share"])


def test_what_does_not_fit_is_refused():
    prompts = some_prompts(LENGTHS)
    with pytest.raises(ValueError, match=r"symbols=\[1, 5\]: 1 is special, or no token"):
        cipher(prompts, [1, 5])
    with pytest.raises(ValueError, match=r"symbols=\[5, 5\]: a token stands there twice"):
        cipher(prompts, [5, 5])
    with pytest.raises(ValueError, match=r"bands=2: 3 symbols make no 2 classes"):
        cipher(prompts, [5, 6, 7], bands=2)
    with pytest.raises(ValueError, match=r"plain=.*: its 3 prompts are not as long as the 4 that are read"):
        ti.measure(tiny(), prompts, {"d": Decipherment(some_prompts([5, 6, 7]))}, progress=False)
    with pytest.raises(ValueError, match=r"probes=.* there is none of layer 0 and offset 0"):
        ti.measure(models()[0], texts(), {"d": Decipherment(probes=_lacking())}, progress=False)


def _lacking():
    return ti.erasure.fit_probes(models()[0], texts(), layers=[1], offsets=[0], method="ridge", progress=False)
