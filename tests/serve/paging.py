"""What a user does in the chat page, and what it shows."""

from __future__ import annotations

import json

import pytest

from tests.serve.browser import CHROMIUM, Browser

TEXT = """# Title

A **bold**, *slanted* and `plain` word, 2 * 3 * 4, a_b_c and [a page](https://example.org/x_(y)), https://example.net/a.
```not a block```
- [ ] a list

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
# Without what is the same everywhere: buttons, and the frames of code and tables.
PLAIN = """(body => {
    const copy = body.cloneNode(true);
    copy.querySelectorAll('.code').forEach(one =>
        one.replaceWith(make('pre', {}, one.querySelector('code').textContent)));
    copy.querySelectorAll('.table').forEach(one => one.replaceWith(one.firstChild));
    copy.querySelectorAll('th,td').forEach(one => ['dir', 'style'].forEach(name => one.removeAttribute(name)));
    copy.querySelectorAll('a').forEach(one => ['target', 'rel'].forEach(name => one.removeAttribute(name)));
    return copy.innerHTML;
})"""
BODY = "turns.at(-1).replies[0].view.body"

needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")


def send(tab: Browser, question: str) -> None:
    tab.run("$('question').focus()")
    tab.type(question)
    tab.press("Enter")


def click(tab: Browser, text: str) -> None:
    tab.run(f"[...document.querySelectorAll('button')].find(one => one.textContent === {text!r}).click()")


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
                const bytes = new TextEncoder().encode(piece ? event({{ delta: {{ content: piece }} }})
                    : event({{ finish_reason: "stop" }}) + "data: [DONE]\\n\\n");
                out.enqueue(bytes.slice(0, bytes.length >> 1));
                out.enqueue(bytes.slice(bytes.length >> 1));
                if (!piece) out.close();
            }} }});
            return new Response(body);
        }};
    }})()""")
    send(tab, "scripted")
    tab.wait("turns.length && !running")
