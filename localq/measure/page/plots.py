"""The two plots of a page: quality against bytes read per token, speed against memory."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from localq.measure.page.measurements import Measurements
from localq.measure.quality.results import EvalResult
from localq.measure.scatter import ScatterAxis, ScatterPoint, scatter_svg

_FEWEST_POINTS = 2
_ENGINES = {"mlx": "MLX", "gguf": "llama.cpp"}
_UNITS = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3))

_METADATA = re.compile(r"<metadata>.*?</metadata>", re.DOTALL)
_NAMESPACE = re.compile(r' xmlns(:\w+)?="[^"]*"')
_ID = re.compile(r'(\bid="|\bhref="#|url\(#)')


@dataclass(frozen=True, slots=True)
class Plot:
    """A picture and what it shows."""

    svg: str
    """An `<svg>` element for an HTML page, with a title for who can't see it."""
    caption: str


def draw_plots(measurements: Measurements) -> tuple[Plot, ...]:
    """Both, as far as there are two forms to be seen. Raises BackendUnavailableError without matplotlib."""
    return tuple(plot for plot in (_quality_plot(measurements), _speed_plot(measurements)) if plot is not None)


def _quality_plot(measurements: Measurements) -> Plot | None:
    report = measurements.evaluation
    if report is None:
        return None
    floor = report.noise_floor.form.name if report.noise_floor else ""
    # What is not quantized would leave the others no room on the axis.
    results = [
        row.quality for row in measurements.rows if isinstance(row.quality, EvalResult) and row.form.name != floor
    ]
    reads = [result.bytes_read_per_token for result in results]
    sizes = [result.form.artifact_bytes if None in reads else result.bytes_read_per_token or 0 for result in results]
    unit, divisor = _unit(sizes)
    points = []
    for result, size in zip(results, sizes, strict=True):
        mean, error = result.divergence.mean_kl_divergence, result.divergence.kl_divergence_standard_error
        ends = None if error is None else (mean - error, mean + error)
        series = _ENGINES.get(result.form.format, "")
        points.append(ScatterPoint(measurements.label(result.form), size / divisor, mean, series, y_ends=ends))
    what = "size on disk" if None in reads else "bytes read per token"
    axes = ScatterAxis(f"{what} ({unit})"), ScatterAxis("mean KL divergence (nats)", is_log=True)
    return _plot(
        points, axes, f"Quality against {what}", "Lower is nearer to the reference; bars are ± 1 standard error."
    )


def _speed_plot(measurements: Measurements) -> Plot | None:
    test = measurements.first_test("tg")
    measured = [(row, row.speed, rate) for row in measurements.rows if row.speed and (rate := row.in_test(test))]
    unit, divisor = _unit([speed.peak_memory_bytes for _, speed, _ in measured])
    points = [
        ScatterPoint(
            measurements.label(row.form),
            speed.peak_memory_bytes / divisor,
            rate.tokens_per_second.median,
            _ENGINES.get(row.form.format, ""),
            y_ends=rate.tokens_per_second.confidence_interval,
        )
        for row, speed, rate in measured
    ]
    axes = ScatterAxis(f"peak memory ({unit})"), ScatterAxis("generated tokens per second")
    return _plot(
        points, axes, "Generation speed against memory", "Higher is faster; bars are 95% intervals of the median."
    )


def _plot(
    points: Sequence[ScatterPoint], axes: tuple[ScatterAxis, ScatterAxis], title: str, caption: str
) -> Plot | None:
    if len(points) < _FEWEST_POINTS:
        return None
    svg = scatter_svg(points, *axes, title)
    return Plot(_for_html(svg, title.partition(" ")[0].lower()), caption)


def _unit(counts: Sequence[int]) -> tuple[str, float]:
    """That the largest of some byte counts is told in, and its size."""
    largest = max(counts, default=0)
    return next(((unit, size) for unit, size in _UNITS if largest >= size), ("B", 1.0))


def _for_html(svg: str, prefix: str) -> str:
    """An SVG as it stands inside a page: its ids are its own there, its namespaces are known, and it is an image."""
    svg = _NAMESPACE.sub("", _METADATA.sub("", svg)).replace("xlink:href=", "href=")
    return _ID.sub(rf"\g<1>{prefix}-", svg).replace("<svg", '<svg role="img"', 1)
