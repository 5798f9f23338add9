"""Checks on real models, tokenizers and annotated text that cannot be shipped; the tests need none of them.

``python -m experiments.real_data [FOLDER]`` prints what was found beside what is known, a line a check, and ends with 1
if any differs.  FOLDER (default ``$TOKINTERP_DATA``) holds ``models/stories260K``, ``text``, ``spans``, ``tasks``,
``tokenizers``, ``flores200_dataset`` (of github.com/AleksandarPetrov/tokenization-fairness), ``cogtok`` and
``multiconer`` (see the checks); what a check needs and is not there is said, and counts as failed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch

import tokinterp as ti
from tokinterp.attention.contributions import PARTS, Rule, block_shares
from tokinterp.erasure.probe_scores import score_probes
from tokinterp.erasure.probes import ProbeSettings, fit_probes
from tokinterp.text import read_conll, read_conllu, read_conllulex

from . import real_tokenizers
from .real_tokenizers import Outcome, equal, tokenizer

STORY = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park."
PARK = f"{STORY} One day, she saw a big red ball. She wanted to play with it, but it was too high up in the tree."
JACOBIAN = [[9.1009, 35.164, 0.4802, 0.06, -0.2829], [10.1103, 64.2845, 1.0194, 0.029, -0.029]]
"""Layers 1 and 4 to 5 of stories260K on that text, positions 16 to the last but one."""
COUNTS = {  # Llama-2 tokens with BOS: all, of the first 512 and of the first 256 of every text, as published
    "wikipedia_test_500": [369_248, 167_209, 103_721],
    "wikipedia_val_500": [425_581, 168_856, 104_210],
    "wikipedia_train_1000": [774_603, 327_104, 204_357],
}
ROUTES = [
    [0.636212, 0.819518, 0.850104, 0.783195, 0.873001], [0.364866, 0.234918, 0.193920, 0.180615, 0.235654],
    [0.500075, 0.803140, 0.791315, 0.778397, 0.790636], [0.165472, 0.179642, 0.157468, 0.144452, 0.077227],
    [0.00164, 0.12870, 0.03668, 0.15331, 0.04808, 0.00521, 0.08378, 0.04253],
]  # fmt: skip
"""Residual and MLP by block of stories260K, mean over tokens and at the last; heads of block 0 there: their shares."""
ERASED = {  # accuracy by (subset, layer, offset) in stories260K, from the run on all stories
    ("last piece", 0, 0): 1.0, ("last piece", 5, 0): 0.60, ("middle piece", 5, 0): 0.84, ("first piece", 5, 0): 1.0,
    ("single-token word", 5, 0): 0.96, ("punctuation", 5, 0): 0.98, ("last piece", 2, -1): 0.79,
    ("last piece", 5, -1): 0.35,
}  # fmt: skip
STRINGS = {
    "gpt2": ("Hello  café 😀", ["Hello", " ", " café", " \\xf0\\x9f\\x98", "\\x80"]),
    "llama2": ("Hello café 日\n", ["Hello", " c", "afé", " ", "日", "\n"]),
    "stories260K": ("Once upon 日", ["Once", " upon", " ", "\\xe6", "\\x97", "\\xa5"]),
}


def token_counts(folder: Path) -> Outcome:
    """Llama-2 tokens of the documents of Feucht et al. (2024)."""
    made, found = tokenizer(folder, "llama2"), {}
    for name in COUNTS:
        file = folder / "text" / f"{name}.csv.xz"
        parts = [ti.Prompts.from_file(file, made, max_tokens=limit, progress=False) for limit in (None, 512, 256)]
        found[name] = [p.n_tokens for p in parts]
    return equal(found, COUNTS)


def token_strings(folder: Path) -> Outcome:
    """Strings of tokens of known vocabularies, halves of characters as bytes."""
    found = {}
    for name, (text, _) in STRINGS.items():
        prompts = ti.Prompts.from_texts([text], tokenizer(folder, name))
        pairs = zip(prompts.strings(0), prompts.special(0), strict=True)
        found[name] = [string for string, special in pairs if not special]
    return equal(found, {name: strings for name, (_, strings) in STRINGS.items()})


def greedy_text(folder: Path) -> Outcome:
    """What stories260K says from BOS, by the unembedded last layer."""
    model = ti.load_model(folder / "models" / "stories260K", device="cpu")
    site = ti.Site("resid", model.info.n_layers)
    said = torch.tensor([[model.tokenizer.bos_token_id]], dtype=torch.int64, device="cpu")
    while len(text := model.tokenizer.decode(said[0], skip_special_tokens=True)) < len(STORY):
        following = model.unembed(model.run(said, [site])[site][:, -1]).argmax(-1)
        said = torch.cat([said, following[:, None]], 1)
    return equal(text[: len(STORY)], STORY)


def erasure(folder: Path) -> Outcome:
    """Accuracy of probes in stories260K on a fifth of the stories, within twice the tolerance of the full run."""
    model = ti.load_model(folder / "models" / "stories260K", device="cpu")
    stories = json.loads((folder / "text" / "tinystories_1000.json").read_text(encoding="utf-8"))
    train, test = (
        ti.Prompts.from_texts(part, model, max_tokens=256, progress=False)
        for part in (stories[:100], stories[600:800:5])
    )
    settings = ProbeSettings(epochs=8, lr=0.02)
    probes = fit_probes(model, train, layers=[0, 2, 5], offsets=[-1, 0], settings=settings, progress=False)
    accuracy = score_probes(probes, model, test, progress=False, n_boot=200)["accuracy"]
    found = {k: round(float(accuracy.sel(subset=k[0], layer=k[1], offset=k[2])), 3) for k in ERASED}
    return Outcome(found, ERASED, all(abs(found[k] - v) <= 0.06 for k, v in ERASED.items()))


def gold_spans(folder: Path) -> Outcome:
    """Entities and multiword expressions read from files, beside a second, plain way to count them."""
    wikigold, streusle = folder / "spans" / "wikigold.conll.txt", folder / "spans" / "streusle.ud_dev.conllulex"
    entities, expressions = read_conll(wikigold), read_conllulex(streusle)
    rows = [line.split("\t") for line in streusle.read_text(encoding="utf-8").splitlines()]
    firsts = sum(len(r) == 19 and r[10].endswith(":1") for r in rows)
    found = (
        ["".join(s.split()) for s in entities.spans.strings()],
        len(expressions.spans) + expressions.skipped["mwe with a gap"],
    )
    known = (_entities(wikigold), firsts)
    return Outcome([len(found[0]), found[1]], [len(known[0]), known[1]], found == known)


def _entities(file: Path) -> list[str]:
    """Return the entities of an IO/BIO file, spaces left out, read in another way than the reader does."""
    out: list[str] = []
    before = "O"
    for line in file.read_text(encoding="utf-8").splitlines():
        token, tag = line.split() if line else ("", "O")
        if tag[0] == "B" or (tag != "O" and tag[2:] != before[2:]):
            out.append(token)
        elif tag != "O":
            out[-1] += token
        before = tag
    return out


def aligned_spans(folder: Path) -> Outcome:
    """Share of gold spans that end where tokens end: at least 98 % with every tokenizer."""
    read, found = read_conll(folder / "spans" / "wikigold.conll.txt"), {}
    for name in ("gpt2", "llama2", "pythia", "stories260K"):
        made = tokenizer(folder, name)
        prompts = ti.Prompts.from_texts(read.texts, made, max_tokens=512, on_long="window", stride=256, progress=False)
        found[name] = round(1 - len(read.spans.align(prompts).unaligned) / len(read.spans), 4)
    return Outcome(found, "at least 0.98", min(found.values()) >= 0.98)


def parts_of_speech(folder: Path) -> Outcome:
    """Tags of every word of a CoNLL-U file, beside a count of its lines."""
    file = folder / "spans" / "en_ewt-ud-dev.conllu"
    rows = [line.split("\t") for line in file.read_text(encoding="utf-8").splitlines()]
    known = Counter(r[3] for r in rows if r[0].isdigit())
    found = Counter(read_conllu(file, relations=()).spans.type.tolist())
    return Outcome(dict(found.most_common(3)), dict(known.most_common(3)), found == known)


def questions(folder: Path) -> Outcome:
    """MMLU has more than 14,000 questions of four options."""
    items = ti.behaviour.read_mmlu(folder / "tasks" / "mmlu.tar.xz")
    options = {len(i.options) for i in items}
    return Outcome([len(items), options], ["over 14,000", {4}], len(items) >= 14_000 and options == {4})


def jacobian_lens(folder: Path) -> Outcome:
    """Norm, trace and first entries of the mean Jacobians of one prompt, as other code finds them."""
    model = ti.load_model(str(folder / "models" / "stories260K"), dtype="float64")
    lens = ti.lens.fit_jacobian_lens(model, [PARK], progress=False)
    found = [[round(float(v), 4) for v in (w.norm(), w.trace(), *w[0, :3])] for w in lens.weight]
    return Outcome([len(lens.layers), found[0], found[-1]], [4, *JACOBIAN], [found[0], found[-1]] == JACOBIAN)


def routes(folder: Path) -> Outcome:
    """Shares of residual, MLP and heads in the stream of one sentence, as other code finds them."""
    model = ti.load_model(str(folder / "models" / "stories260K"), dtype="float64")
    prompts = ti.Prompts.from_texts([STORY.partition(" She")[0]], model)
    asked = {"routes": ti.attention.InformationRoutes(sizes=None, tokens=None)}
    ds = ti.measure(model, prompts, asked, progress=False)["routes"].to_dataset()
    resid, mlp = ds["token_resid"].values, ds["token_mlp"].values
    batch = ti.capture(model, prompts, [0], [ti.Site(name, 0) for name in PARTS])
    shares = block_shares(batch, 0, {s.name: a for s, a in batch.activations.items()}, Rule())
    heads = shares.heads[0, :, -1].sum(-1)
    found = [resid.mean(0), mlp.mean(0), resid[-1], mlp[-1], heads.numpy()]
    same = all(abs(a - b) < 6e-6 for x, y in zip(found, ROUTES, strict=True) for a, b in zip(x, y, strict=True))
    return Outcome([[round(float(v), 6) for v in x] for x in found[:1]], ROUTES[:1], same)


CHECKS: dict[str, Callable[[Path], Outcome]] = {
    f.__name__: f
    for f in (
        token_counts, token_strings, greedy_text, erasure, gold_spans, aligned_spans, parts_of_speech, questions,
        jacobian_lens, routes,
        *real_tokenizers.CHECKS,
    )
}  # fmt: skip


def run(folder: Path, names: list[str] | None = None) -> bool:
    """Run the checks named, or all; print one line each and return whether all agree."""
    good = True
    for name in names or list(CHECKS):
        try:
            outcome = CHECKS[name](folder)
            line = f"found {outcome.found}, known {outcome.known}"
            ok = outcome.ok
        except FileNotFoundError as error:
            ok, line = False, f"needs a file that is not there: {error}"
        good &= ok
        print(f"{'agrees ' if ok else 'DIFFERS'} {name}: {line}", flush=True)
    return good


def main(arguments: list[str] | None = None) -> int:
    """Run from the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m experiments.real_data", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, default=os.environ.get("TOKINTERP_DATA"))
    parser.add_argument("--only", nargs="+", choices=list(CHECKS), metavar="CHECK", help=", ".join(CHECKS))
    given = parser.parse_args(arguments)
    if given.folder is None or not Path(given.folder).is_dir():
        parser.error(f"folder {str(given.folder)!r} does not exist: name the data folder, or set TOKINTERP_DATA")
    return 0 if run(Path(given.folder), given.only) else 1


if __name__ == "__main__":
    sys.exit(main())
