"""Multiple-choice items: answers against brute force, files as published."""

import tarfile

import numpy as np
import pytest
import torch
from tiny import tiny

import tokinterp as ti

ITEMS = [
    ti.Item("the river to the", ("north", "in"), 0), ti.Item("and the moon", ("is", "rises", "to"), 2),
    ti.Item("a", ("b", "c"), 1),
]  # fmt: skip


@pytest.mark.parametrize("score", ["letter", "option", "option_mean"])
def test_logprobs_equal_brute_force(score):
    from tokinterp.measurements.multiple_choice import item_prompt

    model = tiny()
    ds = ti.multiple_choice(model, ITEMS[1:2] if score == "letter" else ITEMS, score=score)
    ti.check(ds)
    for n, item in enumerate(ITEMS[1:2] if score == "letter" else ITEMS):
        text = item_prompt(item, letters=score == "letter")
        context = len(model.tokenizer(text)["input_ids"])
        for k, option in enumerate(item.options):
            ids = model.tokenizer(f"{text} {'ABC'[k] if score == 'letter' else option}")["input_ids"]
            logp = model.lm(torch.tensor([ids])).logits[0].detach().log_softmax(-1)
            parts = [float(logp[i - 1, ids[i]].detach()) for i in range(context, len(ids))]
            want = np.mean(parts) if score == "option_mean" else np.sum(parts)
            assert float(ds["logprob"][n, k]) == pytest.approx(want, abs=1e-4)
    filled = np.nan_to_num(ds["logprob"].values, nan=-np.inf)
    assert (ds["choice"] == filled.argmax(1)).all()
    assert ((ds["margin"] > 0) == (ds["correct"] == 1)).all()


def test_long_items():
    long = [*ITEMS, ti.Item("the owl " * 60, ("a", "b"), 0)]
    with pytest.raises(ValueError, match=r"item 3 has .* tokens, tiny-llama takes 64"):
        ti.multiple_choice(tiny(), long, score="option")
    ds = ti.multiple_choice(tiny(), long, score="option", on_long="skip")
    assert int(ds["choice"][3]) == -1
    assert np.isnan(ds["correct"][3])


def write_mmlu(folder):
    (folder / "test").mkdir(parents=True)
    head = "question,choice0,choice1,choice2,choice3,answer\n"
    (folder / "test" / "anatomy_test.csv").write_text(head + '"Which, of these?",w,x,y,z,2\nSecond,w,x,y,z,0\n')
    (folder / "test" / "virology_test.csv").write_text("No header?,w,x,y,z,D\n")


def test_mmlu_from_folder_and_tar(tmp_path):
    write_mmlu(tmp_path / "mmlu")
    with tarfile.open(tmp_path / "mmlu.tar.xz", "w:xz") as tar:
        tar.add(tmp_path / "mmlu", "mmlu")
    for path in (tmp_path / "mmlu", tmp_path / "mmlu.tar.xz"):
        items = ti.read_mmlu(path)
        assert [i.answer for i in items] == [2, 0, 3]
        assert items[0] == ti.Item("Which, of these?", ("w", "x", "y", "z"), 2, "anatomy")
        assert len(ti.read_mmlu(path, subjects=["virology"])) == 1
        assert len(ti.read_mmlu(path, limit=1)) == 2
        with pytest.raises(ValueError, match="no items"):
            ti.read_mmlu(path, split="val")
    (tmp_path / "mmlu" / "test" / "bad_test.csv").write_text("q,a,b,c,d,7\n")
    with pytest.raises(ValueError, match="item 1: 6 columns"):
        ti.read_mmlu(tmp_path / "mmlu")
    with pytest.raises(FileNotFoundError):
        ti.read_mmlu(tmp_path / "nothing")
