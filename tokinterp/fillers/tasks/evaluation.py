"""What a trained network answers: the final word only, format by format and stratum by stratum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from ...kernels.state import evaluating, neutral
from .formats import IGNORED
from .task import Samples, Task


@dataclass(frozen=True)
class Answers:
    """Scores of one network on one test set.

    Attributes
    ----------
    accuracy, count : list
        Share answered rightly, and examples, per stratum; None where there are none.
    auc : float or None
        Probability that a True example has a larger logit(True) - logit(False) than a False one (ties half); Match3.
    true_bias : float or None
        Share answered True minus share that is True; Match3.
    loss : float
        Mean cross-entropy (Match2: binary cross-entropy) of the supervised words, nat.
    right : list of bool
        Whether each example was answered rightly.
    """

    accuracy: list[float | None]
    count: list[int]
    auc: float | None
    true_bias: float | None
    loss: float
    right: list[bool]


def loss_sum(logits: torch.Tensor, targets: torch.Tensor, task: Task) -> torch.Tensor:
    """Return the summed loss of the supervised words: cross-entropy, for Match2 binary over all columns.

    Words whose target is -100 are taken out by a mask of fixed shape, so that their logits get no gradient.
    """
    if task.family == "match3":
        return functional.cross_entropy(
            logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED, reduction="sum"
        )
    keep = targets != IGNORED
    hot = task.words.target_hot(targets.clamp_min(0))
    each = functional.binary_cross_entropy_with_logits(logits.float(), hot, reduction="none").mean(-1)
    return (each * keep).sum()


@neutral()
def evaluate(lm: Any, task: Task, test: Samples, batch: int = 512) -> Answers:
    """Score a network on the answer word alone, given all words before it.

    Parameters
    ----------
    lm : LlamaForCausalLM
        On the device of the test set.
    task : Task
        What the words mean.
    test : Samples
        With strata, see `Task.test_set`.
    batch : int
        Examples run together.
    """
    from sklearn.metrics import roc_auc_score

    said, score, loss, words = [], [], 0.0, 0
    for start in range(0, len(test.answer), batch):
        ids, targets, at = (t[start : start + batch] for t in test.sequences)
        with evaluating(lm):
            logits = lm(input_ids=ids, use_cache=False).logits.float()
        last = logits[torch.arange(len(ids), device=ids.device, dtype=torch.int64), at]
        said.append(last.argmax(-1))
        score.append(last[:, task.words.true] - last[:, task.words.false])
        loss += float(loss_sum(logits, targets, task))
        words += int((targets != IGNORED).sum())
    right = torch.cat(said) == test.answer
    accuracy: list[float | None] = []
    count: list[int] = []
    for number in range(len(task.strata)):
        here = test.stratum == number if number else torch.ones_like(right)
        count.append(int(here.sum()))
        accuracy.append(float(right[here].double().mean()) if count[-1] else None)
    auc = bias = None
    if task.family == "match3":
        positive = test.answer == task.words.true
        if 0 < int(positive.sum()) < len(positive):
            auc = float(roc_auc_score(positive.cpu().numpy(), torch.cat(score).cpu().numpy()))
        bias = float((torch.cat(said) == task.words.true).double().mean() - positive.double().mean())
    return Answers(accuracy, count, auc, bias, loss / words, right.tolist())
