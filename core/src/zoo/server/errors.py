"""Errors as OpenAI clients know them: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.responses import Response

from zoo.errors import CapacityError, ContextLengthError, TemplateError, TokenizerError, UsageError, ZooError

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
}
# Errors that a request itself brings about; any other ZooError is the server's.
_CLIENT = (UsageError, TemplateError, TokenizerError, ContextLengthError)
_LONGEST = 1000


class APIError(Exception):
    """An answer other than the one that was asked for. `param` names the field that is wrong."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message if len(message) <= _LONGEST else message[:_LONGEST] + "…"
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The JSON object of the answer."""
        kind = _TYPES.get(self.status, "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        """The answer."""
        # Escapes keep what a client sent apart from UTF-8: a lone surrogate may be in a message.
        return Response(json.dumps(self.body()), self.status, self.headers, "application/json")


def event(value: Any) -> bytes:
    """A server-sent event."""
    return b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace") + b"\n\n"


def from_exception(error: Exception) -> APIError:
    """The answer to an exception of the engine or of what prepares a request."""
    if isinstance(error, APIError):
        return error
    if isinstance(error, ContextLengthError):
        return APIError(400, str(error), param="messages", code="context_length_exceeded")
    if isinstance(error, _CLIENT):
        return APIError(400, str(error))
    if isinstance(error, CapacityError):
        return APIError(503, str(error), headers={"Retry-After": "1"})
    if isinstance(error, ZooError):
        return APIError(500, str(error))
    return APIError(500, f"the model failed: {type(error).__name__}")


def from_validation(errors: Sequence[Mapping[str, Any]]) -> APIError:
    """The answer to fields that break the schema: the first one, named."""
    first = min(errors, key=lambda error: error.get("type") != "extra_forbidden")
    places = [str(part) for part in first.get("loc", ()) if part != "body"]
    where = ".".join(places) or None
    kind = first.get("type")
    if kind == "json_invalid":
        return APIError(400, f"the body is not JSON: {first.get('ctx', {}).get('error', '')}")
    if kind == "extra_forbidden":
        return APIError(
            400, f"{where}: this field is unknown, or cannot be honoured here", param=where, code="unsupported_field"
        )
    message = str(first.get("msg", "it is wrong")).removeprefix("Value error, ")
    return APIError(400, f"{where or 'the body'}: {message}", param=where)
