"""Where the chat template of a model lies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from zoo.errors import TemplateError

if TYPE_CHECKING:
    from zoo.source import ModelSource

_DEFAULT = "default"
_GGUF_KEY = "tokenizer.chat_template"


def find_template(source: ModelSource, name: str | None = None, override: str | None = None) -> str | None:
    """Return the text of a model's chat template, or None when it has none.

    `override` is the text of a template that the user gives: it wins. In a directory, the file `chat_template.jinja`
    goes before `chat_template` in `tokenizer_config.json` (a text, or a list of {name, template}), as in transformers;
    a GGUF file has `tokenizer.chat_template` and `tokenizer.chat_template.NAME`. `name` asks for one of several
    ("tool_use", "rag"); without it the default one is taken. Raises TemplateError when the model has no template of
    that name, or when it is not text.
    """
    if override is not None:
        return override
    templates = _gguf_templates(source) if source.format == "gguf" else _directory_templates(source)
    if not templates and name is None:
        return None
    wanted = _DEFAULT if name is None else name
    if wanted not in templates:
        known = ", ".join(sorted(templates)) or "none"
        raise TemplateError(
            f"{source.path}: no chat template named {wanted!r} (there are: {known})",
            remedy="name one of these, or give the text of a template",
        )
    text = templates[wanted]
    if not isinstance(text, str):
        raise TemplateError(
            f"{source.path}: the chat template {wanted!r} is a {type(text).__name__}, not text",
            remedy="give the text of a template",
        )
    return text


def _gguf_templates(source: ModelSource) -> Mapping[str, Any]:
    prefix = _GGUF_KEY + "."
    named = {key.removeprefix(prefix): text for key, text in source.metadata.items() if key.startswith(prefix)}
    return named | ({_DEFAULT: source.metadata[_GGUF_KEY]} if _GGUF_KEY in source.metadata else {})


def _directory_templates(source: ModelSource) -> Mapping[str, Any]:
    config = source.json("tokenizer_config.json") or {}
    listed = config.get("chat_template")
    templates: dict[str, Any] = {}
    if isinstance(listed, list):
        for index, entry in enumerate(listed):
            if not isinstance(entry, dict) or not isinstance(entry.get("name"), str) or "template" not in entry:
                raise TemplateError(
                    f"{source.path}, tokenizer_config.json: chat_template[{index}] is not a name with a template",
                    remedy="repair the file, or give the text of a template",
                )
            templates[entry["name"]] = entry["template"]
    elif listed is not None:
        templates[_DEFAULT] = listed
    file = source.text("chat_template.jinja")
    return templates | ({_DEFAULT: file} if file is not None else {})
