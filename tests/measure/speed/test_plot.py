from __future__ import annotations

import struct
import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.patches import Patch, Rectangle

from localq.errors import BackendUnavailableError, LocalqError, OptionError
from localq.measure.plot_style import FACES, plot_style
from localq.measure.speed import plot
from localq.measure.speed.plot import check_plot, save_plot
from localq.measure.speed.results import BenchReport
from tests.measure.speed.bench_reports import MACHINE, SETTINGS, form_result, report

_REPORT = report([form_result("toy:mlx-4bit", [9.0, 10.0, 12.0]), form_result("toy:gguf-q4_k_m", [13.0, 14.0, 15.0])])


def _texts(whole: BenchReport) -> list[str]:
    """All that is written in a picture."""
    from matplotlib.text import Text

    with plot_style():
        figure = plot._figure(whole)
        figure.draw_without_rendering()
        found = figure.findobj(Text)
    return [artist.get_text() for artist in found if isinstance(artist, Text) and artist.get_text()]


def _right_end(bar: Patch) -> float:
    assert isinstance(bar, Rectangle)
    return bar.get_width()


def test_a_png_is_a_picture_and_an_svg_is_well_formed(tmp_path: Path) -> None:
    save_plot(_REPORT, tmp_path / "bench.PNG")
    data = (tmp_path / "bench.PNG").read_bytes()
    assert data.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", data[16:24])
    assert width == 1200 and 300 < height < 900
    save_plot(_REPORT, tmp_path / "bench.svg")
    assert ElementTree.parse(tmp_path / "bench.svg").getroot().tag.endswith("svg")


def test_the_same_report_gives_the_same_svg(tmp_path: Path) -> None:
    for name in ("one.svg", "two.svg"):
        save_plot(_REPORT, tmp_path / name)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()


def _lines(axes: Axes) -> set[tuple[float, float]]:
    """Where whiskers and ticks begin and end."""
    drawn = [lines for lines in axes.collections if isinstance(lines, LineCollection)]
    return {(segment[0][0], segment[1][0]) for lines in drawn for segment in lines.get_segments()}


def test_every_test_has_a_scale_with_a_bar_a_whisker_and_a_limit_for_each_form() -> None:
    with plot_style():
        prompt, generation = plot._figure(_REPORT).axes
    assert [_right_end(bar) for bar in prompt.patches] == [100.0, 140.0]
    assert _lines(prompt) == {(90.0, 120.0), (130.0, 150.0)}
    assert [_right_end(bar) for bar in generation.patches] == [10.0, 14.0]
    assert _lines(generation) == {(9.0, 12.0), (13.0, 15.0)}  # the limit of 50 is too far away
    near = report([form_result("toy:gguf-q8_0", [9.0, 10.0, 12.0], limit_rate=20.0)])
    with plot_style():
        assert _lines(plot._figure(near).axes[1]) == {(9.0, 12.0), (20.0, 20.0)}


def test_a_limit_far_away_is_told_and_not_drawn() -> None:
    def farthest(limit_rate: float) -> float:
        with plot_style():
            return float(
                plot._figure(report([form_result("toy:gguf-q8_0", [10.0], limit_rate=limit_rate)]))
                .axes[1]
                .get_xlim()[1]
            )

    assert 24 < farthest(24.0) < 30
    assert farthest(26.0) < 12
    assert "10.00\n38% of limit 26.0" in _texts(report([form_result("toy:gguf-q8_0", [10.0], limit_rate=26.0)]))


def test_a_form_has_the_same_colour_and_hatch_in_every_test() -> None:
    with plot_style():
        for axes in plot._figure(_REPORT).axes:
            assert [(bar.get_facecolor(), bar.get_hatch()) for bar in axes.patches] == [
                (bar.get_facecolor(), bar.get_hatch()) for bar in plot._figure(_REPORT).axes[0].patches
            ]
    assert len({colour for colour, _ in FACES}) == len({hatch for _, hatch in FACES}) == len(FACES)


def test_the_picture_says_what_it_shows() -> None:
    texts = "\n".join(_texts(_REPORT))
    for words in ("toy\nTest CPU, 4 cores, 17.18 GB", "mlx-4bit", "tg16: generation of 16 tokens", "localq 9.9", "95%"):
        assert words in texts
    assert "toy:mlx-4bit" not in texts  # the title has the model
    models = report([form_result("toy:mlx-4bit", [9.0]), form_result("some-org/a-long-name:mlx-4bit", [9.0])])
    assert {"toy:mlx-4bit", "some-org/a-long-name\n:mlx-4bit"} <= set(_texts(models))


def test_names_are_no_formulas(tmp_path: Path) -> None:
    strange = report([form_result("a$b_1^$x:gguf-q8_0", [9.0])], machine=replace(MACHINE, cpu=r"$\frac"))
    save_plot(strange, tmp_path / "bench.svg")
    assert any("a$b_1^$x" in text for text in _texts(strange))


def test_a_test_with_one_form_and_one_sample_can_be_drawn(tmp_path: Path) -> None:
    settings = replace(SETTINGS, prompt_tokens=(), repetitions=1)
    save_plot(report([form_result("toy:gguf-q8_0", [9.0], settings, None)], settings), tmp_path / "bench.svg")


@pytest.mark.parametrize("name", ["bench.jpg", "bench", "svg", "bench.svgz"])
def test_other_kinds_of_pictures_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"expected a name that ends in \.png or \.svg"):
        check_plot(tmp_path / name)


def test_without_matplotlib_the_command_that_installs_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(BackendUnavailableError, match="matplotlib") as caught:
        check_plot(tmp_path / "bench.svg")
    assert "pip install 'localq[plot]'" in caught.value.hint


@pytest.mark.parametrize("name", ["bench.png", "bench.svg"])
def test_a_disk_that_is_full_is_told(name: str, tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    (tmp_path / name).symlink_to("/dev/full")
    with pytest.raises(LocalqError, match=rf"can't write .*{name}: No space left on device"):
        save_plot(_REPORT, tmp_path / name)
