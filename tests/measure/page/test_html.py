"""The page in HTML: well-formed, self-contained, escaped."""

from __future__ import annotations

import re
from collections import Counter
from html.parser import HTMLParser

import pytest

from localq.measure.page.content import page_of
from localq.measure.page.html import render_html
from localq.measure.page.measurements import Measurements, join
from localq.measure.page.plots import Plot, draw_plots
from tests.measure.page.pages import FAST, SLOW, measurements, qualities, speeds

EVIL = "<script>alert(1)</script>&\"'"
VOID = {"meta", "link", "br", "img"}
SHAPES = {"path", "use", "rect", "line", "g"}
"""Parts of SVG that may end in themselves."""


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
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in SHAPES:
            self.faults.append(f"<{tag}/> does not end in HTML")

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.faults.append(f"</{tag}> at {self.getpos()}")

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts.setdefault(self.open[-1], []).append(data)

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def html_of(found: Measurements, *commands: str) -> str:
    return render_html(page_of(found, commands), draw_plots(found))


@pytest.fixture(scope="module")
def text() -> str:
    bench = speeds({"toy:gguf-a": FAST, "toy:mlx-b": SLOW})
    return html_of(join(bench, qualities({"toy:gguf-a": 0.01, "toy:mlx-b": 0.04}, floor=1e-6)), "localq report toy")


@pytest.fixture(scope="module")
def document(text: str) -> Document:
    return Document(text)


def test_the_page_is_well_formed(text: str, document: Document) -> None:
    assert text.startswith("<!DOCTYPE html>\n")
    assert document.faults == []
    ids = Counter(attributes["id"] for _, attributes in document.elements if "id" in attributes)
    assert ids and max(ids.values()) == 1


def test_every_reference_inside_the_page_has_its_target(text: str, document: Document) -> None:
    ids = {attributes["id"] for _, attributes in document.elements if "id" in attributes}
    named = re.findall(r'(?:href="|url\()#([^")]+)', text)
    assert named and set(named) <= ids


def test_the_page_needs_nothing_from_elsewhere(text: str, document: Document) -> None:
    assert "http:" not in text and "https:" not in text and "@import" not in text and "@font-face" not in text
    assert not re.search(r"url\((?!#)", text)
    assert document.of("script") == document.of("img") == document.of("link") == document.of("iframe") == []
    assert all("src" not in attributes for _, attributes in document.elements)
    assert all(attributes.get("href", "#x").startswith("#") for _, attributes in document.elements)  # type: ignore[union-attr]


def test_the_page_says_what_it_is_to_readers_who_do_not_see_it(document: Document) -> None:
    assert document.of("html") == [{"lang": "en"}]
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in document.of("meta")
    assert document.texts["title"][0] == "toy: speed and quality by form"
    tables = document.of("table")
    assert len(document.of("caption")) == len(tables) == 3
    assert all(attributes.get("scope") in ("col", "row") for attributes in document.of("th"))
    assert [attributes["role"] for attributes in document.of("svg")] == ["img", "img"]
    assert {"Quality against bytes read per token", "Generation speed against memory"} <= set(document.texts["title"])


def test_names_that_look_like_html_are_shown_as_they_are() -> None:
    names = (f"{EVIL}:gguf-a", f"{EVIL}:mlx-b", "other:gguf-c")
    found = measurements(dict(zip(names, (FAST, SLOW, SLOW), strict=True)), None)
    text = html_of(found, f"localq bench '{EVIL}'")
    document = Document(text)
    assert document.faults == []
    assert document.of("script") == []
    assert document.texts["title"][0].startswith(EVIL)
    assert any(EVIL in data for data in document.texts["code"])
    assert f"{EVIL}:gguf-a" in document.texts["th"]
    assert "alert(1)</script>" not in text


def test_plots_with_fewer_than_two_forms_are_left_out() -> None:
    assert draw_plots(measurements({"toy:gguf-a": FAST}, {"toy:gguf-a": 0.1})) == ()
    (speed,) = draw_plots(measurements({"toy:gguf-a": FAST, "toy:gguf-b": SLOW}, {"toy:gguf-a": 0.1}))
    assert "Generation speed against memory" in speed.svg


def test_what_is_not_quantized_is_not_in_the_plot_of_quality() -> None:
    rates = {"toy:gguf-a": FAST, "toy:mlx-b": SLOW, "toy:mlx-f32": SLOW}
    divergences = {"toy:gguf-a": 0.1, "toy:mlx-b": 0.2, "toy:mlx-f32": 1e-9}
    quality, speed = draw_plots(join(speeds(rates), qualities(divergences, floor=1e-9)))
    assert "mlx-f32" not in quality.svg and "mlx-f32" in speed.svg  # names stand in comments of the SVG


def test_the_same_measurements_give_the_same_page(text: str) -> None:
    bench = speeds({"toy:gguf-a": FAST, "toy:mlx-b": SLOW})
    evaluation = qualities({"toy:gguf-a": 0.01, "toy:mlx-b": 0.04}, floor=1e-6)
    assert html_of(join(bench, evaluation), "localq report toy") == text


def test_a_page_without_plots_and_evaluation_is_well_formed() -> None:
    page = page_of(measurements({"toy:gguf-a": FAST}, None), [])
    assert Document(render_html(page, ())).faults == []
    drawn = Document(render_html(page, [Plot("<svg></svg>", "a < b")]))
    assert drawn.faults == [] and "a < b" in drawn.texts["figcaption"]
