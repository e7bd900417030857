"""Nothing passes outside the allow-list, whatever is written as an address."""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.errors import ConfigError, SourceError
from edge_agent.sources.address import SCHEMES, Address, check_local, check_resolved, parse
from edge_agent.sources.camera import CameraOptions, libav_options

TARGET = re.compile(
    r"(?:rtsp|rtsps|http|https)://(?:[A-Za-z0-9%._~-]+:[A-Za-z0-9%._~-]*@)?(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.%]+\]):\d+/[!-~]*"
)
TRICKS = (
    "concat:a|b",
    "CONCAT:a|b",
    "subfile,,start,0,end,9,,:/etc/passwd",
    "pipe:0",
    "fd:0",
    "data:text/plain,x",
    "async:file:/etc/passwd",
    "crypto:x",
    "file:/etc/passwd",
    "file:///etc/passwd",
    "tcp://host:1/",
    "udp://host:1",
    "gopher://host/",
    "ftp://host/x",
    "rtmp://host/x",
    "srt://host:1",
    "lavfi://testsrc",
    "javascript:alert(1)",
    "rtsp:/host/x",
    "rtsp:host",
    "rtsp://",
    "rtsp:///x",
    "http://ho st/",
    "http://host/\r\nX: y",
    "http://host/#frag",
    "http://host:99999/",
    "http://host:x/",
    "http://[::1/",
    "http://-host/",
    "http://host\\@other/",
    "http://exa%6dple/",
    "",
    "x" * 3000,
)


@pytest.mark.parametrize("url", TRICKS)
def test_refuses_what_is_no_plain_address(url: str) -> None:
    with pytest.raises(ConfigError):
        parse(url)


def fragments() -> st.SearchStrategy[str]:
    pieces = st.sampled_from(
        [
            *SCHEMES,
            "file",
            "concat",
            "subfile",
            "pipe",
            "://",
            ":",
            "/",
            "//",
            "@",
            "?",
            "#",
            "[",
            "]",
            "%",
            "..",
            "|",
            ",",
            "localhost",
            "127.0.0.1",
            "cam",
            "a:b",
            "\n",
            "\0",
            " ",
            "é",
            "-rtsp_transport",
            "protocol_whitelist",
        ]
    )
    return st.lists(pieces | st.text(max_size=5), max_size=12).map("".join)


@given(
    url=fragments() | st.text(max_size=60), user=st.none() | st.text(max_size=8), word=st.none() | st.text(max_size=8)
)
def test_whatever_is_accepted_lies_in_the_allow_list(url: str, user: str | None, word: str | None) -> None:
    try:
        address = parse(url, user, word)
    except ConfigError:
        return
    target = address.target
    assert target.isprintable()
    if address.scheme == "file":
        assert target.startswith("file:/")
        assert ".." not in target.removeprefix("file:").split("/")
    else:
        assert TARGET.fullmatch(target), target
        assert address.scheme in SCHEMES


@given(
    scheme=st.sampled_from(SCHEMES),
    user=st.text("abc@:/?#%&ü ", min_size=1, max_size=8),
    tail=st.text("xyz@:/?#%&ö ", max_size=8),
)
def test_credentials_reach_the_library_whole_and_nothing_that_is_shown(scheme: str, user: str, tail: str) -> None:
    word = f"s3cret{tail}"
    try:
        address = parse(f"{scheme}://cam.example/stream?channel=1", user, word)
    except ConfigError:
        assert ":" in user
        return
    inside = address.target.partition("://")[2].partition("@cam.example")[0]
    assert [unquote(part) for part in inside.split(":")] == [user, word]
    assert address.label == f"{scheme}://cam.example:{address.port}/stream"
    assert "s3cret" not in repr(address)


def test_credentials_in_the_address_are_taken_out_of_it() -> None:
    address = parse("rtsp://admin:s%40cret@cam/1")
    assert (address.username, address.password) == ("admin", "s@cret")
    assert "cret" not in address.label + repr(address)


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST.",
        "x.localhost",
        "127.0.0.1",
        "127.9.9.9",
        "0.0.0.0",
        "169.254.169.254",
        "[::1]",
        "[fe80::1]",
        "[::ffff:127.0.0.1]",
        "224.0.0.1",
    ],
)
def test_this_machine_and_its_link_need_permission(host: str) -> None:
    address = parse(f"http://{host}/x")
    with pytest.raises(ConfigError, match="allow_local"):
        check_local(address, allow_local=False)
    check_local(address, allow_local=True)


@pytest.mark.parametrize("host", ["2130706433", "0x7f000001", "127.1", "0177.0.0.1"])
def test_other_spellings_of_this_machine_are_found_when_the_name_is_resolved(host: str) -> None:
    address = parse(f"http://{host}/x")
    with pytest.raises(SourceError):  # resolved to loopback, or not resolved at all
        check_resolved(address, allow_local=False)


@given(st.ip_addresses())
def test_an_address_of_the_network_passes_and_one_of_this_machine_does_not(
    ip: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    written = f"[{ip}]" if ip.version == 6 else str(ip)
    address = parse(f"rtsp://{written}/x")
    plain = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped else ip
    if plain.is_global and not plain.is_multicast and not plain.is_reserved:
        check_local(address, allow_local=False)
    elif plain.is_loopback or plain.is_link_local:
        with pytest.raises(ConfigError):
            check_local(address, allow_local=False)


@given(
    scheme=st.sampled_from((*SCHEMES, "file")),
    transport=st.sampled_from(("tcp", "udp")),
    verify=st.booleans(),
)
def test_libav_is_told_a_closed_list_of_options(scheme: str, transport: str, verify: bool) -> None:
    options = CameraOptions(url="x", transport="udp" if transport == "udp" else "tcp", verify_tls=verify)
    told = libav_options(Address(scheme, "x", "h", 1, "/x"), options)
    assert set(told) <= {
        "protocol_whitelist",
        "format_whitelist",
        "analyzeduration",
        "fpsprobesize",
        "rtsp_transport",
        "max_redirects",
        "tls_verify",
        "ca_file",
    }
    protocols = set(told["protocol_whitelist"].split(","))
    assert protocols <= {"rtsp", "rtsps", "rtp", "srtp", "udp", "tcp", "tls", "http", "https", "file"}
    assert ("file" in protocols) == (scheme == "file")
    assert not {"concat", "image2", "tee", "lavfi"} & set(told["format_whitelist"].split(","))
