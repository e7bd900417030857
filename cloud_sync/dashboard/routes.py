"""Where each page lives, and the few plain HTTP answers beside them: logging in, out, and a new password."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from urllib.parse import parse_qs, urlsplit

from fastapi import FastAPI, Request
from fastapi.responses import RedirectResponse, Response
from nicegui import ui

from cloud_sync.accounts import COOKIE, MIN_PASSWORD, SESSION_S, Accounts
from cloud_sync.blobs import Blobs
from cloud_sync.dashboard import frame, login
from cloud_sync.dashboard.alert import AlertPage
from cloud_sync.dashboard.alerts import AlertsPage, read_filters
from cloud_sync.dashboard.desk import Desk, Seat
from cloud_sync.dashboard.devices import DevicesPage
from cloud_sync.dashboard.headers import SafeHeaders
from cloud_sync.dashboard.parts import WEB, Tag, icon
from cloud_sync.errors import AccessRefused, CloudError, NotFound, StoreBusy
from cloud_sync.store import Store

MAX_FORM = 8192  #: bytes
_BUILD_S = 15.0  #: a page that a busy machine could not build in this time is an error


def mount(app: FastAPI, store: Store, accounts: Accounts, blobs: Blobs) -> None:
    """Put the dashboard into the cloud's app, below every route that the app has by now: call it last.

    One process may hold one dashboard: NiceGUI keeps its pages in module state.
    """
    desk = Desk(store, accounts, blobs)
    frame.serve_assets()
    _pages(desk)
    _forms(app, desk)
    app.add_middleware(SafeHeaders)
    ui.run_with(
        app,
        title="Tectum",
        favicon=WEB / "favicon.svg",
        dark=None,  # follow the browser
        language="en-US",
        tailwind=False,  # it compiles styles in the browser, on every page; ours is one small file
        show_welcome_message=False,
    )


Page = Callable[[Seat, Request], Awaitable[None]]


def _pages(desk: Desk) -> None:
    async def guarded(request: Request, page: Page) -> Response | None:
        seat = await desk.seat(request.cookies.get(COOKIE))
        if seat is None:
            wanted = request.url.path + (f"?{request.url.query}" if request.url.query else "")
            return RedirectResponse(frame.login_address(wanted), status_code=303)
        if seat.viewer.must_change and request.url.path != "/account":
            return RedirectResponse("/account", status_code=303)
        await page(seat, request)
        return None

    @ui.page("/", response_timeout=_BUILD_S)
    async def alerts(request: Request) -> Response | None:
        return await guarded(request, _alerts)

    @ui.page("/alert/{id}", response_timeout=_BUILD_S)
    async def alert(request: Request) -> Response | None:
        return await guarded(request, _alert)

    @ui.page("/devices", response_timeout=_BUILD_S)
    async def devices(request: Request) -> Response | None:
        return await guarded(request, lambda seat, _: DevicesPage(seat).show())

    @ui.page("/account", response_timeout=_BUILD_S)
    async def account(request: Request) -> Response | None:
        return await guarded(request, _account)

    @ui.page("/login", response_timeout=_BUILD_S)
    async def log_in(request: Request) -> Response | None:
        wanted = frame.safe_next(request.query_params.get("next"))
        if await desk.seat(request.cookies.get(COOKIE)) is not None:
            return RedirectResponse(wanted, status_code=303)
        login.show_login(wanted, request.query_params.get("message"))
        return None


async def _alerts(seat: Seat, request: Request) -> None:
    asked = request.query_params
    filters = read_filters(*(asked.get(name) for name in ("phase", "scene", "label", "verdict")))
    try:
        await AlertsPage(seat, filters, asked.get("before")).show()
    except CloudError as error:
        _apology(seat, "This list cannot be shown", str(error))


async def _alert(seat: Seat, request: Request) -> None:
    asked = request.query_params
    filters = read_filters(*(asked.get(name) for name in ("phase", "scene", "label", "verdict")))
    try:
        await AlertPage(seat, request.path_params["id"], filters).show()
    except NotFound:
        _apology(seat, "There is no such alert", "It was removed, or it belongs to a site that you may not see.")


async def _account(seat: Seat, request: Request) -> None:
    login.show_account(seat.viewer, request.query_params.get("message"))


def _apology(seat: Seat, title: str, text: str) -> None:
    ui.context.client.status_code = 404
    with frame.page(seat.viewer, title, "alerts"), Tag("div", "card empty"):
        icon("search_off")
        Tag("h2", text=title)
        Tag("p", text=text)
        Tag("a", "button", "Back to the alerts", href="/", style="margin-top: 16px")


def _forms(app: FastAPI, desk: Desk) -> None:
    accounts = desk.accounts

    @app.post("/login", include_in_schema=False)
    async def log_in(request: Request) -> Response:
        form = await _form(request)
        wanted = frame.safe_next(form.get("next"))
        try:
            address = request.client.host if request.client else ""
            token = await asyncio.to_thread(accounts.login, form.get("name", ""), form.get("password", ""), address)
        except AccessRefused as error:
            message = "wait" if error.status == 429 else "wrong"
            return _redirect(f"{frame.login_address(wanted)}&message={message}")
        except StoreBusy:
            return _redirect(f"{frame.login_address(wanted)}&message=busy")
        return _welcome(request, token, wanted)

    @app.get("/login/{link}", include_in_schema=False)
    async def follow_link(request: Request, link: str) -> Response:
        try:
            token = await asyncio.to_thread(accounts.redeem, link)
        except AccessRefused:
            return _redirect("/login?message=link")
        return _welcome(request, token, "/")

    @app.post("/logout", include_in_schema=False)
    async def log_out(request: Request) -> Response:
        await _form(request)
        await asyncio.to_thread(accounts.logout, request.cookies.get(COOKIE, ""))
        response = _redirect("/login")
        response.delete_cookie(COOKIE)
        return response

    @app.post("/account/password", include_in_schema=False)
    async def change_password(request: Request) -> Response:
        form = await _form(request)
        viewer = await asyncio.to_thread(accounts.viewer, request.cookies.get(COOKIE))
        if viewer is None:
            return _redirect("/login?message=ended&next=%2Faccount")
        problem = await asyncio.to_thread(_new_password, accounts, viewer.name, form)
        if problem:
            return _redirect(f"/account?message={problem}")
        token = await asyncio.to_thread(accounts.login, viewer.name, form["new"])
        return _welcome(request, token, "/account?message=done")


def _new_password(accounts: Accounts, name: str, form: dict[str, str]) -> str | None:
    """Set the password that the form asks for, or say by a word why not."""
    new = form.get("new", "")
    if new != form.get("again"):
        return "differ"
    if len(new) < MIN_PASSWORD:
        return "short"
    try:
        accounts.set_password(name, form.get("old", ""), new)
    except AccessRefused as error:
        return "wait" if error.status == 429 else "old"
    except StoreBusy:
        return "busy"
    return None


async def _form(request: Request) -> dict[str, str]:
    """The fields of a posted form. AccessRefused 403 if another site sent it, 413 if it is too long."""
    origin = request.headers.get("origin")
    if origin and origin != "null" and urlsplit(origin).netloc != request.headers.get("host"):
        raise AccessRefused(403, f"a form of {origin} was sent here")
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MAX_FORM:
            raise AccessRefused(413, f"a form may have {MAX_FORM} bytes")
    fields = parse_qs(body.decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=16)
    return {name: values[-1] for name, values in fields.items()}


def _redirect(address: str) -> RedirectResponse:
    return RedirectResponse(address, status_code=303)


def _welcome(request: Request, token: str, wanted: str) -> Response:
    response = _redirect(wanted)
    response.set_cookie(
        COOKIE,
        token,
        max_age=SESSION_S,
        httponly=True,
        samesite="lax",
        secure=request.url.scheme == "https",
        path="/",
    )
    return response
