"""The page at `/`: one static file, served under a policy that allows its own script and style only.

Edit index.html; no build step. It may have inline `<script>` and `<style>` elements without attributes: their hashes go
into the policy. Inline handlers (`onclick=`), `style=` attributes, frames, forms that leave the page and every other
origin are forbidden; images may be `data:` or `blob:`.
"""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass
from importlib.resources import files

_INLINE = re.compile(r"<(script|style)>(.*?)</\1>", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Page:
    """The bytes of the page and the headers that go with it."""

    body: bytes
    headers: dict[str, str]


def load_page() -> Page:
    """Read index.html and make its Content-Security-Policy."""
    text = (files(__name__) / "index.html").read_text("utf-8")
    return Page(text.encode(), {"Content-Security-Policy": policy(text), "Cache-Control": "no-cache"})


def policy(text: str) -> str:
    """The Content-Security-Policy of a page: hashes of its inline elements, requests to its own origin."""
    allowed: dict[str, list[str]] = {"script": [], "style": []}
    for kind, inner in _INLINE.findall(text):
        digest = base64.b64encode(hashlib.sha256(inner.encode()).digest()).decode()
        allowed[kind].append(f"'sha256-{digest}'")
    return "; ".join(
        [
            "default-src 'none'",
            f"script-src {' '.join(allowed['script']) or chr(39) + 'none' + chr(39)}",
            f"style-src {' '.join(allowed['style']) or chr(39) + 'none' + chr(39)}",
            "connect-src 'self'",
            "img-src data: blob:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        ]
    )
