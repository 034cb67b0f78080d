"""The run that is disturbed, and what of its results is compared to the bit."""

import json
from pathlib import Path
from typing import Any

STEPS = 12  # epochs of 8, 8, 8, 8 and 1 pairs end at steps 5 and 10
BASE = (
    "task=files", "task.train_file=train.jsonl", "task.validation_file=validation.jsonl", "task.test_file=test.jsonl",
    "task.max_source_tokens=16", "task.max_target_tokens=16", "model.encoder=bert", "run.cache_dir=cache",
    "tracking=none", "trainer.accelerator=cpu", f"trainer.max_steps={STEPS}", "trainer.validate_every_steps=4",
    "trainer.checkpoint_every_steps=2", "data.batch_examples=8", "data.max_micro_tokens=64", "optim.lr=1e-2",
    "optim.warmup_steps=0", "decoding.num_beams=1", "decoding.max_new_tokens=8",
)  # fmt: skip
DROPOUT = ("model.dropout=0.1", "model.attention_dropout=0.1")


def read(path: Path) -> list[dict[str, Any]]:
    """Read `metrics.jsonl` without what measures the wall."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in row.items() if not key.startswith("time/")} for row in rows]


def tensors(path: Path) -> dict[str, tuple[Any, bytes]]:
    """Read the weights of the export, and weights and optimizer state of every checkpoint, as bytes."""
    from safetensors.numpy import load_file

    found = {}
    for file in sorted([*path.glob("export/*.safetensors"), *path.glob("checkpoints/step_*/*.safetensors")]):
        for name, value in load_file(file).items():
            found[f"{file.relative_to(path)}:{name}"] = (value.dtype.str, value.shape, value.tobytes())
    return found
