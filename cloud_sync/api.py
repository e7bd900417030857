"""The REST API: `/v1/…`, described by OpenAPI. Every route says who may ask; one that does not fails start-up.

People come with the session cookie of a login, devices with the token of their enrolment.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.dependencies.models import Dependant
from fastapi.responses import FileResponse, JSONResponse
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect

from cloud_sync import fleet, review
from cloud_sync.accounts import COOKIE, SESSION_S, Accounts, Permission, Role, Viewer
from cloud_sync.blobs import Blobs
from cloud_sync.config import Config
from cloud_sync.enrol import device_of
from cloud_sync.errors import AccessRefused, BlobRefused, CloudError, NotFound, StoreBusy
from cloud_sync.store import Store

PIECE = 1 << 20  #: bytes of an upload written at a time
SILENT_S = 60.0  #: an upload that sends nothing for so long is ended; what came is kept
#: Metadata and targets as python-tuf names them with consistent snapshots; anything else is no file of ours.
TUF_METADATA = re.compile(r"(?:[1-9][0-9]{0,9}\.)?[a-z0-9](?:[a-z0-9_-]{0,94}[a-z0-9])?\.json")
TUF_TARGET = re.compile(
    r"bundles/[a-z0-9](?:[a-z0-9_-]{0,62}[a-z0-9])?/(?:[0-9a-f]{64}/[0-9a-f]{64}\.manifest|[0-9a-f]{64}\.current)\.json"
    r"|blobs/([0-9a-f]{64})\.\1"
)
_RANGE = re.compile(r"bytes (\d{1,15})-(\d{1,15})/(\d{1,15})")


@dataclass(frozen=True)
class Services:
    """What the routes work with."""

    config: Config
    store: Store
    accounts: Accounts
    blobs: Blobs
    now_ns: Callable[[], int] = time.time_ns


def services(request: Request) -> Services:
    """The services of the app that answers."""
    found: Services = request.app.state.services
    return found


class Needs:
    """Who may ask: a person whose role has the permission. Declares it, checks it, and gives the `Viewer`."""

    def __init__(self, permission: Permission, *, even_unchanged: bool = False) -> None:
        self.permission = permission
        self._even_unchanged = even_unchanged  # open to those who still have to choose a password

    def __call__(self, request: Request) -> Viewer:
        viewer = services(request).accounts.viewer(request.cookies.get(COOKIE))
        if viewer is None:
            raise AccessRefused(401, "log in first")
        if viewer.must_change and not self._even_unchanged:
            raise AccessRefused(403, "choose a password of your own first")
        if not viewer.may(self.permission):
            raise AccessRefused(403, f"the role {viewer.role} may not do this")
        return viewer


class NeedsDevice:
    """Who may ask: an enrolled device, by `Authorization: Bearer <token>`. Gives its name."""

    permission = "device"

    def __call__(self, request: Request) -> str:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        device = device_of(services(request).store, token.strip()) if scheme.lower() == "bearer" else None
        if device is None:
            raise AccessRefused(401, "no enrolled device has this token")
        return device


class Anybody:
    """Who may ask: anybody. Said out loud, so that forgetting it is not the same."""

    permission = "public"

    def __call__(self) -> None:
        return


Ready = Annotated[Services, Depends(services)]
Watching = Annotated[Viewer, Depends(Needs("view"))]
Judging = Annotated[Viewer, Depends(Needs("judge"))]
Ruling = Annotated[Viewer, Depends(Needs("admin"))]
Myself = Annotated[Viewer, Depends(Needs("view", even_unchanged=True))]
FromDevice = Annotated[str, Depends(NeedsDevice())]
OpenToAll = Depends(Anybody())

router = APIRouter(prefix="/v1")


@dataclass(frozen=True)
class AlertList:
    """A page of alerts."""

    alerts: list[review.AlertRow]
    latest_change: int  #: pass as `after_change` to follow what happens from here on
    next: str | None  #: pass as `before` for older ones; None: there are none


@dataclass(frozen=True)
class Judgement:
    """What a person says of an alert."""

    verdict: Literal["real", "false", "unsure"]
    note: str = ""


@dataclass(frozen=True)
class Credentials:
    """A login."""

    name: str
    password: str


@dataclass(frozen=True)
class NewPassword:
    """One's own password, changed."""

    old: str
    new: str


@dataclass(frozen=True)
class NewUser:
    """A user to be made. `sites` None: every site."""

    name: str
    role: Role
    sites: list[str] | None = None


@dataclass(frozen=True)
class Me:
    """Who is logged in."""

    name: str
    role: str
    sites: list[str] | None
    must_change: bool


@router.get("/health", dependencies=[OpenToAll])
def health(ready: Ready) -> dict[str, str]:
    """`ok` if the database answers, else 503. Says nothing else, for anybody may ask."""
    with ready.store.read() as session:
        review.latest_change(session)
    return {"status": "ok"}


@router.get("/alerts")
def list_alerts(
    *,
    ready: Ready,
    viewer: Watching,
    filters: Annotated[review.Filters, Depends()],
    after_change: Annotated[int | None, Query(ge=0, le=2**63 - 1)] = None,
    before: Annotated[str | None, Query(max_length=80)] = None,
    limit: Annotated[int, Query(ge=1, le=review.MAX_LIMIT)] = 50,
) -> AlertList:
    """Alerts, newest first, or with `after_change` those written since, in that order."""
    with ready.store.read() as session:
        latest = review.latest_change(session)
        found = review.alerts(session, viewer, after_change=after_change, before=before, limit=limit, filters=filters)
    full = len(found) == limit and after_change is None
    return AlertList(found, latest, found[-1].cursor if full else None)


@router.get("/alerts/{id}")
def show_alert(ready: Ready, viewer: Watching, id: str) -> review.AlertDetail:
    """One alert with everything that belongs to it."""
    with ready.store.read() as session:
        return review.alert(session, viewer, id)


@router.post("/alerts/{id}/verdict", status_code=201)
def judge(ready: Ready, viewer: Judging, id: str, judgement: Annotated[Judgement, Body()]) -> review.VerdictView:
    """Say whether an alert was real."""
    with ready.store.write() as session:
        return review.give_verdict(session, viewer, id, judgement.verdict, now_ns=ready.now_ns(), note=judgement.note)


@router.get("/alerts/{id}/evidence/{role}", response_class=FileResponse)
def show_evidence(ready: Ready, viewer: Watching, id: str, role: str) -> FileResponse:
    """Clip, snapshot, trace or spectrogram of an alert; `Range` is understood."""
    with ready.store.read() as session:
        file = review.evidence(session, viewer, id, role)
    suffix = {"video/mp4": "mp4", "image/jpeg": "jpg", "image/png": "png", "application/json": "json"}
    return FileResponse(
        ready.blobs.path(file.sha256),
        media_type=file.media_type,
        filename=f"{id}-{role}.{suffix.get(file.media_type, 'bin')}",
        content_disposition_type="inline",
        headers={"Cache-Control": "private, max-age=86400, immutable", "ETag": f'"{file.sha256}"'},
    )


@router.get("/devices")
def list_devices(ready: Ready, viewer: Watching) -> list[fleet.DeviceView]:
    """Devices and how they are."""
    with ready.store.read() as session:
        return fleet.devices(session, viewer, ready.now_ns())


@router.head("/blobs/{sha256}")
def ask_blob(ready: Ready, device: FromDevice, sha256: str) -> Response:
    """200: the file is here. 308: `Upload-Offset` bytes of it are. 404: nothing is."""
    held = ready.blobs.held(device, sha256)
    status = 200 if held.whole else 308 if held.offset else 404
    return Response(status_code=status, headers={"Upload-Offset": str(held.offset)})


@router.put("/blobs/{sha256}")
async def put_blob(request: Request, ready: Ready, device: FromDevice, sha256: str) -> Response:
    """Hand over a file, or the rest of it with `Content-Range: bytes a-b/n`.

    201: it is whole and hashes to its name. 308: `Upload-Offset` bytes are here. 409: continue from `Upload-Offset`.
    413: too large. 422: the bytes were others; start again. 507: no room now.
    """
    first, total = _announced(request)
    upload = await run_in_threadpool(ready.blobs.begin, device, sha256, first, total)
    if upload is None:
        return Response(status_code=201, headers={"Upload-Offset": str(total)})
    try:
        await _write(request, upload.write)
        held = await run_in_threadpool(upload.finish)
    finally:
        upload.close()
    return Response(status_code=201 if held.whole else 308, headers={"Upload-Offset": str(held.offset)})


@router.get("/tuf/metadata/{name}", response_class=FileResponse)
def tuf_metadata(ready: Ready, _device: FromDevice, name: str) -> FileResponse:
    """Signed metadata of the update repository."""
    return _tuf_file(ready.config.tuf_dir / "metadata", name, TUF_METADATA, "application/json")


@router.get("/tuf/targets/{path:path}", response_class=FileResponse)
def tuf_target(ready: Ready, _device: FromDevice, path: str) -> FileResponse:
    """A file of a signed release; `Range` is understood."""
    return _tuf_file(ready.config.tuf_dir / "targets", path, TUF_TARGET, "application/octet-stream")


@router.post("/session", dependencies=[OpenToAll])
def log_in(request: Request, ready: Ready, response: Response, who: Annotated[Credentials, Body()]) -> Me:
    """Log in; the answer sets the session cookie."""
    token = ready.accounts.login(who.name, who.password, request.client.host if request.client else "")
    response.set_cookie(
        COOKIE, token, max_age=SESSION_S, httponly=True, samesite="strict", secure=request.url.scheme == "https"
    )
    return _me(ready.accounts.viewer(token))


@router.get("/session")
def who_am_i(viewer: Myself) -> Me:
    """Who is logged in."""
    return _me(viewer)


@router.delete("/session", status_code=204)
def log_out(request: Request, ready: Ready, _viewer: Myself, response: Response) -> None:
    """Log out."""
    ready.accounts.logout(request.cookies.get(COOKIE, ""))
    response.delete_cookie(COOKIE)


@router.post("/password", status_code=204)
def change_password(ready: Ready, viewer: Myself, change: Annotated[NewPassword, Body()]) -> None:
    """Change one's own password; every login of it ends."""
    ready.accounts.set_password(viewer.name, change.old, change.new)


@router.get("/users")
def list_users(ready: Ready, _viewer: Ruling) -> list[Me]:
    """Everyone."""
    return [_me(user) for user in ready.accounts.users()]


@router.post("/users", status_code=201)
def add_user(ready: Ready, viewer: Ruling, user: Annotated[NewUser, Body()]) -> dict[str, str]:
    """Make a user; the answer holds the password, shown this once."""
    sites = None if user.sites is None else tuple(user.sites)
    return {"name": user.name, "password": ready.accounts.add(user.name, user.role, sites, actor=viewer.name)}


@router.delete("/users/{name}", status_code=204)
def remove_user(ready: Ready, viewer: Ruling, name: str) -> None:
    """Delete a user and end the user's logins."""
    ready.accounts.remove(name, actor=viewer.name)


@router.get("/openapi.json", include_in_schema=False)
def openapi(request: Request, _viewer: Watching) -> dict[str, Any]:
    """This API, described."""
    described: dict[str, Any] = request.app.openapi()
    return described


# Last of all: nothing below /v1 falls through to what is mounted at the root.
@router.api_route("/{path:path}", methods=["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"], include_in_schema=False)
def unknown(_viewer: Watching, path: str) -> None:
    """There is no such route."""
    raise NotFound(f"there is no /v1/{path}")


def permission_of(route: APIRoute) -> str:
    """What a route declares; CloudError if it declares nothing."""
    for call in _calls(route.dependant):
        if isinstance(call, Needs | NeedsDevice | Anybody):
            return call.permission
    raise CloudError(f"{route.methods} {route.path} does not say who may ask: add Needs, NeedsDevice or Anybody")


def add_errors(app: FastAPI) -> None:
    """Our errors as HTTP answers."""

    def answer(status: int) -> Callable[[Request, Exception], JSONResponse]:
        return lambda _request, error: JSONResponse({"detail": str(error)}, status)

    def refused(_request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, AccessRefused)
        headers = {"Retry-After": str(error.retry_s)} if error.retry_s else {}
        return JSONResponse({"detail": str(error)}, error.status, headers)

    def blob_refused(_request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, BlobRefused)
        headers = {} if error.offset is None else {"Upload-Offset": str(error.offset)}
        return JSONResponse({"detail": str(error)}, error.status, headers)

    def busy(_request: Request, _error: Exception) -> JSONResponse:
        return JSONResponse({"detail": "the database is busy; try again"}, 503, {"Retry-After": "1"})

    app.add_exception_handler(CloudError, answer(400))
    app.add_exception_handler(NotFound, answer(404))
    app.add_exception_handler(AccessRefused, refused)
    app.add_exception_handler(BlobRefused, blob_refused)
    app.add_exception_handler(StoreBusy, busy)


def _calls(dependant: Dependant) -> Iterator[Any]:
    for inner in dependant.dependencies:
        yield inner.call
        yield from _calls(inner)


def _announced(request: Request) -> tuple[int, int]:
    """First byte and size of the whole file that an upload speaks of."""
    given = request.headers.get("content-range")
    if given is None:
        length = request.headers.get("content-length", "")
        if not length.isascii() or not length.isdigit():
            raise BlobRefused(411, "say Content-Length, or Content-Range: bytes a-b/n")
        return 0, int(length)
    match = _RANGE.fullmatch(given)
    if match is None:
        raise BlobRefused(400, f"Content-Range {given[:80]!r} is not `bytes a-b/n`")
    first, last, total = (int(text) for text in match.groups())
    if not first <= last < total:
        raise BlobRefused(400, f"Content-Range {given!r} is not within its file")
    return first, total


async def _write(request: Request, write: Callable[[bytes], None]) -> None:
    """The body, a piece at a time. What came before a disconnect is kept; the sender continues from there."""
    waiting = bytearray()
    body = request.stream()
    try:
        while data := await asyncio.wait_for(anext(body, b""), SILENT_S):
            waiting += data
            if len(waiting) >= PIECE:
                await run_in_threadpool(write, bytes(waiting))
                waiting.clear()
    except (ClientDisconnect, asyncio.TimeoutError) as error:
        if waiting:
            await run_in_threadpool(write, bytes(waiting))
        raise HTTPException(408, "the upload broke off; ask with HEAD how far it came") from error
    if waiting:
        await run_in_threadpool(write, bytes(waiting))


def _tuf_file(folder: Path, name: str, pattern: re.Pattern[str], media_type: str) -> FileResponse:
    if not pattern.fullmatch(name) or not (folder / name).is_file():
        raise NotFound("there is no such file")
    # Metadata without a version in its name changes in place: nothing between us and the device may remember it.
    return FileResponse(folder / name, media_type=media_type, headers={"Cache-Control": "no-cache"})


def _me(viewer: Viewer | None) -> Me:
    if viewer is None:
        raise AccessRefused(401, "the login has ended")
    sites = None if viewer.sites is None else sorted(viewer.sites)
    return Me(viewer.name, viewer.role, sites, viewer.must_change)
