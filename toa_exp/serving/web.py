"""What the servers of this package share: routes, JSON, and errors as statuses."""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from toa_exp.errors import BadInput, Permanent, ToaError, Unavailable, choose

log = logging.getLogger(__name__)

Handler = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]

_LARGEST = 64 * 2**20  # bytes of a request


class Failure(ToaError):
    """An answer that is an error: its status, and the code that clients tell it by."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


def application(routes: dict[str, Handler], models: list[str]) -> web.Application:
    """An application that takes JSON objects at `routes`, and says at /health that it is up.

    `models` are the names at /v1/models. What a handler raises becomes a status: BadInput and
    Permanent 400, Unavailable 503, anything unforeseen 500, which is logged.
    """
    app = web.Application(client_max_size=_LARGEST)
    app.router.add_get("/health", _health)
    if models:
        listed = [{"id": name, "object": "model", "owned_by": "toa-exp"} for name in models]

        async def list_models(_: web.Request) -> web.Response:
            return web.json_response({"object": "list", "data": listed})

        app.router.add_get("/v1/models", list_models)
    for path, handler in routes.items():
        app.router.add_post(path, _answering(handler))
    return app


def run(app: web.Application, host: str, port: int) -> None:
    """Serve until SIGTERM or SIGINT."""
    web.run_app(app, host=host, port=port, print=None, access_log=None, shutdown_timeout=1.0)


def check_fields(body: dict[str, Any], allowed: list[str]) -> None:
    """Raise BadInput for a field that would go unheeded."""
    for name in body:
        if name not in allowed:
            raise choose("field of the request:", name, allowed)


async def _health(_: web.Request) -> web.Response:
    return web.json_response({"status": "ok"})


def _answering(handler: Handler) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def answer(request: web.Request) -> web.Response:
        try:
            return web.json_response(await handler(await _object(request)))
        except Failure as failure:
            return _error(failure.status, str(failure), failure.code)
        except (BadInput, Permanent) as error:
            return _error(400, str(error))
        except Unavailable as error:
            return _error(503, str(error))
        except Exception as error:  # a request must have an answer; this one says that the server failed
            log.exception("a request failed")
            return _error(500, f"{type(error).__name__}: {error}")

    return answer


async def _object(request: web.Request) -> dict[str, Any]:
    try:
        body = json.loads(await request.read())
    except ValueError as error:
        raise BadInput(f"the request is no JSON: {error}") from error
    if not isinstance(body, dict):
        raise BadInput("the request is no JSON object")
    return body


def _error(status: int, message: str, code: str | None = None) -> web.Response:
    kind = "BadRequestError" if status < 500 else "InternalServerError"
    body = {"error": {"message": message, "type": kind, "param": None, "code": code or status}}
    return web.json_response(body, status=status)
