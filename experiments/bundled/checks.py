"""Is multi-token behaviour real in the bundled model? Re-split words, linear read-outs, and questions.

    python -m experiments.bundled.checks [--checkpoints]

1. Re-split words: 500 words that are one token are forced into pieces in a real context; is the state of the last
   piece nearer (cosine) to the state of the whole word there than to the state of another word?
2. A linear read-out of the current token, by layer, at last tokens of multi-token words and at other tokens.
3. Accuracy on ``tokinterp/data/questions.jsonl``.

States are the raw residual stream (layer 0 enters block 0, layer l is after l blocks), taken by forward hooks.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tokinterp.files.whole import write_text

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "tokinterp" / "data" / "reader"
QUESTIONS = ROOT / "tokinterp" / "data" / "questions.jsonl"
RESULTS = ROOT / "experiments" / "bundled"


@torch.no_grad()
def residuals(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """The residual stream of every layer: (n_layers + 1, rows, positions, d_model)."""
    blocks, seen, hooks = model.model.layers, [], []
    hooks.append(blocks[0].register_forward_pre_hook(lambda m, args: seen.append(args[0])))
    for b in blocks:
        hooks.append(b.register_forward_hook(lambda m, a, out: seen.append(out[0] if isinstance(out, tuple) else out)))
    try:
        model.model(input_ids=ids)
    finally:
        for h in hooks:
            h.remove()
    return torch.stack(seen).float()


def resplit_cases(tokenizer: Any, texts: list[str], count: int, seed: int, before: int = 96) -> list[dict]:
    """Words that are one token, each with a context from held-out text and another segmentation.

    Words are the most frequent of at least five letters (with the leading space). The other segmentation has as few
    pieces as possible (two, else three), all of the vocabulary; of these, the one with the longest first piece. The
    training text never contains it.
    """
    vocab = tokenizer.get_vocab()
    rng = np.random.default_rng(seed)
    streams = [e.ids for e in tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
    counts = np.bincount(np.concatenate(streams), minlength=len(vocab))
    cases = []
    for token, number in sorted(vocab.items(), key=lambda item: -counts[item[1]]):
        word = token[1:]
        if token[0] != "Ġ" or len(word) < 5 or not word.isalpha() or counts[number] < 3:
            continue
        cuts = range(len(token) - 2, 1, -1)
        splits = [(token[:i], token[i:]) for i in cuts]
        splits += [(token[:i], token[i:j], token[j:]) for i in cuts for j in range(i + 1, len(token) - 1)]
        splits = [s for s in splits if all(x in vocab for x in s)]
        if splits:
            cases.append({"word": word, "id": number, "pieces": [vocab[x] for x in splits[0]]})
    names = tokenizer.convert_ids_to_tokens(list(range(len(vocab))))
    places: dict[int, list[tuple[int, int]]] = {c["id"]: [] for c in cases}
    for d, stream in enumerate(streams):
        for i, t in enumerate(stream):
            if t in places and i >= 16 and not (i + 1 < len(stream) and names[stream[i + 1]][0].isalpha()):
                places[t].append((d, i))
    found: list[dict] = []
    for case in cases:
        if places[case["id"]] and len(found) < count:
            d, i = places[case["id"]][rng.integers(len(places[case["id"]]))]
            found.append(case | {"context": streams[d][max(0, i - before) : i]})
    return found


def resplit(model: Any, tokenizer: Any, cases: list[dict], seed: int) -> dict:
    """Share of cases, per layer, in which the last piece is nearer to its whole word than to another word.

    ``own_context``: the other word's token in its own context. ``same_context``: the other word's token in the
    context of this word, which is the harder comparison. Each raw and centred by the mean of the whole-word states.
    """
    bos = [tokenizer.bos_token_id]
    other = np.random.default_rng(seed).permutation(len(cases))
    other = np.where(other == np.arange(len(cases)), (other + 1) % len(cases), other)

    def last(ids: list[int]) -> torch.Tensor:
        return residuals(model, torch.tensor([bos + ids], dtype=torch.int64, device="cpu"))[:, 0, -1]

    whole = torch.stack([last(c["context"] + [c["id"]]) for c in cases], 1)  # layer, case, d_model
    split = torch.stack([last(c["context"] + c["pieces"]) for c in cases], 1)
    swapped = torch.stack([last(c["context"] + [cases[o]["id"]]) for c, o in zip(cases, other, strict=True)], 1)
    result: dict[str, Any] = {"cases": len(cases)}
    for name, centre in (("raw", 0), ("centred", whole.mean(1, keepdim=True))):
        cosine = [
            torch.cosine_similarity(split - centre, x - centre, dim=-1) for x in (whole, whole[:, other], swapped)
        ]
        result[name] = {
            "own_context": (cosine[0] > cosine[1]).float().mean(1).tolist(),
            "same_context": (cosine[0] > cosine[2]).float().mean(1).tolist(),
            "cosine_to_whole": cosine[0].mean(1).tolist(),
            "cosine_to_other": cosine[1].mean(1).tolist(),
            "cosine_to_swapped": cosine[2].mean(1).tolist(),
        }
    # of all whole-word states, is the right word's the nearest one to the last piece?
    a, b = (torch.nn.functional.normalize(x - whole.mean(1, keepdim=True), dim=-1) for x in (split, whole))
    result["nearest_of_all"] = (
        ((a @ b.mT).argmax(-1) == torch.arange(len(cases), dtype=torch.int64, device="cpu")).float().mean(1).tolist()
    )
    return result


def token_classes(tokens: list[str]) -> np.ndarray:
    """For each token of a stream: 0 not of a word, 1 a one-token word, 2 first, 3 middle, 4 last of several tokens."""
    letters = [t.lstrip("Ġ")[:1].isalpha() for t in tokens]
    starts = [a and (t[0] == "Ġ" or not p) for a, t, p in zip(letters, tokens, [False, *letters], strict=False)]
    out = np.zeros(len(tokens), int)
    for i, inside in enumerate(letters):
        if inside:
            ends = i + 1 == len(tokens) or not letters[i + 1] or starts[i + 1]
            out[i] = 1 if starts[i] and ends else 2 if starts[i] else 4 if ends else 3
    return out


def read_out(model: Any, tokenizer: Any, texts: list[str], positions: int, seed: int, softmax: bool) -> dict:
    """Accuracy and loss of linear read-outs of the current token, per layer and class of token.

    Fitted on three quarters of the articles, scored on the rest. ``lda``: shared covariance, closed form. ``softmax``:
    multinomial regression, Adam, 8 passes.
    """
    states, ids, classes, article = [], [], [], []
    length, total = 256, 0
    for number, text in enumerate(texts):
        row = tokenizer(text, add_special_tokens=False)["input_ids"][: 4 * length]
        for start in range(0, len(row) - 32, length):
            part = row[start : start + length]
            states.append(
                residuals(model, torch.tensor([[tokenizer.bos_token_id, *part]], dtype=torch.int64, device="cpu"))[
                    :, 0, 1:
                ].half()
            )
            ids.append(part)
            article.append([number] * len(part))
            classes.append(token_classes(tokenizer.convert_ids_to_tokens(part)))
            total += len(part)
        if total >= positions:
            break
    x, y = torch.cat(states, 1), torch.from_numpy(np.concatenate(ids))
    group, held = np.concatenate(classes), torch.from_numpy(np.concatenate(article) % 4 == 3)
    known = torch.bincount(y[~held], minlength=len(tokenizer))[y] > 0
    masks = {
        "last": group == 4,
        "first": group == 2,
        "one_token_word": group == 1,
        "other_than_last": group != 4,
        "all": group >= 0,
    }
    masks = {k: torch.from_numpy(m)[held & known] for k, m in masks.items()}
    out: dict[str, Any] = {"fit_positions": int((~held).sum()), "scored": {k: int(m.sum()) for k, m in masks.items()}}
    for kind in ("lda", "softmax") if softmax else ("lda",):
        out[kind] = {k: {"accuracy": [], "nats": []} for k in masks}
        for layer in range(len(x)):
            fit = softmax_fit if kind == "softmax" else lda_fit
            weight, bias = fit(x[layer][~held].float(), y[~held], len(tokenizer), seed)
            logits, target = x[layer][held & known].float() @ weight + bias, y[held & known]
            right = (logits.argmax(-1) == target).float()
            nats = torch.nn.functional.cross_entropy(logits, target, reduction="none")
            for k, m in masks.items():
                out[kind][k]["accuracy"].append(float(right[m].mean()))
                out[kind][k]["nats"].append(float(nats[m].mean()))
    return out


def lda_fit(x: torch.Tensor, y: torch.Tensor, classes: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights and biases of linear discriminant analysis with a shared, slightly shrunk covariance."""
    count = torch.bincount(y, minlength=classes).float()
    mean = (
        torch.zeros(classes, x.shape[1], dtype=torch.float32, device="cpu").index_add_(0, y, x)
        / count.clamp(min=1)[:, None]
    )
    inside = (x - mean[y]).double()
    covariance = inside.T @ inside / len(x)
    covariance += (
        1e-3 * x.double().var(0).mean() * torch.eye(x.shape[1], dtype=torch.float64, device="cpu")
    )  # at layer 0 there is no other variance
    weight = torch.linalg.solve(covariance, mean.double().T).float()
    bias = -0.5 * (mean.T * weight).sum(0) + torch.where(count > 0, (count / len(x)).log(), -1e9)
    return weight, bias


def softmax_fit(x: torch.Tensor, y: torch.Tensor, classes: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights and biases of multinomial regression on standardised states."""
    generator = torch.Generator().manual_seed(seed)
    centre, scale = x.mean(0), x.std(0) + 1e-6
    z = (x - centre) / scale
    weight, bias = (
        torch.zeros(*shape, requires_grad=True, dtype=torch.float32, device="cpu")
        for shape in ((x.shape[1], classes), (classes,))
    )
    adam = torch.optim.Adam([weight, bias], lr=0.01)
    steps = 8 * (len(z) // 1024)
    for step in range(steps):
        adam.param_groups[0]["lr"] = 0.01 * (1 - step / steps)
        rows = torch.randint(len(z), (1024,), generator=generator, dtype=torch.int64, device="cpu")
        with torch.autocast("cpu", torch.bfloat16):
            logits = z[rows] @ weight + bias
        adam.zero_grad()
        torch.nn.functional.cross_entropy(logits.float(), y[rows]).backward()
        adam.step()
    weight = (weight / scale[:, None]).detach()
    return weight, (bias - centre @ weight).detach()


@torch.no_grad()
def questions(model: Any, tokenizer: Any, path: Path) -> dict:
    """Top-1, top-5, mean log-probability and median rank of the answers, by kind and category.

    For an answer of two tokens: ``top1`` is greedy on both pieces (the second after the true first), ranks are of the
    first piece.
    """
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    groups: dict[str, list[tuple[float, ...]]] = {}
    for row in rows:
        answer = tokenizer(row["answer"], add_special_tokens=False)["input_ids"]
        prompt = tokenizer(row["prompt"])["input_ids"]
        logits = (
            model(input_ids=torch.tensor([prompt + answer], dtype=torch.int64, device="cpu"))
            .logits[0, len(prompt) - 1 : -1]
            .float()
        )
        logp = logits.log_softmax(-1)
        wanted = torch.tensor(answer, dtype=torch.int64, device="cpu")[:, None]
        ranks = (logits > logits.gather(1, wanted)).sum(1).tolist()
        total = float(logp.gather(1, wanted).sum())
        values = (
            float(max(ranks) == 0),
            float(ranks[0] < 5),
            ranks[0] + 1.0,
            total,
            float(ranks[-1] == 0),
            float(ranks[0] == 0),
        )
        for key in (row["kind"], f"{row['kind']}/{row['category']}"):
            groups.setdefault(key, []).append(values)
    names = ("top1", "top5_first", "mean_rank_first", "mean_logprob", "top1_last_given_first", "top1_first")
    out: dict[str, Any] = {}
    for key, values in sorted(groups.items()):
        table = np.array(values)
        out[key] = {"items": len(table)} | dict(zip(names, table.mean(0).tolist(), strict=True))
        out[key]["median_rank_first"] = float(np.median(table[:, 2]))
    return out


@torch.no_grad()
def short_loss(model: Any, folder: Path, length: int = 256, rows: int = 200) -> float:
    """Mean loss, nats per token, on fixed windows of the validation stream as short as the first training sequences."""
    stream = np.load(folder / "val.npy").astype(np.int64)
    starts = np.linspace(0, len(stream) - length, rows).astype(int)
    losses = []
    for s in starts:
        ids = torch.tensor([[0, *stream[s : s + length]]], dtype=torch.int64, device="cpu")
        logits = model(input_ids=ids[:, :-1]).logits[0].float()
        losses.append(float(torch.nn.functional.cross_entropy(logits, ids[0, 1:])))
    return float(np.mean(losses))


def untrained(model: Any) -> Any:
    """The same architecture with random weights: the control."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(model.config, dtype=torch.float32).eval()


def main() -> None:
    """Run the checks on the exported model, and on the checkpoints of the training run if asked."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "bundled" / "cpu")
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--positions", type=int, default=60_000)
    parser.add_argument("--checkpoints", action="store_true")
    parser.add_argument("--quick", action="store_true", help="no multinomial regression")
    a = parser.parse_args()
    RESULTS.mkdir(parents=True, exist_ok=True)
    texts = [json.loads(line)["text"] for line in (a.runs / "val.jsonl").read_text(encoding="utf-8").splitlines()]
    tokenizer = AutoTokenizer.from_pretrained(a.model)
    model = AutoModelForCausalLM.from_pretrained(a.model, dtype=torch.float32).eval()
    cases = resplit_cases(tokenizer, texts, 500, seed=0)

    def check(m: Any, softmax: bool) -> dict:
        return {
            "resplit": resplit(m, tokenizer, cases, 0),
            "read_out": read_out(m, tokenizer, texts, a.positions, 0, softmax),
        }

    if a.checkpoints:
        path = RESULTS / "training_curves.json"
        curves = json.loads(path.read_text()) if path.exists() else []
        for saved_path in (*sorted(a.runs.glob("step_*.pt")), a.runs / "final.pt"):
            if not saved_path.exists():
                continue
            saved = torch.load(saved_path, weights_only=True)
            if saved["row"]["step"] in [c["checkpoint"]["step"] for c in curves]:
                continue
            model.load_state_dict(saved["model"])
            row = {"checkpoint": saved["row"], "val_loss_256": short_loss(model, a.runs)}
            curves.append(row | check(model, False))
            write_text(path, json.dumps(curves, indent=1))
        return
    result: dict[str, Any] = {"model": check(model, not a.quick), "untrained": check(untrained(model), False)}
    result["examples"] = [{"word": c["word"], "pieces": tokenizer.convert_ids_to_tokens(c["pieces"])} for c in cases]
    if QUESTIONS.exists():
        result["questions"] = questions(model, tokenizer, QUESTIONS)
    write_text(RESULTS / "checks.json", json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
