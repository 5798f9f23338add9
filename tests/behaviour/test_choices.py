"""Multiple-choice items: answers against brute force, files as published."""

import tarfile

import numpy as np
import pytest
import torch
from tiny import byte_tokenizer, tiny, tiny_lm

import tokinterp as ti

ITEMS = [
    ti.behaviour.Item("the river to the", ("north", "in"), 0), ti.behaviour.Item("and the moon", ("is", "rises",
    "to"), 2),
    ti.behaviour.Item("a", ("b", "c"), 1),
]  # fmt: skip


@pytest.mark.parametrize("score", ["letter", "option", "option_mean"])
def test_logprobs_equal_brute_force(score):
    from tokinterp.behaviour.choices import item_prompt

    model = tiny()
    ds = ti.behaviour.multiple_choice(model, ITEMS[1:2] if score == "letter" else ITEMS, score=score)
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


def test_solved_items_stand_before_each_with_their_own_answers():
    from tokinterp.behaviour.choices import item_prompt

    shots = [ti.behaviour.Item("to and", ("in", "the"), 1, "x"), ti.behaviour.Item("the owl", ("a", "b", "c"), 0)]
    assert item_prompt(ITEMS[0], shots) == (
        "The following are multiple choice questions (with answers).\n\n"
        "to and\nA. in\nB. the\nAnswer: B\n\nthe owl\nA. a\nB. b\nC. c\nAnswer: A\n\n"
        "the river to the\nA. north\nB. in\nAnswer:"
    )
    assert item_prompt(ITEMS[0], shots[:1], letters=False).endswith("to and\nAnswer: the\n\nthe river to the\nAnswer:")
    model, few = ti.wrap(tiny_lm("llama", max_position_embeddings=256), byte_tokenizer(), id="long"), shots[:1]
    ds = ti.behaviour.multiple_choice(model, ITEMS[:1], score="option", shots=few)
    text = item_prompt(ITEMS[0], few, letters=False)
    context = len(model.tokenizer(text)["input_ids"])
    for k, option in enumerate(ITEMS[0].options):
        ids = model.tokenizer(f"{text} {option}")["input_ids"]
        logp = model.lm(torch.tensor([ids])).logits[0].detach().log_softmax(-1)
        want = sum(float(logp[i - 1, ids[i]]) for i in range(context, len(ids)))
        assert float(ds["logprob"][0, k]) == pytest.approx(want, abs=1e-4)


def test_options_are_edited_where_that_is_asked_for():
    from dataclasses import replace

    def edit(text):
        return text.replace("the", "an")

    items = [ti.behaviour.Item("the river to the", ("the north", "in the end"), 0)]
    question = [replace(items[0], question=edit(items[0].question))]
    both = [replace(question[0], options=tuple(map(edit, items[0].options)))]
    for given, options in ((question, False), (both, True)):
        found = ti.behaviour.multiple_choice(tiny(), items, score="option", edit=edit, edit_options=options)
        direct = ti.behaviour.multiple_choice(tiny(), given, score="option")
        np.testing.assert_allclose(found["logprob"], direct["logprob"])
        other = ti.behaviour.multiple_choice(tiny(), question if options else both, score="option")
        assert not np.allclose(found["logprob"], other["logprob"])


def test_the_margin_is_over_the_best_wrong_answer():
    ds = ti.behaviour.multiple_choice(tiny(), ITEMS, score="option")
    for n, item in enumerate(ITEMS):
        values = ds["logprob"][n, : len(item.options)].values.tolist()
        right = values.pop(item.answer)
        assert float(ds["margin"][n]) == pytest.approx(right - max(values))


def test_long_items():
    long = [*ITEMS, ti.behaviour.Item("the owl " * 60, ("a", "b"), 0)]
    with pytest.raises(ValueError, match=r"item 3 has .* tokens, tiny-llama takes 64"):
        ti.behaviour.multiple_choice(tiny(), long, score="option")
    ds = ti.behaviour.multiple_choice(tiny(), long, score="option", on_long="skip")
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
        items = ti.behaviour.read_mmlu(path)
        assert [i.answer for i in items] == [2, 0, 3]
        assert items[0] == ti.behaviour.Item("Which, of these?", ("w", "x", "y", "z"), 2, "anatomy")
        assert len(ti.behaviour.read_mmlu(path, subjects=["virology"])) == 1
        assert len(ti.behaviour.read_mmlu(path, limit=1)) == 2
        with pytest.raises(ValueError, match="no items"):
            ti.behaviour.read_mmlu(path, split="val")
    (tmp_path / "mmlu" / "test" / "bad_test.csv").write_text("q,a,b,c,d,7\n")
    with pytest.raises(ValueError, match="item 1: 6 columns"):
        ti.behaviour.read_mmlu(tmp_path / "mmlu")
    with pytest.raises(FileNotFoundError):
        ti.behaviour.read_mmlu(tmp_path / "nothing")


def test_a_tie_is_a_part_of_a_right_choice():
    """Equal options are equally probable: the right one is drawn once in two or three times."""
    items = [ti.behaviour.Item("The river", (" in", " in"), 1), ti.behaviour.Item("One", (" a", " a", " a"), 0)]
    ds = ti.behaviour.multiple_choice(tiny(), items, score="option")
    assert ds["correct"].values == pytest.approx([1 / 2, 1 / 3])
    assert ds["margin"].values.tolist() == [0, 0]
    assert ds["choice"].values.tolist() == [0, 0]
