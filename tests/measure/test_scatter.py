from __future__ import annotations

import itertools
import random
from xml.etree import ElementTree

import pytest

from localq.measure import scatter
from localq.measure.plot_style import plot_style
from localq.measure.scatter import ScatterAxis, ScatterPoint, scatter_svg

_BYTES, _DIVERGENCE = ScatterAxis("bytes per token (GB)"), ScatterAxis("mean KL divergence (nats)", is_log=True)
_POINTS = [
    ScatterPoint("mlx-4bit", 0.70, 0.041, "MLX", y_ends=(0.039, 0.043)),
    ScatterPoint("gguf-q4_k_m", 0.81, 0.031, "GGUF", x_ends=(0.8, 0.82), y_ends=(-0.001, 0.033)),
    ScatterPoint("gguf-q8_0", 1.32, 0.00136, "GGUF"),
]


def test_the_svg_is_well_formed_and_the_same_every_time() -> None:
    text = scatter_svg(_POINTS, _BYTES, _DIVERGENCE, "toy & friends")
    root = ElementTree.fromstring(text)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert root[0].tag.endswith("title") and root[0].text == "toy & friends"
    assert text == scatter_svg(_POINTS, _BYTES, _DIVERGENCE, "toy & friends")


def _drawn(
    points: list[ScatterPoint], y_axis: ScatterAxis = _DIVERGENCE
) -> tuple[list[str], list[tuple[float, ...]], tuple[float, ...]]:
    """The words of a picture, the places of the points' names, and the frame."""
    from matplotlib.text import Annotation, Text

    with plot_style():
        figure = scatter._figure(points, _BYTES, y_axis, "")
        figure.draw_without_rendering()
        words = [item.get_text() for item in figure.findobj(Text) if isinstance(item, Text)]
        names = [item for item in figure.findobj(Annotation) if isinstance(item, Annotation) and item.get_text()]
        boxes = [tuple(Text.get_window_extent(name).extents) for name in names]
        return words, boxes, tuple(figure.axes[0].bbox.extents)


def test_axes_and_series_are_named_and_numbers_are_plain() -> None:
    words, _, _ = _drawn(_POINTS)
    assert {"bytes per token (GB)", "mean KL divergence (nats)", "MLX", "GGUF", "0.01", "gguf-q8_0"} <= set(words)


@pytest.mark.parametrize("seed", range(4))
def test_names_of_ten_points_neither_overlap_nor_leave_the_frame(seed: int) -> None:
    draw = random.Random(seed)
    points = [ScatterPoint(f"gguf-q{n}_k_m", 1 + draw.random() * 0.3, 10 ** draw.uniform(-3, -2)) for n in range(10)]
    _, boxes, frame = _drawn(points)
    assert len(boxes) == 10
    for one, other in itertools.combinations(boxes, 2):
        assert one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
    for left, bottom, right, top in boxes:
        assert frame[0] <= left and frame[1] <= bottom and right <= frame[2] and top <= frame[3]


def test_points_in_one_place_have_names_beside_each_other() -> None:
    _, boxes, _ = _drawn([ScatterPoint(name, 1.0, 0.1) for name in ("first", "second", "third")])
    assert len({box[:2] for box in boxes}) == 3


def test_what_a_logarithmic_axis_has_no_place_for_is_told() -> None:
    points = [*_POINTS, ScatterPoint("mlx-bf16", 2.2, 0.0), ScatterPoint("odd", 1.0, float("nan"))]
    words, boxes, _ = _drawn(points)
    assert len(boxes) == len(_POINTS)
    assert "no place on a logarithmic axis: mlx-bf16 (x 2.2, y 0), odd (x 1, y nan)" in words
    words, boxes, _ = _drawn(points[:4], ScatterAxis("divergence"))
    assert len(boxes) == 4 and not any("no place" in word for word in words)


def test_no_points_give_an_empty_picture() -> None:
    assert ElementTree.fromstring(scatter_svg([], _BYTES, _DIVERGENCE)) is not None
