"""`cloud-sync init`: a folder with everything a new installation needs, secrets generated, nothing to be replaced.

On loopback: a plain listener. For a name that others reach: a CA of this installation and a certificate from it, for
people, devices and the broker alike. For Mosquitto: its configuration and the first state of its dynamic security.
"""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import ipaddress
import json
import os
import platform
import secrets
import sysconfig
from pathlib import Path
from typing import Any

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from cloud_sync.errors import CloudError, ConfigError
from edge_agent.contract import topics
from edge_agent.contract.identity import is_loopback

CA_DAYS = 3650
CERTIFICATE_DAYS = 825  #: the longest that browsers take from any CA
INGEST_USER = "tectum-cloud"
CONTROL_USER = "tectum-control"
#: Mosquitto 2.0 takes any count from the file; its own default of 101 would do for secrets of 256 bits.
_ITERATIONS = 10_000
_STATE = f"{topics.ROOT}/+/+/up/state"


def bootstrap(folder: Path, host: str, port: int, broker_port: int, *, demo: bool = False) -> list[Path]:
    """Write an installation into `folder` and return its files, cloud.yaml first. CloudError if there is one.

    host         what people and devices call this machine; not loopback: TLS, for the broker too
    broker_port  of the MQTT broker on the same machine
    demo         an embedded broker that knows users alone, on loopback alone; else Mosquitto
    """
    if demo and not is_loopback(host):
        raise ConfigError("the embedded broker of the demo is for loopback alone", "--host")
    if (folder / "cloud.yaml").exists():
        raise CloudError(f"{folder / 'cloud.yaml'} is there already; nothing was changed")
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    tls = not is_loopback(host)
    password, control = secrets.token_urlsafe(32), secrets.token_urlsafe(32)
    made: dict[str, str] = {"secrets/broker": password}
    broker: dict[str, Any] = {
        "host": host,
        "port": broker_port,
        "username": INGEST_USER,
        "password": "${file:secrets/broker}",
        "tls": tls,
    }
    if demo:
        broker |= {"control": "file", "users_file": "broker-users.json"}
        made["broker-users.json"] = json.dumps({INGEST_USER: password})
    else:
        broker |= {
            "control": "dynsec",
            "control_username": CONTROL_USER,
            "control_password": "${file:secrets/broker-control}",
        }
        made["secrets/broker-control"] = control
        made["mosquitto/dynamic-security.json"] = json.dumps(dynamic_security(password, control), indent=1)
        made["mosquitto/mosquitto.conf"] = mosquitto_conf(folder.resolve(), broker_port, tls=tls)
    config: dict[str, Any] = {"version": 1, "data_dir": "data", "listen": {"host": host, "port": port}}
    if tls:
        made |= certificates(host)
        broker["ca"] = "tls/ca.pem"
        config |= {
            "ca": "tls/ca.pem",
            "public_url": f"https://{host}:{port}",
            "listen": {"host": "0.0.0.0", "port": port, "tls_cert": "tls/server.pem", "tls_key": "tls/server.key"},
        }
    made["cloud.yaml"] = msgspec.yaml.encode(config | {"broker": broker}).decode()
    # cloud.yaml comes last: while it is missing, init can be run again.
    return [_write(folder / name, text) for name, text in made.items()][::-1]


def mosquitto_conf(folder: Path, port: int, *, tls: bool, plugin: Path | None = None) -> str:
    """Mosquitto's configuration for an installation in `folder`; `plugin` None: where this machine has it."""
    listener = f"listener {port}" if tls else f"listener {port} 127.0.0.1"
    lines = [
        "# Nobody comes in without a user, and users do what dynamic security allows them, nothing else.",
        "per_listener_settings false",
        "allow_anonymous false",
        f"plugin {plugin or _plugin()}",
        f"plugin_opt_config_file {folder}/mosquitto/dynamic-security.json",
        "",
        "# What is on its way survives an ordered restart. What is lost in a crash, devices send again.",
        "persistence true",
        f"persistence_location {folder}/mosquitto/",
        "",
        "# An event has 128 KiB at most; twice that arrives, so that what is too large is seen and kept.",
        "max_packet_size 262144",
        "# With Mosquitto's 20 the ingest would wait for the broker after every 20 messages.",
        "max_inflight_messages 1024",
        "max_queued_messages 100000",
        "persistent_client_expiration 7d",
        "# Without it an ack waits up to 40 ms in the broker for company (Nagle's algorithm).",
        "set_tcp_nodelay true",
        "",
        listener,
    ]
    if tls:
        lines += [
            f"cafile {folder}/tls/ca.pem",
            f"certfile {folder}/tls/server.pem",
            f"keyfile {folder}/tls/server.key",
            "tls_version tlsv1.2",
        ]
    return "\n".join([*lines, ""])


def _plugin() -> Path:
    """Mosquitto's dynamic security on this machine; where Debian would put it, if it is not installed yet."""
    name = "mosquitto_dynamic_security.so"
    multiarch = sysconfig.get_config_var("MULTIARCH") or f"{platform.machine()}-linux-gnu"
    usual = Path("/usr/lib", multiarch, name)
    found = [
        path
        for pattern in ("lib/*-linux-*", "lib", "lib64", "local/lib")
        for path in Path("/usr").glob(f"{pattern}/{name}")
    ]
    return usual if usual.is_file() or not found else found[0]


def dynamic_security(password: str, control: str) -> dict[str, Any]:
    """The plugin's first state: two users of the cloud, everything denied that no role allows."""
    response = "$CONTROL/dynamic-security/v1/response"
    ingest = [
        _acl("publishClientSend", f"{topics.ROOT}/+/+/down/#"),
        _acl("publishClientReceive", f"{topics.ROOT}/+/+/up/#"),
        _acl("subscribeLiteral", topics.INGEST_FILTER),
        _acl("subscribeLiteral", _STATE),
        _acl("unsubscribePattern", "#"),
    ]
    admin = [
        _acl("publishClientSend", "$CONTROL/dynamic-security/#"),
        _acl("publishClientReceive", response),
        _acl("subscribePattern", response),
    ]
    denied = ("publishClientSend", "publishClientReceive", "subscribe", "unsubscribe")
    return {
        "defaultACLAccess": dict.fromkeys(denied, False),
        "clients": [
            _client(INGEST_USER, "Ingest and serve of the cloud", password, "ingest"),
            _client(CONTROL_USER, "cloud-sync enrol and revoke", control, "control"),
        ],
        "groups": [],
        "roles": [{"rolename": "ingest", "acls": ingest}, {"rolename": "control", "acls": admin}],
    }


def certificates(host: str) -> dict[str, str]:
    """A CA of this installation and a server certificate for `host`, as PEM files by name."""
    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca_name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, f"Tectum CA of {host}"[:64])])
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, host[:64])])
    usage = {
        "digital_signature": True,
        "content_commitment": False,
        "key_encipherment": False,
        "data_encipherment": False,
        "key_agreement": False,
        "encipher_only": False,
        "decipher_only": False,
    }
    ca_id = x509.SubjectKeyIdentifier.from_public_key(ca_key.public_key())
    ca = (
        _certificate(ca_name, ca_name, ca_key, CA_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.KeyUsage(**usage, key_cert_sign=True, crl_sign=True), critical=True)
        .add_extension(ca_id, critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    server = (
        _certificate(name, ca_name, key, CERTIFICATE_DAYS)
        .add_extension(x509.SubjectAlternativeName([_alternative(host)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(**usage, key_cert_sign=False, crl_sign=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(ca_id), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    return {
        "tls/ca.pem": ca.public_bytes(pem).decode(),
        "tls/ca.key": _key_pem(ca_key),
        "tls/server.pem": server.public_bytes(pem).decode(),
        "tls/server.key": _key_pem(key),
    }


def _certificate(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, days: int
) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.timezone.utc)
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key.public_key())
    # An hour back: the clocks of devices that are set up at the same time need not agree with ours.
    builder = builder.not_valid_before(now - dt.timedelta(hours=1)).not_valid_after(now + dt.timedelta(days=days))
    return builder.serial_number(x509.random_serial_number())


def _alternative(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> str:
    form = serialization.PrivateFormat.PKCS8
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()).decode()


def _acl(kind: str, topic: str) -> dict[str, Any]:
    return {"acltype": kind, "topic": topic, "priority": 0, "allow": True}


def _client(username: str, text: str, password: str, role: str) -> dict[str, Any]:
    salt = os.urandom(12)
    return {
        "username": username,
        "textdescription": text,
        "password": base64.b64encode(
            hashlib.pbkdf2_hmac("sha512", password.encode(), salt, _ITERATIONS, 64)
        ).decode(),
        "salt": base64.b64encode(salt).decode(),
        "iterations": _ITERATIONS,
        "roles": [{"rolename": role, "priority": 0}],
    }


def _write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
    return path
