"""Points with names, as SVG: for pages that show one quantity against another. Knows no reports."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from localq.measure.plot_style import FACES, MARKERS, plot_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

_SIZE_INCHES = (6.4, 4.4)
_POINTS_PER_INCH = 72
_MARKER_POINTS = 7
_DISTANCES_POINTS = (7, 15, 25, 37, 50)
_DEGREES = (0, 180, 90, 270, 30, 330, 150, 210, 60, 300, 120, 240)
"""Where a name may stand, seen from its point, in the order of preference: first to the right."""
_LEADER_FROM_POINTS = 15
"""A name that far from its point gets a line to it."""

_Box = tuple[float, float, float, float]
"""Left, bottom, right, top, in typographic points from the corner of the picture."""


@dataclass(frozen=True, slots=True)
class ScatterPoint:
    """One point with its name."""

    name: str
    x: float
    y: float
    series: str = ""
    """Points of one series look alike; where there are several, a legend names them."""
    x_ends: tuple[float, float] | None = None
    """Low and high end of its error bar; None draws none."""
    y_ends: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class ScatterAxis:
    """What one axis shows."""

    label: str
    """With the unit: `peak memory (GB)`."""
    is_log: bool = False


def scatter_svg(points: Sequence[ScatterPoint], x_axis: ScatterAxis, y_axis: ScatterAxis, title: str = "") -> str:
    """An `<svg>` element as text, the same for the same points. Names keep clear of each other and of the points.

    A point that a logarithmic axis has no place for is left out, and said to be below the picture. Raises
    BackendUnavailableError without matplotlib.
    """
    stream = io.StringIO()
    metadata = {"Date": None, "Title": title or f"{y_axis.label} against {x_axis.label}"}  # for who can't see it
    with plot_style():
        _figure(points, x_axis, y_axis, title).savefig(stream, format="svg", metadata=metadata)
    text = stream.getvalue()
    return text[text.index("<svg") :].rstrip()  # without the XML declaration, which a page has no place for


def _figure(points: Sequence[ScatterPoint], x_axis: ScatterAxis, y_axis: ScatterAxis, title: str) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = [point for point in points if not _is_off(point.x, x_axis) and not _is_off(point.y, y_axis)]
    figure = Figure(figsize=_SIZE_INCHES, layout="constrained")
    FigureCanvasAgg(figure)  # measures text
    axes = figure.subplots()
    axes.set_title(title, fontsize=10)
    for drawn, set_scale, axis in ((axes.xaxis, axes.set_xscale, x_axis), (axes.yaxis, axes.set_yscale, y_axis)):
        drawn.set_label_text(axis.label)
        if axis.is_log:
            set_scale("log")
            _label_plainly(drawn)
    axes.margins(x=0.2, y=0.12)  # room for names beside the outermost points
    axes.grid(color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
    _draw_points(axes, shown)
    left_out = [f"{point.name} (x {point.x:.3g}, y {point.y:.3g})" for point in points if point not in shown]
    if left_out:
        figure.supxlabel(f"no place on a logarithmic axis: {', '.join(left_out)}", fontsize=7)
    figure.draw_without_rendering()  # settles the layout, so that places are known
    _draw_names(axes, shown)
    return figure


def _label_plainly(drawn: Axis) -> None:
    """1, 2 and 5 of each power of ten, as plain numbers."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    drawn.set_major_locator(LogLocator(subs=(1, 2, 5)))
    drawn.set_major_formatter(StrMethodFormatter("{x:g}"))
    drawn.set_minor_formatter(NullFormatter())


def _is_off(value: float, axis: ScatterAxis) -> bool:
    return not math.isfinite(value) or (axis.is_log and value <= 0)


def _draw_points(axes: Axes, points: Sequence[ScatterPoint]) -> None:
    series = list(dict.fromkeys(point.series for point in points))
    for point in points:
        number = series.index(point.series)
        axes.errorbar(
            point.x,
            point.y,
            xerr=_error(point.x, point.x_ends),
            yerr=_error(point.y, point.y_ends),
            marker=MARKERS[number % len(MARKERS)],
            markersize=_MARKER_POINTS,
            color=FACES[number % len(FACES)][0],
            markeredgecolor="black",
            ecolor="0.35",
            capsize=3,
            linestyle="none",
            label=point.series if point is next(other for other in points if other.series == point.series) else None,
        )
    if len(series) > 1:
        axes.figure.legend(loc="outside upper right", ncols=len(series), frameon=False, fontsize=8)


def _error(value: float, ends: tuple[float, float] | None) -> list[list[float]] | None:
    """What matplotlib wants: distances down and up."""
    return None if ends is None else [[max(0.0, value - ends[0])], [max(0.0, ends[1] - value)]]


def _draw_names(axes: Axes, points: Sequence[ScatterPoint]) -> None:
    """Each name at the first place that is free; where none is, at the one that covers least."""
    scale = _POINTS_PER_INCH / axes.figure.dpi
    frame = _scaled(axes.bbox.extents, scale)
    centres = [tuple(scale * number for number in axes.transData.transform((point.x, point.y))) for point in points]
    half = _MARKER_POINTS / 2 + 1
    taken: list[_Box] = [(x - half, y - half, x + half, y + half) for x, y in centres]
    taken += [box for point in points for box in _error_bars(axes, point, scale)]
    ground = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}  # covers the end of the line to the point
    style: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 8, "bbox": ground}
    for point, (x, y) in zip(points, centres, strict=True):
        name = axes.annotate(point.name, (point.x, point.y), (0, 0), textcoords="offset points", **style)
        left, bottom, right, top = _scaled(name.get_window_extent().extents, scale)
        dx, dy, distance = _free_place((x, y), (right - left, top - bottom), frame, taken)
        name.set_position((dx, dy))
        name.set_in_layout(False)
        taken.append(_around((x + dx, y + dy), (right - left, top - bottom)))
        if distance >= _LEADER_FROM_POINTS:
            line = {"arrowstyle": "-", "color": "0.5", "linewidth": 0.6, "shrinkA": 1, "shrinkB": _MARKER_POINTS / 2}
            axes.annotate("", (point.x, point.y), (dx, dy), textcoords="offset points", arrowprops=line, zorder=1)


def _error_bars(axes: Axes, point: ScatterPoint, scale: float) -> list[_Box]:
    """Where they are, as far as they can be seen."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    ends = []
    if point.x_ends is not None:
        ends.append(((max(left, point.x_ends[0]), point.y), (min(right, point.x_ends[1]), point.y)))
    if point.y_ends is not None:
        ends.append(((point.x, max(bottom, point.y_ends[0])), (point.x, min(top, point.y_ends[1]))))
    boxes = [axes.transData.transform(pair).ravel().tolist() for pair in ends]
    return [(box[0] - 1, box[1] - 1, box[2] + 1, box[3] + 1) for box in (_scaled(box, scale) for box in boxes)]


def _free_place(
    centre: tuple[float, float], size: tuple[float, float], frame: _Box, taken: Sequence[_Box]
) -> tuple[float, float, float]:
    """Offset of a name's middle from its point, and the distance of its edge."""
    places = []
    for distance in _DISTANCES_POINTS:
        for degrees in _DEGREES:
            across, up = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
            dx, dy = across * (distance + size[0] / 2), up * (distance + size[1] / 2)
            box = _around((centre[0] + dx, centre[1] + dy), size)
            outside = size[0] * size[1] - _common_area(box, frame)
            places.append((outside + sum(_common_area(box, other) for other in taken), dx, dy, distance))
    _, dx, dy, distance = min(places, key=lambda place: round(place[0], 3))  # the first one of equals
    return dx, dy, distance


def _around(centre: tuple[float, float], size: tuple[float, float]) -> _Box:
    (x, y), (width, height) = centre, size
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def _common_area(one: _Box, other: _Box) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(0.0, width) * max(0.0, height)


def _scaled(numbers: Sequence[float], scale: float) -> _Box:
    left, bottom, right, top = (number * scale for number in numbers)
    return left, bottom, right, top
