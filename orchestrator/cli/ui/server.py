"""The live page as a web application: assets, JSON, one stream of changes, and actions if you allowed them.

Everything below /api wants the token that only the printed address has, so that neither another user of this computer
nor a page in another tab reads your runs. The Host header must name this computer (DNS rebinding), and a request that
acts must come from the page itself (Origin). The page runs nobody's markup: its policy allows its own files alone.

Example: `uvicorn.run(application(Sight(home), None, token, hosts=("127.0.0.1",)))`
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from orchestrator.cli.ui.actions import Actions
from orchestrator.cli.ui.sight import Sight
from orchestrator.core.errors import GptctlError
from orchestrator.report.pages.html import TEMPLATES

PAGE = Path(__file__).with_name("page")
ASSETS = {
    "ui.css": PAGE / "ui.css",
    "ui.js": PAGE / "ui.js",
    "page.css": TEMPLATES / "page.css",
    "plot.js": TEMPLATES / "plot.js",
    "uPlot.min.css": TEMPLATES / "uplot" / "uPlot.min.css",
    "uPlot.iife.min.js": TEMPLATES / "uplot" / "uPlot.iife.min.js",
}
HEADERS = {
    # uPlot sets sizes in style attributes; no style element and no script but ours is allowed.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
LOOK_EVERY_S = 0.5
ASK_EVERY_S = 5.0
BEAT_EVERY_S = 10.0
MOST_BODY_BYTES = 10_000

Handler = Callable[[Request], Awaitable[Response]]


def application(sight: Sight, actions: Actions | None, token: str, hosts: Sequence[str]) -> Starlette:
    """`actions` None: the page can only look. `hosts`: names under which this computer may be asked."""

    @contextlib.asynccontextmanager
    async def looking(_: Starlette) -> AsyncIterator[None]:
        task = asyncio.create_task(_look(sight))
        yield
        task.cancel()

    def guarded(handler: Handler) -> Handler:
        return _guarded(handler, token)

    async def state(_: Request) -> Response:
        return JSONResponse(_state(sight, actions))

    async def run(request: Request) -> Response:
        return JSONResponse(await run_in_threadpool(sight.run, request.path_params["run"]))

    async def stream(request: Request) -> Response:
        changes = _changes(sight, actions, request.query_params.get("run"))
        return StreamingResponse(changes, media_type="text/event-stream")

    async def question(request: Request) -> Response:
        asked = _allowed(actions)
        return JSONResponse({"question": asked.question(request.path_params["verb"], request.path_params["run"])})

    async def act(request: Request) -> Response:
        _same_origin(request)
        given = await _body(request)
        started = _allowed(actions).start(
            request.path_params["verb"], request.path_params["run"], str(given.get("agreed_to"))
        )
        return JSONResponse(started.to_json(), status_code=202)

    return Starlette(
        routes=[
            Route("/", _page),
            Route("/assets/{name}", _asset),
            Route("/api/state", guarded(state)),
            Route("/api/stream", guarded(stream)),
            Route("/api/runs/{run}", guarded(run)),
            Route("/api/runs/{run}/{verb}", guarded(question), methods=["GET"]),
            Route("/api/runs/{run}/{verb}", guarded(act), methods=["POST"]),
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=[*hosts], www_redirect=False)],
        lifespan=looking,
    )


class Forbidden(Exception):
    """A request that may not act, with the reason."""


async def _page(_: Request) -> Response:
    return FileResponse(PAGE / "index.html", headers=HEADERS, media_type="text/html; charset=utf-8")


async def _asset(request: Request) -> Response:
    path = ASSETS.get(request.path_params["name"])
    return FileResponse(path, headers=HEADERS) if path else Response(status_code=404)


def _guarded(handler: Handler, token: str) -> Handler:
    async def checked(request: Request) -> Response:
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(given.encode(), token.encode()):
            return _problem(401, "open the address that gptctl ui printed: it holds the token of this page")
        try:
            response = await handler(request)
        except Forbidden as refusal:
            return _problem(403, str(refusal))
        except GptctlError as error:
            return _problem(409, error.message)
        response.headers.update(HEADERS)
        return response

    return checked


def _problem(status: int, text: str) -> Response:
    return JSONResponse({"error": text}, status_code=status, headers=HEADERS)


def _allowed(actions: Actions | None) -> Actions:
    if actions is None:
        raise Forbidden("this page only looks: start it with gptctl ui --allow-actions to stop, fetch or release")
    return actions


def _same_origin(request: Request) -> None:
    origin = request.headers.get("origin")
    if origin != f"{request.url.scheme}://{request.headers.get('host')}":
        raise Forbidden("an action must come from the page itself")
    if request.headers.get("content-type", "").partition(";")[0] != "application/json":
        raise Forbidden("an action is JSON")


async def _body(request: Request) -> dict[str, Any]:
    data = b""
    async for piece in request.stream():
        data += piece
        if len(data) > MOST_BODY_BYTES:
            raise Forbidden("too long")
    try:
        given = json.loads(data)
    except ValueError as error:
        raise Forbidden("an action is JSON") from error
    return given if isinstance(given, dict) else {}


def _state(sight: Sight, actions: Actions | None) -> dict[str, Any]:
    started = actions.to_json() if actions else []
    return {**sight.state, "may_act": actions is not None, "actions": started, "now": time.time()}


async def _look(sight: Sight) -> None:
    """Reads the ledger when it has changed, and asks the machines every few seconds, for as long as the page serves."""
    seen, asked_at = None, -ASK_EVERY_S
    while True:
        ask = time.monotonic() - asked_at >= ASK_EVERY_S
        if ask or sight.mark() != seen:
            seen = sight.mark()
            with contextlib.suppress(GptctlError, OSError):  # a ledger that is locked for now is read next time
                await run_in_threadpool(sight.refresh, ask)
            asked_at = time.monotonic() if ask else asked_at
        await asyncio.sleep(LOOK_EVERY_S)


async def _changes(sight: Sight, actions: Actions | None, run_id: str | None) -> AsyncIterator[str]:
    """Server-sent events: `state` when the list has changed, `run` when the open run has, a beat when neither did."""
    sent: tuple[object, ...] = ()
    mark: object = None
    beat_at = 0.0
    while True:
        now = (sight.number, actions.to_json() if actions else None)
        if now != sent:
            sent = now
            yield f"event: state\ndata: {json.dumps(_state(sight, actions))}\n\n"
        if run_id and (latest := (sight.number, sight.mark_of(run_id))) != mark:
            mark = latest
            with contextlib.suppress(GptctlError, OSError):
                found = await run_in_threadpool(sight.run, run_id)
                yield f"event: run\ndata: {json.dumps(found)}\n\n"
        if time.monotonic() - beat_at > BEAT_EVERY_S:
            beat_at = time.monotonic()
            yield "event: beat\ndata: {}\n\n"
        await asyncio.sleep(LOOK_EVERY_S)
