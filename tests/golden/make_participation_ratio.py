"""Recipe: pip install dimensionality==0.1.4 (the authors' package); python THIS_FILE > participation_ratio.json."""

import json

import numpy as np


def rows(seed, n, d):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, d)) * np.arange(1, d + 1) ** -0.5 + 0.3 * rng.standard_normal(d)


if __name__ == "__main__":
    from dimensionality import participation_ratio

    cases = []
    for seed, n, d in ((0, 40, 12), (1, 8, 30), (2, 200, 5)):
        found = participation_ratio(rows(seed, n, d), return_all=True)
        cases.append({"seed": seed, "n": n, "d": d, "naive": found["naive"], "row": found["row"]})
    source = {
        "package": "dimensionality 0.1.4", "repository": "badooki/dimensionality",
        "commit": "d9f47dc068c7f6613e061d14c87f32391480c6e2",
        "note": "the package is what ran; its files are those of this commit",
        "calls": {"naive, row": "participation_ratio(rows, return_all=True)"},
    }  # fmt: skip
    print(json.dumps({"source": source, "cases": cases}, indent=1))
