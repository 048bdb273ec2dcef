"""Charts of a run as inline SVG: resource usage over time, and the phases. Pure, and without text of the guest."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from itertools import pairwise

from markupsafe import Markup

from ktrdr_vm.report.escape import escape_line
from ktrdr_vm.report.measurements import Phase, Sample

_WIDTH, _HEIGHT = 720, 120
_MAX_POINTS = 400


def render_usage(samples: Sequence[Sample]) -> Markup:
    """CPU and memory over time; empty without three samples of one VM."""
    charts = []
    for title, unit, series in (
        ("CPUs in use", "", _cpu(samples)),
        ("memory", " MiB", [(moment(one.time), one.memory / 2**20) for one in samples]),
    ):
        if len(series) >= 3:
            charts.append(_chart(title, unit, series))
    return Markup("\n").join(charts)


def _cpu(samples: Sequence[Sample]) -> list[tuple[float, float]]:
    """CPUs in use between consecutive samples of the same VM."""
    found = []
    for before, after in pairwise(samples):
        seconds = moment(after.time) - moment(before.time)
        if before.instance_id == after.instance_id and seconds > 0 and after.cpu_s >= before.cpu_s:
            found.append((moment(after.time), (after.cpu_s - before.cpu_s) / seconds))
    return found


def _chart(title: str, unit: str, series: list[tuple[float, float]]) -> Markup:
    step = max(1, len(series) // _MAX_POINTS)
    series = series[::step]
    begin, end = series[0][0], series[-1][0]
    most = max(value for _, value in series) or 1.0
    points = " ".join(
        f"{(time - begin) / max(end - begin, 1e-9) * _WIDTH:.1f},{_HEIGHT - value / most * (_HEIGHT - 14):.1f}"
        for time, value in series
    )
    label = f"{title}: at most {most:.{1 if most < 10 else 0}f}{unit} in {end - begin:.0f} s"
    return Markup(
        '<figure><figcaption>{label}</figcaption><svg class="plot" viewBox="0 0 {width} {height}" role="img"'
        ' aria-label="{label}"><polyline points="{points}" fill="none" stroke="currentColor"'
        ' stroke-width="1.5"/></svg></figure>'
    ).format(label=label, width=_WIDTH, height=_HEIGHT, points=points)


def render_timeline(phases: Sequence[Phase]) -> Markup:
    """A bar for each phase of the run. Screen readers use the table of phases instead."""
    if not phases:
        return Markup()
    begin = min(moment(phase.started_at) for phase in phases)
    whole = max(max(moment(phase.started_at) + phase.duration_s for phase in phases) - begin, 1e-9)
    bars = []
    for row, phase in enumerate(phases):
        left = (moment(phase.started_at) - begin) / whole * _WIDTH
        width = max(phase.duration_s / whole * _WIDTH, 1.5)
        name = escape_line(phase.name, limit=60)
        # The label is right of a bar in the first half, left of it in the second.
        anchor, at = ("start", left + width + 4) if left + width < _WIDTH * 0.7 else ("end", left - 4)
        bars.append(
            Markup(
                '<rect class="{state}" x="{left:.1f}" y="{top}" width="{width:.1f}" height="12" fill="currentColor"/>'
                '<text x="{at:.1f}" y="{base}" text-anchor="{anchor}">{name} {seconds:.1f} s</text>'
            ).format(
                state=phase.outcome,
                left=left,
                top=row * 16,
                width=width,
                at=at,
                base=row * 16 + 10,
                anchor=anchor,
                name=name,
                seconds=phase.duration_s,
            )
        )
    head = Markup('<svg class="timeline" viewBox="0 0 {width} {height}" aria-hidden="true">').format(
        width=_WIDTH, height=16 * len(phases)
    )
    return head + Markup("").join(bars) + Markup("</svg>")


def moment(time: str) -> float:
    """Seconds of an RFC 3339 time; 0 if it is not valid."""
    try:
        return datetime.fromisoformat(time).timestamp()
    except ValueError:
        return 0.0
