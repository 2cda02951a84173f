"""One self-contained HTML page of tables and line charts: no script, no file beside it."""

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

_WIDTH, _HEIGHT = 860, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 10, 10, 30
_COLORS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e")
_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:900px;margin:2em auto;padding:0 1em;color:#222}"
    "table{border-collapse:collapse;margin:1em 0}td,th{border-bottom:1px solid #ddd;padding:.3em .8em;text-align:left}"
    "td.number{text-align:right;font-variant-numeric:tabular-nums}svg{width:100%;height:auto}"
    "svg text{font:11px system-ui,sans-serif;fill:#555}figcaption{font-weight:600}figure{margin:1.5em 0}"
)


class Mark(NamedTuple):
    """Something that happened, drawn as a vertical line."""

    x: float
    text: str


def page(title: str, parts: Iterable[str]) -> str:
    """The whole document; ``parts`` are HTML."""
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{_STYLE}</style></head><body><h1>{html.escape(title)}</h1>{''.join(parts)}</body></html>\n"
    )


def section(title: str, *parts: str) -> str:
    return f"<h2>{html.escape(title)}</h2>{''.join(parts)}"


def paragraph(text: str) -> str:
    return f"<p>{html.escape(text)}</p>"


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Numbers to the right, everything else to the left."""
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f'<td class="number">{value:,.4g}</td>'
    if isinstance(value, int):
        return f'<td class="number">{value:,}</td>'
    return f"<td>{html.escape(str(value))}</td>"


def line_chart(
    title: str, series: Mapping[str, Sequence[tuple[float, float]]], *, x_unit: str, marks: Sequence[Mark] = ()
) -> str:
    """Lines over one x axis, both axes from the least to the largest value; "" where there is nothing to draw."""
    points = [point for line in series.values() for point in line]
    if not points:
        return ""
    (x_low, x_high), (y_low, y_high) = (_range(point[axis] for point in points) for axis in (0, 1))

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            _LEFT + (x - x_low) / (x_high - x_low) * (_WIDTH - _LEFT - _RIGHT),
            _HEIGHT - _BOTTOM - (y - y_low) / (y_high - y_low) * (_HEIGHT - _TOP - _BOTTOM),
        )

    drawn = []
    for step in range(5):
        value = y_low + (y_high - y_low) * step / 4
        _, height = place(x_low, value)
        drawn.append(f'<path d="M{_LEFT},{height:.1f}H{_WIDTH - _RIGHT}" stroke="#eee"/>')
        drawn.append(f'<text x="{_LEFT - 6}" y="{height + 4:.1f}" text-anchor="end">{value:,.4g}</text>')
        along = x_low + (x_high - x_low) * step / 4
        across, _ = place(along, y_low)
        drawn.append(f'<text x="{across:.1f}" y="{_HEIGHT - 12}" text-anchor="middle">{along:,.4g} {x_unit}</text>')
    for mark in marks:
        across, _ = place(mark.x, y_low)
        drawn.append(
            f'<path d="M{across:.1f},{_TOP}V{_HEIGHT - _BOTTOM}" stroke="#bbb" stroke-dasharray="3 3">'
            f"<title>{html.escape(mark.text)}</title></path>"
        )
    for number, (name, line) in enumerate(series.items()):
        color = _COLORS[number % len(_COLORS)]
        path = " ".join(f"{across:.1f},{height:.1f}" for across, height in (place(x, y) for x, y in line))
        drawn.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.4"/>')
        drawn.append(
            f'<text x="{_LEFT + 8 + 150 * number}" y="{_TOP + 12}" style="fill:{color}">{html.escape(name)}</text>'
        )
    return (
        f"<figure><figcaption>{html.escape(title)}</figcaption>"
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">{"".join(drawn)}</svg></figure>'
    )


def _range(values: Iterable[float]) -> tuple[float, float]:
    """The least and the largest value, apart even where they are one."""
    ordered = sorted(values)
    low, high = ordered[0], ordered[-1]
    return (low, high) if high > low else (low - 1, high + 1)
