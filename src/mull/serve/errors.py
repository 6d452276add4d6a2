"""Errors in OpenAI's shape, with the parameter named. Whatever a client sends, it gets one of these, never a 5xx."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


class ApiError(Exception):
    """An answer with an HTTP status instead of a result.

    `type` is OpenAI's: invalid_request_error, authentication_error, rate_limit_error, server_error.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        # A client's own words may be in it. People read it in terminals, which must not take them for commands.
        message = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in message)
        super().__init__(message)
        self.status, self.message, self.type, self.param, self.code = status, message, type, param, code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


def invalid(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    return ApiError(400, message, param=param, code=code)


def unsupported(param: str) -> ApiError:
    """What o1 says to a parameter that it does not take."""
    message = f"Unsupported parameter: '{param}' is not supported with this model."
    return ApiError(400, message, param=param, code="unsupported_parameter")


def unknown_model(name: str) -> ApiError:
    message = f"The model '{name}' does not exist or you do not have access to it."
    return ApiError(404, message, param="model", code="model_not_found")


def busy(message: str, seconds: float) -> ApiError:
    """Too much is going on: come again in so many seconds, and in whole ones no sooner."""
    headers = {"Retry-After": str(max(1, math.ceil(seconds))), "retry-after-ms": str(max(1, round(1000 * seconds)))}
    return ApiError(429, message, type="rate_limit_error", code="rate_limit_exceeded", headers=headers)


def going_down() -> ApiError:
    message = "The server is shutting down or not ready yet: try again in a moment."
    return ApiError(503, message, type="server_error", code="server_unavailable", headers={"Retry-After": "2"})


def broken() -> ApiError:
    """Our own fault. What went wrong is in the log, not in the answer."""
    return ApiError(500, "The server had an error while processing the request.", type="server_error")
