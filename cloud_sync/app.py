"""Builds the programs: `serve` (API, dashboard, updates for devices) and `ingest`; all else takes arguments."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import threading
from collections.abc import AsyncIterator, Callable
from http.cookies import CookieError, SimpleCookie
from types import FrameType
from urllib.parse import quote, urlsplit

import uvicorn
from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cloud_sync import api, notify
from cloud_sync.accounts import COOKIE, Accounts
from cloud_sync.blobs import Blobs
from cloud_sync.broker import Link
from cloud_sync.config import Config
from cloud_sync.errors import CloudError, StoreBusy
from cloud_sync.ingest import Ingest, Intake
from cloud_sync.release import Repository
from cloud_sync.store import open_store
from edge_agent.contract import topics

log = logging.getLogger(__name__)

STOP_S = 3  #: seconds that requests have to end after SIGTERM
MAX_BODY = 64 * 1024  #: bytes of a request that is no upload
#: What may be seen without a login outside of /v1: the login itself and what its page is made of.
PUBLIC = ("/login", "/_nicegui/", "/_nicegui_ws/", "/favicon.ico", "/assets/")
STATE_FILTER = f"{topics.ROOT}/+/+/up/state"


def open_services(config: Config) -> api.Services:
    """Database, accounts and files, ready for use."""
    config.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    store = open_store(config.database_url)
    store.migrate()
    return api.Services(config, store, Accounts(store), Blobs(config.blob_dir, store, config.blobs))


def build(services: api.Services, *, dashboard: bool = True) -> FastAPI:
    """The web application. CloudError if one of its routes does not say who may ask."""

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        stop = threading.Event()
        repository = Repository(services.config.tuf_dir, services.config.keys_dir)
        jobs = (_notifier(services).run, repository.keep_renewed)
        workers = [asyncio.create_task(asyncio.to_thread(job, stop)) for job in jobs]
        try:
            yield
        finally:
            stop.set()
            await asyncio.gather(*workers)

    app = FastAPI(title="Tectum", version="1", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    app.state.services = services
    api.add_errors(app)
    # Not include_router: newer FastAPI hides the routes behind an object that cannot be walked.
    app.router.routes.extend(api.router.routes)
    check_permissions(app)
    if dashboard:
        from cloud_sync.dashboard import mount  # NiceGUI takes a second that `ingest` need not spend

        mount(app, services.store, services.accounts, services.blobs)
    app.add_middleware(Gate, accounts=services.accounts)
    return app


def check_permissions(app: FastAPI) -> dict[tuple[str, str], str]:
    """What each (method, path) below /v1 declares. CloudError for a route that declares nothing."""
    declared: dict[tuple[str, str], str] = {}
    for route in app.routes:
        if not isinstance(route, APIRoute):
            raise CloudError(f"{route} is no API route: it cannot say who may ask")
        for method in route.methods or ():
            declared[method, route.path] = api.permission_of(route)
    return declared


def serve(config: Config, say: Callable[[str], None] = print) -> None:
    """Run until SIGTERM or SIGINT, then return within seconds."""
    services = open_services(config)
    try:
        password = services.accounts.first_run()
        if password is not None:
            say(f"First start: log in at {config.url} as `admin` with the password {password}")
            say("It is shown this once. `cloud-sync user password admin` makes a new one.")
        services.blobs.sweep()
        _run(uvicorn.Server(_uvicorn_config(build(services), config)))
    finally:
        services.store.close()


def ingest(config: Config, name: str) -> None:
    """Take messages in until SIGTERM or SIGINT. StoreBusy or BrokerError if that cannot go on."""
    store = open_store(config.database_url)
    try:
        store.migrate()
        stop = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
        # Retained birth messages are not sent to shared subscriptions: they come by a filter of their own.
        link = Link(
            config.broker, f"tectum-ingest-{name}", (topics.INGEST_FILTER, STATE_FILTER), config.ingest.in_flight
        )
        link.start()
        try:
            Ingest(Intake(store, config.ingest), link, config.ingest).run(stop)
        finally:
            link.stop()
    finally:
        store.close()


class Gate:
    """Before every request: no other site may make the browser ask, and outside of /v1 nobody without a login.

    The dashboard's pages check for themselves too; this is what a page that forgot would meet.
    """

    def __init__(self, app: ASGIApp, accounts: Accounts) -> None:
        self._app = app
        self._accounts = accounts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        refusal = await self._refusal(scope, headers)
        if refusal is None:
            limited = receive if scope.get("method") == "PUT" else _limited(receive)
            await self._app(scope, limited, _with_headers(scope, send))
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008})
        else:
            await refusal(scope, receive, _with_headers(scope, send))

    async def _refusal(self, scope: Scope, headers: Headers) -> ASGIApp | None:
        if foreign(scope, headers):
            return JSONResponse({"detail": "this request was made by another site"}, 403)
        path: str = scope["path"]
        if "\x00" in path or b"%00" in scope.get("query_string", b""):
            return JSONResponse({"detail": "an address holds no NUL"}, 400)
        length = headers.get("content-length", "0")
        if scope.get("method") != "PUT" and not (length.isdigit() and int(length) <= MAX_BODY):
            return JSONResponse({"detail": f"a request has at most {MAX_BODY} bytes"}, 413)
        if path.startswith("/v1/") or path == "/login" or path.startswith(PUBLIC):
            return None
        try:
            viewer = await run_in_threadpool(self._accounts.viewer, _cookie(headers))
        except StoreBusy:
            return JSONResponse({"detail": "the database is busy; try again"}, 503, {"Retry-After": "1"})
        if viewer is not None:
            return None
        if scope.get("method") in ("GET", "HEAD") and "text/html" in headers.get("accept", ""):
            wanted = path + (f"?{scope['query_string'].decode('latin-1')}" if scope.get("query_string") else "")
            return RedirectResponse("/login" if wanted == "/" else f"/login?next={quote(wanted, safe='')}", 303)
        return JSONResponse({"detail": "log in first"}, 401)


def foreign(scope: Scope, headers: Headers) -> bool:
    """Whether a request that may change something was made by a page of another site.

    Browsers say the origin of every such request; programs say none, and hold no cookies of people.
    """
    if scope["type"] == "http" and scope["method"] in ("GET", "HEAD", "OPTIONS"):
        return False
    origin = headers.get("origin")
    if origin is None:
        return headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none")
    return urlsplit(origin).netloc != headers.get("host")


def _cookie(headers: Headers) -> str | None:
    jar: SimpleCookie = SimpleCookie()
    with contextlib.suppress(CookieError):
        jar.load(headers.get("cookie", ""))
    return jar[COOKIE].value if COOKIE in jar else None


def _limited(receive: Receive) -> Receive:
    """A request body that ends with an error once it is larger than `MAX_BODY`."""
    taken = 0

    async def receive_some() -> Message:
        nonlocal taken
        message = await receive()
        if message["type"] == "http.request":
            taken += len(message.get("body", b""))
            if taken > MAX_BODY:
                return {"type": "http.disconnect"}  # whoever reads it gives up
        return message

    return receive_some


def _with_headers(scope: Scope, send: Send) -> Send:
    async def send_on(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers.setdefault("X-Content-Type-Options", "nosniff")
            headers.setdefault("X-Frame-Options", "DENY")
            headers.setdefault("Referrer-Policy", "same-origin")
            headers.setdefault("Permissions-Policy", "camera=(), microphone=(), geolocation=()")
            headers.setdefault("Cross-Origin-Opener-Policy", "same-origin")
            headers.setdefault("Cross-Origin-Resource-Policy", "same-origin")
            if scope["path"].startswith("/v1/"):
                headers.setdefault("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'; sandbox")
                headers.setdefault("Cache-Control", "no-store")
            if scope["scheme"] == "https":
                headers.setdefault("Strict-Transport-Security", "max-age=31536000")
        await send(message)

    return send_on


def _tell_end(worker: asyncio.Task[None]) -> None:
    error = None if worker.cancelled() else worker.exception()
    if error is not None:
        # Nobody would be told of an alert any more: better to be started afresh.
        log.critical("notifications broke", exc_info=error)
        signal.raise_signal(signal.SIGTERM)


def _notifier(services: api.Services) -> notify.Notifier:
    config = services.config
    channels = [notify.Webhook(config.notify.webhook, config.notify.timeout_s)] if config.notify.webhook else []
    return notify.Notifier(services.store, channels, config.url)


def _uvicorn_config(app: FastAPI, config: Config) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        host=config.listen.host,
        port=config.listen.port,
        ssl_certfile=config.listen.tls_cert,
        ssl_keyfile=None if config.listen.tls_key is None else str(config.listen.tls_key),
        log_config=None,
        access_log=False,  # login links stand in paths
        server_header=False,
        proxy_headers=False,  # nobody outside says from where a login was tried
        timeout_graceful_shutdown=STOP_S,
        limit_concurrency=512,
        h11_max_incomplete_event_size=32 * 1024,
    )


def _run(server: uvicorn.Server) -> None:
    """uvicorn raises the signal that stopped it again when it is done: after an ordered stop that is no death."""

    def take_note(number: int, _frame: FrameType | None) -> None:
        log.info("stopped by %s", signal.Signals(number).name)

    before = {number: signal.signal(number, take_note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        server.run()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if not server.started:
        raise CloudError(f"cannot listen on {server.config.host}:{server.config.port}; is another one running?")
