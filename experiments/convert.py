"""Write older records in the form of today, once: the numbers that they hold, and what they do not.

    python experiments/convert.py      # in the root of the repository; then this file is deleted

Claims are those of today; each number is taken from the older table as it stands.  A difference of two means is formed
where the table has only the means: it has no interval then, and none is made.
"""

from __future__ import annotations

import json
import subprocess
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from experiments.runner import record
from experiments.runner.claims import Number, row

OLD = Path("experiments/results")
NAN = float("nan")
Numbers = dict[str, Any]


def pair(value: Any, bounds: Any) -> Number:
    return Number(*(NAN if x is None else float(x) for x in (value, *bounds)))


def bare(value: Any) -> Number:
    return Number(NAN if value is None else float(value))


def text(null: str) -> str:
    return "text" if null == "none" else null


def token_geometry(d: dict[str, Any]) -> dict[str, Numbers]:
    ends = ("shuffle:5", "random_ids", "untrained")
    out: dict[str, Numbers] = {}
    loss, size, overlap, cosine = (d[k] for k in ("loss", "dimension", "overlap", "cosine"))
    out["shuffling raises the loss"] = {
        "S = 5 less text": bare(loss["shuffle:5"]["mean"] - loss["none"]["mean"]),
        **{text(n): bare(x["mean"]) for n, x in loss.items()},
    }
    curve = size["none"]["mean"]["4"]
    out["the dimension has a peak at mid-depth"] = {
        "middle less last layer": bare(curve[len(curve) // 2 - 1] - curve[-1]), "text by layer": curve,
        **{f"{n} by layer": size[n]["mean"]["4"] for n in ends},
    }  # fmt: skip
    for scale in ("2", "4", "8"):  # of the mean curve: the records have no largest value of each prompt
        peaks = {text(n): bare(max(x["mean"][scale])) for n, x in size.items()}
        out[f"shuffling raises the dimension at n2 = {scale}"] = {
            "S = 5 less text (largest of the mean curve)": bare(peaks["shuffle:5"].value - peaks["text"].value),
            **peaks,
        }
    one = {n: overlap[n]["1"] for n in ("none", *ends)}
    out["neighbours overlap more with depth"] = {
        "last less first": bare(one["none"][-1] - one["none"][0]),
        **{f"{text(n)} by block": x for n, x in one.items()},
    }
    out["shuffling lowers the overlap of nearest neighbours"] = {
        "S = 5 less text": bare(one["shuffle:5"][-1] - one["none"][-1]),
        **{text(n): bare(overlap[n]["1"][-1]) for n in overlap if n != "chance"},
    }
    out["high overlap is no sign of learning"] = {
        "untrained less text": bare(np.mean(one["untrained"]) - np.mean(one["none"]))
    }
    last = {text(n): bare(x["cosine_diagonal"][-1]) for n, x in cosine.items()}
    out["mean cosine rises with shuffling at late layers"] = {
        "S = 5 less text": bare(last["shuffle:5"].value - last["text"].value),
        **last,
    }
    r = d["correlation"]
    at = {n: pair(r[n]["pearson"]["4"][-1], r[n]["pearson_interval"][-1]) for n in ("none", *ends)}
    out["log dimension goes with the loss over prompts"] = {
        "text": at["none"], "text, given length, types and unigrams": bare(r["none"]["partial"]["4"][-1]),
        **{n: at[n] for n in ends}, "text by layer": r["none"]["pearson"]["4"],
    }  # fmt: skip
    four, two = (bare(r["none"]["pearson"][n][-1]) for n in ("4", "2"))
    out["it goes better at n2 = 4 than at n2 = 2"] = {
        "n2 = 4 less n2 = 2": bare(four.value - two.value), "n2 = 4": at["none"], "n2 = 2": two
    }  # fmt: skip
    logits = d["logit_dimension_with_entropy"]
    out["the dimension of the logits goes with their entropy"] = {
        text(n): pair(logits[n]["pearson"]["4"], logits[n]["pearson_interval"]["4"]) for n in ("none", *ends)
    }
    return out


def microscope(d: dict[str, Any]) -> dict[str, Numbers]:
    nulls = ("none", "shuffle:5", "untrained")
    every, own = d["linearity_all"], d["linearity"]
    out: dict[str, Numbers] = {}
    whole = {text(n): bare(np.mean(every[n]["linearity"])) for n in nulls}
    out["blocks are nearly linear maps"] = {
        **whole,
        "held out, no massive rows": bare(np.mean(own["none"]["linearity_held_out"])),
    }
    without = {text(n): bare(np.mean(every[n]["linearity_without_residual"])) for n in nulls}
    out["without the residual stream they are much less linear"] = {
        "text, with less without": bare(whole["text"].value - without["text"].value),
        **without,
    }
    out["one direction dominates at mid-depth"] = {
        **{text(n): bare(max(d["spectrum"][n]["all"])) for n in nulls},
        "text, no special or massive rows": bare(max(d["spectrum"]["none"]["regular"])),
    }
    for subset, many, few in (
        ("article", "articles are", "articles hold"), ("stop word", "stop words are", "stop words hold"),
        ("punctuation", "punctuation is", "punctuation holds"),
    ):  # fmt: skip
        for name, said in (("nonlinearity", f"{many} more linear than other tokens"),
                           ("memory", f"{few} more context than other tokens")):  # fmt: skip
            out[said] = {
                text(n): pair(x["effect"], x["effect_interval"])
                for n in nulls if (x := d[name][n].get(subset)) is not None
            }  # fmt: skip
    both = d["memory_correlation"]
    out["linear tokens hold more context"] = {
        f"{text(n)}{e}": pair(both[n][v]["pearson"], (both[n][v]["low"], both[n][v]["high"]))
        for e, v in (("", "published"), (", equal position", "equal position")) for n in nulls
    }  # fmt: skip
    for what in ("stop words", "articles"):
        rows = {n: d["removal"][n][what] for n in nulls}
        out[f"without its {what} a text loses more than without random words"] = {
            text(n): pair(x["beyond_random"], (x["low"], x["high"])) for n, x in rows.items()
        }
    if "mmlu" in d:
        out["answers to questions get worse without stop words"] = {
            text(n): bare(x["conditions"]["stop words"]["accuracy"] - x["original"]) for n, x in d["mmlu"].items()
        }
    lens = {v: d["lens"]["none"][v]["cross_entropy"] for v in ("raw", "normed", "tuned")}
    middle = {v: bare(x[len(x) // 2]) for v, x in lens.items()}
    out["a lens says more with a fitted reader"] = {
        "text, normed less tuned": bare(middle["normed"].value - middle["tuned"].value),
        **{f"{v} at mid-depth": x for v, x in middle.items()},
        "tuned by layer": lens["tuned"],
    }
    return out


def erasure(d: dict[str, Any]) -> dict[str, Numbers]:
    trained, blank = d["trained"], d["untrained"]
    out: dict[str, Numbers] = {}
    for unit, subset in (("words", "last piece"), ("names", "last of name"), ("entities", "last of entity")):
        for said, offset in (("the own token", 0), ("the token before", -1)):
            rows = trained["scores"].get(subset, {}).get(f"offset {offset}")
            if rows is None or rows["n"] < 30:
                found: Numbers = {"largest gap": bare(None)}
            else:
                k = int(np.nanargmax(np.array(rows["gap"], float)[1:])) + 1
                layer = trained["scores"]["layer"][k]
                found = {f"largest gap, layer {layer}": pair(rows["gap"][k], [b[k] for b in rows["gap_band"]])}
                other = blank["scores"][subset][f"offset {offset}"]
                if layer in blank["scores"]["layer"]:
                    at = blank["scores"]["layer"].index(layer)
                    bounds = [b[at] for b in other["gap_interval"]]
                    found[f"untrained, layer {layer}"] = pair(other["gap"][at], bounds)
                found |= {"accuracy by layer": rows["accuracy"], "gap by layer": rows["gap"]}
            out[f"{said} is forgotten at last tokens of {unit}"] = found
    psi = {n: bare(trained[g]["psi_mean"]) for n, g in (("trained", "text"), ("shuffled", "shuffled"),
                                                          ("bigram", "bigram"))}  # fmt: skip
    out["psi is higher in text than in shuffled text"] = {
        "text less shuffled": bare(psi["trained"].value - psi["shuffled"].value), **psi,
        "untrained/text": bare(blank["text"]["psi_mean"]),
    }  # fmt: skip
    for kind, plural in (("word", "words"), ("name", "names"), ("entity", "entities"),
                         ("listed", "entries of a word list")):  # fmt: skip
        found = {}
        for network, side in (("trained", trained), ("untrained", blank)):
            x = side["units"].get(kind)
            found[network] = bare(None) if x is None or x["n"] < 30 else pair(x["auroc"], x["interval"])
        out[f"psi marks {plural}"] = found
    ends = trained["ends"]
    bounds = list(zip(*ends["auroc_interval"], strict=True))
    rows = {f"end {n}": pair(ends["auroc"][i], bounds[i]) for i, n in enumerate(ends["layer"])}
    best = max(rows, key=lambda n: rows[n].value)
    out["psi marks words at its best end layer (chosen on the same texts)"] = {best: rows.pop(best), **rows}
    score = {n: side[f"{g}_evaluation"]["word"] for n, side, g in (
        ("text", trained, "text"), ("shuffled", trained, "shuffled"), ("bigram text", trained, "bigram"),
        ("untrained", blank, "text"))}  # fmt: skip
    share = {n: bare(x["precision"]) for n, x in score.items()}
    out["the vocabulary of a text holds more words than that of shuffled text"] = {
        "text less shuffled": bare(share["text"].value - share["shuffled"].value),
        **share,
        "random spans": bare(score["text"]["chance"]),
        "recall": bare(score["text"]["recall"]),
    }
    seeds = trained["seeds"]
    out["segments do not depend on the probes' seeds"] = {
        "same segments": bare(seeds["shared_segments"]),
        "correlation of delta, offset 0": bare(seeds["delta_correlation"][seeds["offset"].index(0)]),
    }
    return out


def dot_by_dot(d: dict[str, Any]) -> dict[str, Numbers]:
    first = next(iter(d["different_inputs"]))
    rows = [r for r in d["training"] if r["task"] == first]

    def of(arm: str, form: str) -> dict[str, Number]:
        some = [r for r in rows if (r["arm"], r["format"]) == (arm, form)]
        return {f"{arm}, seed {r['seed']}": bare(r["accuracy"]["all"]) for r in some}

    chain, with_, without = of("filler", "parallel"), of("filler", "filler"), of("none", "none")
    equal = of("none_equal_flops", "none")
    lowest, best = min(x.value for x in with_.values()), max(x.value for x in [*without.values(), *equal.values()])
    out: dict[str, Numbers] = {
        "the task cannot be learned by heart": {"different inputs": Number(*[d["different_inputs"][first]] * 3)},
        "with a parallel chain of thought the task is learned": {
            "lowest of the seeds": bare(min(x.value for x in chain.values())), **chain},
        "fillers raise the accuracy over an immediate answer": {
            "worst with less best without": bare(lowest - best), **with_, **without, **equal,
            "majority": bare(max(r["majority"] for r in rows))},
    }  # fmt: skip
    kept = d["probe_frozen"]
    out["a frozen probe gains from more fillers"] = {
        "all less none": bare(kept["filler"]["1.0"] - kept["filler"]["0.0"]),
        **{f"{t}, {float(k):g} kept": bare(v) for t, by in kept.items() for k, v in by.items()},
    }
    right = {n: pair(x[0], x[1:]) for n, x in d["ablation"]["filler"].items()}
    whole = next(iter(right))
    out["the answer needs the fillers"] = {
        f"{whole} less knock-out": bare(right[whole].value - right["knock-out"].value),
        **right,
    }
    probe = d["probes_by_layer"]["pair sum"]
    trunks = {t: pair(probe[t][-1], probe["interval_of_last_layer"]) if t == "filler" else bare(probe[t][-1])
              for t in ("filler", "none", "random") if t in probe}  # fmt: skip
    out["the fillers hold sums of pairs"] = {
        "with less without fillers": bare(trunks["filler"].value - trunks["none"].value),
        **trunks,
        "labels permuted": bare(probe["permuted"][-1]),
    }
    done, rest = d["slot_change_completed"], d["slot_change_not_completed"]
    out["the slot of the matching triple carries the answer"] = {
        "completed less not": bare(done - rest),
        "completed": bare(done),
        "not completed": bare(rest),
    }
    return out


def fillers(d: dict[str, Any]) -> dict[str, Numbers]:
    def triple(x: list[Any]) -> Number:
        return pair(x[0], x[1:])

    def change(rows: list[dict[str, Any]], kind: str, placement: str) -> Number:
        (x,) = [r for r in rows if (r["filler"], r["placement"], r["n_fillers"]) == (kind, placement, 10)]
        return pair(x["log_prob_change"], x["interval"])

    rows, blank = d["insertion"], d["untrained_insertion"]
    out: dict[str, Numbers] = {}
    out["fillers help a frozen model"] = {
        "dots after the question": change(rows, "dots", "post"),
        "dots before the question": change(rows, "dots", "pre"),
        **{f"{k} after it": change(rows, k, "post") for k in ("counting", "words")},
        "only announced": pair(d["announced"]["change"], d["announced"]["interval"]),
        "dots after it, untrained": change(blank, "dots", "post"),
        **{f"accuracy with {r['n_fillers']}": bare(r["accuracy"]) for r in rows
           if (r["filler"], r["placement"]) == ("dots", "post") and r["n_fillers"] in (0, 10)},
    }  # fmt: skip
    found = d["evidence"]
    out["the verdict rule finds fillers used"] = {
        "share of criteria less 1": bare(np.mean([x[3] for x in found.values()]) - 1),
        **{n: triple(x[:3]) for n, x in found.items()},
    }
    both = {"dots": d["interventions"], "random words": d["control"]}

    def intervened(name: str) -> Numbers:
        return {n: triple(x[name]["log_prob_change"]) for n, x in both.items() if name in x}

    out["what fillers do is to move places"] = intervened("places closed")
    question = d["interventions"]["transplant of the question"]["log_prob_change"]
    out["fillers hold content of their item"] = {**intervened("transplant"), "the question's instead": triple(question)}
    r = d["routing"]
    out["the answer reads the question by way of the fillers"] = {
        "by way of them less direct": bare(r["routed"][0] - r["direct"][0]), "by way of them": triple(r["routed"]),
        "direct": triple(r["direct"]), "change of the direct one by fillers": triple(r["direct_change"]),
        "the same by their number alone": triple(r["chance_change"]),
        "untrained, by way of them": triple(d["untrained_routing"]["routed"]),
    }  # fmt: skip
    out["cells (layer, filler) share hidden variables"] = {
        "within less between": triple(d["clusters"]["contrast"]), "labels shuffled": bare(d["clusters"]["shuffled"])
    }  # fmt: skip
    two = (("trained", ""), ("untrained", "untrained_"))
    out["separators get more attention than their share"] = {
        n: triple(d[f"{m}text_attention"]["separators"]["net_enrichment"]) for n, m in two
    }
    out["beyond the own segment, too"] = {n: triple(d[f"{m}coverage"]["enrichment"]) for n, m in two}
    sinks = {n: bare(d[f"{m}sinks"]["first"]) for n, m in two}
    out["the first position is a sink"] = {
        "trained less untrained": bare(sinks["trained"].value - sinks["untrained"].value),
        **sinks,
    }
    out["separators hold the content of their segment"] = {
        **{s: triple(x["explained"]) for s, x in d["segments"].items()},
        "separator, untrained": triple(d["untrained_segments"]["separator"]["explained"]),
    }
    kl = d["windows"]["all blocks"]
    out["the model relies on separators"] = {
        "separators less random": bare(kl["separators"][0] - kl["random"][0]),
        **{n: triple(x) for n, x in kl.items()},
    }
    out["separators, start and a window are enough"] = {n: triple(x) for n, x in d["policies"]["loss_change"].items()}
    gaps = d["sentinels"]["gap_left"]
    out["a sentinel at the end of a chunk summarises it"] = {
        n: triple(gaps[n]) for n in sorted(gaps, key=lambda n: n != "dots")
    }
    out["massive channels matter in the rows where they are massive"] = {
        n: triple(x) for n, x in d["massive"]["loss_change"].items()
    }
    out["added blank tokens become registers"] = {
        f"{n} of them": triple(x["loss_change"]) for n, x in reversed(d["registers"].items())
    }
    return out


def inner_lexicon(d: dict[str, Any]) -> dict[str, Numbers]:
    sides = {m: d[m] for m in ("trained", "untrained")}
    k = 3 * (len(d["trained"]["probe"]["last"]["accuracy"]) - 1) // 4

    def probe(place: str) -> Numbers:
        rows = {m: x["probe"][place] for m, x in sides.items()}
        found: Numbers = {m: pair(x["accuracy"][k], [x[b][k] for b in ("lower", "upper")]) for m, x in rows.items()}
        return {**found, "trained by layer": d["trained"]["probe"][place]["accuracy"]}

    last, before = probe("last"), probe("penultimate")
    near = {m: x["canonicity"]["raw"] for m, x in sides.items()}
    half = len(d["trained"]["attention"]["2"]["attention"]) // 2
    seen = d["trained"]["attention"]["2"]["attention"]
    return {
        "words can be told from non-words at their last piece": last,
        "at the last piece but one less so": {
            "last less last but one": bare(last["trained"].value - before["trained"].value), **before},
        "the last piece of a re-split word comes to resemble the whole word": {
            **{m: bare(x["closer"][k]) for m, x in near.items()},
            **{f"trained, {n}": bare(x[k]) for n, x in near["trained"]["closer_by_case"].items()},
            "trained by layer": near["trained"]["closer"]},
        "the whole word is read from the last piece by a reverse logit lens": {
            "best variant": bare(max(1 - x["never"] for x in d["trained"]["retrieval"].values())),
            "untrained, best variant": bare(max(1 - x["never"] for x in d["untrained"]["retrieval"].values()))},
        "words of several tokens are regenerated from one state": {
            m: bare(1 - x["natural"]["never"]) for m, x in sides.items()},
        "attention from the last piece to earlier ones peaks early and then drops": {
            "first half less second half": bare(np.mean(seen[:half]) - np.mean(seen[half:])),
            **{f"{m} {n} by block": x["attention"]["2"][n]
               for m, x in sides.items() for n in ("attention", "control")}},
    }  # fmt: skip


NOT_KEPT = "its store: no figure can be drawn of it"
LATER = "intervals of the resampling that all code now shares: where there are few units, those here are too narrow"
CAME = "commit (only the one with which it came into the repository:"
WORDS = "the shuffled text of the deletions as it is now made, whose words are shuffled and not its tokens"
BY_HAND = "the folder in its command, which was replaced by hand"
IDENTITY = "the identity of the model as it computes (only the hash of its weights)"
TRAINED = "a model: its networks were trained in the run"
MADE = {
    "stories260K/token_geometry": ("token_geometry", "stories", ["texts (their hash)", LATER, f"{CAME} 148dbbe)"]),
    "bundled/token_geometry": ("token_geometry", "wikipedia", ["texts (their hash)", LATER]),
    "stories260K/microscope": ("microscope", "stories", [
        "texts (their hash)", LATER, WORDS, BY_HAND]),
    "bundled/microscope": ("microscope", "wikipedia", [
        "texts (their hash)", LATER, WORDS, BY_HAND]),
    "bundled/fillers": ("fillers", "bundled", ["texts (only the hash of the prompts made of them)"]),
    "bundled/inner_lexicon": ("inner_lexicon", "bundled", [
        "commit (only the one with which it came into the repository: f73c0af)", "date", "texts (only the hash of the "
        "prompts made of them)", "its whole command: --small then meant 120 words, 2,000 for the probe, 32 tokens of "
        "context and prompts of 256", LATER]),
    "stories260K/erasure": ("erasure", "stories", ["texts (only the hash of the prompts made of them)"]),
    "bundled/erasure": ("erasure", "wikipedia", ["texts (only the hash of the prompts made of them)"]),
    "cpu/dot_by_dot_smoke": ("dot_by_dot", "bundled", [
        "command (noted by hand: python -m experiments.dot_by_dot --tier smoke --device cpu)", f"{CAME} 0c3407b)",
        "date", "versions", "texts: it has none, its examples are drawn from the seeds", LATER,
        "changes by slot without the slots that stand for no pair: here they count among the not completed"]),
}  # fmt: skip
TABLES = {f.__name__: f for f in (token_geometry, microscope, erasure, fillers, inner_lexicon, dot_by_dot)}


def main() -> None:
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    for old, (name, preset, lacking) in MADE.items():
        d = json.loads((OLD / f"{old}.json").read_text(encoding="utf-8"))
        made = d.get("provenance") or {k: d[k] for k in ("model", "weights", "tokenizer", "prompts", "dtype") if k in d}
        commit = d.get("commit") or str(made.get("git_commit", "")) or None
        created = d.get("created") or made.get("created")
        if isinstance(created, str) and created.startswith("["):
            created = json.loads(created)[-1]
        versions = d.get("versions") or (json.loads(made["versions"]) if "versions" in made else None)
        claims = {c.says: c for c in import_module(f"experiments.{name}").CLAIMS}
        found = TABLES[name](d)
        unknown = found.keys() - claims.keys()
        assert not unknown, unknown
        lacks = [*lacking, NOT_KEPT, "settings other than those in its command"]
        lacks += [] if made.get("identity") else [IDENTITY if made else TRAINED]
        known = {k: made[k] for k in ("model", "revision", "weights", "tokenizer", "dtype") if k in made}
        kept = {
            "experiment": name, "command": d.get("command"), "commit": commit and commit.rstrip("+"),
            "dirty": None if commit is None else commit.endswith("+"), "created": created, "versions": versions,
            "preset": preset, "changed": [], "settings": d.get("settings") or d.get("parameters"),
            "seconds": sum(d["seconds"].values()) if "seconds" in d else None, "texts": None,
            "prompts": made.get("prompts"), "sizes": d.get("sizes") or d.get("data"),
            "model": {"id": known.pop("model"), **known} if known else None,
            "device": d.get("device") or made.get("device"), "seeds": None if "seed" not in made else [made["seed"]],
            "fingerprints": None, "store": None, "lacking": lacks,
            "converted": f"by experiments/convert.py from experiments/results/{old}.json, both of commit {head[:9]}",
            "claims": [row(claims[says], numbers) for says, numbers in found.items() if numbers],
        }  # fmt: skip
        print(record.write(kept, OLD / f"{name}.{preset}.json"))


if __name__ == "__main__":
    main()
