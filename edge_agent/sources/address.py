"""Which addresses a camera may be read from: an allow-list, checked before any library sees a byte of it.

What libav opens is put together again from the checked parts, so that no text of the configuration reaches it
unread: no other protocol (`concat:`, `subfile,`, `pipe:`, `data:` …), no option, no second host.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from edge_agent.errors import ConfigError, SourceError

SCHEMES = ("rtsp", "rtsps", "http", "https")
MAX_LENGTH = 2048
_PORTS = {"rtsp": 554, "rtsps": 322, "http": 80, "https": 443}
_HOST = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*\.?")
_PREFIX = re.compile(r"[A-Za-z][A-Za-z0-9+.,_-]*:")
_URL_TEXT = re.compile(r"""[!#-;=?-\[\]_a-z~]+""")  # printable ASCII without " < > \ ^ ` { | }


@dataclass(frozen=True, slots=True)
class Address:
    """A checked address. Its text is safe to log: credentials stand apart and never in `label`."""

    scheme: str  #: rtsp | rtsps | http | https | file
    label: str  #: without credentials and query
    host: str = ""
    port: int = 0
    path: str = ""  #: with the query; of a file: absolute
    username: str = field(default="", repr=False)
    password: str = field(default="", repr=False)

    @property
    def target(self) -> str:
        """What is handed to libav. Holds the credentials: never log it."""
        if self.scheme == "file":
            return f"file:{self.path}"
        credentials = f"{quote(self.username, safe='')}:{quote(self.password, safe='')}@" if self.username else ""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{credentials}{host}:{self.port}{self.path}"


def parse(url: str, username: str | None = None, password: str | None = None) -> Address:
    """The address in a configuration. ConfigError says what is not allowed, without repeating a secret."""
    if not url or len(url) > MAX_LENGTH:
        raise ConfigError(f"url has {len(url)} characters; 1 to {MAX_LENGTH} are allowed", "url")
    if not _PREFIX.match(url):
        if username or password:
            raise ConfigError("a file takes no username and password", "username")
        return _file(url)
    scheme, separator, _ = url.partition("://")
    if not separator or scheme.lower() not in SCHEMES:
        shown = _PREFIX.match(url)
        assert shown is not None
        raise ConfigError(
            f"{shown[0]!r} is not allowed; use {', '.join(each + '://' for each in SCHEMES)} or the path of a file "
            "(begin it with ./ or / if it has a colon)",
            "url",
        )
    return _network(url, scheme.lower(), username, password)


def check_local(address: Address, allow_local: bool) -> None:
    """ConfigError if the host is written as loopback, link-local or the like and the site does not allow it."""
    if address.scheme == "file" or allow_local:
        return
    literal = _ip(address.host)
    if address.host.rstrip(".").lower().endswith("localhost") or (literal is not None and _is_local(literal)):
        raise ConfigError(_local_message(address, address.host), "url")


def check_resolved(address: Address, allow_local: bool) -> None:
    """SourceError if the name does not resolve, or to an address of this machine or its link. Blocks on DNS."""
    if address.scheme == "file":
        return
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise SourceError(
            f"{address.label}: host {address.host!r} does not resolve: {error}. Check the name"
        ) from error
    for *_, where in found:
        if not allow_local and _is_local(ipaddress.ip_address(str(where[0]).partition("%")[0])):
            raise SourceError(_local_message(address, str(where[0])))


def _file(text: str) -> Address:
    if not text.isprintable():
        raise ConfigError("a path must not hold control characters", "url")
    path = str(Path(text).expanduser().resolve())
    return Address(scheme="file", label=path, path=path)


def _network(url: str, scheme: str, username: str | None, password: str | None) -> Address:
    if not _URL_TEXT.fullmatch(url):
        raise ConfigError("an address holds letters, digits and the signs of URLs; write others as %XX", "url")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or _PORTS[scheme]
    except ValueError as error:
        raise ConfigError(f"not an address: {error}", "url") from None
    if _ip(host) is None and not _HOST.fullmatch(host):
        raise ConfigError("no valid host name; expected scheme://host[:port]/path", "url")
    if parts.fragment:
        raise ConfigError("a fragment (#…) is not allowed; write # in a password as %23", "url")
    if parts.username is not None and (username or password):
        raise ConfigError("credentials stand in the url and in username/password; keep one of them", "url")
    user = unquote(parts.username or "") or username or ""
    secret = unquote(parts.password or "") or password or ""
    if ":" in user or not (user + secret).isprintable():
        raise ConfigError("username and password are printable text, the username without a colon", "username")
    if secret and not user:
        raise ConfigError("a password needs a username", "username")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    shown = f"[{host}]" if ":" in host else host
    label = f"{scheme}://{shown}:{port}{parts.path or '/'}"
    return Address(scheme, label, host, port, path, user, secret)


def _ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _is_local(ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    return ip.is_loopback or ip.is_link_local or ip.is_unspecified or ip.is_multicast or ip.is_reserved


def _local_message(address: Address, ip: str) -> str:
    return (
        f"{address.label}: {ip} belongs to this machine or its link, which is refused so that a camera's address "
        "cannot reach services here. Set `allow_local: true` in this source's options if it is meant"
    )
