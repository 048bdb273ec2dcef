"""The page of a history: self-contained, without a script and without network. All text is escaped as in reports."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache

from jinja2 import Environment
from markupsafe import Markup

from ktrdr_vm.report.history import History, Measures
from ktrdr_vm.report.html import make_environment
from ktrdr_vm.report.summary import format_duration

_WIDTH, _HEIGHT, _BAR = 720, 120, 28
_MOST_WEEKS = 26


def render_history(history: History, title: str) -> str:
    """The page as text. Pure: the same history gives the same bytes."""
    return (
        _environment().get_template("history.html.j2").render(history=history, title=title, charts=_draw(history))
        + "\n"
    )


def format_share(share: float | None) -> str:
    """`80 %`, or `-` if nothing was counted."""
    return "-" if share is None else f"{share * 100:.0f} %"


def format_answers(counts: Mapping[str, int]) -> str:
    """`2 approved, 1 denied, 0 unanswered`."""
    return ", ".join(f"{count} {answer}" for answer, count in counts.items())


def format_seconds(seconds: float | None) -> str:
    """A duration, or `-` if there is none."""
    return "-" if seconds is None else format_duration(seconds)


@cache
def _environment() -> Environment:
    environment = make_environment()
    environment.filters |= {"share": format_share, "answers": format_answers, "seconds": format_seconds}
    return environment


def _draw(history: History) -> list[Markup]:
    """A chart for each measure; none for a single week, whose measures are shown above."""
    weeks = history.weeks[-_MOST_WEEKS:]
    if len(weeks) < 2:
        return []
    shown: tuple[tuple[str, Callable[[Measures], float | None], Callable[[float | None], str]], ...] = (
        ("first runs that pass", lambda one: one.first_share, format_share),
        ("time to verdict", lambda one: one.verdict_s, format_seconds),
        ("escalations not approved", lambda one: one.noise, format_share),
    )
    return [_draw_bars(title, [(week, measure(one)) for week, one in weeks], form) for title, measure, form in shown]


def _draw_bars(title: str, values: Sequence[tuple[str, float | None]], form: Callable[[float | None], str]) -> Markup:
    # Shares are drawn on a scale up to 100 %.
    most = 1.0 if form is format_share else max((value for _, value in values if value is not None), default=0) or 1
    label = f"{title}: " + ", ".join(f"{week} {form(value)}" for week, value in values)
    bars = Markup("")
    for number, (week, value) in enumerate(values):
        height = (value or 0) / most * (_HEIGHT - 40)
        left = number * (_WIDTH / len(values)) + 4
        bars += Markup(
            '<rect x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" height="{height:.1f}" fill="currentColor"/>'
            '<text x="{left:.1f}" y="{above:.1f}">{shown}</text><text x="{left:.1f}" y="{base}">{week}</text>'
        ).format(
            left=left,
            top=_HEIGHT - 18 - height,
            width=min(_BAR, _WIDTH / len(values) - 8),
            height=height,
            above=_HEIGHT - 22 - height,
            shown=form(value),
            base=_HEIGHT - 4,
            week=week[5:],
        )
    return Markup(
        '<figure><figcaption>{title}</figcaption><svg viewBox="0 0 {width} {height}" role="img"'
        ' aria-label="{label}">{bars}</svg></figure>'
    ).format(title=title, width=_WIDTH, height=_HEIGHT, label=label, bars=bars)
