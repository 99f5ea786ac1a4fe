"""Conversations: chat templates in a bounded sandbox, and the split of answers into reasoning and content."""

from __future__ import annotations

from zoo.chat.find import find_template
from zoo.chat.limits import Limits
from zoo.chat.reasoning import Piece, ReasoningSplitter, starts_inside
from zoo.chat.template import ChatTemplate

__all__ = ["ChatTemplate", "Limits", "Piece", "ReasoningSplitter", "find_template", "starts_inside"]
