"""Recipe of dadapy_gride.json: DADApy 0.3.4 (numpy 1.26.4) in an environment of its own.

pip install dadapy==0.3.4 && python tests/golden/dadapy_gride.py > tests/golden/dadapy_gride.json
"""

import json

import numpy as np

SOURCE = {
    "package": "dadapy 0.3.4", "repository": "sissa-data-science/DADApy", "numpy": "1.26.4",
    "commit": "d9038b3b7be7e45b1f139881bf63d252b5f1b448",
    "note": "the package is what ran; its files are those of this commit",
    "calls": {
        "gride, error, distance": "Data(coordinates=x).return_id_scaling_gride(range_max=64)",
        "twonn_ml": "Data(coordinates=x).compute_id_2NN(algorithm='ml')",
        "twonn_base": "Data(coordinates=x).compute_id_2NN(algorithm='base', mu_fraction=0.9)",
    },
}  # fmt: skip


def cloud(name):
    """The clouds; no two rows are equal."""
    rng = np.random.default_rng({"gauss6": 6, "curved2": 2, "heavy": 3}[name])
    if name == "gauss6":
        return rng.standard_normal((400, 6)) @ rng.standard_normal((6, 20))
    if name == "curved2":
        a, b = rng.uniform(0, 6, (2, 500))
        return np.stack([np.sin(a), np.cos(a) * b, b**2 / 5, np.sin(a * b / 3), a], axis=1)
    return rng.standard_t(2, (300, 5))  # outlying ratios


if __name__ == "__main__":
    from dadapy import Data

    out = {}
    for name in ("gauss6", "curved2", "heavy"):
        x = cloud(name)
        data = Data(coordinates=x, verbose=False)
        data.compute_distances(maxk=len(x) - 1)
        ids, errors, scales = data.return_id_scaling_gride(range_max=64)
        out[name] = {
            "gride": list(ids), "error": list(errors), "distance": list(scales),
            "twonn_ml": float(data.compute_id_2NN(algorithm="ml")[0]),
            "twonn_base": float(data.compute_id_2NN(algorithm="base", mu_fraction=0.9)[0]),
        }  # fmt: skip
    print(json.dumps({"source": SOURCE, "clouds": out}, indent=1))
