"""Recipe of filler_tokens.json: github.com/JacobPfau/fillerTokens at cb39af6458b7476ba07f25e89a9c8fd339c1e229.

python tests/golden/filler_tokens.py CHECKOUT > tests/golden/filler_tokens.json (numpy, torch, pandas and transformers)
"""

import json
import sys

import numpy as np

SETTINGS = ((6, 1, 10), (8, 2, 5), (9, 3, 3), (10, 3, 10))  # rows, coordinates, modulus
COUNT = 12
SOURCE = {
    "repository": "JacobPfau/fillerTokens", "commit": "cb39af6458b7476ba07f25e89a9c8fd339c1e229",
    "calls": {
        "serial_solve": "Match3(d, m, n).serial_solve(rows)",
        "rand_cot": "rand_cot(rows, Match3(d, m, n).probabilistic_dense_solve(rows))",
        "solve": "Match3(d, m, n).solve(rows)",
        "match2_solve": "sum(Match2(d, m, n).solve(rows))",
    },
}  # fmt: skip


def match3_rows(n, d, m):
    """Return (COUNT, n, d) digits, a triple planted in every other example."""
    rng = np.random.default_rng([n, d, m])
    rows = rng.integers(0, m, (COUNT, n, d))
    rows[::2, 2] = -(rows[::2, 0] + rows[::2, 1]) % m
    return np.stack([rng.permutation(x) for x in rows])


def match2_rows(n, d, m):
    """Return (COUNT, n, d) digits: rows and their inverses, some of them changed."""
    rng = np.random.default_rng([2, n, d, m])
    rows = rng.integers(0, m, (COUNT, n, d))
    rows[:, n // 2 : 2 * (n // 2)] = -rows[:, : n // 2] % m
    rows[::3, :2, 0] = rng.integers(0, m, (len(rows[::3]), 1))
    return np.stack([rng.permutation(x) for x in rows])


if __name__ == "__main__":
    sys.path[:0] = [sys.argv[1], f"{sys.argv[1]}/src"]
    from src.match2 import Match2
    from src.match3 import Match3, rand_cot

    out = {"source": SOURCE}
    for n, d, m in SETTINGS:
        three, two = Match3(d, m, n), Match2(d, m, n)
        three.random = np.random.default_rng(0)
        rows = match3_rows(n, d, m)
        out[f"{n},{d},{m}"] = {
            "serial_solve": [" ".join(three.serial_solve(x)) for x in rows],
            "rand_cot": [rand_cot(x, three.probabilistic_dense_solve(x)).split(" P ")[1] for x in rows],
            "solve": [bool(three.solve(x)) for x in rows],
            "match2_solve": [int(sum(two.solve(x))) for x in match2_rows(n, d, m)],
        }
    print(json.dumps(out, indent=1))
