"""The chat page for browsers: one file, and the rules that let it load nothing else."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

from starlette.responses import HTMLResponse


def make_page() -> HTMLResponse:
    """The page. Its own script and style are named by their hashes: nothing else runs, nor is loaded from elsewhere."""
    text = (Path(__file__).parent / "page.html").read_text(encoding="utf-8")
    policy = (
        "default-src 'none'; connect-src 'self'; img-src data:; "
        f"script-src {_hash_of('script', text)}; style-src {_hash_of('style', text)}; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"  # no text is ever read as HTML
    )
    headers = {
        "content-security-policy": policy,
        "cache-control": "no-cache",
        "referrer-policy": "same-origin",
        "cross-origin-opener-policy": "same-origin",
    }
    return HTMLResponse(text, headers=headers)


def _hash_of(tag: str, text: str) -> str:
    found = re.search(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
    assert found is not None
    return f"'sha256-{base64.b64encode(hashlib.sha256(found[1].encode()).digest()).decode()}'"
