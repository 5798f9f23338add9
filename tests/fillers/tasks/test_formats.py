"""Chains of thought: lengths, certificates and rules."""

from itertools import combinations

import numpy as np
import pytest
import torch

from tokinterp.fillers.tasks.formats import IGNORED
from tokinterp.fillers.tasks.task import Task, match2, match3


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def brute(rows, m):
    """Triples (i, j, k) of one example that sum to zero, one by one."""
    rows = np.asarray(rows)
    return [t for t in combinations(range(len(rows)), 3) if not (rows[list(t)].sum(0) % m).any()]


@pytest.mark.parametrize("n", [3, 6, 8, 14])
def test_lengths_of_formats(n):
    for fillers, size in (("square", n * n), ("cot", n * (n - 1) + 2), (5, 5)):
        task = Task(n=n, d=3, mode="released", fillers=fillers)
        wanted = {"none": n + 3, "filler": n + 1 + size + 2, "parallel": n + 1 + n * (n - 1) + 2 + 2}
        for form, words in wanted.items():
            ids, targets, at = task.sample(form, 4, draw()).sequences
            assert ids.shape == targets.shape == (4, words)
            assert task.length(form) == words
            assert (at == words - 2).all()


@pytest.mark.parametrize("mode", match3.MODES)
def test_every_certificate_of_the_parallel_chain_is_valid(mode):
    task = Task(n=7, d=3, m=5, mode=mode)
    w, n = task.words, task.n
    sample = task.sample("parallel", 200, draw(3))
    pairs = list(combinations(range(n), 2))
    named, again = 0, []
    for rows, ids, answer in zip(sample.rows, sample.sequences.ids, sample.answer, strict=True):
        chain = ids[n + 1 : -2].tolist()
        found = brute(rows, task.m)
        said = []
        for (i, j), first, second in zip(pairs, chain[::2], chain[1::2], strict=False):
            assert first - w.slot in (i, j)
            if w.slot <= second < w.digit:
                said.append((i, j, second - w.slot))
            else:
                assert second - w.digit in ((rows[i] + rows[j]) % task.m).tolist()
        assert set(said) <= set(found)
        assert {t[:2] for t in said} == {t[:2] for t in found}
        assert (int(answer) == w.true) == bool(said) == (int(ids[-1]) == w.true)
        assert chain[-2] == w.slot + n - 1
        assert chain[-1] - w.digit in ((rows[-2] + rows[-1]) % task.m).tolist()
        again.append(chain[-1] == chain[-3])
        named += len(said)
    assert named > 100
    assert all(again) == (mode == "strict")


def serial_words(rows, m, w, mode):
    """The serial chain of thought, written by the rules one word at a time."""
    out, solved = [], None
    for a, b, c in combinations(range(len(rows)), 3):
        if solved is not None and (mode == "strict" or a == solved or (b, c) != (a + 1, a + 2)):
            continue
        sums = [(rows[a][x] + rows[b][x] + rows[c][x]) % m for x in range(len(rows[0]))]
        if sums[0]:
            continue
        out += [w.slot + r for r in (a, b, c)] + [("digit", a, b, c)]
        for s in sums[1:]:
            out.append(w.digit + s)
            if s:
                break
        if not any(sums) and solved is None:
            solved = a
    return out, solved is not None


@pytest.mark.parametrize(
    ("d", "mode"), [(1, "released"), (2, "released"), (3, "released"), (2, "strict"), (3, "strict")]
)
def test_serial_chain_follows_its_rules(d, mode):
    task = Task(n=7, d=d, m=5, mode=mode)
    w = task.words
    sample = task.sample("serial", 100, draw(1))
    seq = sample.sequences
    assert len(set(seq.answer_at.tolist())) > (10 if d > 1 else 1)
    for rows, ids, targets, at, answer in zip(sample.rows.tolist(), *seq, sample.answer, strict=True):
        chain = ids[task.n + 1 : at].tolist()
        wanted, true = serial_words(rows, task.m, w, mode)
        place = 0
        for word in wanted:
            if isinstance(word, tuple):
                digits = [x - w.digit for x in chain[place : place + 3]]
                assert any([rows[r][c] for r in word[1:]] == digits for c in range(d))
                place += 3
            else:
                assert chain[place] == word
                place += 1
        assert place == len(chain)
        assert true == (int(answer) == w.true)
        assert ids[at] == w.answer
        assert ids[at + 1] == answer == targets[at]
        assert targets[at + 1] == w.eos
        assert (targets[at + 2 :] == IGNORED).all()
        assert (ids[at + 2 :] == w.eos).all()


def test_what_the_chains_leave_open_is_drawn_evenly():
    """Row of a pair, coordinate of a digit, the inverse of a row of Match2: each with equal chance."""
    task = Task(n=5, d=3, m=7)
    w, pairs = task.words, match3.pairs(5)
    x = task.sample("parallel", 1500, draw(8))
    chain = x.sequences.ids[:, 6:-4].unflatten(1, (10, 2))
    second = (chain[..., 0] - w.slot == pairs[1]).double().mean(0)
    assert (abs(second - 0.5) < 0.06).all()
    sums = (x.rows[:, pairs[0]] + x.rows[:, pairs[1]]) % 7
    said = chain[..., 1] - w.digit
    different = torch.stack([sums[..., a] != sums[..., b] for a, b in ((0, 1), (0, 2), (1, 2))]).all(0) & (said >= 0)
    hits = (sums[different] == said[different][:, None]).double()
    assert (hits.sum(1) == 1).all()
    assert (abs(hits.mean(0) - 1 / 3) < 0.03).all()
    serial = Task(n=5, d=2, m=3).sample("serial", 1500, draw(8))
    w = Task(n=5, d=2, m=3).words
    places = []
    for rows, ids in zip(serial.rows, serial.sequences.ids, strict=True):
        i = 6
        while ids[i] != w.answer:
            if w.slot <= ids[i] < w.digit:
                three, digits = rows[ids[i : i + 3] - w.slot], ids[i + 3 : i + 6] - w.digit
                one, other = (torch.equal(three[:, c], digits) for c in range(2))
                places += [other] if one != other else []
                i += 3
            i += 1
    assert np.mean(places) == pytest.approx(0.5, abs=0.05)
    two = Task("match2", n=6, d=2)
    sample = two.sample("parallel", 1500, draw(2))
    w, table = two.words, match2.key_table(0, 10, 100)
    key = sample.sequences.ids[:, 7] - w.key
    decoded = (sample.rows + table[key, :12].view(-1, 6, 2)) % 10
    own, said = decoded[:, 2:5], w.digits(sample.sequences.ids[:, 14:19:2])
    turned = -own % 10
    tell = match2.matches(decoded, 10)[:, 2:5] & (own != turned).any(-1)
    assert ((said == own).all(-1) | (said == turned).all(-1)).all()
    assert float((said == turned).all(-1)[tell].double().mean()) == pytest.approx(0.5, abs=0.05)
    assert ((said == own).all(-1) | match2.matches(decoded, 10)[:, 2:5]).all()


@pytest.mark.slow
def test_long_serial_chains_are_dropped_from_training_alone():
    plain, short = (Task(n=6, d=2, m=5, serial_quantile=q) for q in (None, 0.8))
    limit, dropped, before, after = short.serial_filter
    test = short.test_set("serial", 2000).sequences.answer_at - 7
    assert float((test <= limit).double().mean()) >= 0.8 > float((test < limit).double().mean())
    assert int(test.max()) > limit
    batches = short.stream("serial", 64, 0, 4)
    found = [next(batches) for _ in range(12)]
    lengths = torch.cat([b.answer_at for b in found]) - 7
    assert int(lengths.max()) == limit
    # The share dropped is that of examples that nothing was dropped from.
    source = plain.stream("serial", 500, 3, 1)
    whole = torch.cat([next(source).answer_at for _ in range(8)]) - 7
    assert dropped == pytest.approx(float((whole > limit).double().mean()), abs=0.03)
    assert 0.05 < dropped < 0.25
    true = [float((b.ids.gather(1, b.answer_at[:, None] + 1) == short.words.true).double().mean()) for b in found]
    assert after == pytest.approx(np.mean(true), abs=0.06)
    assert after > before + 0.02
    assert before == pytest.approx(0.5, abs=0.01)
    for b in found[:2]:
        for row, goal, at in zip(b.ids, b.targets, b.answer_at, strict=True):
            assert row[at] == short.words.answer
            assert row[at + 1] == goal[at] in short.answers
            assert (goal[at + 2 :] == IGNORED).all()
            assert (row[at + 2 :] == short.words.eos).all()
    # Any batch can be had without those before it, and other formats and the settings' hash stay as they were.
    later = next(short.stream("serial", 64, 0, 4, first=5))
    assert all(torch.equal(a, b) for a, b in zip(later, found[5], strict=True))
    assert plain.serial_filter.dropped == 0
    assert plain.hash == "50acb2fe26b0bbf0"  # of the settings that there were before
    assert plain.hash != short.hash


@pytest.mark.parametrize("family", ["match3", "match2"])
def test_only_words_after_the_input_are_supervised(family):
    task = Task(family, n=5, d=2)
    given_words = task.n + (1 if family == "match3" else 2)
    for form in task.formats:
        ids, targets, at = task.sample(form, 6, draw()).sequences
        assert (targets[:, : given_words - 1] == IGNORED).all()
        for row, goal, end in zip(ids, targets, at, strict=True):
            assert torch.equal(goal[given_words - 1 : end + 1], row[given_words : end + 2])
        final = Task(family, n=5, d=2, mask="final").sample(form, 6, draw()).sequences
        assert ((final.targets != IGNORED).sum(1) == 2).all()


def test_match2_chain_of_thought():
    task = Task("match2", n=6, d=2, mode="strict")
    w = task.words
    sample = task.sample("parallel", 50, draw(2))
    table = match2.key_table(0, 10, 100)
    for rows, ids in zip(sample.rows, sample.sequences.ids, strict=True):
        key = int(ids[7]) - w.key
        decoded = (rows + table[key, :12].view(6, 2)) % 10
        chain = w.digits(ids[8:-1])
        assert len(chain) == 2 * 6 - 1
        assert torch.equal(chain[[0, 2]], rows[:2])
        assert torch.equal(chain[[1, 3]], decoded[:2])
        assert torch.equal(chain[4], decoded[:2].sum(0) % 10)
        for r in range(2, 5):
            assert torch.equal(chain[2 * r + 1], rows[r])
            said = chain[2 * r + 2]
            assert torch.equal(said, decoded[r]) or torch.equal(said, -decoded[r] % 10)


def test_unknown_formats_are_refused():
    with pytest.raises(ValueError, match="match2 has no format 'serial'"):
        Task("match2", n=6).sample("serial", 2, draw())
    with pytest.raises(ValueError, match="differ in length"):
        Task(n=6).length("serial")
