"""`report.html`: one run on one page that needs nothing but itself. Scores, curves, samples, config and versions."""

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from encdec_train import atomic
from encdec_train.redact import redact_text
from encdec_train.report.audit import section as audit_section
from encdec_train.report.run_folder import RunRecord, Scores, curve, read_run
from encdec_train.report.samples import Sample, mark_differences, pick_samples
from encdec_train.report.svg import Series, line_chart, score_strip, smooth

FILE_NAME = "report.html"
NUM_SAMPLES = 10
_STYLESHEET = Path(__file__).with_name("report.css")
_SMOOTH_FROM = 30  # logged steps; fewer are drawn as they are
_SMALL_CHARTS = {
    "optim/lr": "Learning rate",
    "train/grad_norm": "Gradient norm, before clipping",
    "time/tokens_per_second": "Tokens a second",
}
_DOTS_UP_TO = 100  # validations
_SMALL = (310, 200)  # pixels; three stand side by side
_STEP = "optimizer step"
_LOSS = "loss (nats a token)"


def write_report(folder: Path) -> Path:
    """Write `report.html` into a run folder, from its files alone; what it lacks is left out. Returns the file.

    Raises:
        DataError: The folder holds nothing of a run, or a file of it is damaged.
    """
    atomic.write(folder / FILE_NAME, render(read_run(folder)).encode(errors="replace"))
    return folder / FILE_NAME


def render(run: RunRecord) -> str:
    """Lay out the page. The policy in its head forbids the browser to load or run anything."""
    sections = [_head(run), _scores(run), _curves(run), _samples(run), audit_section(run.audit), _details(run)]
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(run.name)}</title>
<style>
{_STYLESHEET.read_text(encoding="utf-8")}</style>
</head>
<body><main>
{"".join(sections)}
</main></body>
</html>
"""


def _head(run: RunRecord) -> str:
    manifest = run.manifest
    git = manifest.get("git") or {}
    commit = f"commit {git['commit'][:10]}{' with local changes' if git.get('dirty') else ''}" if git else ""
    started = str(manifest.get("started_utc", "")).replace("T", " ").replace("+00:00", " UTC")
    parts = [started and f"started {started}", commit, _versions_line(manifest)]
    tiles = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}<small>{escape(note)}</small></dd></div>"
        for name, value, note in _tiles(run)
    )
    subtitle = " · ".join(escape(part) for part in parts if part)
    return f'<h1>{escape(run.name)}</h1><p class="soft">{subtitle}</p><dl class="tiles">{tiles}</dl>'


def _versions_line(manifest: Mapping[str, Any]) -> str:
    versions = manifest.get("versions") or {}
    return ", ".join(
        f"{name} {versions[name]}" for name in ("encdec-train", "torch", "transformers") if versions.get(name)
    )


def _tiles(run: RunRecord) -> Iterator[tuple[str, str, str]]:
    """Yield name, value and note of the few numbers that one looks for first."""
    for split, metrics in run.scores.items():
        for name, found in list(metrics.items())[:1]:
            yield f"{name} on {split}", f"{found['value']:.2f}", _interval(found.get("ci95"))
    train = curve(run.rows, "train/loss")
    validation = curve(run.rows, "validation/loss")
    if validation:
        step, best = min(validation, key=lambda point: point[1])
        yield "best validation loss", f"{best:.3f}", f"at step {step:,.0f}"
    if train:
        yield "last training loss", f"{train[-1][1]:.3f}", f"first {train[0][1]:.3f}"
        yield "optimizer steps", f"{train[-1][0]:,.0f}", ""


def _scores(run: RunRecord) -> str:
    if not run.scores:
        return '<h2>Scores</h2><p class="soft">No test split has been scored yet.</p>'
    note = (
        '<p class="soft">All on 0–100. The bar around a mark is the 95% interval over test examples, not over training '
        "runs; rings are baselines, <i>ceiling</i> being what tokenizer and target limit leave of the first reference. "
        "The small print is the signature that makes a score comparable.</p>"
    )
    return f"<h2>Scores</h2>{note}" + "".join(_score_table(split, run) for split in run.scores)


def _score_table(split: str, run: RunRecord) -> str:
    names = [name for name, scores in run.baselines.items() if split in scores]
    header = "".join(f'<th class="n">{escape(name)}</th>' for name in ("score", "95% interval", *names))
    rows = "".join(
        _score_row(metric, found, _baseline_values(run.baselines, split, metric), names)
        for metric, found in run.scores[split].items()
    )
    return (
        f'<div class="card scroll"><table><thead><tr><th>{escape(split)}</th>'
        f"{header}<th>0–100</th></tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _score_row(metric: str, found: Mapping[str, Any], others: Mapping[str, float], names: Sequence[str]) -> str:
    value, ci95 = float(found["value"]), found.get("ci95")
    signature = escape(str(found.get("signature", "")))
    cells = [f"<td class='n'><strong>{value:.2f}</strong></td>", f"<td class='n'>{_interval(ci95)}</td>"]
    cells += [f"<td class='n'>{others[name]:.2f}</td>" if name in others else "<td></td>" for name in names]
    return (
        f'<tr><td>{escape(metric)}<span class="signature mono">{signature}</span></td>{"".join(cells)}'
        f"<td>{score_strip(value, ci95, others)}</td></tr>"
    )


def _baseline_values(baselines: Mapping[str, Scores], split: str, metric: str) -> dict[str, float]:
    return {
        name: float(scores[split][metric]["value"])
        for name, scores in baselines.items()
        if metric in scores.get(split, {})
    }


def _interval(ci95: Sequence[float] | None) -> str:
    return f"{ci95[0]:.2f} to {ci95[1]:.2f}" if ci95 else ""


def _curves(run: RunRecord) -> str:
    validation = curve(run.rows, "validation/loss")
    random = curve(run.random_rows, "validation/loss")
    series = [
        *_trained("training", curve(run.rows, "train/loss")),
        Series("validation, from random weights", random, "random", dots=len(random) <= _DOTS_UP_TO),
        Series("validation", validation, "validation", dots=len(validation) <= _DOTS_UP_TO),
    ]
    chart = line_chart(series, _STEP, _LOSS)
    if not chart:
        return '<h2>Curves</h2><p class="soft">Nothing has been logged yet.</p>'
    legend = "".join(f'<li><i class="{s.kind}"></i>{escape(s.name)}</li>' for s in series if s.points)
    return (
        f'<h2>Curves</h2><figure><h3>Loss</h3><ul class="legend">{legend}</ul>'
        f'<div class="scroll wide">{chart}</div></figure>'
        f'<div class="multiples">{"".join(_small_charts(run))}</div>'
    )


def _trained(name: str, points: list[tuple[float, float]]) -> list[Series]:
    if len(points) < _SMOOTH_FROM:
        return [Series(name, points, "train", dots=True)]
    return [Series(f"{name}, each step", points, "raw"), Series(f"{name}, smoothed", smooth(points), "train")]


def _small_charts(run: RunRecord) -> Iterator[str]:
    keys = dict.fromkeys(key for row in run.rows for key in row if key.startswith("validation/"))
    scores = {key: f"{key.removeprefix('validation/')} on validation" for key in keys if key != "validation/loss"}
    for key, title in {**scores, **_SMALL_CHARTS}.items():
        points = curve(run.rows, key)
        exact = key == "optim/lr" or key in scores
        series = [Series(title, points, "train", dots=key in scores)] if exact else _trained(title, points)
        chart = line_chart(series, _STEP, "", _SMALL)
        if chart:
            yield f"<figure><h3>{escape(title)}</h3>{chart}</figure>"


def _samples(run: RunRecord) -> str:
    if not run.predictions:
        return '<h2>Predictions</h2><p class="soft">No test split has been decoded yet.</p>'
    split = "test" if "test" in run.predictions else next(iter(run.predictions))
    cards = "".join(_sample_card(sample) for sample in pick_samples(run.predictions[split], NUM_SAMPLES))
    note = (
        f'<p class="soft">From <code>predictions/{escape(split)}.jsonl</code> at even distances, not chosen by quality.'
        " <ins>Underlined</ins> words are in the prediction only, <del>struck out</del> ones in the reference only.</p>"
    )
    return f"<h2>Predictions</h2>{note}{cards}"


def _sample_card(sample: Sample) -> str:
    prediction, reference = mark_differences(sample.prediction, sample.reference)
    same = '<span class="exact">exact match</span>' if sample.prediction == sample.reference else ""
    several = f"closest of {sample.num_references} references" if sample.num_references > 1 else ""
    texts = {"Source": escape(sample.source), "Prediction": prediction, "Reference": reference}
    rows = "".join(f"<dt>{name}</dt><dd>{text or '<i>empty</i>'}</dd>" for name, text in texts.items())
    return (
        f'<section class="card sample"><header><span>{escape(sample.id)}</span>{same}<span>{several}</span></header>'
        f"<dl>{rows}</dl></section>"
    )


def _details(run: RunRecord) -> str:
    facts = "".join(f"<tr><td>{escape(name)}</td><td>{escape(text)}</td></tr>" for name, text in _flat(run.manifest))
    blocks = {
        "Config": f"<pre>{escape(redact_text(run.config))}</pre>" if run.config else "",
        "Versions, hardware and data": f'<table class="facts"><tbody>{facts}</tbody></table>' if facts else "",
    }
    shown = "".join(
        f"<details><summary>{name}</summary><div>{block}</div></details>" for name, block in blocks.items() if block
    )
    return f"<h2>How it was made</h2>{shown}" if shown else ""


def _flat(value: object, name: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flat(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list):
        yield name, redact_text(", ".join(str(item) for item in value))
    else:
        yield name, redact_text(_plain(value))


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)
