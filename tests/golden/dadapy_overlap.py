"""Recipe of dadapy_overlap.json: DADApy 0.3.4 (numpy 1.26.4) in an environment of its own.

python tests/golden/dadapy_overlap.py states.npz                 # with tokinterp: the token clouds of the bundled model
pip install dadapy==0.3.4                                        # elsewhere
python tests/golden/dadapy_overlap.py states.npz > tests/golden/dadapy_overlap.json
"""

import json
import sys
from pathlib import Path

import numpy as np

KS = (1, 10, 30)
LAYERS = (1, 2, 3, 4)
TOKENS = 260
SOURCE = {
    "package": "dadapy 0.3.4", "repository": "sissa-data-science/DADApy", "numpy": "1.26.4",
    "commit": "d9038b3b7be7e45b1f139881bf63d252b5f1b448",
    "note": "the package is what ran; its files are those of this commit",
    "calls": {
        "overlap": "Data(coordinates=x).return_data_overlap(coordinates=y, k=k)",
        "there, back": "_return_imbalance(neighbours of x, neighbours of y, rng, k=k) and the other way round",
        "labels": "Data(coordinates=x).return_label_overlap(labels, k=k, weighted=...)",
    },
}  # fmt: skip


def views():
    """Two views of the same points, and labels of unequal classes; no two rows are equal."""
    rng = np.random.default_rng(11)
    z = rng.standard_normal((300, 4))
    a = z @ rng.standard_normal((4, 12))
    b = np.concatenate([np.sin(2 * z[:, :2]), z[:, 2:3] ** 3, 0.3 * rng.standard_normal((300, 2))], axis=1)
    labels = np.digitize(z[:, 0], [-1.2, 0.0, 0.3])
    return a, b, labels


def token_clouds():
    """(layer, token, d) float64 states of one text in the bundled model, without BOS."""
    import tokinterp as ti

    model = ti.load_model(device="cpu")
    text = next(t.text for t in ti.bundled_texts() if len(t.text) > 6 * TOKENS)
    prompts = ti.Prompts.from_texts([text], model, max_tokens=TOKENS, progress=False)
    batch = ti.capture(model, prompts, [0], ti.resid(LAYERS))
    return np.stack([batch.rows(layer)[1:].double().numpy() for layer in LAYERS])


def overlaps(x, y):
    from dadapy import Data

    data = Data(coordinates=x, maxk=len(x) - 1)
    return {str(k): float(data.return_data_overlap(coordinates=y, k=k)) for k in KS}


def imbalances(x, y):
    """Delta(x -> y) for each k: ranks within all N - 1 neighbours, so that nothing is drawn by lot."""
    from dadapy._utils.metric_comparisons import _return_imbalance
    from dadapy._utils.utils import compute_nn_distances

    near = [compute_nn_distances(z, len(z) - 1, "euclidean", None)[1] for z in (x, y)]
    rng = np.random.default_rng(0)
    return {str(k): float(_return_imbalance(*near, rng, k=k)) for k in KS}


if __name__ == "__main__":
    file = Path(sys.argv[1])
    if not file.exists():
        np.savez(file, token_clouds())
        sys.exit()
    from dadapy import Data

    a, b, labels = views()
    data = Data(coordinates=a, maxk=len(a) - 1)
    label = {
        "plain": {str(k): float(data.return_label_overlap(labels, k=k, weighted=False)) for k in KS},
        "balanced": {str(k): float(data.return_label_overlap(labels, k=k, weighted=True)) for k in KS},
    }
    out = {
        "source": SOURCE,
        "views": {"overlap": overlaps(a, b), "there": imbalances(a, b), "back": imbalances(b, a), "labels": label},
    }
    clouds = np.load(file)["arr_0"]
    for i in range(len(LAYERS) - 1):
        x, y = clouds[i], clouds[i + 1]
        out[f"layers {LAYERS[i]} {LAYERS[i + 1]}"] = {
            "overlap": overlaps(x, y), "there": imbalances(x, y), "back": imbalances(y, x)
        }  # fmt: skip
    print(json.dumps(out, indent=1))
