"""The chat page: what the server sends, and what a real browser does with it, also where a model is hostile."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from localq.options import LoadOptions
from localq.serve.door import Access
from localq.serve.page import make_page
from tests.serve.browser import CHROMIUM, Browser
from tests.serve.conftest import GGUF, MLX, Server, running

PAGE = bytes(make_page().body).decode()
TEXT = """# Title

A **bold**, *slanted* and `plain` word, 2 * 3 * 4, a_b_c and [a page](https://example.org/x_(y)), https://example.net/a.

1. one
   - inner

   more
2. two
   ```py
   if 1 < 2: pass
   ```

| a | b |
|---|--:|
| 1 | 2 |

> said

---
```
left open"""
SHOWN = (
    '<h4 dir="auto">Title</h4>'
    '<p dir="auto">A <strong>bold</strong>, <em>slanted</em> and <code>plain</code> word, 2 * 3 * 4, a_b_c and '
    '<a href="https://example.org/x_(y)" data-host="example.org">a page</a>, <a href="https://example.net/a">'
    "https://example.net/a</a>.</p>"
    '<ol start="1"><li dir="auto"><div class="line">one</div><ul><li dir="auto"><div class="line">inner</div></li></ul>'
    '<div class="line">more</div></li><li dir="auto"><div class="line">two</div><pre>if 1 &lt; 2: pass</pre></li></ol>'
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
    "stars": "*a **b " * 140_000,
    "brackets": "[" * 500_000 + "](" * 250_000,
    "backticks": "".join("`" * (n % 200) + " " for n in range(10_000)),
    "tildes": "~" * 500_000 + "`",
    "blanks": "# " + " " * 500_000 + "#\n|" + " " * 500_000 + "|\n|-" + " " * 500_000,
    "quotes": ">" * 500_000 + "\n" + "- " * 250_000,
    "addresses": "https://a.b/" + "." * 19_000 + ")x\n\n" + "http://" * 140_000,
    "cells": "|" * 500_000 + "\n" + "|-" * 250_000,
}
# Without what is the same everywhere: buttons, and the frames of code and tables.
PLAIN = """(body => {
    const copy = body.cloneNode(true);
    copy.querySelectorAll('.code').forEach(one => one.replaceWith(make('pre', {}, one.querySelector('code').textContent)));
    copy.querySelectorAll('.table').forEach(one => one.replaceWith(one.firstChild));
    copy.querySelectorAll('th,td').forEach(one => ['dir', 'style'].forEach(name => one.removeAttribute(name)));
    copy.querySelectorAll('a').forEach(one => ['target', 'rel'].forEach(name => one.removeAttribute(name)));
    return copy.innerHTML;
})"""
BODY = "turns.at(-1).replies[0].view.body"

needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")


def test_the_page_loads_nothing_and_names_its_script_and_style(server: Server) -> None:
    headers = make_page().headers
    policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'" and policy["connect-src"] == "'self'"
    for tag, name in (("script", "script-src"), ("style", "style-src")):
        (found,) = re.findall(f"<{tag}>(.*?)</{tag}>", PAGE, re.DOTALL)
        assert policy[name] == f"'sha256-{base64.b64encode(hashlib.sha256(found.encode()).digest()).decode()}'"
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|new Function|@import|url\(", PAGE)
    assert not re.search(r'\b(src|style|on[a-z]+)="|<script .', PAGE)
    assert server.ask("/") == (200, PAGE)


@pytest.fixture(scope="module")
def tab(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("chromium")) as opened:
        opened.open(f"{server.url}/")
        opened.wait("forms.size === 2")
        yield opened


@pytest.fixture(autouse=True)
def _new_chat(request: pytest.FixtureRequest) -> None:
    if "tab" in request.fixturenames:
        tab = request.getfixturevalue("tab")
        tab.run("""window.confirm = () => true; $('new').click(); $('both').checked && $('both').click();
            $('max_tokens').value = ''; $('temperature').value = '0'; 0""")
        tab.wait("!running")


def send(tab: Browser, question: str) -> None:
    tab.run("$('question').focus()")
    tab.type(question)
    tab.press("Enter")


def answered(tab: Browser, text: str) -> None:
    """Send a question that gets this reply, in many pieces."""
    tab.run(f"""(() => {{
        const text = {json.dumps(text)}, real = window.fetch, size = Math.max(3, text.length / 50);
        window.fetch = async () => {{
            window.fetch = real;
            const event = (choice) => `data: ${{JSON.stringify({{ choices: [{{ delta: {{}}, ...choice }}] }})}}\\n\\n`;
            let at = 0;
            const body = new ReadableStream({{ async pull(out) {{
                await new Promise((resolve) => setTimeout(resolve, 5));
                const piece = text.slice(at, at += size);
                out.enqueue(new TextEncoder().encode(piece ? event({{ delta: {{ content: piece }} }})
                    : event({{ finish_reason: "stop" }}) + "data: [DONE]\\n\\n"));
                if (!piece) out.close();
            }} }});
            return new Response(body);
        }};
    }})()""")
    send(tab, "scripted")
    tab.wait("turns.length && !running")


@needs_browser
def test_a_question_is_answered_and_counted(tab: Browser, server: Server) -> None:
    send(tab, "What is the capital of France?")
    tab.wait("turns.length && !running")
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    _, known = server.ask("/v1/chat/completions", {"model": GGUF, "messages": messages, "temperature": 0})
    text = known["choices"][0]["message"]["content"]
    assert tab.run("turns[0].replies[0].raw") == text
    assert f"{known['usage']['completion_tokens']} tokens · " in tab.run("turns[0].view.node.innerText")
    assert text in tab.run("$('said').textContent")
    assert tab.run("document.activeElement.id") == "question"
    send(tab, "And of Italy?")
    tab.wait("turns.length === 2 && !running")
    asked = tab.run("messages(turns[1], 0)")
    assert [one["content"] for one in asked] == [messages[0]["content"], text, "And of Italy?"]
    assert "text/markdown" in tab.run("""(() => { let kind; const real = URL.createObjectURL;
        URL.createObjectURL = (blob) => { kind = blob.type; return real(blob); };
        $('export').click(); URL.createObjectURL = real; return kind; })()""")
    tab.run("location.reload()")
    tab.wait("document.readyState === 'complete' && forms.size === 2 && turns.length === 2")
    assert text in tab.run("turns[0].view.node.innerText")


@needs_browser
def test_both_formats_answer_side_by_side_and_one_is_kept(tab: Browser) -> None:
    tab.run("$('both').click()")
    send(tab, "Who are you?")
    tab.wait("turns.length && !running")
    assert tab.run("turns[0].replies.map(one => one.model + one.state)") == [f"{GGUF}done", f"{MLX}done"]
    places = tab.run("[...document.querySelectorAll('.reply')].map(one => one.getBoundingClientRect().left)")
    assert places[0] < places[1]
    tab.resize(390)
    places = tab.run("[...document.querySelectorAll('.reply')].map(one => one.getBoundingClientRect().left)")
    assert places[0] == places[1] and tab.run("document.documentElement.scrollWidth") == 390
    tab.resize(1280)
    tab.run("turns[0].replies[1].view.keep.click()")
    assert tab.run("turns[0].replies.map(one => one.model)") == [MLX]


@needs_browser
def test_keys_send_break_lines_and_stop_and_the_last_question_can_be_changed(tab: Browser, server: Server) -> None:
    tab.run("window.slow = setInterval(() => {}, 1e6); $('temperature').value = '2'")
    tab.run("""{ const real = window.fetch; window.fetch = (path, options) => { window.fetch = real;
        options.body = JSON.stringify({...JSON.parse(options.body), logit_bias: {2: -100, 0: -100, 1: -100}});
        return real(path, options); }; }""")
    tab.run("$('question').focus()")
    tab.type("One")
    tab.press("Enter", shift=True)
    tab.type("two")
    assert tab.run("turns.length") == 0
    tab.press("Enter")
    tab.wait("turns.length && (turns[0].replies[0].raw || !running)")
    tab.press("Escape")
    tab.wait("!running")
    assert tab.run("turns[0].question") == "One\ntwo"
    server.wait_until_idle()
    tab.run("[...document.querySelectorAll('button')].find(one => one.textContent === 'Change the question').click()")
    assert tab.run("[document.activeElement.value, $('editing').hidden]") == ["One\ntwo", False]
    tab.type(" three")
    tab.run("$('temperature').value = '3'")
    tab.press("Enter")
    assert tab.run("[turns.length, turns[0].question, $('settings').open]") == [1, "One\ntwo", True]
    tab.run("$('temperature').value = '0'; $('settings').open = false; $('question').focus()")
    tab.press("Enter")
    tab.wait("!running && turns[0].replies[0].state === 'done'")
    assert tab.run("[turns.length, turns[0].question]") == [1, "One\ntwo three"]
    tab.run("[...document.querySelectorAll('button')].find(one => one.textContent === 'Retry').click()")
    tab.wait("!running && turns[0].replies[0].state === 'done'")
    assert tab.run("turns.length") == 1


@needs_browser
def test_markdown_is_the_same_in_pieces_and_at_once(tab: Browser) -> None:
    answered(tab, TEXT)
    assert tab.run(f"{PLAIN}({BODY})") == SHOWN
    tab.run("$('chat').append(make('i', { id: 'whole' }, ...blocks(turns[0].replies[0].text.split('\\n')).map(one => one.node)))")
    assert tab.run(f"{PLAIN}($('whole'))") == SHOWN
    tab.run("$('whole').remove()")


@needs_browser
def test_hostile_replies_stay_text(tab: Browser) -> None:
    tab.events.clear()
    answered(tab, HOSTILE)
    elements = tab.run(f"[...{BODY}.querySelectorAll('*')].map(one => one.localName)")
    assert set(elements) <= set("p a div span button pre code table thead tbody tr th td".split())
    links = tab.run(f"[...{BODY}.querySelectorAll('a')].map(one => [one.href, one.dataset.host])")
    assert links == [["https://evil.example/d.png", "evil.example"], ["https://evil.example/", "evil.example"]]
    shown = tab.run(f"{BODY}.textContent")
    for text in ("<script>", "<b>b</b>", "(javascript:", "onerror=", "[U+001B][31m", "[U+009B]", "[U+0000]", "[U+202E]"):
        assert text in shown
    assert tab.run("window.hacked === undefined && !/[\\u202e\\u2066\\x1b]/.test(document.body.textContent)")
    tab.call("Runtime.evaluate", expression="0")
    assert not [one for one in tab.events if one["method"] in ("Runtime.exceptionThrown", "Log.entryAdded")]


@needs_browser
@pytest.mark.parametrize("name", SLOW)
def test_long_replies_do_not_block_the_page(tab: Browser, name: str) -> None:
    answered(tab, SLOW[name])
    assert tab.run("turns[0].replies[0].state") == "done"
    assert tab.run("turns[0].replies[0].text.length") == len(SLOW[name])


@needs_browser
def test_errors_are_said_in_words(tab: Browser) -> None:
    tab.run("$('system').value = 'x '.repeat(20000)")
    send(tab, "Hello")
    tab.wait("turns.length && !running")
    tab.run("$('system').value = ''")
    assert "context" in tab.run("document.querySelector('.error').textContent")
    for script, words in (
        ("Promise.reject(new TypeError('Failed to fetch'))", "does not answer"),
        ("Promise.resolve(new Response('data: {\"choices\":[]}\\n\\n'))", "broke before the end"),
        ("Promise.resolve(new Response('{}', {status: 418}))", "status 418"),
        ("Promise.resolve(new Response('data: {\"error\":{\"message\":\"the server failed\"}}\\n\\n'))", "The server failed."),
    ):
        tab.run(f"{{ const real = window.fetch; window.fetch = () => {{ window.fetch = real; return {script}; }}; }}")
        tab.run("[...document.querySelectorAll('button')].find(one => one.textContent === 'Retry').click()")
        tab.wait("!running")
        assert words in tab.run("document.querySelector('.error').textContent")
    assert tab.run("messages({ question: 'Hello' }, 0).length") == 1  # what failed is not sent again


@needs_browser
def test_a_server_with_a_key_asks_for_it(models_dir: Path, tmp_path: Path) -> None:
    access = Access("127.0.0.1", key="secret")
    with running(models_dir, GGUF, access=access, options=LoadOptions(sequences=1)) as server, Browser(tmp_path) as tab:
        tab.open(f"{server.url}/")
        for key in ("wrong", "secret"):
            tab.wait("document.activeElement.id === 'key'")
            tab.type(key)
            tab.press("Enter")
        tab.wait("forms.size && $('key-form').hidden")
        send(tab, "Hello")
        tab.wait("turns.length && !running")
        assert tab.run("[turns[0].replies[0].state, localStorage.length]") == ["done", 0]
        assert "secret" not in tab.run("document.documentElement.outerHTML")
        sent: list[Any] = [one["params"]["request"]["url"] for one in tab.events if one["method"] == "Network.requestWillBeSent"]
        assert all(url.startswith((server.url, "data:", "about:")) for url in sent)
