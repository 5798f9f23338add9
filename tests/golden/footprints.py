"""Write footprints.json: drops of probes, scores of all spans and segments, by the functions of Feucht et al. 2024.

    git clone https://github.com/sfeucht/footprints C && git -C C checkout 957f668c5eea
    pip install pandas && PYTHONPATH=tests python tests/golden/footprints.py C

``get_tok_metrics``, ``psi`` and ``partition_doc`` of scripts/readout.py are called: the last two on tables of random
drops, all three on the streams and probes of a stand-in for a model.  The tests make tables and streams again from the
same seeds.  Their ``probdelta`` is last minus first layer; here, as in the paper, a drop is first minus last.
"""

import contextlib
import io
import random
import sys
from functools import partial

SOURCE = {
    "repository": "sfeucht/footprints",
    "commit": "957f668c5eeacf237d1a5d688fdce685311c8a1a",
    "file": "scripts/readout.py",
    "calls": {
        "delta": "get_tok_metrics(ids, t, start_probes, end_probes, start_states, end_states, ['i0', 'in1', 'in2'])",
        "psi": "psi(table, i, j) for all i <= j",
        "segments": "partition_doc(table)",
    },
}
OFFSETS = (0, -1, -2)
KEYS = ("i0", "in1", "in2")
SEED = 20240620
LENGTHS = (1, 14, 23)
STREAMS = {"lengths": (9, 5, 12, 2, 7), "seed": 0}
START, END = 1, 3
LABELS = 17


def random_drops():
    """Return the drops [t][offset] of each random document, None where t + offset is before the text."""
    rng, out = random.Random(SEED), []
    for n in LENGTHS:
        rows = [[rng.random() - rng.random() ** 2 if t + i >= 0 else None for i in OFFSETS] for t in range(n)]
        out.append(rows)
    return out


def streams():
    """Return the stand-in for a model and random probes of layers 1 and 3."""
    from planted import LinearProbes
    from standin import StandIn

    model = StandIn(**STREAMS)
    return model, LinearProbes.random([START, END], list(OFFSETS), model.d, list(range(LABELS)), 0, scale=0.7)


def main(checkout):
    import numpy as np
    import pandas as pd
    import torch
    from authors import commit, functions, versions, write

    commit(checkout, SOURCE["commit"])
    names = ("psi", "partition_doc", "get_tok_metrics")
    theirs = functions(checkout, SOURCE["file"], names, np=np, pd=pd, torch=torch)

    def scored(drops):
        rows = [{f"tok-1_{k}_probdelta": -x for k, x in zip(KEYS, r, strict=True) if x is not None} for r in drops]
        table, n = pd.DataFrame(rows), len(rows)
        with contextlib.redirect_stdout(io.StringIO()):
            segments = theirs["partition_doc"](table)
        psi = [[float(theirs["psi"](table, i, j)) for j in range(i, n)] for i in range(n)]
        return {"psi": psi, "segments": [[int(p), int(q)] for (p, q), _ in segments]}

    model, probes = streams()
    found = []
    for ids, layers in zip(model.ids, model.streams, strict=True):
        read = [[partial(torch.matmul, probes.weight(n, i).double()) for i in OFFSETS] for n in (START, END)]
        states = [torch.from_numpy(layers[n]) for n in (START, END)]
        each = [theirs["get_tok_metrics"](ids.tolist(), t, *read, *states, KEYS)[2] for t in range(len(ids))]
        drops = [[-x[k] if k in x else None for k in KEYS] for x in each]
        found.append({"delta": drops, **scored(drops)})
    random_documents = [scored(drops) for drops in random_drops()]
    write(__file__, {"sources": [SOURCE], "versions": versions("pandas", "numpy", "torch"),
                     "random": random_documents, "streams": found})  # fmt: skip


if __name__ == "__main__":
    main(*sys.argv[1:])
