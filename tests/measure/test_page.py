"""The page: what stands on it, and that it is a whole HTML document that needs nothing else."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from localq.measure.page import Bar, Page, make_page, render_html
from localq.measure.tables import render
from tests.measure.report_examples import FAST, GB, MACHINE, SETTINGS, SLOW, bench_report, eval_report

EVIL = "<script>alert(1)</script>&\"'"
A, B = "toy:gguf-a", "toy:mlx-b"
SIZES = {A: 2 * GB, B: GB}


class Document(HTMLParser):
    """Follows an HTML document; keeps its elements, its text and what is wrong with it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.faults: list[str] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(text)
        self.close()
        self.faults += [f"<{tag}> is never closed" for tag in self.open]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.faults.append(f"</{tag}> at {self.getpos()}")

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts.setdefault(self.open[-1], []).append(data)

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def both() -> Page:
    return make_page(
        bench_report({A: FAST, B: SLOW}, SIZES), eval_report({A: 0.0123, B: 0.0345}, SIZES, floor=1e-6), ["localq x"]
    )


@pytest.fixture(scope="module")
def text() -> str:
    return render_html(both())


def bars(page: Page, panel: int) -> dict[str, Bar]:
    return {bar.name: bar for bar in page.panels[panel].bars}


def test_speed_size_and_distance_have_bars_from_zero_on() -> None:
    page = both()
    assert [panel.title for panel in page.panels] == [
        *("Generation", "Prompt processing", "Size", "Distance from the baseline")
    ]
    generation, _, size, distance = (bars(page, panel) for panel in range(4))
    assert (generation["gguf-a"].value, generation["gguf-a"].ends) == (12.5, (12.4, 12.6))
    assert {name: bar.value for name, bar in size.items()} == {"gguf-a": 2 * GB, "mlx-b": GB, "gguf-f32": 6 * GB}
    assert {name: bar.value for name, bar in distance.items()} == {"gguf-a": 0.0123, "mlx-b": 0.0345, "mlx-f32": 1e-6}
    assert [bar.role for bar in distance.values()] == ["", "", "noise floor"]


def drawn(text: str) -> list[float]:
    """Lengths of the bars of a page, in percent."""
    return [float(length) for length in re.findall(r'class="fill" style="width: ([\d.]+)%"', text)]


def test_bars_are_drawn_in_proportion_to_their_numbers_and_none_is_cut(text: str) -> None:
    lengths = drawn(text)
    assert lengths[:2] == pytest.approx([100 * 12.5 / 12.6, 100 * 10 / 12.6], abs=0.01)
    assert lengths[4:7] == pytest.approx([100 / 3, 100 / 6, 100], abs=0.01)
    assert lengths[7] / lengths[8] == pytest.approx(0.0123 / 0.0345, abs=0.001)
    ends = re.findall(r'class="ends" style="left: ([\d.]+)%; width: ([\d.]+)%"', text)
    assert len(ends) == 2 + 2 + 3
    assert all(float(left) + float(width) <= 100.01 for left, width in ends)


def test_a_small_difference_looks_small() -> None:
    one, other, *_ = drawn(
        render_html(make_page(bench_report({A: (100.0, 100.1, 100.2), B: (100.7, 100.8, 100.9)}), None))
    )
    assert one / other == pytest.approx(1.007, abs=1e-3)


def test_an_interval_never_reaches_below_zero() -> None:
    evaluation = eval_report({A: 0.01})
    wide = evaluation.results[0].model_copy(update={"kl_divergence_standard_error": 0.05})
    page = make_page(bench_report({A: FAST}), evaluation.model_copy(update={"results": (wide,)}))
    assert bars(page, 3)["gguf-a"].ends == (0, pytest.approx(0.06))


def test_beaten_formats_are_marked_and_come_last() -> None:
    page = make_page(bench_report({A: SLOW, B: FAST}), eval_report({A: 0.04, B: 0.01}))
    assert [(bar.name, bar.role) for bar in page.panels[0].bars] == [("mlx-b", ""), ("gguf-a", "beaten")]


def test_what_was_not_measured_has_no_bar() -> None:
    page = make_page(bench_report({A: FAST, B: SLOW}), eval_report({A: 0.01}))
    assert bars(page, 3)["mlx-b"].value is None
    assert "not measured" in render_html(page)


def test_every_test_has_a_panel() -> None:
    page = make_page(bench_report({A: FAST}, settings=SETTINGS.model_copy(update={"depth_tokens": (0, 8)})), None)
    assert [panel.note.partition(";")[0] for panel in page.panels[:-1]] == [
        f"tokens/s in {test}" for test in ("tg16", "tg16 @ d8", "pp64", "pp64 @ d8")
    ]


def test_the_verdict_is_first_in_every_form_of_the_page(text: str) -> None:
    page = both()
    headline = page.verdict.headline
    for shown in (text.partition("<main>")[2], render(page.document, "md"), render(page.document, "text", 80)):
        words = re.sub(r"\s+", " ", shown)
        assert headline[:40] in words
        assert words.index(headline[:40]) < words.index("10.00")
    document = render(page.document, "text")
    assert "gguf-a: the fastest in generation, the fastest in prompt processing, the nearest to gguf-f32;" in document


def test_all_that_was_measured_is_there_and_definitions_are_folded_away(text: str) -> None:
    measured = ("Test CPU, 4 cores", "3 repetitions by turns", "text.txt (sha256", "compared with gguf-f32")
    assert all(words in text for words in (*measured, "localq x"))
    folded = text.partition("<details>")[2].partition("</details>")[0]
    assert "import the library" in folded and "Kullback-Leibler" in folded


def test_other_machines_and_versions_are_warned_of() -> None:
    other = MACHINE.model_copy(update={"cpu": "Other CPU", "versions": {**MACHINE.versions, "mlx": "0.2"}})
    page = make_page(bench_report({A: FAST}), eval_report({A: 0.1}, machine=other, warnings=("one",)))
    assert page.document.warnings == (
        "one",
        "speed was measured on another machine (Test CPU) than quality (Other CPU)",
        "speed and quality were measured with different versions: mlx 0.1 and 0.2",
    )
    assert "<b>Warning:</b> speed was measured on another machine" in render_html(page)


def test_the_page_is_well_formed_and_the_same_each_time(text: str) -> None:
    assert text.startswith("<!DOCTYPE html>\n")
    assert Document(text).faults == []
    assert Document(render_html(make_page(bench_report({A: FAST}), None))).faults == []
    assert render_html(both()) == text


def test_the_page_needs_nothing_from_elsewhere(text: str) -> None:
    document = Document(text)
    assert not re.search(r"https?:|@import|@font-face|url\(", text)
    assert document.of("script") == document.of("img") == document.of("link") == document.of("iframe") == []
    assert all(not {"src", "href"} & set(attributes) for _, attributes in document.elements)


def test_the_page_follows_the_theme_and_the_width_of_the_reader(text: str) -> None:
    assert "prefers-color-scheme: dark" in text and "color-scheme: light dark" in text
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in Document(text).of("meta")


def test_the_page_says_all_to_readers_who_do_not_see_it(text: str) -> None:
    document = Document(text)
    assert document.of("html") == [{"lang": "en"}]
    assert document.texts["title"][0] == "toy: speed and quality by format"
    assert len(document.of("table")) == 3
    assert all(attributes.get("scope") in ("col", "row") for attributes in document.of("th"))
    tracks = [attributes for attributes in document.of("div") if attributes.get("class") == "track"]
    assert len(tracks) == 2 + 2 + 3 + 3  # a picture of the number that stands beside it
    assert all(attributes["aria-hidden"] == "true" for attributes in tracks)


def test_names_that_look_like_html_are_shown_as_they_are() -> None:
    rates = {f"{EVIL}:gguf-a": FAST, f"{EVIL}:mlx-b": SLOW, "other:gguf-c": SLOW}
    text = render_html(make_page(bench_report(rates), None, [f"localq bench '{EVIL}'"]))
    document = Document(text)
    assert document.faults == []
    assert document.of("script") == []
    assert document.texts["title"][0].startswith(EVIL)
    assert any(EVIL in data for data in document.texts["code"])
    assert f"{EVIL}:gguf-a" in document.texts["th"]
    assert "alert(1)</script>" not in text
