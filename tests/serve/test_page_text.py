"""What models write, in the chat page: as Markdown, letter by letter, and where it is hostile or endless."""

from __future__ import annotations

import pytest

from tests.serve.browser import Browser
from tests.serve.paging import BODY, PLAIN, TEXT, answered, needs_browser

SHOWN = (
    '<h4 dir="auto">Title</h4>'
    '<p dir="auto">A <strong>bold</strong>, <em>slanted</em> and <code>plain</code> word, 2 * 3 * 4, a_b_c and '
    '<a href="https://example.org/x_(y)" data-host="example.org">a page</a>, <a href="https://example.net/a">'
    'https://example.net/a</a>.\n<code>not a block</code></p><ul><li dir="auto"><p dir="auto">[ ] a list</p></li></ul>'
    '<ol start="1"><li dir="auto"><p dir="auto">one</p><ul><li dir="auto"><p dir="auto">inner</p></li></ul>'
    '<p dir="auto">more</p></li><li dir="auto"><p dir="auto">two</p><pre>if 1 &lt; 2: pass</pre></li></ol>'
    "<table><thead><tr><th>a</th><th>b</th></tr></thead><tbody><tr><td>1</td><td>2</td></tr></tbody></table>"
    '<blockquote><p dir="auto">said</p></blockquote><hr><pre>left open</pre>'
)
HOSTILE = """<script>window.hacked = 1</script><img src=x onerror="window.hacked = 1"><b>b</b>
[a](javascript:window.hacked=1) [b](data:text/html,x) [c](https://me@evil.example) ![d](https://evil.example/d.png)
[https://bank.example](https://evil.example) \x1b[31m \x9b \x00 \u202eterces\u202c
```"><script>window.hacked = 1</script>
</code></pre><script>window.hacked = 1</script>\u2066
```
| <img src=x onerror=window.hacked=1> |
|---|
"""
SLOW = {
    "a line": "x" * 1_000_000,
    "stars": ("*a **b " * 2_700 + "\n\n") * 55,
    "brackets": "[" * 500_000 + "](" * 250_000,
    "backticks": "".join("`" * (n % 200) + " " for n in range(10_000)),
    "tildes": "~" * 500_000 + "`",
    "blanks": "# " + " " * 500_000 + "#\n|" + " " * 500_000 + "|\n|-" + " " * 500_000,
    "quotes": ">" * 500_000 + "\n" + "- " * 250_000,
    "addresses": "https://a.b/" + "." * 500_000 + ")x\n\n" + "http://" * 140_000,
    "cells": "|" * 500_000 + "\n" + "|-" * 250_000,
}
TAGS = {"p", "a", "div", "span", "button", "pre", "code", "table", "thead", "tbody", "tr", "th", "td"}


@needs_browser
def test_markdown_is_shown_and_the_same_letter_by_letter_as_at_once(tab: Browser) -> None:
    answered(tab, TEXT)
    assert tab.run(f"{PLAIN}({BODY})") == SHOWN
    tab.run("""{
        const reply = turns[0].replies[0], text = reply.text;
        Object.assign(reply, { text: '', state: 'running' });
        draw(turns[0]);
        for (const letter of text) {
            reply.text += letter;
            paint(reply);
        }
        reply.state = 'done';
        paint(reply);
    }""")
    assert tab.run(f"{PLAIN}({BODY})") == SHOWN


@needs_browser
def test_hostile_replies_stay_text(tab: Browser) -> None:
    tab.events.clear()
    answered(tab, HOSTILE)
    with pytest.raises(AssertionError, match="TrustedHTML"):  # also where the page's own script had a fault
        tab.run("document.body.innerHTML = '<b>'")
    assert (
        tab.run("""new Promise((resolve) => {
            document.onsecuritypolicyviolation = (event) => resolve(event.effectiveDirective);
            fetch('http://127.0.0.2/').catch(() => {});
        })""")
        == "connect-src"
    )
    tab.events.clear()
    elements = tab.run(f"[...{BODY}.querySelectorAll('*')].map(one => one.localName)")
    assert set(elements) <= TAGS
    links = tab.run(f"[...{BODY}.querySelectorAll('a')].map(one => [one.href, one.dataset.host])")
    assert links == [["https://evil.example/d.png", "evil.example"], ["https://evil.example/", "evil.example"]]
    shown = tab.run(f"{BODY}.textContent")
    for text in (
        "<script>",
        "<b>b</b>",
        "(javascript:",
        "onerror=",
        "[U+001B][31m",
        "[U+009B]",
        "[U+0000]",
        "[U+202E]",
    ):
        assert text in shown
    assert tab.run("window.hacked === undefined && !/[\\u202e\\u2066\\x1b]/.test(document.body.textContent)")
    assert not [one for one in tab.events if one["method"] in ("Runtime.exceptionThrown", "Log.entryAdded")]


@needs_browser
@pytest.mark.parametrize("name", SLOW)
def test_long_replies_do_not_block_the_page(tab: Browser, name: str) -> None:
    answered(tab, SLOW[name])
    assert tab.run("turns[0].replies[0].state") == "done"
    assert tab.run("turns[0].replies[0].text.length") == len(SLOW[name])
