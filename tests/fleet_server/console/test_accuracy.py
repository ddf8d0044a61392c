from __future__ import annotations

from collections.abc import Iterator

from fleet_server.console.accuracy import FLEET, GRID, EstimatePoint, as_json, draw
from fleet_server.console.chart_views import Chart, Mark, Series
from fleet_server.console.recent_labels import LEAST, LabelPoint

NOW = 1_750_000_000_000
MINUTE = 60_000


def labels(device: str, package: str, correct: bool, *, first: int, until: int = 0) -> Iterator[LabelPoint]:
    """A label every three seconds, from ``first`` to ``until`` minutes ago."""
    for at in range(NOW - first * MINUTE, NOW - until * MINUTE, 3_000):
        yield LabelPoint(device, package, at, correct, 0.5)


def chart(
    points: list[LabelPoint], estimates: tuple[EstimatePoint, ...] = (), span: str = "auto", serving: str = "p"
) -> Chart:
    return draw(points, estimates, (), span=span, now_ms=NOW, promised=None, serving=dict.fromkeys("ab", serving))


def series(drawn: Chart, subject: str, *, estimated: bool = False) -> Series:
    return next(one for one in drawn.series if (one.subject, one.estimated) == (subject, estimated))


def line(drawn: Chart, subject: str, *, estimated: bool = False) -> list[float | None]:
    return [*series(drawn, subject, estimated=estimated).values]


def known(values: list[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def test_a_new_package_begins_its_line_anew() -> None:
    points = [*labels("a", "old", correct=False, first=10, until=5), *labels("a", "new", correct=True, first=5)]
    values = known(line(chart(points), "a"))
    assert set(values) == {0.0, 1.0}
    assert values == sorted(values)


def test_a_line_breaks_where_no_label_came_for_a_while() -> None:
    points = [*labels("a", "p", correct=False, first=10, until=7), *labels("a", "p", correct=True, first=3)]
    drawn = chart(points)
    for subject in ("a", FLEET):
        values = line(drawn, subject)
        silent = [at for at, value in enumerate(values) if value is None]
        assert {0.0, 1.0} == set(known(values))  # those before the silence do not weigh on those after it
        assert silent[-1] - max(at for at, value in enumerate(values) if value == 0.0) > GRID // 5
        assert all(value is not None for value in values[silent[-1] + 1 :])


def test_labels_that_come_seldom_make_one_line() -> None:
    points = [LabelPoint("a", "p", NOW - minutes * MINUTE, True, 0.5) for minutes in range(60, 0, -3)]
    values = line(chart(points), "a")
    assert known(values) == values[-len(known(values)) :]
    assert series(chart(points), "a").now == 1.0


def test_the_present_value_is_of_the_package_that_serves_and_of_recent_labels() -> None:
    of_now, of_then = [*labels("a", "p", correct=True, first=9)], [*labels("a", "p", correct=True, first=9, until=3)]
    assert series(chart(of_now), "a").now == series(chart(of_now), FLEET).now == 1.0
    for drawn in (chart(of_now, serving="newer"), chart(of_then)):
        assert series(drawn, "a").now is None
        assert series(drawn, FLEET).now is None
    assert line(chart(of_then), "a")[-1] is None


def test_a_present_estimate_is_of_the_package_that_serves() -> None:
    estimates = (EstimatePoint("a", "p", NOW - MINUTE, 300, 0.9), EstimatePoint("b", "old", NOW - 1000, 100, 0.5))
    drawn = chart([], estimates)
    assert [series(drawn, name, estimated=True).now for name in ("a", "b", FLEET)] == [0.9, None, 0.9]


def test_each_value_lies_within_its_bounds() -> None:
    points = [*labels("a", "p", correct=True, first=4), *labels("b", "p", correct=False, first=4)]
    drawn = series(chart(points), FLEET)
    bounded = [one for one in zip(drawn.low, drawn.values, drawn.high, strict=True) if None not in one]
    assert len(bounded) > GRID / 2
    assert all(low < value < high for low, value, high in bounded)  # type: ignore[operator]
    assert drawn.now_spread is not None
    assert 0 < drawn.now_spread < 0.2


def test_a_few_labels_draw_nothing() -> None:
    points = [*labels("a", "p", correct=True, first=10)][: LEAST - 1]
    assert chart(points).series == ()
    assert chart(points).empty


def test_rows_that_were_rarely_asked_for_weigh_more() -> None:
    points = [LabelPoint("a", "p", NOW - 5_000 + index, index < 8, 0.5 if index < 8 else 0.05) for index in range(16)]
    assert known(line(chart(points), "a"))[-1] == (8 / 0.5) / (8 / 0.5 + 8 / 0.05)


def test_volunteered_labels_say_nothing_of_the_others() -> None:
    points = [LabelPoint("a", "p", one.at_ms, False, 0.0) for one in labels("a", "p", correct=False, first=10)]
    assert chart(points).empty


def test_the_fleet_forgets_a_device_that_has_gone() -> None:
    points = [*labels("gone", "p", correct=False, first=30, until=20), *labels("here", "p", correct=True, first=30)]
    fleet = known(line(chart(points), FLEET))
    assert min(fleet) < 0.6
    assert fleet[-1] == 1.0


def test_estimates_of_the_fleet_are_weighted_by_rows() -> None:
    estimates = (EstimatePoint("a", "p", NOW - MINUTE, 300, 0.9), EstimatePoint("b", "p", NOW - 1000, 100, 0.5))
    assert known(line(chart([], estimates), FLEET, estimated=True))[-1] == 0.8


def test_auto_begins_at_the_first_point_and_spans_at_least_two_minutes() -> None:
    assert chart([*labels("a", "p", correct=True, first=10)]).from_ms == NOW - 10 * MINUTE
    assert chart([]).from_ms == NOW - 2 * MINUTE
    assert chart([], span="6 h").from_ms == NOW - 360 * MINUTE


def test_a_device_whose_clock_runs_ahead_is_drawn_at_the_end() -> None:
    points = [LabelPoint("a", "p", NOW + 5 * MINUTE + index, True, 0.5) for index in range(LEAST)]
    assert line(chart(points), "a")[GRID - 1] == 1.0


def test_marks_outside_the_span_or_on_top_of_each_other_are_left_out() -> None:
    at = (NOW - 20 * MINUTE, NOW - 10 * MINUTE, NOW - 10 * MINUTE + 500)
    marks = [Mark(at_ms=one, kind="drift", text="") for one in at]
    marks.append(Mark(at_ms=at[1], kind="rollout", text=""))
    drawn = draw([], [], marks, span="15 min", now_ms=NOW, promised=0.9, serving={})
    assert [(mark.at_ms, mark.kind) for mark in drawn.marks] == [(at[1], "drift"), (at[1], "rollout")]
    assert as_json(drawn)["promised"] == 0.9
