"""Write the card of a bundled model, the README.md beside its weights, from what the other steps measured.

    python -m experiments.bundled.card --preset cpu           # of tokinterp/data/reader
    python -m experiments.bundled.card --preset narrow-cpu    # of tokinterp/data/narrow

Reads ``data.json``, ``plan.json``, ``log.jsonl`` and ``evaluation.json`` of ``runs/bundled/<preset>/``; for the reader
``experiments/bundled/checks.json``, for the narrow one the record ``training.narrow``; draws the 20 samples itself.
"""

from __future__ import annotations

import argparse
import json
import textwrap
from pathlib import Path
from typing import Any

import torch

from experiments.bundled.train import DATA, PRESETS, SHIPPED
from tokinterp.files.whole import write_text

ROOT = Path(__file__).resolve().parents[2]
RECORD = ROOT / "experiments" / "results" / "training.narrow.json"
CHECKS = ROOT / "experiments" / "bundled" / "checks.json"
PROMPTS = [
    "The history of the city of",
    "In 1889 the first",
    "The University of Cambridge",
    "During the Second World War, the German army",
    "He was born in London and",
    "The river flows through",
    "The novel tells the story of",
    "In mathematics, a",
    "The album was released in",
    "The species is found in",
    "The president of the United States",
    "Her first film was",
    "The temple was built by King",
    "According to the Bible,",
    "The computer was designed by",
    "The population of the country is",
    "The war between France and England",
    "The game is played with",
    "In chemistry, an acid is",
    "Alexander the Great",
]


def table(header: list[str], rows: list[list[Any]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(c) for c in line) + " |" for line in lines)


@torch.no_grad()
def samples(folder: Path, tokens: int = 60) -> str:
    """One continuation of each prompt: temperature 0.8, the 20 likeliest tokens, seed = number of the prompt."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    lines = []
    for seed, prompt in enumerate(PROMPTS):
        torch.manual_seed(seed)
        ids = tokenizer(prompt, return_tensors="pt")
        out = model.generate(**ids, max_new_tokens=tokens, do_sample=True, temperature=0.8, top_k=20)[0]
        text = tokenizer.decode(out[ids["input_ids"].shape[1] :], skip_special_tokens=True).replace("\n", " / ")
        lines.append(f"{seed + 1}. **{prompt}**{text}")
    return "\n".join(textwrap.fill(x, 120, subsequent_indent="   ", break_on_hyphens=False) for x in lines)


def curve(log: list[dict], context: int) -> str:
    """The rows of the log in which the validation loss was measured, thinned to about sixteen."""
    rows = [r for r in log if "val_loss" in r]
    step = max(1, len(rows) // 16)
    rows = [r for i, r in enumerate(rows) if i % step == 0 or i == len(rows) - 1]
    cells = []
    for r in rows:
        short = f"{r['val_loss_256']:.3f}" if "val_loss_256" in r else ""
        losses = [f"{r['loss']:.3f}", short, f"{r['val_loss']:.3f}", f"{r['val_bits_per_byte']:.3f}"]
        cells.append([r["step"], f"{r['tokens'] / 1e6:.2f}", *losses, f"{r['lr']:.2f}"])
    long = f"{context:,}"
    header = ["step", "tokens (M)", "train loss", "loss at 256", f"loss at {long}", f"bits per byte at {long}", "rate"]
    return table(header, cells)


def evaluation_table(results: dict) -> str:
    """Bits per byte of the model and the baselines, a row per set of texts."""
    rows = []
    for name, r in results.items():
        if isinstance(r, dict):
            values = [r["model"]["bits_per_byte"], r.get("5-gram"), r["unigram"], r["stories260K"]["bits_per_byte"]]
            cells = ["" if v is None else f"{v:.3f}" for v in values]
            rows.append([name, r["documents"], f"{r['bytes']:,}", f"**{cells[0]}**", *cells[1:]])
    header = ["text", "documents", "bytes", "this model", "5-gram (Kneser-Ney)", "unigram", "stories260K"]
    return table(header, rows)


def checks_text(checks: dict) -> str:
    """The multi-token checks, a row per layer."""
    split, blank = checks["model"]["resplit"], checks["untrained"]["resplit"]
    rows = []
    for layer in range(len(split["raw"]["own_context"])):
        values = [split[c][k][layer] for c in ("raw", "centred") for k in ("own_context", "same_context")]
        values += [split["nearest_of_all"][layer]]
        values += [blank["centred"][k][layer] for k in ("own_context", "same_context")]
        rows.append([layer, *(f"{100 * v:.1f}" for v in values)])
    header = [
        "layer",
        "raw",
        "raw, same context",
        "centred",
        "centred, same context",
        "nearest of all 500",
        "untrained, centred",
        "untrained, centred, same context",
    ]
    return table(header, rows)


def read_out_text(checks: dict) -> str:
    """The read-outs of the current token, a row per layer."""
    read, blank = checks["model"]["read_out"], checks["untrained"]["read_out"]
    rows = []
    for layer in range(len(read["lda"]["last"]["accuracy"])):
        row: list[Any] = [layer]
        for kind in ("softmax", "lda"):
            if kind in read:
                row += [f"{100 * read[kind][k]['accuracy'][layer]:.1f}" for k in ("last", "other_than_last")]
        rows.append([*row, *(f"{100 * blank['lda'][k]['accuracy'][layer]:.1f}" for k in ("last", "other_than_last"))])
    header = ["layer"]
    for kind in ("softmax", "lda"):
        if kind in read:
            header += [f"{kind}, last", f"{kind}, others"]
    return table([*header, "untrained lda, last", "untrained lda, others"], rows)


def questions_text(questions: dict) -> str:
    """Accuracy on the question sets."""
    rows = [
        [key.replace("/", ": "), q["items"], *(f"{100 * q[k]:.1f}" for k in ("top1", "top1_first", "top5_first")),
         f"{q['median_rank_first']:.0f}", f"{q['mean_rank_first']:.0f}", f"{q['mean_logprob']:.2f}"]
        for key, q in questions.items()
    ]  # fmt: skip
    header = [
        "set",
        "items",
        "top-1 %",
        "first piece top-1 %",
        "first piece top-5 %",
        "median rank",
        "mean rank",
        "mean log-probability",
    ]
    return table(header, rows)


def reader_fields() -> dict[str, Any]:
    """Return what only the card of the reader says."""
    checks = json.loads(CHECKS.read_text())
    read = checks["model"]["read_out"]
    return {
        "resplit": checks_text(checks),
        "read_out": read_out_text(checks),
        "questions": questions_text(checks["questions"]),
        "fit_positions": f"{read['fit_positions']:,}",
        "scored_last": f"{read['scored']['last']:,}",
        "scored_others": f"{read['scored']['other_than_last']:,}",
    }


def narrow_fields() -> dict[str, Any]:
    """Return what only the card of the narrow model says: a row per claim of the record, with its first number."""
    record = json.loads(RECORD.read_text())
    rows = []
    for row in record["claims"]:
        what, number = next((k, v) for k, v in row["numbers"].items() if "value" in v)
        bounds = ", ".join(f"{x:+.3f}" for x in number.get("interval", []))
        said = f"{number['value']:+.3f}" + (f" [{bounds}]" if bounds else "")
        rows.append([row["claim"], f"{row['how']} ({what})", said, row["verdict"]])
    return {"seen": table(["claim", "measured", "value and 95 % interval", "verdict"], rows)}


def card(folder: Path, preset: str) -> str:
    """Fill the template of the preset's card."""
    name = SHIPPED[preset]
    template = Path(__file__).with_name(f"card_{name}.md").read_text(encoding="utf-8")
    data, plan = (json.loads((folder / f"{n}.json").read_text()) for n in ("data", "plan"))
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    evaluation = json.loads((folder / "evaluation.json").read_text())
    overlap = table(
        ["test set", "by id or title", "by a shared 13-gram", "either"],
        [[k, v["by_id_or_title"], v["by_13gram"], v["either"]] for k, v in data["overlap_by_set"].items()],
    )
    fields: dict[str, Any] = {
        "preset": preset,
        "overlap_table": overlap,
        "curve": curve(log, PRESETS[preset].context),
        "evaluation": evaluation_table(evaluation),
        "samples": samples(DATA / name),
        "knots": json.dumps([[a, b, round(c, 3)] for a, b, c in plan["plan"]]),
        "ngram_tokens": f"{evaluation['ngram_training_tokens'] / 1e6:.0f}",
        "minutes": f"{plan['seconds'] / 60:.0f}",
        "million_tokens": f"{plan['tokens'] / 1e6:.1f}",
        "epochs": f"{plan['tokens'] / data['train_tokens']:.1f}",
        "mean_speed": f"{round(plan['tokens'] / plan['seconds'], -2):,.0f}",
        "steps": f"{plan['step']:,}" if name == "narrow" else plan["step"],
        "switches": " ".join(map(str, plan["switches"])),
        "decay_steps": plan["step"] - plan["plan"][0][0],
        "decay_from": plan["plan"][0][0],
    }
    fields |= {"reader": reader_fields, "narrow": narrow_fields}[name]()
    fields |= {k: f"{v:,}" for k, v in data.items() if isinstance(v, int)}
    for key, value in fields.items():
        template = template.replace("{{" + key + "}}", str(value))
    return template


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, default="cpu")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "bundled")
    a = parser.parse_args()
    write_text(DATA / SHIPPED[a.preset] / "README.md", card(a.runs / a.preset, a.preset))


if __name__ == "__main__":
    main()
