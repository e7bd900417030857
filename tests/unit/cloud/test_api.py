"""The API: who may ask what, and what the answers are."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import sqlalchemy as sa
from fastapi import FastAPI
from fastapi.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from cloud_sync import api, app
from cloud_sync.accounts import COOKIE, Accounts, Role
from cloud_sync.blobs import Blobs
from cloud_sync.config import Config, IngestConfig, parse
from cloud_sync.errors import CloudError
from cloud_sync.ingest import Intake, read
from cloud_sync.store import Store
from cloud_sync.store.tables import Device
from tests.parts.cloud import CHEAP, add_devices, delivery, event, event_id, evidence, message

CLIP = bytes(range(256)) * 100
SHA = hashlib.sha256(CLIP).hexdigest()
CAM = {"Authorization": "Bearer token-cam"}


@dataclass
class Cloud:
    """The web application on a store, and people who come to it."""

    app: FastAPI
    services: api.Services

    def visitor(self, **headers: str) -> TestClient:
        return TestClient(self.app, headers=headers, raise_server_exceptions=False)

    def person(self, role: Role, sites: tuple[str, ...] | None = None, *, fresh: bool = False) -> TestClient:
        name = f"{role}{'-'.join(sites) if sites is not None else ''}{'-fresh' if fresh else ''}"
        password = self.services.accounts.add(name, role, sites)
        if not fresh:
            self.services.accounts.set_password(name, password, "a good password")
            password = "a good password"
        return TestClient(
            self.app, cookies={COOKIE: self.services.accounts.login(name, password)}, raise_server_exceptions=False
        )

    def take(self, *bodies: object, device: str = "cam", site: str = "home", of: int = 1, start: int = 1) -> None:
        for seq, body in enumerate(bodies, start=start):
            pieces = read(delivery(message(seq, body, device=device, of=of), device=device, site=site))  # type: ignore[arg-type]
            Intake(self.services.store, IngestConfig()).take(pieces)


def make(folder: Path, store: Store) -> Cloud:
    config: Config = parse("version: 1\ndata_dir: data\nbroker: {username: u, password: p}", folder)
    services = api.Services(config, store, Accounts(store, hasher=CHEAP), Blobs(config.blob_dir, store))
    return Cloud(app.build(services, dashboard=False), services)


@pytest.fixture
def cloud(tmp_path: Path, store: Store) -> Cloud:
    """Alert 1 of site home with a stored clip, alert 2 of site north."""
    add_devices(store, "cam", "other")
    add_devices(store, "far", site="north")
    made = make(tmp_path, store)
    made.take(event(), evidence(SHA, len(CLIP)))
    made.take(event(), device="far", site="north", of=2)
    assert made.visitor().put(f"/v1/blobs/{SHA}", content=CLIP, headers=CAM).status_code == 201
    return made


def routes() -> Iterator[tuple[str, str, str]]:
    """Method, path with plausible values, permission."""
    values = {"{id}": event_id(1), "{role}": "clip", "{sha256}": SHA, "{name}": "root.json", "{path:path}": "x"}
    plain = FastAPI()
    plain.router.routes[:] = api.router.routes
    for (method, path), permission in app.check_permissions(plain).items():
        asked = path
        for name, value in values.items():
            asked = asked.replace(name, value)
        yield method, asked, permission


ROUTES = sorted(routes())


class TestPermissions:
    def test_there_are_routes_of_every_kind(self) -> None:
        assert {permission for _, _, permission in ROUTES} == {"public", "device", "view", "judge", "admin"}
        assert {path for _, path, permission in ROUTES if permission == "public"} == {"/v1/health", "/v1/session"}

    def test_a_route_that_does_not_say_who_may_ask_fails_the_start(self) -> None:
        forgetful = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
        forgetful.router.routes.extend(api.router.routes)
        forgetful.get("/v1/secret")(lambda: "secret")
        with pytest.raises(CloudError, match="/v1/secret does not say who may ask"):
            app.check_permissions(forgetful)

    def test_a_route_that_cannot_say_it_fails_the_start(self) -> None:
        with pytest.raises(CloudError, match="cannot say"):
            app.check_permissions(FastAPI())  # brings /docs

    @pytest.mark.parametrize(("method", "path", "permission"), ROUTES)
    def test_without_credentials_there_is_nothing(
        self, cloud: Cloud, method: str, path: str, permission: str
    ) -> None:
        for headers in ({}, {"Authorization": "Bearer nonsense"}, {"Cookie": f"{COOKIE}=nonsense"}):
            answer = cloud.visitor(**headers).request(method, path)
            if permission != "public":
                assert answer.status_code == 401
            assert "fire" not in answer.text

    @pytest.mark.parametrize("who", ["viewer", "operator", "admin", "device", "revoked", "fresh"])
    def test_each_may_ask_what_is_theirs(self, cloud: Cloud, store: Store, who: str) -> None:
        allowed = {
            "viewer": {"view"},
            "operator": {"view", "judge"},
            "admin": {"view", "judge", "admin"},
            "device": {"device"},
            "revoked": set(),
            "fresh": set(),
        }[who]
        if who in ("device", "revoked"):
            client = cloud.visitor(**CAM)
        else:
            client = cloud.person("admin" if who == "fresh" else who, fresh=who == "fresh")  # type: ignore[arg-type]
        if who == "revoked":
            with store.write() as session:
                session.execute(sa.update(Device).values(revoked_ns=1))
        own = {"/v1/session", "/v1/password"}  # one's own login, open to those who must change a password too
        for method, path, permission in ROUTES:
            if permission == "public" or (method == "DELETE" and path == "/v1/session"):
                continue
            status = client.request(method, path).status_code
            expected = permission in allowed or (path in own and who in ("viewer", "operator", "admin", "fresh"))
            assert (status not in (401, 403)) == expected, f"{who}: {method} {path} gave {status}"

    def test_sites_are_apart_in_every_request(self, cloud: Cloud) -> None:
        home, north, nowhere = (cloud.person("admin", sites) for sites in (("home",), ("north",), ()))
        paths = {1: [f"/v1/alerts/{event_id(1)}", f"/v1/alerts/{event_id(1)}/evidence/clip"]}
        for client, seen in ((home, 1), (north, 2), (nowhere, 0)):
            ids = [row["id"] for row in client.get("/v1/alerts").json()["alerts"]]
            assert ids == ([event_id(seen)] if seen else [])
            for path in paths[1]:
                assert client.get(path).status_code == (200 if seen == 1 else 404)
            verdict = client.post(f"/v1/alerts/{event_id(1)}/verdict", json={"verdict": "real"})
            assert verdict.status_code == (201 if seen == 1 else 404)
            names = {device["name"] for device in client.get("/v1/devices").json()}
            assert names == {1: {"cam", "other"}, 2: {"far"}, 0: set()}[seen]
        assert home.get("/v1/alerts?site=north").json()["alerts"] == []


class TestForgery:
    @pytest.mark.parametrize(
        "headers",
        [
            {"Origin": "https://evil.example"},
            {"Origin": "null"},
            {"Origin": "http://testserver.evil.example"},
            {"Origin": "http://testserver:81"},
            {"Sec-Fetch-Site": "cross-site"},
            {"Sec-Fetch-Site": "same-site"},
        ],
    )
    def test_another_site_cannot_make_a_browser_ask(self, cloud: Cloud, headers: dict[str, str]) -> None:
        client = cloud.person("operator")
        answer = client.post(f"/v1/alerts/{event_id(1)}/verdict", json={"verdict": "false"}, headers=headers)
        assert answer.status_code == 403
        assert client.get(f"/v1/alerts/{event_id(1)}").json()["verdicts"] == []

    @pytest.mark.parametrize("headers", [{}, {"Origin": "http://testserver"}, {"Sec-Fetch-Site": "same-origin"}])
    def test_our_own_pages_and_programs_can(self, cloud: Cloud, headers: dict[str, str]) -> None:
        answer = cloud.person("operator").post(
            f"/v1/alerts/{event_id(1)}/verdict", json={"verdict": "false"}, headers=headers
        )
        assert answer.status_code == 201

    def test_a_websocket_of_another_site_is_closed(self, cloud: Cloud) -> None:
        client = cloud.person("admin")
        socket = client.websocket_connect("/_nicegui_ws/socket.io", headers={"Origin": "https://evil.example"})
        with pytest.raises(WebSocketDisconnect) as caught, socket:
            pass
        assert caught.value.code == 1008

    def test_the_cookie_is_kept_from_scripts_and_other_sites(self, cloud: Cloud) -> None:
        cloud.services.accounts.add("ann", "viewer")
        password = cloud.services.accounts.reset_password("ann")
        answer = cloud.visitor().post("/v1/session", json={"name": "ann", "password": password})
        cookie = answer.headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=strict" in cookie
        secure = TestClient(cloud.app, base_url="https://testserver").post(
            "/v1/session", json={"name": "ann", "password": password}
        )
        assert "secure" in secure.headers["set-cookie"].lower()
        assert "max-age" in secure.headers["strict-transport-security"]


class TestGate:
    def test_outside_of_the_api_nothing_is_seen_without_a_login(self, cloud: Cloud) -> None:
        cloud.app.get("/forgetful", include_in_schema=False)(lambda: "secret")
        stranger = cloud.visitor()
        assert stranger.get("/forgetful").status_code == 401
        page = stranger.get("/forgetful", headers={"Accept": "text/html"}, follow_redirects=False)
        assert (page.status_code, page.headers["location"]) == (303, "/login?next=%2Fforgetful")
        assert cloud.person("viewer").get("/forgetful").text == '"secret"'

    @pytest.mark.parametrize("path", ["/v1/health", "/v1/alerts", "/nothing"])
    def test_answers_say_what_a_browser_may_do(self, cloud: Cloud, path: str) -> None:
        headers = cloud.visitor().get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert headers["referrer-policy"] == "same-origin"
        if path.startswith("/v1/"):
            assert headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'; sandbox"
            assert headers["cache-control"] == "no-store"

    def test_a_request_that_is_too_large_is_refused(self, cloud: Cloud) -> None:
        stranger = cloud.visitor()
        assert stranger.post("/v1/session", content=b"x" * 70_000).status_code == 413
        pieces = (b"x" * 1000 for _ in range(100))
        assert stranger.post("/v1/session", content=pieces).status_code in (400, 413, 422)

    def test_an_address_with_nul_is_refused(self, cloud: Cloud) -> None:
        client = cloud.person("viewer")
        assert client.get("/v1/alerts?label=a%00b").status_code == 400
        assert client.get("/v1/alerts/%00").status_code == 400


class TestAlerts:
    def test_they_are_listed_and_followed(self, cloud: Cloud) -> None:
        client = cloud.person("viewer")
        page = client.get("/v1/alerts", params={"limit": 1}).json()
        assert [row["id"] for row in page["alerts"]] == [event_id(2)]
        older = client.get("/v1/alerts", params={"limit": 1, "before": page["next"]}).json()
        assert [row["id"] for row in older["alerts"]] == [event_id(1)]
        last = client.get("/v1/alerts", params={"before": older["next"]}).json()
        assert (last["alerts"], last["next"]) == ([], None)
        cloud.take(event("end", 2), start=9)
        news = client.get("/v1/alerts", params={"after_change": page["latest_change"]}).json()["alerts"]
        assert [(row["id"], row["phase"], row["evidence"]) for row in news] == [(event_id(1), "end", ["clip"])]

    @pytest.mark.parametrize(
        "query",
        [
            "limit=0", "limit=201", "limit=x", "after_change=-1", f"after_change={2**64}", "before=x",
            "before=" + "9" * 99, "verdict=maybe", "open=perhaps", "since_ns=x",
        ],
    )  # fmt: skip
    def test_what_makes_no_sense_is_told(self, cloud: Cloud, query: str) -> None:
        assert cloud.person("viewer").get(f"/v1/alerts?{query}").status_code in (400, 422)

    @pytest.mark.parametrize("query", [f"since_ns={10**40}", f"until_ns=-{10**40}", "label=%F0%9F%94%A5", "scene='"])
    def test_what_is_odd_finds_nothing(self, cloud: Cloud, query: str) -> None:
        answer = cloud.person("viewer").get(f"/v1/alerts?{query}")
        assert (answer.status_code, answer.json()["alerts"]) == (200, [])

    def test_one_is_shown_and_judged(self, cloud: Cloud) -> None:
        client = cloud.person("operator")
        given = client.post(f"/v1/alerts/{event_id(1)}/verdict", json={"verdict": "false", "note": "a cat"})
        assert (given.status_code, given.json()["verdict"]) == (201, "false")
        shown = client.get(f"/v1/alerts/{event_id(1)}").json()
        assert (shown["row"]["verdict"], shown["verdicts"][0]["note"]) == ("false", "a cat")
        assert shown["points"] == [[100, 0.8]]

    @pytest.mark.parametrize("body", [{}, {"verdict": "maybe"}, {"verdict": "real", "note": "x" * 3000}, [], "x"])
    def test_a_verdict_that_is_none_is_refused(self, cloud: Cloud, body: object) -> None:
        answer = cloud.person("operator").post(f"/v1/alerts/{event_id(1)}/verdict", json=body)
        assert answer.status_code in (400, 422)


class TestEvidence:
    PATH = f"/v1/alerts/{event_id(1)}/evidence/clip"

    def test_a_clip_is_played_whole_and_in_ranges(self, cloud: Cloud) -> None:
        client = cloud.person("viewer")
        whole = client.get(self.PATH)
        assert (whole.content, whole.headers["content-type"]) == (CLIP, "video/mp4")
        assert whole.headers["accept-ranges"] == "bytes"
        assert whole.headers["content-disposition"].startswith("inline")
        part = client.get(self.PATH, headers={"Range": "bytes=1000-1999"})
        assert (part.status_code, part.content) == (206, CLIP[1000:2000])
        assert part.headers["content-range"] == f"bytes 1000-1999/{len(CLIP)}"
        tail = client.get(self.PATH, headers={"Range": "bytes=-10"})
        assert (tail.status_code, tail.content) == (206, CLIP[-10:])
        assert client.get(self.PATH, headers={"Range": f"bytes={10**9}-"}).status_code == 416

    @pytest.mark.parametrize("role", ["snapshot", "nonsense", "clip%2f..", "%2e%2e"])
    def test_what_is_not_here_is_not_found(self, cloud: Cloud, role: str) -> None:
        answer = cloud.person("viewer").get(f"/v1/alerts/{event_id(1)}/evidence/{role}")
        assert answer.status_code == 404


class TestUploads:
    def test_it_is_taken_in_parts(self, cloud: Cloud) -> None:
        cam = cloud.visitor(**CAM)
        data = b"0123456789" * 1000
        path = f"/v1/blobs/{hashlib.sha256(data).hexdigest()}"
        assert cam.head(path).status_code == 404
        first = cam.put(path, content=data[:4000], headers={"Content-Range": f"bytes 0-3999/{len(data)}"})
        assert (first.status_code, first.headers["upload-offset"]) == (308, "4000")
        asked = cam.head(path)
        assert (asked.status_code, asked.headers["upload-offset"]) == (308, "4000")
        wrong = cam.put(path, content=data, headers={"Content-Range": f"bytes 0-9999/{len(data)}"})
        assert (wrong.status_code, wrong.headers["upload-offset"]) == (409, "4000")
        rest = cam.put(path, content=data[4000:], headers={"Content-Range": f"bytes 4000-9999/{len(data)}"})
        assert rest.status_code == 201
        assert cam.head(path).status_code == 200
        assert cam.put(path, content=data).status_code == 201

    def test_wrong_bytes_are_refused(self, cloud: Cloud) -> None:
        answer = cloud.visitor(**CAM).put(f"/v1/blobs/{'a' * 64}", content=b"x")
        assert (answer.status_code, answer.headers["upload-offset"]) == (422, "0")

    @pytest.mark.parametrize(
        ("headers", "status"),
        [
            ({"Content-Range": "bytes 0-9/*"}, 400),
            ({"Content-Range": "bytes 5-2/10"}, 400),
            ({"Content-Range": "bytes 0-10/10"}, 400),
            ({"Content-Range": f"bytes 0-9/{10**14}"}, 413),
            ({"Content-Range": "items 0-9/10"}, 400),
            ({"Content-Range": "bytes 0-9/10", "Authorization": "Basic token-cam"}, 401),
            ({"Content-Range": "bytes 0-9/10", "Authorization": "Bearer"}, 401),
        ],
    )
    def test_what_makes_no_sense_is_refused(self, cloud: Cloud, headers: dict[str, str], status: int) -> None:
        answer = cloud.visitor().put(f"/v1/blobs/{'a' * 64}", content=b"0123456789", headers={**CAM, **headers})
        assert answer.status_code == status

    def test_without_a_length_it_is_refused(self, cloud: Cloud) -> None:
        answer = cloud.visitor(**CAM).put(f"/v1/blobs/{'a' * 64}", content=(b"x" for _ in range(3)))
        assert answer.status_code == 411


class TestUpdates:
    @pytest.fixture
    def folder(self, cloud: Cloud) -> Path:
        folder = cloud.services.config.tuf_dir
        files = (
            "metadata/timestamp.json",
            "metadata/1.root.json",
            "metadata/3.models-tectum-default.json",
            f"targets/blobs/{SHA}.{SHA}",
            f"targets/bundles/tectum-default/{SHA}/{SHA}.manifest.json",
            f"targets/bundles/tectum-default/{SHA}.current.json",
        )
        for name in files:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(name.encode())
        (folder / "metadata" / ".timestamp.json.part").write_text("half")
        return folder

    def test_a_device_gets_what_is_signed(self, cloud: Cloud, folder: Path) -> None:
        cam = cloud.visitor(**CAM)
        names = [
            str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.suffix != ".part"
        ]
        assert len(names) == 6
        for name in names:
            answer = cam.get(f"/v1/tuf/{name}")
            assert (answer.status_code, answer.content) == (200, name.encode())
            assert answer.headers["cache-control"] == "no-cache"
        part = cam.get(f"/v1/tuf/{names[0]}", headers={"Range": "bytes=1-3"})
        assert (part.status_code, part.content) == (206, names[0].encode()[1:4])

    @pytest.mark.parametrize(
        "name",
        [
            "metadata/.timestamp.json.part", "metadata/nothing.json", "metadata/../../cloud.db", "targets/blobs/x",
            "metadata/%2e%2e%2f%2e%2e%2fcloud.db", f"targets/blobs/{SHA}.{'0' * 64}", "targets/", "targets/bundles/",
            "targets/bundles/../blobs/" + SHA, "keys/root-1.pem", "targets/../keys/root-1.pem",
        ],
    )  # fmt: skip
    def test_and_nothing_else(self, cloud: Cloud, folder: Path, name: str) -> None:
        assert cloud.visitor(**CAM).get(f"/v1/tuf/{name}").status_code in (401, 404)

    def test_people_have_no_business_there(self, cloud: Cloud, folder: Path) -> None:
        assert cloud.person("admin").get("/v1/tuf/metadata/timestamp.json").status_code == 401


class TestPeople:
    def test_a_new_user_logs_in_chooses_a_password_and_looks(self, cloud: Cloud) -> None:
        admin = cloud.person("admin")
        made = admin.post("/v1/users", json={"name": "ann", "role": "viewer", "sites": ["home"]})
        assert made.status_code == 201
        ann = cloud.visitor()
        me = ann.post("/v1/session", json={"name": "ann", "password": made.json()["password"]}).json()
        assert me == {"name": "ann", "role": "viewer", "sites": ["home"], "must_change": True}
        assert ann.get("/v1/alerts").status_code == 403
        change = {"old": made.json()["password"], "new": "a good password"}
        assert ann.post("/v1/password", json=change).status_code == 204
        assert ann.get("/v1/session").status_code == 401
        assert ann.post("/v1/session", json={"name": "ann", "password": "a good password"}).status_code == 200
        assert len(ann.get("/v1/alerts").json()["alerts"]) == 1
        assert ann.delete("/v1/session").status_code == 204
        assert ann.get("/v1/alerts").status_code == 401
        assert admin.delete("/v1/users/ann").status_code == 204
        assert admin.delete("/v1/users/ann").status_code == 404

    def test_too_many_wrong_passwords_have_to_wait(self, cloud: Cloud) -> None:
        stranger = cloud.visitor()
        answers = [stranger.post("/v1/session", json={"name": "x", "password": "y"}) for _ in range(6)]
        assert [answer.status_code for answer in answers] == [401] * 5 + [429]
        assert int(answers[-1].headers["retry-after"]) > 0


def test_a_busy_database_is_told_as_such(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    client = cloud.person("viewer")
    cloud.services.store.engine.dispose()
    path = str(cloud.services.store.engine.url.database)
    Path(path).rename(path + ".away")
    Path(path).mkdir()
    answer = client.get("/v1/alerts")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert cloud.visitor().get("/v1/health").status_code == 503
    Path(path).rmdir()
    Path(path + ".away").rename(path)
    assert cloud.visitor().get("/v1/health").json() == {"status": "ok"}


def test_the_api_is_described(cloud: Cloud) -> None:
    described = cloud.person("viewer").get("/v1/openapi.json").json()
    paths = set(described["paths"])
    assert {"/v1/alerts", "/v1/alerts/{id}", "/v1/blobs/{sha256}", "/v1/devices"} <= paths
    for path, method in itertools.product(paths, ("get", "put", "post", "delete")):
        operation = described["paths"][path].get(method)
        assert operation is None or operation["description"]
