"""The audit of a run's data: `audit.json` and `audit.svg` of its folder, and a section of the report.

`set_aside.jsonl` lists the records that `task.bad_records=skip` left out: split, file, line (or row) and reason.
"""

import json
import re
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from encdec_train import atomic, console
from encdec_train.report.svg import histogram

if TYPE_CHECKING:
    from encdec_train.data.preprocess import EncodedSplit, TextCodec

FILE_NAME, PICTURE_NAME, ASIDE_NAME = "audit.json", "audit.svg", "set_aside.jsonl"
_CHART = (455, 220)  # pixels
_TITLE = 26  # pixels above each chart of the picture
_STYLE = (
    "text{font:12px sans-serif;fill:#555}.title{font-weight:bold;fill:#222}.grid{stroke:#e4e3de}.axis{stroke:#888}"
    ".bar{fill:#1f6fd1}"
)


def write_audit(folder: Path, splits: "Mapping[str, EncodedSplit]", codec: "TextCodec") -> None:
    """Examine the data at a run's first start, and say each warning in a line."""
    from encdec_train.data.audit import audit

    if (folder / FILE_NAME).is_file():
        return
    found = audit(splits, codec)
    for line in warning_lines(found):
        console.warn(line)
    aside = [{"split": name, **one} for name, split in splits.items() for one in split.rows.set_aside]
    if aside:
        lines = "".join(f"{json.dumps(one, ensure_ascii=False)}\n" for one in aside)
        atomic.write(folder / ASIDE_NAME, lines.encode(errors="replace"))
    atomic.write(folder / PICTURE_NAME, picture(found).encode())
    atomic.write_json(folder / FILE_NAME, found)


def warning_lines(audit: Mapping[str, Any]) -> list[str]:
    """Phrase the warnings, such as `train: 12.5% cut sources (said above 10%)`."""
    return [
        f"{one['split']}: {one['share']:.1%} {one['name']} (said above {one['above']:.0%})"
        for one in audit.get("warnings", [])
    ]


def picture(audit: Mapping[str, Any]) -> str:
    """Draw the lengths of every split, sources on the left, as an SVG file of its own."""
    parts, y = list[str](), 0
    for title, chart in _charts(audit):
        x = 0 if ": source" in title else _CHART[0]
        label = f'<text class="title" x="{x + 50}" y="{y + 18}">{escape(title)}</text>'
        parts.append(
            label + re.sub("^<svg", f'<svg x="{x}" y="{y + _TITLE}" width="{_CHART[0]}" height="{_CHART[1]}"', chart)
        )
        y += _TITLE + _CHART[1] if x else 0
    frame = f'xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * _CHART[0]} {y}" width="{2 * _CHART[0]}"'
    return f'<svg {frame}><style>{_STYLE}</style><rect width="100%" height="100%" fill="#fff"/>{"".join(parts)}</svg>\n'


def section(audit: Mapping[str, Any]) -> str:
    """Lay out what `audit.json` holds, nothing where there is none."""
    if not audit:
        return ""
    said = "".join(f"<li>{escape(line)}</li>" for line in warning_lines(audit)) or "<li>no warning</li>"
    names = list(dict.fromkeys(name for facts in audit["splits"].values() for name in facts["shares"]))
    head = "".join(f'<th class="n">{escape(split)}</th>' for split in audit["splits"])
    rows = [_row("pairs", [f"{facts['pairs']:,}" for facts in audit["splits"].values()])]
    for side in ("source", "target"):
        sides = [facts[side] for facts in audit["splits"].values()]
        rows.append(_row(f"{side} tokens: median, longest", [f"{one['median']:g}, {one['longest']}" for one in sides]))
    for name in names:
        shares = [facts["shares"].get(name) for facts in audit["splits"].values()]
        rows.append(_row(name, ["" if share is None else f"{share:.2%}" for share in shares]))
    charts = "".join(
        f"<figure><h3>{escape(title)}</h3>{chart}</figure>" for title, chart in _charts(audit) if "train" in title
    )
    table = f"<table><thead><tr><th></th>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return f'<h2>Data</h2><ul>{said}</ul><div class="card scroll">{table}</div><div class="multiples">{charts}</div>'


def _row(name: str, values: list[str]) -> str:
    return f"<tr><td>{escape(name)}</td>{''.join(f'<td class=n>{value}</td>' for value in values)}</tr>"


def _charts(audit: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, facts in audit["splits"].items():
        for side in ("source", "target"):
            one = facts[side]
            title = f"{name}: {side} lengths, {facts['pairs']:,} pairs, {one['cut']:,} cut"
            yield (
                title,
                histogram(one["histogram"]["counts"], one["histogram"]["width"], "tokens after cutting", _CHART),
            )
