"""Train the language model that ships with tokinterp, on English Wikipedia, from nothing.

    python -m experiments.bundled.train prepare  --preset cpu
    python -m experiments.bundled.train train    --preset cpu --minutes 100     # or --steps N --decay-steps M
    python -m experiments.bundled.train export   --preset cpu
    python -m experiments.bundled.train evaluate --preset cpu

``--preset full`` (12 blocks, d_model 256, vocabulary 8192, for a GPU) makes the larger model by the same commands,
``--preset narrow`` (6 blocks, d_model 64, vocabulary 512, context 512, for a GPU) one in whose stream little has room,
``--preset narrow-cpu`` (8 blocks, d_model 32) the one of that kind that ships.
Data: ``$TOKINTERP_DATA`` (default ``../shared/data``). Everything but the export goes to ``runs/bundled/<preset>/``.

The model is an ordinary ``LlamaForCausalLM``. Block matrices are trained with Muon, embeddings and norms with AdamW;
the rate warms up, stays, then falls linearly to zero; sequences are short at first, of the full context at the end.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments.bundled.data import prepare
from experiments.bundled.evaluation import evaluate
from experiments.bundled.forward import loss_function
from experiments.bundled.steps import Step, optimisers, rates_on
from tokinterp.files.whole import replacing, write_text

DATA = Path(__file__).resolve().parents[2] / "tokinterp" / "data"


@dataclass(frozen=True)
class Preset:
    """Shape and recipe of one model.

    ``tokens`` are per optimiser step. The sequences have the first of ``lengths`` until 72 % of the run, the second
    until 86 % and the last, which is the context, at the end; the learning rate falls over the last half.
    """

    blocks: int
    d_model: int
    heads: int
    mlp: int
    vocab: int
    tokens: int
    lengths: tuple[int, int, int]
    muon_lr: float
    adam_lr: float
    weight_decay: float
    warmup: int
    validate_every: int
    epochs: float  # when neither --minutes nor --steps is given
    micro: int  # tokens per backward pass
    device: str
    context: int = 1024
    seed: int = 0
    save_every: float = 240.0  # seconds between two checkpoints


PRESETS = {
    "cpu": Preset(8, 192, 6, 512, 4096, 8192, (256, 512, 1024), 0.02, 3e-3, 0.1, 60, 250, 1.0, 4096, "cpu"),
    "full": Preset(
        12, 256, 8, 688, 8192, 131_072, (512, 512, 1024), 0.02, 3e-3, 0.1, 200, 250, 20.0, 65_536, "cuda",
        save_every=60.0,
    ),
    "narrow": Preset(
        6, 64, 4, 176, 512, 131_072, (512, 512, 512), 0.02, 3e-3, 0.1, 200, 1000, 40.0, 131_072, "cuda",
        context=512, save_every=60.0,
    ),
    "narrow-cpu": Preset(
        8, 32, 2, 88, 512, 16_384, (128, 256, 512), 0.02, 3e-3, 0.1, 100, 1000, 2.2, 8192, "cpu",
        context=512, save_every=300.0,
    ),
}  # fmt: skip
MARKS = (100, 200, 400, 575, 800, 1150, 1600, 2300, 3200, 4600, 6400, 9200, 12800, 18400, 25600, 36800, 51200)
"""Steps whose weights are kept."""
SHIPPED = {"cpu": "reader", "full": "reader", "narrow": "narrow", "narrow-cpu": "narrow"}
"""The folder of the package to which the model of each preset goes."""


SWITCHES = (0.72, 0.86)


def build(preset: Preset) -> Any:
    """A fresh model of the preset's shape (float32), seeded; output projections start at zero."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(preset.seed)
    config = LlamaConfig(
        vocab_size=preset.vocab,
        hidden_size=preset.d_model,
        intermediate_size=preset.mlp,
        num_hidden_layers=preset.blocks,
        num_attention_heads=preset.heads,
        num_key_value_heads=preset.heads,
        max_position_embeddings=preset.context,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
        rms_norm_eps=1e-5,
        use_cache=False,
    )
    model: Any = LlamaForCausalLM(config)
    for block in model.model.layers:
        torch.nn.init.zeros_(block.self_attn.o_proj.weight)
        torch.nn.init.zeros_(block.mlp.down_proj.weight)
    return model.to(preset.device)


class Windows:
    """Training sequences: BOS and then ``length`` tokens of the packed stream, in a seeded order without repeats.

    Every window begins with BOS, as every text does when the model is used.  The stream lies on the device.
    """

    def __init__(self, folder: Path, seed: int, device: str = "cpu") -> None:
        self.stream = np.concatenate([np.load(p) for p in sorted(folder.glob("train_*.npy"))])
        self.there = torch.from_numpy(self.stream.view(np.int16)).to(device)
        self.seed = seed
        self.place = 0  # tokens consumed: the only state, so that a run can resume
        self.orders: dict[int, np.ndarray] = {}

    def batch(self, tokens: int, length: int) -> torch.Tensor:
        """The next (rows, length + 1) ids: inputs are ``[:, :-1]``, targets ``[:, 1:]``."""
        chunk = 1024  # the order is a permutation of 1024-token chunks; shorter windows share a chunk
        per_epoch = len(self.stream) // chunk
        places = self.place + length * np.arange(tokens // length)
        epochs, within = np.divmod(places, per_epoch * chunk)
        starts = np.empty_like(places)
        for epoch in np.unique(epochs).tolist():
            if epoch not in self.orders:
                self.orders = {epoch: np.random.default_rng([self.seed, epoch]).permutation(per_epoch)}
            at = within[epochs == epoch]
            starts[epochs == epoch] = self.orders[epoch][at // chunk] * chunk + at % chunk
        self.place += length * len(places)
        device = self.there.device
        index = torch.from_numpy(starts).to(device)[:, None] + torch.arange(length, device=device, dtype=torch.int64)
        rows = self.there[index].long() & 0xFFFF
        return torch.cat([torch.zeros_like(rows[:, :1]), rows], 1)


def rate(step: int, warmup: int, plan: list[list[float]], begin: int = 0) -> float:
    """Multiplier of the learning rates: linear warm-up, flat, then linear from each knot of ``plan`` to zero.

    A knot ``[step, end, value]`` says that from ``step`` on the multiplier falls from ``value`` to zero at ``end``;
    ``begin`` is the step at which a warm restart began.
    """
    knot = next((k for k in reversed(plan) if k[0] <= step), None)
    if knot is None:
        return min(1.0, (step - begin + 1) / warmup)
    return max(0.0, knot[2] * (knot[1] - step) / (knot[1] - knot[0]))


@lru_cache
def validation_windows(data: Path, rows: int, length: int) -> tuple[torch.Tensor, int]:
    """Fixed, evenly spaced windows of the validation stream, and the bytes of their text."""
    from transformers import PreTrainedTokenizerFast

    stream = np.load(data / "val.npy")
    starts = np.linspace(0, len(stream) - length, rows).astype(int)
    windows = np.stack([np.concatenate([[0], stream[s : s + length].astype(np.int64)]) for s in starts])
    tokenizer = PreTrainedTokenizerFast.from_pretrained(data / "tokenizer")
    return torch.from_numpy(windows), sum(len(tokenizer.decode(w, skip_special_tokens=True).encode()) for w in windows)


@torch.no_grad()
def validation_loss(loss: Any, data: Path, preset: Preset, rows: int, length: int) -> tuple[float, float]:
    """Mean loss (nats per token) and bits per byte on the windows of `validation_windows`."""
    windows, text_bytes = validation_windows(data, rows, length)
    parts = windows.to(preset.device).split(max(1, preset.micro // length))
    mean = sum(loss(part).item() * len(part) for part in parts) / rows
    return mean, mean * rows * length / math.log(2) / text_bytes


def save(path: Path, model: Any, opts: list, state: dict) -> None:
    """Write a checkpoint so that a kill at any moment leaves a whole file."""
    with replacing(path) as part:
        torch.save({"model": model.state_dict(), "opts": [o.state_dict() for o in opts], "state": state}, part)


def train(
    folder: Path,
    preset: Preset,
    minutes: float | None,
    steps: int | None,
    decay_steps: int | None,
    switches: list[int] | None,
    decay_share: float,
    compiled: bool,
    resume: bool,
    plan: Path | None = None,
    *,
    data: Path | None = None,
    more: bool = False,
) -> dict[str, Any]:
    """Train until ``minutes`` are over (decaying in the last ``decay_share`` of them), or for ``steps`` steps, or for
    the preset's epochs; return the state (``step``, ``tokens``, ``seconds``, ``notes`` of what did not work, ...).

    The schedule that a clock decided is written to ``plan.json`` as step numbers; ``--steps`` and ``--decay-steps``
    then repeat it on any machine, and ``plan`` repeats every turn of it.  ``data`` holds the tokens where that is not
    ``folder``.  With ``more``, minutes and steps are those of this call, and a run that was resumed after its end goes
    on: the rate warms up again (a warm restart) and falls at the end of this call.
    """
    torch.manual_seed(preset.seed)
    random.seed(preset.seed)
    data = data or folder
    folder.mkdir(parents=True, exist_ok=True)
    model, windows = build(preset), Windows(data, preset.seed, preset.device)
    opts = optimisers(model, preset.muon_lr, preset.adam_lr, preset.weight_decay)
    plain = loss_function(model, False)
    take = Step(model, opts, loss_function(model, True) if compiled else plain, plain, preset.micro)
    state: dict[str, Any] = {
        "step": 0,
        "tokens": 0,
        "seconds": 0.0,
        "plan": [],
        "switches": [],
        "best": math.inf,
        "place": 0,
        "begin": 0,
        "restarts": [],
    }
    fixed: dict[str, Any] = {}
    if plan is not None:  # the schedule of an earlier run, whatever set it
        minutes = None
        fixed = {k: v for k, v in json.loads(plan.read_text()).items() if k in ("plan", "switches", "restarts")}
    elif minutes is None:
        steps = steps or int(preset.epochs * len(windows.stream) / preset.tokens)
        decay_steps = decay_steps or int(decay_share * steps)
        fixed = {"plan": [[steps - decay_steps, steps, 1.0]]}
        fixed["switches"] = switches or [int(f * steps) for f in SWITCHES]
    state |= fixed
    if resume and (folder / "resume.pt").exists():
        saved = torch.load(folder / "resume.pt", weights_only=True, map_location=preset.device)
        model.load_state_dict(saved["model"])
        for optimiser, s in zip(opts, saved["opts"], strict=True):
            optimiser.load_state_dict(s)
        rates_on(opts, model.device)
        state |= saved["state"]
        away = max(0.0, time.time() - state.pop("saved_at", time.time()))
        state["seconds"] += 0.0 if more else away
        if more and state["plan"] and state["step"] >= state["plan"][-1][1]:
            begin = state["step"]
            state |= {"begin": begin, "restarts": [*state["restarts"], begin], "plan": []}
            if minutes is None:
                state["plan"] = [[a + begin, b + begin, v] for a, b, v in fixed["plan"]]
    windows.place = state["place"]
    spent = state["seconds"] if more else 0.0
    began = time.time() - (state["seconds"] - spent)
    deadline = began + 60 * minutes if minutes else math.inf
    reserve = min(40.0, 3 * minutes) if minutes else 0.0  # seconds for the last validation
    last_save = time.time()
    running: list[float] = []
    pace: list[float] = []  # seconds of each step
    while True:
        step, now = state["step"], time.time()
        if minutes and len(state["switches"]) < 2 and now > began + SWITCHES[len(state["switches"])] * 60 * minutes:
            state["switches"].append(step)
        if minutes and len(pace) > 40 and now > deadline - decay_share * 60 * minutes:
            left = max(1, int((deadline - now - reserve) / (1.04 * float(np.median(pace[-60:])))))
            planned = state["plan"][-1][1] - step if state["plan"] else 0
            last = state["plan"][-1][0] if state["plan"] else -100
            if step >= last + 40 and not 0.93 * left < planned < 1.07 * left and (planned > left or left > 60):
                state["plan"].append([step, step + left, rate(step, preset.warmup, state["plan"], state["begin"])])
        over = more and now >= deadline
        if over or (state["plan"] and step >= state["plan"][-1][1]):
            break
        length = preset.lengths[sum(step >= s for s in state["switches"])]
        multiplier = rate(step, preset.warmup, state["plan"], state["begin"])
        running.append(float(take(windows.batch(preset.tokens, length), multiplier)))
        state |= {"step": step + 1, "tokens": state["tokens"] + preset.tokens, "place": windows.place}
        pace.append(time.time() - now)
        state["seconds"] = spent + time.time() - began
        done = bool(state["plan"]) and state["step"] >= state["plan"][-1][1]
        if state["step"] % 25 == 0 or done:
            row = {
                "step": state["step"],
                "tokens": state["tokens"],
                "seconds": round(state["seconds"], 1),
                "lr": multiplier,
                "loss": float(np.mean(running)),
                "tokens_per_s": round(preset.tokens / pace[-1]),
            }
            running = []
            if state["step"] % preset.validate_every == 0 or state["step"] in MARKS or done:
                row["val_loss_256"] = validation_loss(plain, data, preset, 96, 256)[0]
                row["val_loss"], row["val_bits_per_byte"] = validation_loss(plain, data, preset, 24, preset.context)
                if row["val_loss"] < state["best"]:
                    state["best"] = row["val_loss"]
                    torch.save({"model": model.state_dict(), "row": row}, folder / "best.pt")
            with (folder / "log.jsonl").open("a", encoding="utf-8") as log:
                log.write(json.dumps(row) + "\n")
            if state["step"] in MARKS:
                torch.save({"model": model.state_dict(), "row": row}, folder / f"step_{state['step']:06d}.pt")
        if time.time() - last_save > preset.save_every:
            save(folder / "resume.pt", model, opts, state | {"saved_at": time.time()})
            last_save = time.time()
    torch.save({"model": model.state_dict(), "row": {k: state[k] for k in ("step", "tokens")}}, folder / "final.pt")
    save(folder / "resume.pt", model, opts, state | {"saved_at": time.time()})
    write_text(folder / "plan.json", json.dumps(asdict(preset) | state, indent=1))
    return state | {"notes": take.notes, "step_seconds": float(np.median(pace)) if pace else math.nan}


def export(folder: Path, preset: Preset, checkpoint: str, target: Path, data: Path | None = None) -> None:
    """Write weights (float16) and tokenizer in plain Hugging Face format."""
    from transformers import GenerationConfig, PreTrainedTokenizerFast

    model = build(replace(preset, device="cpu"))
    model.load_state_dict(torch.load(folder / f"{checkpoint}.pt", weights_only=True, map_location="cpu")["model"])
    model = model.half()
    model.config.use_cache = True
    model.generation_config = GenerationConfig(bos_token_id=0, eos_token_id=1, pad_token_id=2)
    target.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(target)
    PreTrainedTokenizerFast.from_pretrained((data or folder) / "tokenizer").save_pretrained(target)
    path = target / "tokenizer_config.json"  # the name that every version of transformers knows
    config = json.loads(path.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    write_text(path, json.dumps({k: v for k, v in config.items() if "local" not in k}, indent=2) + "\n")
    for path in target.iterdir():
        path.chmod(0o644)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["prepare", "train", "export", "evaluate"])
    parser.add_argument("--preset", choices=PRESETS, default="cpu")
    parser.add_argument("--runs", type=Path, default=Path("runs/bundled"))
    parser.add_argument("--minutes", type=float, help="stop by the clock")
    parser.add_argument("--steps", type=int, help="stop after so many steps")
    parser.add_argument("--decay-steps", type=int)
    parser.add_argument("--switch-at", type=int, nargs=2, help="the steps from which sequences are longer")
    parser.add_argument("--decay-share", type=float, default=0.5, help="part of the run in which the rate falls")
    parser.add_argument("--plan", type=Path, help="repeat the schedule of the plan.json of another run")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--more", action="store_true", help="with --resume: go on after the end, by a warm restart")
    parser.add_argument("--checkpoint", default="final", help="for export: final, best, step_000800, ..., all")
    parser.add_argument("--only", choices=["model", "stories260K", "ngrams"], help="for evaluate")
    parser.add_argument("--target", type=Path, help="for export; the folder in the package without it")
    a = parser.parse_args()
    preset, folder = PRESETS[a.preset], a.runs / a.preset
    target = a.target or DATA / SHIPPED[a.preset]
    if a.command == "prepare":
        print(json.dumps(prepare(folder, preset.vocab, seed=preset.seed), indent=1))
    elif a.command == "train":
        train(
            folder,
            preset,
            a.minutes,
            a.steps,
            a.decay_steps,
            a.switch_at,
            a.decay_share,
            not a.no_compile,
            a.resume,
            a.plan,
            more=a.more,
        )
    elif a.command == "export" and a.checkpoint == "all":  # what experiments/training.py reads
        for path in sorted(folder.glob("step_*.pt")):
            export(folder, preset, path.stem, folder / "checkpoints" / path.stem)
    elif a.command == "export":
        export(folder, preset, a.checkpoint, target)
    else:
        print(json.dumps(evaluate(folder, target, DATA / "texts.jsonl", a.only), indent=1))


if __name__ == "__main__":
    main()
