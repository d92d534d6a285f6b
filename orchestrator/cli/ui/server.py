"""The live page as a web application: assets, JSON, one stream of changes, and actions if you allowed them.

Everything below /api wants the token that only the printed address has, so that neither another user of this computer
nor a page in another tab reads your runs. The Host header must name this computer (DNS rebinding), and a request that
acts must come from the page itself (Origin). The page runs nobody's markup: its policy allows its own files alone.

Example: `uvicorn.run(application(PageContents(home), None, token, hosts=("127.0.0.1",)))`
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
from orchestrator.cli.ui.page_contents import PageContents
from orchestrator.cli.ui.stream import LOOK_EVERY_S, changes, whole_state
from orchestrator.core.errors import GptctlError
from orchestrator.report.pages.templates import TEMPLATES

PAGE = Path(__file__).with_name("page")
ASSETS = {
    "page.css": (TEMPLATES / "uplot" / "uPlot.min.css", TEMPLATES / "page.css", PAGE / "ui.css"),
    "page.js": (TEMPLATES / "uplot" / "uPlot.iife.min.js", TEMPLATES / "plot.js", PAGE / "ui.js"),
}
"""Each is one answer: the first paint waits for every file of styles."""
HEADERS = {
    # uPlot sets sizes in style attributes; no style element and no script but ours is allowed.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
ASK_EVERY_S = 5.0
MOST_BODY_BYTES = 10_000
MOST_SEARCHED = 200
"""Characters."""

Handler = Callable[[Request], Awaitable[Response]]


def application(sight: PageContents, actions: Actions | None, token: str, hosts: Sequence[str]) -> Starlette:
    """`actions` None: the page can only look. `hosts`: names under which this computer may be asked."""

    @contextlib.asynccontextmanager
    async def looking(_: Starlette) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(each(sight)) for each in (_read, _ask)]
        yield
        for task in tasks:
            task.cancel()

    def guarded(handler: Handler) -> Handler:
        return _guarded(handler, token)

    async def state(_: Request) -> Response:
        return JSONResponse(whole_state(sight, actions))

    async def find(request: Request) -> Response:
        wanted = request.query_params.get("text", "")[:MOST_SEARCHED]
        return JSONResponse({"runs": await run_in_threadpool(sight.find, wanted)})

    async def run(request: Request) -> Response:
        return JSONResponse(await run_in_threadpool(sight.run, request.path_params["run"]))

    async def stream(request: Request) -> Response:
        news = changes(sight, actions, request.query_params.get("run"))
        return StreamingResponse(news, media_type="text/event-stream")

    async def question(request: Request) -> Response:
        asked = _allowed(actions)
        verb, run_id = request.path_params["verb"], request.path_params["run"]
        return JSONResponse({"question": await run_in_threadpool(asked.question, verb, run_id)})

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
            Route("/api/find", guarded(find)),
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
    parts = ASSETS.get(request.path_params["name"])
    if parts is None:
        return Response(status_code=404)
    text = "\n".join(part.read_text(encoding="utf-8") for part in parts)
    kind = "text/css" if request.path_params["name"].endswith(".css") else "text/javascript"
    return Response(text, headers=HEADERS, media_type=kind)


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


async def _read(sight: PageContents) -> None:
    """Reads the ledger when it has changed, and every few seconds: what bills grows by itself."""
    seen, read_at = None, 0.0
    while True:
        mark = sight.mark()
        if mark != seen or time.monotonic() - read_at >= ASK_EVERY_S:
            with contextlib.suppress(GptctlError, OSError):  # a ledger that is locked for now is read next time
                await run_in_threadpool(sight.refresh)
                seen, read_at = mark, time.monotonic()
        await asyncio.sleep(LOOK_EVERY_S)


async def _ask(sight: PageContents) -> None:
    """Asks the machines every few seconds while a page is open."""
    while True:
        if sight.pages and sight.number:
            with contextlib.suppress(GptctlError, OSError):
                await run_in_threadpool(sight.ask)
        await asyncio.sleep(ASK_EVERY_S)
