"""Write procrustes_linearity.json: the linearity of "Your Transformer is Secretly Linear", word for word.

    python tests/golden/procrustes_linearity.py

The published function (arXiv 2405.12250, section 3; released with LLM-Microscope) centres both clouds, divides by the
Frobenius norm, takes the thin SVD of the first, solves least squares by dividing by all singular values, and returns
1 - |X A - Y|^2; "without residual" takes Y - X in place of Y; the token errors are row norms of X A - Y. This is that
recipe in numpy (2.4, float64), on clouds that the test draws again from the same seeds.
"""

import json
from pathlib import Path

import numpy as np

CASES = [(0, 60, 8), (1, 200, 16), (2, 40, 24)]  # seed, rows, channels


def clouds(seed, n, d):
    """Two clouds: a nonlinear step of correlated rows, with a channel far from 0."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, d)) @ rng.standard_normal((d, d)) + 3.0
    return x, x + 0.3 * np.tanh(x @ rng.standard_normal((d, d))) + 0.05 * rng.standard_normal((n, d))


def normalised(z):
    z = z - z.mean(0, keepdims=True)
    return z / np.linalg.norm(z)


def literal(x, y):
    """(score, token errors)."""
    x, y = normalised(x), normalised(y)
    u, s, vt = np.linalg.svd(x, full_matrices=False)
    a = vt.T @ ((u.T @ y) / s[:, None])
    return 1 - np.linalg.norm(x @ a - y) ** 2, np.linalg.norm(x @ a - y, axis=1)


def main():
    rows = []
    for seed, n, d in CASES:
        x, y = clouds(seed, n, d)
        score, errors = literal(x, y)
        rows.append({
            "seed": seed, "n": n, "d": d, "score": score, "without_residual": literal(x, y - x)[0],
            "errors": errors.tolist(),
        })  # fmt: skip
    path = Path(__file__).with_suffix(".json")
    path.write_text(json.dumps({"numpy": np.__version__, "cases": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
