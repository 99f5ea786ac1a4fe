"""The page at `/docs`: the OpenAPI schema for people, without scripts and without the network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from zoo.server.page import Page, policy

_STYLE = (
    ":root{color-scheme:light dark}"
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
    "table{border-collapse:collapse;width:100%}td,th{text-align:left;vertical-align:top;padding:.25rem .75rem .25rem 0;"
    "border-bottom:1px solid #8884}code{overflow-wrap:anywhere}h2{margin-top:2.5rem}"
)
_MEDIA = "application/json"
Schema = Mapping[str, Any]


def docs_page(openapi: Schema) -> Page:
    """The page for a schema as FastAPI makes it."""
    models: Schema = openapi.get("components", {}).get("schemas", {})
    parts = []
    for path, methods in openapi["paths"].items():
        for method, operation in methods.items():
            heading = f"<h2><code>{method.upper()} {escape(path)}</code></h2>"
            parts.append(heading + f"<p>{escape(operation.get('description', ''))}</p>")
            if body := operation.get("requestBody"):
                parts.append(f"<p>{_kind(body['content'][_MEDIA]['schema'])}</p>")
    for name, model in models.items():
        parts.append(f'<h2 id="{escape(name)}">{escape(name)}</h2><p>{escape(model.get("description", ""))}</p>')
        parts.append("".join(_table(model)))
    title = f"{escape(openapi['info']['title'])} {escape(openapi['info']['version'])}"
    text = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}: API</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body><h1>{title}: API</h1>'
        f'<p>For programs: <a href="/openapi.json">openapi.json</a>. A field that is null counts as absent.</p>'
        f"{''.join(parts)}</body></html>"
    )
    return Page(text.encode(), {"Content-Security-Policy": policy(text), "Cache-Control": "no-cache"})


def _table(model: Schema) -> Iterator[str]:
    required = model.get("required", ())
    if not model.get("properties"):
        return
    yield "<table><tr><th>field</th><th>what</th></tr>"
    for name, field in model["properties"].items():
        needed = ", required" if name in required else ""
        yield f"<tr><td><code>{escape(name)}</code></td><td>{_kind(field)}{needed}</td></tr>"
    yield "</table>"


def _kind(field: Schema) -> str:
    """The type of a field, with its limits, as HTML."""
    if ref := field.get("$ref"):
        name = escape(ref.rpartition("/")[2])
        return f'<a href="#{name}">{name}</a>'
    for key in ("anyOf", "oneOf"):
        if key in field:
            return " or ".join(_kind(one) for one in field[key] if one.get("type") != "null")
    if "const" in field or "enum" in field:
        return " or ".join(f"<code>{escape(repr(value))}</code>" for value in field.get("enum", [field.get("const")]))
    limits = ", ".join(f"{words} {field[key]}" for key, words in _LIMITS.items() if key in field)
    kind = escape(str(field.get("type", "anything")))
    if "items" in field:
        kind += f" of {_kind(field['items'])}"
    return kind + (f" ({escape(limits)})" if limits else "")


_LIMITS = {
    "minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below",
    "minLength": "characters at least", "maxLength": "characters at most", "minItems": "items at least",
    "maxItems": "items at most", "maxProperties": "keys at most", "pattern": "like",
}  # fmt: skip
