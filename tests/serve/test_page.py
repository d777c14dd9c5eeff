"""The chat page: what the server sends, and what a real browser does with it, also where a model is hostile."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path
from typing import Any

from localq.options import LoadOptions
from localq.serve.door import Access
from localq.serve.page import make_page
from tests.serve.browser import Browser
from tests.serve.conftest import GGUF, MLX, Server, running
from tests.serve.paging import BODY, PLAIN, TEXT, answered, click, needs_browser, send

PAGE = bytes(make_page().body).decode()

CONTRASTS = [
    *[(front, back, 4.5) for front in ("text", "quiet", "accent", "error") for back in ("page", "panel")],
    ("on-accent", "accent", 4.5),
    ("edge", "panel", 3),
    ("edge", "page", 3),
]
COLOR = """(() => {
    const probe = $('chat').appendChild(make('i'));
    probe.style.color = 'var(--%s)';
    const found = getComputedStyle(probe).color.match(/\\d+/g).map(Number);
    probe.remove();
    return found;
})()"""


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


def luminance(color: list[int]) -> float:
    """Of red, green and blue, as WCAG 2 defines it."""
    parts = [value / 255 / 12.92 if value <= 10 else ((value / 255 + 0.055) / 1.055) ** 2.4 for value in color]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]


@needs_browser
def test_a_question_is_answered_and_counted(tab: Browser, server: Server) -> None:
    send(tab, "What is the capital of France?")
    tab.wait("turns.length && !running")
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    _, known = server.ask("/v1/chat/completions", {"model": GGUF, "messages": messages, "temperature": 0})
    text = known["choices"][0]["message"]["content"]
    assert tab.run("turns[0].replies[0].raw") == text
    count = known["usage"]["completion_tokens"]
    assert re.search(
        rf"\b{count} tokens · [\d.]+ tokens/s · first token after", tab.run("turns[0].view.node.innerText")
    )
    assert text in tab.run("$('said').textContent")
    assert tab.run("document.activeElement.id") == "question"
    send(tab, "And of Italy?")
    tab.wait("turns.length === 2 && !running")
    asked = tab.run("messages(turns[1], 0)")
    assert [one["content"] for one in asked] == [messages[0]["content"], text, "And of Italy?"]
    assert "text/markdown" in tab.run("""(() => { let kind; const real = URL.createObjectURL;
        URL.createObjectURL = (blob) => { kind = blob.type; return real(blob); };
        $('export').click(); URL.createObjectURL = real; return kind; })()""")
    tab.open(f"{server.url}/?again")
    tab.wait("forms.size > 1 && turns.length === 2")
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
    # A reply without an end: the end tokens can't be drawn.
    tab.run("""{ const real = window.fetch; window.fetch = (path, options) => {
        window.fetch = real;
        const body = { ...JSON.parse(options.body), logit_bias: { 508: -100, 511: -100 } };
        return real(path, { ...options, body: JSON.stringify(body) });
    }; }""")
    tab.run("$('question').focus()")
    tab.type("One")
    tab.press("Enter", shift=True)
    tab.type("two")
    assert tab.run("turns.length") == 0
    tab.press("Enter")
    tab.wait("turns.length && (turns[0].replies[0].raw || !running)")
    tab.press("Escape")
    tab.wait("!running")
    assert tab.run("[turns[0].question, turns[0].replies[0].state]") == ["One\ntwo", "stopped"]
    server.wait_until_idle()
    tab.run("turns[0].view.change.click()")
    assert tab.run("[document.activeElement.value, $('editing').hidden]") == ["One\ntwo", False]
    tab.type(" three")
    tab.run("$('temperature').value = '3'")
    tab.press("Enter")
    assert tab.run("[turns.length, turns[0].question, $('settings').open]") == [1, "One\ntwo", True]
    tab.run("$('temperature').value = '0'; $('settings').open = false; $('question').focus()")
    tab.press("Enter")
    tab.wait("!running && turns[0].replies[0].state === 'done'")
    assert tab.run("[turns.length, turns[0].question]") == [1, "One\ntwo three"]
    click(tab, "Retry")
    tab.wait("!running && turns[0].replies[0].state === 'done'")
    assert tab.run("turns.length") == 1


@needs_browser
def test_an_earlier_question_can_be_changed_and_what_followed_goes(tab: Browser) -> None:
    for question in ("One", "Two", "Three"):
        answered(tab, f"Reply to {question}")
    tab.run("turns[1].view.change.click()")
    assert "deletes the one after it" in tab.run("$('editing').innerText")
    tab.press("Escape")
    assert tab.run("[turns.length, $('editing').hidden, $('question').value]") == [3, True, ""]
    tab.run("turns[0].view.change.click()")
    assert "deletes the 2 after it" in tab.run("$('editing').innerText")
    answered(tab, "Another reply")
    assert tab.run("turns.map(one => one.replies[0].text)") == ["Another reply"]
    assert tab.run("document.querySelectorAll('.turn').length") == 1


@needs_browser
def test_chats_are_kept_listed_shown_again_and_deleted(tab: Browser, server: Server) -> None:
    tab.run("Object.keys(localStorage).filter(one => one.startsWith(CHAT)).forEach(one => forget(one))")
    tab.run("localStorage.setItem('localq.chat.0', '{damaged')")
    tab.run("$('system').value = 'Be short.'")
    answered(tab, "The first reply")
    tab.run("$('new').click(); $('system').value = ''; $('question').focus()")
    answered(tab, "The second reply")
    tab.open(f"{server.url}/?again")
    tab.wait("forms.size > 1 && turns.length === 1 && turns[0].replies[0].text === 'The second reply'")
    rows = "[...document.querySelectorAll('#chats .row')]"
    tab.run("$('chats').firstElementChild.click()")
    tab.wait(f"{rows}.length === 2")
    tab.run(f"{rows}[1].firstChild.click()")
    assert tab.run("[turns[0].replies[0].text, $('system').value, $('chats').open]") == [
        "The first reply",
        "Be short.",
        False,
    ]
    assert tab.run("$('shown-system').innerText") == "System message: Be short."
    tab.run("window.confirm = () => true; $('chats').open = true")
    tab.wait(f"{rows}.length === 2")
    tab.run(f"{rows}[1].lastChild.click()")
    tab.wait(f"{rows}.length === 1")
    assert tab.run("[turns.length, $('chats').open, chats().length]") == [0, True, 1]
    tab.run("$('chats').open = false; $('system').value = ''; 0")
    # Where there is no more room, the oldest chats go, and the one that is open stays.
    tab.run("""{ const real = Storage.prototype.setItem;
        Storage.prototype.setItem = function (name, value) {
            if (name.startsWith(CHAT) && Object.keys(localStorage).filter(one => one.startsWith(CHAT)).length > 1)
                throw new DOMException('full', 'QuotaExceededError');
            real.call(this, name, value);
        }; }""")
    answered(tab, "The third reply")
    assert tab.run("chats().map(one => one.turns[0].replies[0].text)") == ["The third reply"]
    tab.open(f"{server.url}/?again")
    tab.wait("forms.size > 1")


@needs_browser
def test_calls_of_tools_json_and_reasoning_are_shown_apart(tab: Browser) -> None:
    tab.run("""{ const real = window.fetch; window.fetch = async (path, options) => {
        window.fetch = real;
        window.sent = JSON.parse(options.body);
        const part = (index, name, text) => ({delta: { tool_calls: [{ index, function: { name, arguments: text } }] }});
        const choices = [part(0, "weather", ""), part(0, undefined, '{"city": "Par'), part(0, undefined, 'is"}'),
            part(1, "now", "{}"), { delta: {}, finish_reason: "tool_calls" }];
        return new Response(choices.map(one => `data: ${JSON.stringify({ choices: [one] })}\\n\\n`).join("")
            + "data: [DONE]\\n\\n");
    }; }""")
    tab.run("""$('more').value = '{"tools": [{"type": "function"}], "top_p": 0.5, "model": "another"}'; 0""")
    send(tab, "What is the weather?")
    tab.wait("turns.length && !running")
    assert tab.run("[sent.tools.length, sent.top_p, sent.model, sent.stream]") == [1, 0.5, GGUF, True]
    assert tab.run("[...document.querySelectorAll('.code')].map(one => one.innerText.replace(/\\s+/g, ' '))") == [
        'Call of the tool weather Copy { "city": "Paris" }',
        "Call of the tool now Copy {}",
    ]
    assert "weather, now" in tab.run("$('said').textContent")
    tab.run("""$('more').value = '{"response_format": {"type": "json_object"}}'; 0""")
    answered(tab, '{"a_b_": "**c**"}')
    assert tab.run(f"{PLAIN}({BODY})") == '<pre>{"a_b_": "**c**"}</pre>'
    for wrong in ("[1]", "{", "null"):
        tab.run(f"$('more').value = {wrong!r}; 0")
        send(tab, "Hello")
        assert tab.run("[turns.length, $('settings').open]") == [2, True]
        tab.run("$('settings').open = false; $('question').value = ''; 0")
    tab.run("$('more').value = ''; $('more').dispatchEvent(new Event('change', { bubbles: true }))")
    answered(tab, "<think>\nSome **thought**.\n\nMore.\n</think> The reply.")
    assert tab.run(f"[{BODY}.querySelector('details').open, {BODY}.querySelectorAll('details p').length]") == [False, 2]
    assert tab.run(f"{BODY}.innerText.trim().split(/\\n+/)") == ["Reasoning", "The reply."]
    answered(tab, "<think>\nIt never ends")
    assert tab.run(f"{BODY}.querySelector('details').open")


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
        ("Promise.resolve(new Response('{}', {status: 418}))", "Status 418"),
        ('Promise.resolve(new Response(\'data: {"error":{"message":"it failed"}}\\n\\n\'))', "It failed."),
    ):
        tab.run(f"{{ const real = window.fetch; window.fetch = () => {{ window.fetch = real; return {script}; }}; }}")
        click(tab, "Retry")
        tab.wait("!running")
        assert words in tab.run("document.querySelector('.error').textContent")
    send(tab, "Again")
    tab.wait("turns.length === 2 && !running")
    assert [one["content"] for one in tab.run("messages(turns[1], 0)")] == ["Again"]  # not what failed


@needs_browser
def test_everything_has_a_name_for_screen_readers_and_contrast_for_eyes(tab: Browser) -> None:
    answered(tab, TEXT)
    tab.run("$('settings').open = true")
    nodes = tab.call("Accessibility.getFullAXTree")["nodes"]
    roles = {"button", "textbox", "combobox", "checkbox", "spinbutton", "link", "article", "main", "group", "heading"}
    named = [one for one in nodes if not one["ignored"] and one["role"]["value"] in roles]
    assert {one["role"]["value"] for one in named} == roles
    nameless = [one for one in named if not one.get("name", {}).get("value")]
    assert [one for one in nameless if one["role"]["value"] != "group"] == []
    tab.run("$('settings').open = false")
    for theme in ("light", "dark"):
        tab.run(f"$('theme').value = '{theme}'; $('theme').onchange()")
        for front, back, least in CONTRASTS:
            colors = [tab.run(COLOR % name) for name in (front, back)]
            light, dark = sorted(map(luminance, colors), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= least, (theme, front, back)
    assert colors[1] == [22, 24, 28]
    tab.run("$('theme').value = ''; $('theme').onchange()")


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
        assert tab.run("turns[0].replies[0].state") == "done"
        assert tab.run("Object.keys(localStorage).length && !JSON.stringify(localStorage).includes('secret')")
        assert "secret" not in tab.run("document.documentElement.outerHTML")
        sent: list[Any] = [
            one["params"]["request"]["url"] for one in tab.events if one["method"] == "Network.requestWillBeSent"
        ]
        assert all(url.startswith((server.url, "data:", "about:")) for url in sent)
