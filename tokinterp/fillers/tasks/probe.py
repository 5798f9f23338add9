"""How much of the answer is in how many fillers: probes of a trained network whose trunk stays frozen."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch
import xarray as xr

from ...files.bars import progress_bar
from ...fitted import Tensors
from ...models.steady import steady
from ...results.dataset import check, numbers_version, variable
from ...results.stamp import stamped
from ...run.checkpoint import EVERY, Checkpoint, State
from ...run.signals import at_once
from ...run.walk import kept_result
from ...settings import checked, count, fraction, one_of, several
from .evaluation import evaluate, loss_sum
from .formats import IGNORED, Sequences
from .network import Network, build, network_info, parameters_hash
from .schedule import Schedule
from .task import Samples, Task, majority
from .training import Training, device_of, load_optimiser, network_tensors, optimiser_tensors

REFERENCE = "Pfau, Merrill and Bowman 2024, arXiv 2404.15758, figure 4"
VARIANTS = ("frozen", "released")
PROBE_SEED = 2
CHUNK = 8


@checked(share=fraction)
def keep_fillers(x: Sequences, task: Task, share: float) -> Sequences:
    """Return filler sequences without their first ``floor(F (1 - share))`` fillers.

    Raises
    ------
    ValueError
        If the share is not from 0 to 1.
    """
    # 1 - 0.9 is a little less than 0.1: without the small number, floor() would keep a filler too many.
    gone = math.floor(task.n_fillers * (1 - share) + 1e-9)
    keep = torch.ones(x.ids.shape[1], dtype=torch.bool, device=x.ids.device)
    keep[task.n + 1 : task.n + 1 + gone] = False
    return Sequences(x.ids[:, keep], x.targets[:, keep], x.answer_at - gone)


def trainable_names(lm: Any, variant: str) -> set[str]:
    """Return the parameters that a probe trains: the last block, the final norm and the head, or everything."""
    names = [name for name, _ in lm.named_parameters()]
    if variant == "released":
        return set(names)
    last = f"model.layers.{lm.config.num_hidden_layers - 1}."
    return {n for n in names if n.startswith((last, "model.norm.", "lm_head."))}


def freeze(lm: Any, variant: str) -> set[str]:
    """Switch gradients on for the parameters that a probe trains and off for all others; return the frozen names."""
    chosen = trainable_names(lm, variant)
    for name, p in lm.named_parameters():
        p.requires_grad_(name in chosen)
    return {name for name, _ in lm.named_parameters()} - chosen


@at_once()
@checked(kept=several(fraction, 1, once=True), variant=one_of(*VARIANTS), test_examples=count(1))
@steady
def probe_fillers(
    trunks: Mapping[str, Any],
    task: Task,
    *,
    kept: Sequence[float] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0),
    variant: str = "frozen",
    schedule: Schedule | None = None,
    random_trunk: bool = True,
    seed: int = 0,
    store: str | Path | None = None,
    **how: Unpack[Training],
) -> xr.Dataset:
    """Finetune the end of a network to answer after fewer fillers, once for each share kept.

    Dropping the first fillers means that the answer is read early: if it improves with every filler kept, each of them
    holds some of what the answer needs.

    Parameters
    ----------
    trunks : mapping of str -> LlamaForCausalLM
        Networks to probe; for the controls of the paper's claim give the one trained without fillers too.
    task : Task
        Match3.
    kept : sequence of float
        Shares of the fillers kept; the first ``floor(F (1 - share))`` are left out.
    variant : {"frozen", "released"}
        ``"frozen"``: last block, final norm and head are trained, all else is frozen, which is checked by a hash.
        ``"released"``: everything is trained, as the published code does in effect (it sets an attribute that freezes
        nothing and gives the optimiser all parameters).
    schedule : Schedule, optional
        The published one by default: 1e7 examples once, batch 256, rate 1e-4.
    random_trunk : bool
        Whether an untrained network of the same shape is probed as well, named ``"random"``.
    seed : int
        Of the data.
    store : path, optional
        zarr folder for the result.  What is finished, and the state of the probe under way, are kept in
        ``STORE.partial``: the same call goes on from there and ends in the same numbers.  A finished result is read.
    **how
        ``device``, ``test_examples``, ``checkpoint_every``, ``progress``: see `Training`.

    Returns
    -------
    Dataset
        ``accuracy`` and ``auc`` (trunk, kept), ``n_kept`` (kept), ``majority``; ``stratum_accuracy``
        (trunk, kept, stratum); ``correct`` (trunk, kept, prompt) for the test examples, which are the same everywhere.

    Raises
    ------
    ValueError
        For Match2, an unknown variant, no trunk, shares outside 0 to 1, or fewer than two blocks; for a store of other
        networks or settings (names what differs).
    RuntimeError
        If a frozen parameter changed, or another process is writing the store.
    KeyboardInterrupt
        After Ctrl-C or another signal, once the step in progress has been finished and kept.

    Examples
    --------
    >>> import tokinterp as ti
    >>> tasks = ti.fillers.tasks
    >>> task = tasks.Task(n=4, d=2, m=3)
    >>> schedule, network = tasks.Schedule(steps=2, batch=8, rate=1e-3), tasks.Network(2, 16, 2, 16)
    >>> options = {"schedule": schedule, "test_examples": 20, "device": "cpu", "progress": False}
    >>> _, networks = tasks.train(task, network=network, **options)
    >>> probe = tasks.probe_fillers({"filler": networks[0]}, task, kept=(0, 1), random_trunk=False, **options)
    >>> probe["kept"].values.tolist()
    [0.0, 1.0]
    """
    shares = _check_probe(trunks, task, kept, variant)
    schedule = schedule or Schedule(steps=10_000_000 // 256, batch=256, rate=1e-4)
    place, test_examples = device_of(how), how.get("test_examples", 2000)
    trunks = dict(trunks)
    if random_trunk:
        trunks["random"] = _untrained_like(next(iter(trunks.values())), task, seed)
    parameters = {
        "task": asdict(task), "variant": variant, "schedule": asdict(schedule), "kept": shares, "seed": seed,
        "trunks": {name: parameters_hash(lm) for name, lm in trunks.items()}, "test_examples": test_examples,
    }  # fmt: skip
    networks = {name: network_info(lm, task, parameters_hash(lm)).identity for name, lm in trunks.items()}
    facts = {**parameters, "networks": networks, "device": place.type, "tokinterp": numbers_version()}

    def make(keep: Checkpoint) -> xr.Dataset:
        test = task.test_set("filler", test_examples, PROBE_SEED, place)
        tune = partial(finetune, task=task, variant=variant, schedule=schedule, seed=seed)
        bar = how.get("progress", True)
        scores = _probe_all(trunks, task, shares, tune, schedule.steps, test, keep, bar)
        shape = (len(trunks), len(shares))
        accuracy = np.array([x for x, _, _ in scores], dtype=float).reshape(*shape, len(task.strata))
        auc = np.array([x for _, x, _ in scores], dtype=float).reshape(shape)
        correct = np.array([x for _, _, x in scores], dtype=bool).reshape(*shape, -1)
        ds = _probe_dataset(task, shares, list(trunks), accuracy, auc, correct, test)
        return finish(ds, next(iter(trunks.values())), task, parameters, "FillersProbe", seed)

    return kept_result(store, facts, make, how.get("checkpoint_every", EVERY))


def _probe_all(
    trunks: Mapping[str, Any], task: Task, shares: Sequence[float], tune: Callable[..., Any], steps: int,
    test: Samples, keep: Checkpoint, progress: bool,
) -> list[tuple[list[float | None], float | None, list[bool]]]:  # fmt: skip
    """Return (accuracy of each stratum, AUC, what is right) for each trunk and share, from what was kept on."""
    place = test.answer.device
    begin = keep.state()
    scores = [(accuracy, auc, right) for accuracy, auc, right in begin[0]["scores"]] if begin else []
    todo = [(name, share) for name in trunks for share in shares]
    with progress_bar(progress, len(todo), initial=len(scores), desc="probe") as bar:
        for name, share in todo[len(scores) :]:
            shorter = Samples(keep_fillers(test.sequences, task, share), test.answer, test.rows, test.stratum)

            def each(step: int, state: Callable[[], Tensors], name: str = name, share: float = share) -> None:
                said = f"after {step} of {steps} steps of {name} with {share:g} of the fillers"
                keep.step(said, lambda: ({"scores": scores, "step": step}, state()))

            tuned = tune(copy.deepcopy(trunks[name]).to(place), share=share, begin=begin, each=each)
            begin = None
            found = evaluate(tuned, task, shorter)
            scores.append((list(found.accuracy), found.auc, found.right))
            bar.update()
    return scores


def _probe_dataset(
    task: Task, shares: Sequence[float], names: Sequence[str], accuracy: np.ndarray, auc: np.ndarray,
    correct: np.ndarray, test: Samples,
) -> xr.Dataset:  # fmt: skip
    n_kept = [task.n_fillers - math.floor(task.n_fillers * (1 - share) + 1e-9) for share in shares]
    v = variable
    data = {
        "accuracy": v(
            ("trunk", "kept"), accuracy[..., 0], "accuracy of the answer", "1", REFERENCE,
            short="accuracy of the answer", range=(0, 1), chance="majority",
        ),
        "stratum_accuracy": v(
            ("trunk", "kept", "stratum"), accuracy, "accuracy of the answer", "1", short="accuracy of the answer",
            range=(0, 1),
        ),
        "auc": v(
            ("trunk", "kept"), auc, "area under the ROC curve of logit(True) - logit(False)", "1", short="AUC",
            range=(0, 1), chance=0.5,
        ),
        "correct": v(("trunk", "kept", "prompt"), correct, "whether the answer to a test example is right", "1"),
        "n_kept": v("kept", n_kept, "fillers kept", "token"),
        "majority": v((), majority(test.answer), "share of the most common answer", "1", short="majority"),
    }  # fmt: skip
    coords = {
        "trunk": v("trunk", np.array(names), "network that is probed", "1"),
        "kept": v("kept", np.asarray(shares), "share of the fillers kept", "1"),
        "stratum": v("stratum", np.array(task.strata), "kind of example", "1"),
        "prompt": v("prompt", np.arange(correct.shape[-1]), "number of the test example", "1"),
    }
    return xr.Dataset(data, coords)


def finetune(
    lm: Any, task: Task, share: float, variant: str, schedule: Schedule, seed: int,
    begin: State | None = None, each: Callable[[int, Callable[[], Tensors]], None] | None = None,
) -> Any:  # fmt: skip
    """Return a copy of a network finetuned to answer after a share of the fillers.

    Parameters
    ----------
    lm, task, share, variant, schedule, seed
        As for `probe_fillers`.
    begin : tuple of dict and dict, optional
        Notes, with ``step``, and tensors to go on from; they end in the same bits as training without a stop.
    each : callable, optional
        Called after every step with the number of steps taken and a function that returns the tensors to go on from.

    Raises
    ------
    RuntimeError
        If a frozen parameter changed.
    """
    tuned = copy.deepcopy(lm).train()
    device = next(tuned.parameters()).device
    frozen = freeze(tuned, variant)
    before = parameters_hash(tuned, frozen)
    trained = [p for p in tuned.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=schedule.rate, betas=schedule.betas, weight_decay=schedule.weight_decay)
    fast = torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else nullcontext()
    first = 0
    if begin is not None:
        first = begin[0]["step"]
        tuned.load_state_dict(network_tensors(begin[1]))
        load_optimiser(optimiser, begin[1])
    batches = task.stream("filler", schedule.batch, PROBE_SEED + 1000 * seed + 17, CHUNK, device, first=first)
    for step, batch in zip(range(first, schedule.steps), batches, strict=False):
        optimiser.param_groups[0]["lr"] = schedule.rate_at(step)
        short = keep_fillers(batch, task, share)
        with torch.enable_grad():
            with fast:
                logits = tuned(input_ids=short.ids, use_cache=False).logits
            loss = loss_sum(logits, short.targets, task) / (short.targets != IGNORED).sum()
            loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, schedule.clip)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        if each is not None:
            each(step + 1, lambda: {f"lm/{k}": v for k, v in tuned.state_dict().items()} | optimiser_tensors(optimiser))
    if parameters_hash(tuned, frozen) != before:
        raise RuntimeError("a frozen parameter changed during the probe's training: its result is void")
    return tuned.eval()


def _check_probe(trunks: Mapping[str, Any], task: Task, kept: Sequence[float], variant: str) -> list[float]:
    if task.family != "match3":
        raise ValueError(f"task={task.name}: the probe of the fillers is defined for match3, not {task.family}")
    check_trunks(trunks, task, alike=False)
    for name, lm in trunks.items():
        if lm.config.num_hidden_layers < 2 and variant == "frozen":
            raise ValueError(f"trunk {name!r} has one block: nothing would be frozen; take a network of two or more")
    return [float(share) for share in kept]


def check_trunks(trunks: Mapping[str, Any], task: Task, alike: bool = True) -> None:
    """Raise ValueError unless networks are of a task, none has the name of the control, and all are equally deep."""
    if not trunks or "random" in trunks:
        raise ValueError(f"trunks={list(trunks)}: give at least one network, none of them named 'random'")
    for name, lm in trunks.items():
        if lm.config.vocab_size != len(task.words):
            raise ValueError(
                f"trunk {name!r} has {lm.config.vocab_size} words, the task {task.name} has {len(task.words)}: it was "
                "trained on another task"
            )
    if alike and len({lm.config.num_hidden_layers for lm in trunks.values()}) > 1:
        raise ValueError(f"trunks={list(trunks)}: they differ in depth and have no layers in common: take one by one")


def _untrained_like(lm: Any, task: Task, seed: int) -> Any:
    c = lm.config
    shape = Network(c.num_hidden_layers, c.hidden_size, c.num_attention_heads, c.intermediate_size)
    return build(task, shape, 10_000 + seed)


def finish(ds: xr.Dataset, lm: Any, task: Task, parameters: dict[str, Any], measurement: str, seed: int) -> xr.Dataset:
    """Return a result with its provenance, checked."""
    info = network_info(lm, task, parameters_hash(lm))
    ds = stamped(ds.assign_attrs(task=task.name), measurement, info, task.hash, parameters, seed)
    check(ds)
    return ds
