"""Train the language model that ships with tokinterp, on English Wikipedia, from nothing.

    python -m experiments.train_bundled_model prepare  --preset cpu
    python -m experiments.train_bundled_model train    --preset cpu --minutes 100     # or --steps N --decay-steps M
    python -m experiments.train_bundled_model export   --preset cpu
    python -m experiments.train_bundled_model evaluate --preset cpu

``--preset full`` (12 blocks, d_model 256, vocabulary 8192, for a GPU) makes the larger model by the same commands.
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
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments.bundled_data import prepare
from experiments.bundled_evaluation import evaluate
from experiments.bundled_forward import loss_function
from tokinterp.files import replacing, write_text

EXPORT = Path(__file__).resolve().parents[1] / "tokinterp" / "data" / "model"


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


PRESETS = {
    "cpu": Preset(8, 192, 6, 512, 4096, 8192, (256, 512, 1024), 0.02, 3e-3, 0.1, 60, 250, 1.0, 4096, "cpu"),
    "full": Preset(12, 256, 8, 688, 8192, 131_072, (512, 512, 1024), 0.02, 3e-3, 0.1, 200, 250, 20.0, 65_536, "cuda"),
}


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

    Every window begins with BOS, as every text does when the model is used.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.stream = np.concatenate([np.load(p) for p in sorted(folder.glob("train_*.npy"))])
        self.seed = seed
        self.place = 0  # tokens consumed: the only state, so that a run can resume

    def batch(self, tokens: int, length: int) -> torch.Tensor:
        """The next (rows, length + 1) ids: inputs are ``[:, :-1]``, targets ``[:, 1:]``."""
        rows = []
        chunk = 1024  # the order is a permutation of 1024-token chunks; shorter windows share a chunk
        per_epoch = len(self.stream) // chunk
        for _ in range(tokens // length):
            epoch, within = divmod(self.place, per_epoch * chunk)
            if not hasattr(self, "order") or self.order_epoch != epoch:
                self.order = np.random.default_rng([self.seed, epoch]).permutation(per_epoch)
                self.order_epoch = epoch
            start = int(self.order[within // chunk]) * chunk + within % chunk
            row = self.stream[start : start + length].astype(np.int64)
            rows.append(np.concatenate([[0], row]))
            self.place += length
        return torch.from_numpy(np.stack(rows))


def rate(step: int, warmup: int, plan: list[list[float]]) -> float:
    """Multiplier of the learning rates: linear warm-up, flat, then linear from each knot of ``plan`` to zero.

    A knot ``[step, end, value]`` says that from ``step`` on the multiplier falls from ``value`` to zero at ``end``.
    """
    knot = next((k for k in reversed(plan) if k[0] <= step), None)
    if knot is None:
        return min(1.0, (step + 1) / warmup)
    return max(0.0, knot[2] * (knot[1] - step) / (knot[1] - knot[0]))


def optimisers(model: Any, preset: Preset) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for embedding (no decay) and norms."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "layers" in n]
    others = [p for n, p in model.named_parameters() if not (p.ndim == 2 and "layers" in n)]
    muon = torch.optim.Muon(matrices, lr=preset.muon_lr, weight_decay=preset.weight_decay, momentum=0.95)
    adam = torch.optim.AdamW(others, lr=preset.adam_lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    for optimiser in (muon, adam):
        for group in optimiser.param_groups:
            group["base_lr"] = group["lr"]
    return [muon, adam]


@torch.no_grad()
def validation_loss(loss: Any, folder: Path, preset: Preset, rows: int, length: int) -> tuple[float, float]:
    """Mean loss (nats per token) and bits per byte on fixed, evenly spaced windows of the validation stream."""
    from transformers import PreTrainedTokenizerFast

    stream = np.load(folder / "val.npy")
    starts = np.linspace(0, len(stream) - length, rows).astype(int)
    windows = np.stack([np.concatenate([[0], stream[s : s + length].astype(np.int64)]) for s in starts])
    mean = float(np.mean([loss(torch.from_numpy(w[None]).to(preset.device)).item() for w in windows]))
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer")
    text_bytes = sum(len(tokenizer.decode(w, skip_special_tokens=True).encode()) for w in windows)
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
) -> None:
    """Train until ``minutes`` are over (decaying in the last ``decay_share`` of them), or for ``steps`` steps, or for
    the preset's epochs.

    The schedule that a clock decided is written to ``plan.json`` as step numbers; ``--steps`` and ``--decay-steps``
    then repeat it on any machine, and ``plan`` repeats every turn of it.
    """
    torch.manual_seed(preset.seed)
    random.seed(preset.seed)
    model, data = build(preset), Windows(folder, preset.seed)
    opts = optimisers(model, preset)
    loss, plain = loss_function(model, compiled), loss_function(model, False)
    state: dict[str, Any] = {
        "step": 0,
        "tokens": 0,
        "seconds": 0.0,
        "plan": [],
        "switches": [],
        "best": math.inf,
        "place": 0,
    }
    if plan is not None:  # the schedule of an earlier run, whatever set it
        minutes = None
        state |= {k: v for k, v in json.loads(plan.read_text()).items() if k in ("plan", "switches")}
    elif minutes is None:
        steps = steps or int(preset.epochs * len(data.stream) / preset.tokens)
        decay_steps = decay_steps or int(decay_share * steps)
        state["plan"] = [[steps - decay_steps, steps, 1.0]]
        state["switches"] = switches or [int(f * steps) for f in SWITCHES]
    if resume and (folder / "resume.pt").exists():
        saved = torch.load(folder / "resume.pt", weights_only=True)
        model.load_state_dict(saved["model"])
        for optimiser, s in zip(opts, saved["opts"], strict=True):
            optimiser.load_state_dict(s)
        state |= saved["state"]
        state["seconds"] += max(0.0, time.time() - state.pop("saved_at", time.time()))
    data.place = state["place"]
    began = time.time() - state["seconds"]
    deadline = began + 60 * minutes if minutes else math.inf
    marks = [100, 200, 400, 575, 800, 1150, 1600, 2300, 3200, 4600, 6400, 9200, 12800]
    last_save = time.time()
    running: list[float] = []
    pace: list[float] = []  # seconds of each step
    while True:
        step, now = state["step"], time.time()
        if minutes and len(state["switches"]) < 2 and now > began + SWITCHES[len(state["switches"])] * 60 * minutes:
            state["switches"].append(step)
        if minutes and len(pace) > 40 and now > deadline - decay_share * 60 * minutes:
            left = max(1, int((deadline - now - 40) / (1.04 * float(np.median(pace[-60:])))))
            planned = state["plan"][-1][1] - step if state["plan"] else 0
            last = state["plan"][-1][0] if state["plan"] else -100
            if step >= last + 40 and not 0.93 * left < planned < 1.07 * left and (planned > left or left > 60):
                state["plan"].append([step, step + left, rate(step, preset.warmup, state["plan"])])
        if state["plan"] and step >= state["plan"][-1][1]:
            break
        length = preset.lengths[sum(step >= s for s in state["switches"])]
        multiplier = rate(step, preset.warmup, state["plan"])
        for optimiser in opts:
            for group in optimiser.param_groups:
                group["lr"] = group["base_lr"] * multiplier
        batch = data.batch(preset.tokens, length).to(preset.device, non_blocking=True)
        parts = batch.split(max(1, preset.micro // length))
        total = 0.0
        for part in parts:
            value = loss(part)
            (value * (len(part) / len(batch))).backward()
            total = total + value.detach() * (len(part) / len(batch))
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimiser in opts:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        running.append(float(total))
        state |= {"step": step + 1, "tokens": state["tokens"] + preset.tokens, "place": data.place}
        pace.append(time.time() - now)
        state["seconds"] = time.time() - began
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
            if state["step"] % preset.validate_every == 0 or state["step"] in marks or done:
                row["val_loss_256"] = validation_loss(plain, folder, preset, 96, 256)[0]
                row["val_loss"], row["val_bits_per_byte"] = validation_loss(plain, folder, preset, 24, preset.context)
                if row["val_loss"] < state["best"]:
                    state["best"] = row["val_loss"]
                    torch.save({"model": model.state_dict(), "row": row}, folder / "best.pt")
            with (folder / "log.jsonl").open("a", encoding="utf-8") as log:
                log.write(json.dumps(row) + "\n")
        if state["step"] in marks or done:
            name = "final" if done else f"step_{state['step']:06d}"
            torch.save({"model": model.state_dict(), "row": row}, folder / f"{name}.pt")
        if time.time() - last_save > 240 or done:
            save(folder / "resume.pt", model, opts, state | {"saved_at": time.time()})
            last_save = time.time()
    write_text(folder / "plan.json", json.dumps(asdict(preset) | state, indent=1))


def export(folder: Path, preset: Preset, checkpoint: str, target: Path) -> None:
    """Write weights (float16) and tokenizer in plain Hugging Face format."""
    from transformers import GenerationConfig, PreTrainedTokenizerFast

    model = build(replace(preset, device="cpu"))
    model.load_state_dict(torch.load(folder / f"{checkpoint}.pt", weights_only=True, map_location="cpu")["model"])
    model = model.half()
    model.config.use_cache = True
    model.generation_config = GenerationConfig(bos_token_id=0, eos_token_id=1, pad_token_id=2)
    target.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(target)
    PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer").save_pretrained(target)
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
    parser.add_argument("--checkpoint", default="final", help="for export: final, best, step_000800, ...")
    parser.add_argument("--only", choices=["model", "stories260K", "ngrams"], help="for evaluate")
    parser.add_argument("--target", type=Path, default=EXPORT)
    a = parser.parse_args()
    preset, folder = PRESETS[a.preset], a.runs / a.preset
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
        )
    elif a.command == "export":
        export(folder, preset, a.checkpoint, a.target)
    else:
        print(json.dumps(evaluate(folder, a.target, EXPORT.parent / "texts.jsonl", a.only), indent=1))


if __name__ == "__main__":
    main()
