"""What must be known of an ONNX file before a runtime parses it, read from its protobuf bytes.

The one threat that a hash does not stop is a *signed* graph that names files outside of itself: external tensors are
read from wherever the runtime looks. The `onnx` package is for training; the device walks the few fields itself.
"""

from __future__ import annotations

from collections.abc import Iterator

from edge_agent.errors import BundleError

INT16, FLOAT = 5, 1  #: TensorProto.DataType
_MAX_DEPTH = 32
_MAX_FIELDS = 1_000_000

#: onnx.proto3: message → field number → message of that field. Only the ways that lead to a tensor.
_CHILDREN = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14  # of TensorProto
#: ModelProto.graph → input → type → tensor_type → elem_type
_INPUT_TYPE = (7, 11, 2, 1, 1)


def check(data: bytes, where: str) -> None:
    """BundleError if `data` is cut off, is no ONNX model with a graph, or keeps tensors outside of the file."""
    walk = _Walk(memoryview(data), where)
    walk.message(0, len(data), "model", 0)
    if not walk.graphs:
        raise BundleError(f"{where}: not an ONNX model: it holds no graph")


def retyped(data: bytes, old: int, new: int, where: str) -> bytes:
    """The same model with its graph's inputs of element type `old` declared as `new`; both are one byte as a varint.

    For a runtime that lacks a type: a Cast that follows takes whatever comes.
    """
    changed = bytearray(data)
    for at in _Walk(memoryview(data), where).places(0, len(data), _INPUT_TYPE):
        if changed[at] == old:
            changed[at] = new
    return bytes(changed)


class _Walk:
    def __init__(self, data: memoryview, where: str) -> None:
        self._data = data
        self._where = where
        self._fields = 0
        self.graphs = 0

    def message(self, at: int, end: int, kind: str, depth: int) -> None:
        """Visit the fields of one message in [at, end)."""
        if depth > _MAX_DEPTH:
            raise BundleError(f"{self._where}: nested deeper than {_MAX_DEPTH}")
        self.graphs += kind == "graph"
        children = _CHILDREN[kind]
        while at < end:
            self._fields += 1
            if self._fields > _MAX_FIELDS:
                raise BundleError(f"{self._where}: more than {_MAX_FIELDS} fields")
            tag, at = self._varint(at, end)
            field, wire_type = tag >> 3, tag & 7
            start, at, value = self._value(at, end, wire_type)
            if kind == "tensor" and (field == _EXTERNAL_DATA or (field == _DATA_LOCATION and value)):
                raise BundleError(f"{self._where}: a tensor lies outside of the file; export with the data inside")
            if wire_type == 2 and field in children:
                self.message(start, at, children[field], depth + 1)

    def places(self, at: int, end: int, path: tuple[int, ...]) -> Iterator[int]:
        """Where the values of the fields lie that `path` leads to, by field number, from a message in [at, end)."""
        while at < end:
            tag, at = self._varint(at, end)
            start, after, _ = self._value(at, end, tag & 7)
            if tag >> 3 == path[0] and len(path) == 1:
                yield start
            elif tag >> 3 == path[0] and tag & 7 == 2:
                yield from self.places(start, after, path[1:])
            at = after

    def _value(self, at: int, end: int, wire_type: int) -> tuple[int, int, int]:
        """(start, end, number) of a field's value; the number of anything but a varint is 0."""
        if wire_type == 0:
            value, after = self._varint(at, end)
            return at, after, value
        if wire_type == 2:
            size, at = self._varint(at, end)
        else:
            size = {1: 8, 5: 4}.get(wire_type, -1)
        if size < 0 or at + size > end:
            raise BundleError(f"{self._where}: not an ONNX model, or cut off, at byte {at}")
        return at, at + size, 0

    def _varint(self, at: int, end: int) -> tuple[int, int]:
        value = 0
        for shift in range(0, 70, 7):
            if at >= end:
                break
            byte = self._data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, at
        raise BundleError(f"{self._where}: not an ONNX model, or cut off, at byte {at}")
