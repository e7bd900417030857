"""What may not come in is refused with a stable reason, never with another exception, and in bounded time."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys

import msgspec
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.contract import event, topics, wire
from edge_agent.errors import WireError
from tests.contract.examples import EVENT, EXAMPLES, message

GOOD = wire.encode(EXAMPLES["message-event"])


def reason(data: bytes, device: str = "porch") -> str:
    with pytest.raises(WireError) as caught:
        read(data, device)
    assert caught.value.reason in wire.REASONS
    return caught.value.reason


def read(data: bytes, device: str = "porch") -> list[event.Message]:
    return [wire.decode_message(text, device) for text in wire.split(data)]


def changed(**values: object) -> bytes:
    return json.dumps(json.loads(GOOD) | values).encode()


def changed_body(**values: object) -> bytes:
    return changed(body=json.loads(GOOD)["body"] | values)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "malformed"),
        (b"\xff\xfe", "malformed"),
        (GOOD[:-1], "malformed"),
        (b'"\\ud800"', "malformed"),
        (b"[" * 120_000, "depth"),
        (b'{"a":' * 20_000, "depth"),
        (b'"\\"' * 40_000, "malformed"),
        (b" " * (wire.MAX_PAYLOAD + 1), "oversize"),
        (b"{}", "schema"),
        (changed(v=2), "version"),
        (changed(v="1"), "schema"),
        (changed(seq=0), "schema"),
        (changed(seq=2**63), "schema"),
        (changed(device="../x"), "schema"),
        (changed(device="attic"), "device"),
        (changed(id="not-a-uuid"), "schema"),
        (changed(body={"kind": "surprise"}), "schema"),
        (changed_body(score=None), "schema"),
        (changed_body(score=1.5), "schema"),
        (changed_body(label="<script>"), "schema"),
        (GOOD.replace(b'"score":0.91', b'"score":NaN'), "malformed"),
        (GOOD.replace(b'"score":0.91', b'"score":1e999'), "malformed"),
        (b"\x28\xb5\x2f\xfdgarbage", "compression"),
        (zstandard.ZstdCompressor().compress(b"[" + b" " * (2 * wire.MAX_BATCH) + b"]"), "compression"),
        (zstandard.ZstdCompressor().compress(b"[" * 1000), "depth"),
        (zstandard.ZstdCompressor().compress(b"{}"), "malformed"),
    ],
)
def test_refused_with_a_reason(data: bytes, why: str) -> None:
    assert reason(data) in ({why} if why != "malformed" else {"malformed", "schema"})


def test_unknown_optional_fields_of_a_newer_peer_are_ignored() -> None:
    newer = changed(surprise=[1, 2])
    assert wire.decode_message(newer, "porch") == EXAMPLES["message-event"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_non_finite_numbers_do_not_leave_either(value: float) -> None:
    with pytest.raises(WireError, match="non_finite"):
        wire.encode(message(msgspec.structs.replace(EVENT, score=value)))


def test_a_batch_gives_its_messages_back_in_order() -> None:
    texts = [wire.encode(message(EVENT, seq)) for seq in range(1, 50)]
    assert wire.split(wire.encode_batch(texts)) == texts


def test_a_batch_that_does_not_fit_is_refused_before_it_is_sent() -> None:
    with pytest.raises(WireError, match="oversize"):
        wire.encode_batch([GOOD] * 2000)


@given(st.binary(max_size=300))
def test_random_bytes_end_in_a_refusal(data: bytes) -> None:
    reason(data)


@given(st.data())
def test_a_flipped_byte_ends_in_a_refusal_or_a_message(data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(GOOD) - 1))
    changed_text = GOOD[:index] + bytes([data.draw(st.integers(0, 255))]) + GOOD[index + 1 :]
    with contextlib.suppress(WireError):  # any other exception fails the test
        assert all(isinstance(item, event.Message) for item in read(changed_text))


@given(
    st.recursive(
        st.none() | st.floats() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_any_json_ends_in_a_refusal(tree: object) -> None:
    reason(json.dumps(tree).encode())


@given(st.text(max_size=80))
def test_topics_parse_back_or_refuse(text: str) -> None:
    with contextlib.suppress(WireError):
        assert str(topics.parse(text)) == text


def test_topic_of_an_event() -> None:
    topic = topics.up("home", "porch", "event")
    assert topic == "tectum/v1/home/porch/up/event"
    assert topics.parse(topic) == topics.Topic("home", "porch", "up", "event")


def test_the_contract_imports_nothing_heavy() -> None:
    code = (
        "import sys, edge_agent.contract.wire, edge_agent.contract.manifest, edge_agent.contract.identity;"
        "print([m for m in ('numpy', 'cv2', 'av', 'paho', 'torch', 'sqlite3', 'yaml') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout.strip() == "[]"
