"""Splitting what a model writes into its reasoning and its answer, while it streams."""

from __future__ import annotations

from typing import Literal, TypeAlias

from zoo.errors import TemplateError

Kind: TypeAlias = Literal["reasoning", "content"]
Piece: TypeAlias = tuple[Kind, str]
_BREAKS = "\r\n"


class ReasoningSplitter:
    r"""Splits streamed text at one pair of tags; however the text is cut into pushes, the pieces join to the same.

    A thought opens at the start of the text or not at all: an open tag after other text is the answer's own, and so are
    all tags after the first close tag. `inside` says that the prompt has opened the thought already (see
    `starts_inside`); a model that repeats the open tag at the start is understood.

    White space: blanks before the open tag, and line breaks (\r, \n) after the open tag and before and after the close
    tag, belong to the format and are dropped. All other text comes out unchanged.

    Raises TemplateError when a tag is empty or the two are equal.
    """

    def __init__(self, open_tag: str, close_tag: str, inside: bool = False) -> None:
        if not open_tag or not close_tag or open_tag == close_tag:
            raise TemplateError(
                f"reasoning tags {open_tag!r} and {close_tag!r}: two different tags are needed, neither of them empty",
                remedy="correct the reasoning tags of the plugin",
            )
        self._open = open_tag
        self._close = close_tag
        self._inside = inside
        self._state: Literal["start", "thought", "answer"] = "start"
        self._drop_breaks = False  # a tag has just ended: line breaks that follow are dropped
        self._held = ""

    def push(self, text: str) -> list[Piece]:
        """Take the next text of the model; return the pieces (kind, text) that are certain by now, none empty."""
        self._held += text
        return self._advance(final=False)

    def flush(self) -> list[Piece]:
        """End the stream and return what was held back: a tag that was cut short is text."""
        return self._advance(final=True)

    def _advance(self, *, final: bool) -> list[Piece]:
        pieces: list[Piece] = []
        if self._state == "start" and not self._begin(final):
            return pieces
        if self._state == "thought" and (text := self._thought(final)):
            pieces.append(("reasoning", text))
        if self._state == "answer" and (text := self._take(len(self._held))):
            pieces.append(("content", text))
        return pieces

    def _begin(self, final: bool) -> bool:
        """Decide whether a thought opens. Returns False while that is open."""
        text = self._held.lstrip()
        if text.startswith(self._open):
            self._held = text[len(self._open) :]
            self._state, self._drop_breaks = "thought", True
            return True
        if self._open.startswith(text) and not final:
            return False
        self._state, self._drop_breaks = ("thought", True) if self._inside else ("answer", False)
        return True

    def _thought(self, final: bool) -> str:
        end = self._held.find(self._close)
        if end >= 0:
            text = self._take(end).rstrip(_BREAKS)
            self._held = self._held[len(self._close) :]
            self._state, self._drop_breaks = "answer", True
            return text
        if final:
            return self._take(len(self._held))
        sizes = range(min(len(self._close) - 1, len(self._held)), 0, -1)
        partial = next((size for size in sizes if self._held.endswith(self._close[:size])), 0)
        return self._take(len(self._held[: len(self._held) - partial].rstrip(_BREAKS)))

    def _take(self, size: int) -> str:
        text, self._held = self._held[:size], self._held[size:]
        if self._drop_breaks:
            text = text.lstrip(_BREAKS)
            self._drop_breaks = not text
        return text


def starts_inside(rendered_prompt: str, open_tag: str, close_tag: str) -> bool:
    r"""Tell whether a prompt has opened the thought that the model continues, as R1's does with `<think>\n`.

    Only the end of the prompt decides, white space aside: a tag that somebody typed in a message does not matter.
    """
    prompt = rendered_prompt.rstrip()
    return prompt.endswith(open_tag.rstrip()) and not prompt.endswith(close_tag.rstrip())
