"""cloud.yaml: every way it can be wrong is told with its path; `init` writes one that is right."""

from __future__ import annotations

import json
import ssl
from pathlib import Path

import pytest
import yaml

from cloud_sync import bootstrap, config
from cloud_sync.errors import CloudError, ConfigError

GOOD = {"version": 1, "data_dir": ".", "broker": {"username": "u", "password": "p"}}


def parse(folder: Path = Path("/nowhere"), **changes: object) -> config.Config:
    return config.parse(yaml.safe_dump(GOOD | changes), folder)


def test_little_is_needed() -> None:
    found = parse()
    assert found.database_url == "sqlite:////nowhere/cloud.db"
    assert found.url == "http://127.0.0.1:8080"
    assert (found.broker.port, found.broker.tls) == (8883, True)


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"version": 2}, "version"),
        ({"broker": {"username": "u"}}, "broker"),
        ({"brokr": {}}, "the top"),
        ({"listen": {"prot": 1}}, "listen"),
        ({"listen": {"port": 0}}, "listen.port"),
        ({"listen": {"port": "8080"}}, "listen.port"),
        ({"listen": {"host": "0.0.0.0"}}, "listen.host"),
        ({"listen": {"host": "192.168.1.5"}}, "listen.host"),
        ({"listen": {"host": "::"}}, "listen.host"),
        ({"listen": {"tls_cert": "a.pem"}}, "listen.tls_key"),
        ({"listen": {"tls_key": "a.pem"}}, "listen.tls_cert"),
        ({"public_url": "http://cloud.example"}, "public_url"),
        ({"public_url": "ftp://cloud.example"}, "public_url"),
        ({"public_url": "cloud.example"}, "public_url"),
        ({"broker": {"username": "u", "password": "p", "host": "10.0.0.1", "tls": False}}, "broker.host"),
        (
            {"broker": {"username": "u", "password": "p", "tls": False, "public_host": "b.example"}},
            "broker.public_host",
        ),
        ({"broker": {"username": "u", "password": "p", "control": "dynsec"}}, "broker.control"),
        ({"broker": {"username": "u", "password": "p", "control": "file"}}, "broker.control"),
        ({"broker": {"username": "u", "password": "p", "control": "acl"}}, "broker.control"),
        ({"broker": {"username": "u", "password": "${env:TECTUM_NOT_SET}"}}, "broker.password"),
        ({"broker": {"username": "u", "password": "${file:missing}"}}, "broker.password"),
        ({"site": "Not A Name"}, "site"),
        ({"blobs": {"file_mb": 0}}, "blobs.file_mb"),
        ({"ingest": {"dead_letters": -1}}, "ingest.dead_letters"),
        ({"notify": {"webhook": "file:///etc/passwd"}}, "notify.webhook"),
    ],
)
def test_what_is_wrong_is_told_with_its_path(changes: dict[str, object], path: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(**changes)
    assert caught.value.path == path


@pytest.mark.parametrize("text", ["", "[]", "a: [", "\x00", "1"])
def test_what_is_no_mapping_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        config.parse(text, Path())


def test_without_tls_it_says_what_to_do() -> None:
    with pytest.raises(ConfigError, match=r"cloud-sync init DIR --host NAME.*127\.0\.0\.1"):
        parse(listen={"host": "0.0.0.0"})


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_loopback_needs_no_tls(host: str) -> None:
    parse(listen={"host": host}, broker={"username": "u", "password": "p", "host": host, "tls": False})


def test_secrets_and_paths_are_read_beside_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "word").write_text("secret\n")
    monkeypatch.setenv("TECTUM_TEST_USER", "me")
    broker = {"username": "${env:TECTUM_TEST_USER}", "password": "${file:word}", "ca": "ca.pem"}
    found = parse(tmp_path, broker=broker, data_dir="data")
    assert (found.broker.username, found.broker.password) == ("me", "secret")
    assert (found.broker.ca, found.data_dir) == (tmp_path / "ca.pem", tmp_path / "data")


def test_a_file_that_is_missing_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cloud-sync init"):
        config.load(tmp_path / "cloud.yaml")


def test_the_schema_knows_every_key() -> None:
    schema = config.schema()
    assert set(schema["$defs"]["Config"]["properties"]) == set(config.Config.__struct_fields__)
    json.dumps(schema)


class TestInit:
    def test_on_loopback_it_is_plain_and_starts(self, tmp_path: Path) -> None:
        made = bootstrap.bootstrap(tmp_path / "new", "127.0.0.1", 8080, 1883)
        found = config.load(made[0])
        assert (found.url, found.broker.tls, found.broker.control) == ("http://127.0.0.1:8080", False, "dynsec")
        assert all(path.stat().st_mode & 0o077 == 0 for path in made)
        assert found.broker.password not in made[0].read_text()

    def test_for_a_name_it_makes_certificates_that_fit(self, tmp_path: Path) -> None:
        bootstrap.bootstrap(tmp_path, "cloud.example", 8443, 8883)
        found = config.load(tmp_path / "cloud.yaml")
        assert (found.url, found.listen.host, found.broker.tls) == ("https://cloud.example:8443", "0.0.0.0", True)
        assert found.listen.tls_cert is not None
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server.load_cert_chain(found.listen.tls_cert, found.listen.tls_key)
        for name, good in (("cloud.example", True), ("other.example", False)):
            assert _accepts(server, ssl.create_default_context(cafile=found.ca), name) is good
        assert _accepts(server, ssl.create_default_context(), "cloud.example") is False

    def test_for_an_address_the_certificate_holds_the_address(self, tmp_path: Path) -> None:
        bootstrap.bootstrap(tmp_path, "192.168.1.5", 8443, 8883)
        found = config.load(tmp_path / "cloud.yaml")
        assert found.listen.tls_cert is not None
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server.load_cert_chain(found.listen.tls_cert, found.listen.tls_key)
        assert _accepts(server, ssl.create_default_context(cafile=found.ca), "192.168.1.5")

    def test_for_the_demo_it_writes_a_users_file(self, tmp_path: Path) -> None:
        bootstrap.bootstrap(tmp_path, "127.0.0.1", 8080, 1883, demo=True)
        found = config.load(tmp_path / "cloud.yaml")
        users = json.loads((tmp_path / "broker-users.json").read_text())
        assert users == {found.broker.username: found.broker.password}
        assert found.broker.users_file == tmp_path / "broker-users.json"

    def test_the_demo_stays_on_loopback(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="loopback"):
            bootstrap.bootstrap(tmp_path, "cloud.example", 8080, 1883, demo=True)

    def test_it_never_replaces_an_installation(self, tmp_path: Path) -> None:
        bootstrap.bootstrap(tmp_path, "127.0.0.1", 8080, 1883)
        before = (tmp_path / "secrets" / "broker").read_text()
        with pytest.raises(CloudError, match="already"):
            bootstrap.bootstrap(tmp_path, "127.0.0.1", 8080, 1883)
        assert (tmp_path / "secrets" / "broker").read_text() == before

    def test_no_two_installations_share_a_secret(self, tmp_path: Path) -> None:
        for name in ("a", "b"):
            bootstrap.bootstrap(tmp_path / name, "127.0.0.1", 8080, 1883)
        secrets = [path.read_text() for path in tmp_path.glob("*/secrets/*")]
        assert len(set(secrets)) == 4

    def test_the_template_in_deploy_is_what_init_writes(self) -> None:
        template = Path(__file__).parents[3] / "deploy" / "mosquitto" / "mosquitto.conf"
        plugin = Path("/usr/lib/x86_64-linux-gnu/mosquitto_dynamic_security.so")
        written = bootstrap.mosquitto_conf(Path("/etc/tectum"), 8883, tls=True, plugin=plugin)
        assert template.read_text().endswith(written)

    @pytest.mark.needs("mosquitto")
    def test_the_plugin_is_the_one_of_this_machine(self) -> None:
        written = bootstrap.mosquitto_conf(Path("/etc/tectum"), 1883, tls=False)
        (plugin,) = (line.split()[1] for line in written.splitlines() if line.startswith("plugin "))
        assert Path(plugin).is_file()

    def test_the_plugin_of_an_arm_server_is_named_without_mosquitto(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(bootstrap.sysconfig, "get_config_var", lambda _: "aarch64-linux-gnu")
        monkeypatch.setattr(bootstrap.Path, "glob", lambda *_: iter(()))
        written = bootstrap.mosquitto_conf(Path("/etc/tectum"), 1883, tls=False)
        assert "plugin /usr/lib/aarch64-linux-gnu/mosquitto_dynamic_security.so\n" in written


def _accepts(server: ssl.SSLContext, client: ssl.SSLContext, name: str) -> bool:
    """Whether a client that trusts so comes to an agreement with a server that calls itself `name`."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = client.wrap_bio(to_client, to_server, server_hostname=name)
    theirs = server.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(4):
        for side in (ours, theirs):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLCertVerificationError:
                return False
    return ours.version() is not None
