"""A bundled model, trained in the time there is: checkpoints, the exported model, and its bits per byte."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from experiments.bundled.data import parts
from experiments.bundled.evaluation import model_bits
from experiments.bundled.train import DATA, PRESETS, Preset, export, train

from .job import Job

AFTER = 30.0
"""Seconds kept for export and evaluation."""
BYTES = 200_000
"""Of each set of texts that is scored."""
TINY = {"blocks": 2, "d_model": 32, "heads": 2, "mlp": 48, "vocab": 300, "tokens": 512, "lengths": (256, 256, 256),
        "warmup": 2, "validate_every": 4, "micro": 256, "context": 256}  # fmt: skip


def floor(preset: Preset) -> float:
    """Return the operations of a step: 6 of each parameter per token, and half of the attention's products.

    Examples
    --------
    >>> round(floor(PRESETS["full"]) / 1e12, 1)
    10.8
    """
    d, n = preset.d_model, preset.blocks
    weights = n * (4 * d * d + 3 * d * preset.mlp) + d * preset.vocab
    return preset.tokens * (6.0 * weights + 6.0 * n * d * preset.lengths[-1])


def run(job: Job) -> str:
    """Train on from where an earlier call was stopped; done once the tokens of the preset's epochs are seen."""
    folder, data = job.work / job.name, job.data / job.name
    preset, steps = replace(PRESETS[job.name], device=job.device), None
    if job.tiny:
        preset, steps, data = replace(preset, **TINY), 8, folder / "data"
        if not data.exists():
            _made_up(data, preset.vocab)
    if not (data / "val.npy").exists():
        raise FileNotFoundError(
            f"{Path(data.parent.name, data.name)} has no tokens: make them with python -m experiments.bundled.data "
            f"--vocab {preset.vocab} --out DATA/{job.name}, and give --data DATA"
        )
    minutes = None if job.tiny else max(0.1, (job.left() - AFTER) / 60)
    resumed = (folder / "resume.pt").exists()
    state = train(
        folder, preset, minutes, steps, None, None, 0.4, not job.tiny, True, data=data, more=True
    )  # fmt: skip
    job.notes += state["notes"]
    shape = {k: getattr(preset, k) for k in ("blocks", "d_model", "heads", "mlp", "vocab", "tokens", "context")}
    job.sizes = {**shape, "train_tokens": json.loads((data / "data.json").read_text())["train_tokens"]}
    seconds = state["step_seconds"]
    job.row(
        "training", seconds=seconds, tokens_per_s=preset.tokens / seconds, step=state["step"],
        tokens_seen=state["tokens"], spent=round(state["seconds"], 1), resumed=resumed, restarts=state["restarts"],
        **job.against(seconds, {"bfloat16": floor(preset)}),
    )  # fmt: skip
    last = [x for x in map(json.loads, (folder / "log.jsonl").read_text().splitlines()) if "val_loss" in x][-1:]
    if last:
        job.row("validation", **{k: last[0][k] for k in ("step", "val_loss", "val_bits_per_byte")})
    export(folder, preset, "final", folder / "model", data)
    job.row("evaluation", **_bits(job, folder / "model", data, preset))
    goal = preset.epochs * job.sizes["train_tokens"]
    return "done" if state["tokens"] >= goal else "unfinished"


def _bits(job: Job, model_folder: Path, data: Path, preset: Preset) -> dict[str, Any]:
    """Return the bits per byte of articles that were kept aside and of the bundled texts."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    model = model.eval().to(job.place)
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    out: dict[str, Any] = {}
    for name, file in (("held-out articles", data / "val.jsonl"), ("bundled texts", DATA / "texts.jsonl")):
        texts, size = [], 0
        for line in file.read_text(encoding="utf-8").splitlines():
            texts.append(json.loads(line)["text"])
            size += len(texts[-1].encode())
            if size > (2000 if job.tiny else BYTES):
                break
        out[name] = {**model_bits(model, tokenizer, texts, preset.context), "bytes": size}
    return {"bits_per_byte": out["held-out articles"]["bits_per_byte"], **out}


def _made_up(data: Path, vocab: int) -> None:
    """Write tokens of the bundled texts, to see that everything runs."""
    texts = [json.loads(x)["text"] for x in (DATA / "texts.jsonl").read_text(encoding="utf-8").splitlines()]
    articles = [{"id": str(i), "title": "", "paragraphs": [t]} for i, t in enumerate(texts)]
    parts(data, articles[2:], articles[:2], vocab, {})
