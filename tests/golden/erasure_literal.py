"""The published erasure score and segmentation, step by step as described, without any of tokinterp.

Feucht et al. 2024 (arXiv 2406.20086), equation 1 and section 5, and what their released code does with missing terms
(they are skipped, and the denominator counts the terms that are there).  A document is a table with one row per token:
probabilities of the true token at t + i by the probes of the first and of the last layer, None where t + i is before
the text.  Every span walks through its rows; all spans are sorted; each is compared with every span accepted before.
Equal scores, which the paper leaves open: the longer span first, then the one that begins first.

Run as a script, this writes ``erasure_literal.json``: three random documents, their spans' scores and their segments
(``python tests/golden/erasure_literal.py``; seed 20240620, Python's random module).
"""

import json
import random
from pathlib import Path

OFFSETS = (0, -1, -2)
SEED = 20240620


def score(rows, p, q, denominator="code"):
    """Return psi of the span of rows p to q, both included."""
    total, terms = 0.0, 0
    last = rows[q]
    total += last[0]["first"] - last[0]["last"]
    terms += 1
    for t in range(p, q + 1):
        for i in (-1, -2):
            entry = rows[t][i]
            if entry is None:
                continue
            drop = entry["first"] - entry["last"]
            total += -drop if t + i < p else drop
            terms += 1
    return total / (terms if denominator == "code" else 1 + 2 * (q - p + 1))


def all_scores(rows, denominator="code"):
    """Return [p, q, psi] of every span."""
    n = len(rows)
    return [[p, q, score(rows, p, q, denominator)] for p in range(n) for q in range(p, n)]


def segment(rows):
    """Return the accepted spans [p, q, psi] in the order in which they are accepted."""
    spans = sorted(all_scores(rows), key=lambda s: (-s[2], -(s[1] - s[0]), s[0]))
    accepted = []
    for p, q, psi in spans:
        overlaps = False
        for a, b, _ in accepted:
            if p <= b and q >= a:
                overlaps = True
        if not overlaps:
            accepted.append([p, q, psi])
    return accepted


def random_document(n, rng):
    """Return rows whose probabilities are random; later layers know less on average."""
    rows = []
    for t in range(n):
        rows.append({})
        for i in OFFSETS:
            there = t + i >= 0
            rows[t][i] = {"first": rng.random(), "last": rng.random() ** 2} if there else None
    return rows


def delta(rows):
    """Return the drops as lists [t][offset], None where missing."""
    return [[None if r[i] is None else r[i]["first"] - r[i]["last"] for i in OFFSETS] for r in rows]


if __name__ == "__main__":
    rng = random.Random(SEED)
    documents = [random_document(n, rng) for n in (1, 14, 23)]
    out = {
        "recipe": "tests/golden/erasure_literal.py, seed 20240620",
        "documents": [
            {
                "delta": delta(rows),
                "code": [s[2] for s in all_scores(rows)],
                "paper": [s[2] for s in all_scores(rows, "paper")],
                "segments": [s[:2] for s in segment(rows)],
            }
            for rows in documents
        ],
    }
    Path(__file__).with_suffix(".json").write_text(json.dumps(out) + "\n")
