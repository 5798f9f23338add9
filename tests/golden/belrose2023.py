"""Write belrose2023.json: what the authors' tuned lens says of a seeded network, its loss and its gradients.

    git clone https://github.com/AlignmentResearch/tuned-lens && git -C tuned-lens checkout abdac0c4de23
    PYTHONPATH=tuned-lens python tests/golden/belrose2023.py tuned-lens

``TunedLens.from_model`` makes the lens, whose translators begin at 0; for the second half they are set to seeded
numbers.  The loss is that of ``Train.execute``, called for one step with the loss KL: its autocast to bfloat16 does
nothing, all else is as written.  Gradients are those that reach the translators, before any clipping.
"""

import contextlib
import sys
from types import SimpleNamespace

import numpy as np
import torch
import transformers

COMMIT = "abdac0c4de23d9f6d6c8459d576ad203aec15deb"
SOURCES = [
    {"repository": "AlignmentResearch/tuned-lens", "commit": COMMIT, "file": "tuned_lens/nn/lenses.py",
     "calls": {"parameters": "TunedLens.from_model(lm).layer_translators, as it begins",
               "logits": "TunedLens.from_model(lm)(hidden_states[i], i) with translators set to numbers of the seed"}},
    {"repository": "AlignmentResearch/tuned-lens", "commit": COMMIT, "file": "tuned_lens/scripts/train_loop.py",
     "calls": {"kl, weight_gradient, bias_gradient": "Train.execute() of one step with LossChoice.KL, in float32"}},
]  # fmt: skip
VOCAB, WIDTH, BLOCKS, PROMPTS, TOKENS = 40, 16, 3, 4, 12
SHOWN = [(0, 0), (1, 5), (3, 11)]
"""Prompt and position of the logits that are kept."""


def network():
    """A Llama of three blocks; every parameter, norms too, is drawn by numpy in the order of its name."""
    config = transformers.LlamaConfig(
        vocab_size=VOCAB, hidden_size=WIDTH, num_hidden_layers=BLOCKS, num_attention_heads=2, num_key_value_heads=2,
        intermediate_size=24, max_position_embeddings=32, bos_token_id=1, eos_token_id=2, tie_word_embeddings=False,
    )  # fmt: skip
    lm, rng = transformers.LlamaForCausalLM(config).eval(), np.random.default_rng(0)
    with torch.no_grad():
        for _, p in sorted(lm.named_parameters()):
            noise = torch.from_numpy(rng.standard_normal(p.shape))
            p.copy_(noise * 1.5 / p.shape[-1] ** 0.5 if p.ndim > 1 else 1 + 0.3 * noise)
    return lm


def ids():
    """(prompt, token) ids."""
    return np.random.default_rng(1).integers(3, VOCAB, (PROMPTS, TOKENS))


def translators():
    """(layer, channel, channel) A and (layer, channel) b."""
    rng = np.random.default_rng(2)
    return 0.1 * rng.standard_normal((BLOCKS, WIDTH, WIDTH)), 0.2 * rng.standard_normal((BLOCKS, WIDTH))


def trained(checkout, lm, lens):
    """Run one step of the authors' training; return the loss of each translator and its gradients."""
    from authors import functions
    from tuned_lens.utils import maybe_all_reduce, shift_labels, shift_preds  # pyright: ignore[reportMissingImports]

    found, gradients = {}, {}
    for name, p in lens.layer_translators.named_parameters():
        p.requires_grad_(True).register_hook(lambda g, n=name: gradients.__setitem__(n, g.clone()))
    exact = SimpleNamespace(**{n: getattr(torch, n) for n in ("no_grad", "nn", "sum", "bfloat16")})
    exact.autocast = lambda *_, **__: contextlib.nullcontext()
    loss = SimpleNamespace(CE="ce", KL="kl")
    idle = SimpleNamespace(step=lambda: None, zero_grad=lambda **_: None)
    state = SimpleNamespace(
        step=0,
        lens=lens,
        opt=idle,
        scheduler=idle,
        nats_to_bpb=1.0,
        dataloader=[{"input_ids": torch.from_numpy(ids())}],
    )
    run = SimpleNamespace(
        setup=lambda: (state, lm, 1), num_steps=1, loss=loss.KL, token_shift=None, checkpoint_freq=None, output="",
        dist=SimpleNamespace(
            barrier=lambda: None, primary=True, send_to_device=lambda x: x, device=torch.device("cpu")
        ),
        _log=lambda opt, step, losses, *rest: found.update(losses),
    )  # fmt: skip
    lens.save = lambda path: None
    from collections import defaultdict

    space = functions(
        checkout, "tuned_lens/scripts/train_loop.py", ["execute"], th=exact, LossChoice=loss, defaultdict=defaultdict,
        trange=lambda a, b, **_: range(a, b), shift_labels=shift_labels, shift_preds=shift_preds,
        maybe_all_reduce=maybe_all_reduce, logger=SimpleNamespace(info=lambda *_: None),
    )  # fmt: skip
    space["execute"](run)
    return {
        "kl": [found[f"translator_{i}"][0] for i in range(BLOCKS)],
        "weight_gradient": [gradients[f"{i}.weight"].tolist() for i in range(BLOCKS)],
        "bias_gradient": [gradients[f"{i}.bias"].tolist() for i in range(BLOCKS)],
    }


def main(checkout):
    from authors import commit, versions, write

    sys.modules["transformer_lens"] = None  # theirs asks for a class that version 4 has not; nothing here needs it
    from tuned_lens import TunedLens  # pyright: ignore[reportMissingImports]

    commit(checkout, COMMIT)
    lm, found = network(), {}
    with torch.no_grad():
        states = lm(torch.from_numpy(ids()), output_hidden_states=True).hidden_states
    for name in ("begin", "set"):
        lens = TunedLens.from_model(lm)
        if name == "set":
            for linear, weight, bias in zip(lens, *translators(), strict=True):
                linear.weight.data.copy_(torch.from_numpy(weight))
                linear.bias.data.copy_(torch.from_numpy(bias))
        with torch.no_grad():
            logits = [[lens(states[i][p, t], i).tolist() for p, t in SHOWN] for i in range(len(lens))]
        size = {n: float(p.detach().abs().max()) for n, p in lens.layer_translators.named_parameters()}
        found[name] = {"logits": logits, **trained(checkout, lm, lens)}
        if name == "begin":
            found[name]["parameters"] = size
    packages = versions("torch", "transformers", "numpy")
    write(__file__, {"sources": SOURCES, "versions": packages, **found})


if __name__ == "__main__":
    main(*sys.argv[1:])
