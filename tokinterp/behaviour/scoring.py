"""How probable the right answer is at the end of each prompt, and by how much more than another one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from ..run.measurement import Field, Measurement
from ..run.sites import Site
from ..settings import checked, count, several

if TYPE_CHECKING:
    from ..models.info import ModelInfo
    from ..run.batch import Batch
    from ..text.prompts import Prompts


@checked(answers=several(several(count()), 1), others=several(several(count()), 1))
class Answers(Measurement):
    """Log-probability of an answer, teacher forced: each prompt ends with all tokens of its answer but the last.

    Parameters
    ----------
    answers : sequence of sequence of int
        Token ids of the answer of each prompt; of an answer of one token the prompt holds nothing.
    others : sequence of sequence of int, optional
        As many tokens of another answer, of which the first counts: for ``logit_difference``.

    Notes
    -----
    Where k tokens are the most probable ones (logits in bfloat16 often are equal), the answer among them is 1/k right:
    what drawing one of them gives. ``ties`` says where; a test of single items (McNemar's) takes ``correct == 1``.

    Examples
    --------
    >>> import tokinterp as ti
    >>> model = ti.load_model()
    >>> prompts = ti.Prompts.from_texts(["The capital of France is", "The capital of Italy is"], model)
    >>> ids = [model.tokenizer(t, add_special_tokens=False)["input_ids"][:1] for t in (" Paris", " Rome")]
    >>> asked = {"answers": ti.behaviour.Answers(ids, others=ids[::-1])}
    >>> run = ti.measure(model, prompts, asked, progress=False)
    >>> run["answers"]["logit_difference"].dims
    ('prompt',)
    """

    fields = {
        "log_prob": Field(("prompt",), "log-probability of the answer", "nat", short="log-prob. of the answer"),
        "correct": Field(
            ("prompt",),
            "whether every token of the answer is the most probable one, of k as probable 1/k",
            short="answers given",
            range=(0, 1),
        ),
        "ties": Field(("prompt",), "other tokens as probable as one of the answer, the most of them", short="ties"),
        "rank": Field(
            ("prompt",),
            "tokens more probable than the first of the answer, -1 where logits are NaN",
            short="rank of the answer",
        ),
        "logit_difference": Field(
            ("prompt",),
            "logit of the first token of the answer less that of the other answer",
            "nat",
            short="logit difference",
        ),
    }

    def __init__(self, answers: Sequence[Sequence[int]], others: Sequence[Sequence[int]] | None = None) -> None:
        super().__init__()
        self.answers, self.others = answers, others
        if others is None:
            self.fields = {name: field for name, field in self.fields.items() if name != "logit_difference"}

    def sites(self, info: ModelInfo) -> list[Site]:
        """Return the stream after the last block."""
        return [Site("resid", info.n_layers)]

    def begin(self, info: ModelInfo, prompts: Prompts) -> None:
        """Check that there is an answer for each prompt, at whose end it stands."""
        super().begin(info, prompts)
        for name, given in (("answers", self.answers), ("others", self.others)):
            if given is None:
                continue
            if len(given) != len(prompts):
                raise ValueError(f"{name}: {len(given)} for {len(prompts)} prompts: give one for each")
            for n, ids in enumerate(given):
                if not len(ids) or max(ids) >= info.d_vocab:
                    raise ValueError(
                        f"{name}: that of prompt {n} is {list(ids)}: give token ids below {info.d_vocab}, at least one"
                    )
        for n, ids in enumerate(self.answers):
            held = prompts.ids(n)[len(prompts.ids(n)) - len(ids) + 1 :].tolist()
            if held != list(ids)[:-1] or len(ids) > prompts.lengths[n]:
                raise ValueError(
                    f"answers: that of prompt {n} is {list(ids)}, but the prompt ends with {held}: let it end with all "
                    "tokens of the answer but the last"
                )
        self._size = max(map(len, self.answers))
        self._goal = torch.full((len(prompts), self._size), -1, dtype=torch.int64, device="cpu")
        for n, ids in enumerate(self.answers):
            self._goal[n, : len(ids)] = torch.tensor(list(ids), dtype=torch.int64, device="cpu")

    def update(self, batch: Batch) -> None:
        """Score the answers of a batch."""
        goal = self._goal[batch.numbers].to(batch.device)
        asked, target = goal >= 0, goal.clamp_min(0)[..., None]
        step = torch.arange(self._size, dtype=torch.int64, device=batch.device)
        first = batch.mask.sum(1, keepdim=True) - asked.sum(1, keepdim=True)  # whose prediction begins the answer
        place = (first + step).clamp_max(batch.ids.shape[1] - 1)
        x = batch.resid(self.info.n_layers)
        logits = batch.model.unembed(x.gather(1, place[..., None].expand(-1, -1, x.shape[-1])))
        log_probs = logits.log_softmax(-1)
        own = log_probs.gather(2, target)
        above, as_much = (log_probs > own).sum(-1), (log_probs == own).sum(-1)
        share = torch.where(asked, (above == 0) / as_much, 1.0).double()
        total = own[..., 0].double().masked_fill(~asked, 0).sum(1)
        found = {
            "log_prob": total,
            "correct": share.prod(1).masked_fill(total.isnan(), torch.nan),
            "ties": (as_much - 1).masked_fill(~asked, 0).amax(1).clamp_min(0),
            "rank": above[:, 0].masked_fill(own[:, 0, 0].isnan(), -1),
        }
        if self.others is not None:
            other = torch.tensor([self.others[n][0] for n in batch.numbers], device=batch.device, dtype=torch.int64)
            pair = logits[:, 0].double().gather(1, torch.stack([target[:, 0, 0], other], 1))
            found["logit_difference"] = pair[:, 0] - pair[:, 1]
        self.keep(batch, **found)
