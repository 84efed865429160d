"""What is whole in an MCAP file that cannot be opened: cut off, without index, or with bad chunks.

The file is read record by record from its beginning (the format is that of
https://mcap.dev/spec); a chunk that does not decompress or whose checksum is wrong is left out, and
of a chunk that is cut off the records that are whole are kept. Whole files are read by ``rosbags``.
"""

from __future__ import annotations

import heapq
import io
import struct
import zlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import lz4.frame
from backports import zstd
from rosbags.interfaces import MessageDefinition, MessageDefinitionFormat

from vla_reasoner_ros.errors import BagError

MAGIC = b"\x89MCAP0\r\n"
SCHEMA, CHANNEL, MESSAGE, CHUNK = 0x03, 0x04, 0x05, 0x06
DATA_END = 0x0F
_FORMATS = {
    "ros2msg": MessageDefinitionFormat.MSG,
    "ros2idl": MessageDefinitionFormat.IDL,
    "omgidl": MessageDefinitionFormat.IDL,
}


@dataclass
class Channel:
    """One topic of the file.

    Attributes:
        topic: its name.
        type: of its messages.
        definition: of that type, as the file has it.
        count: messages that are whole.
    """

    topic: str
    type: str
    definition: MessageDefinition
    count: int = 0


@dataclass(frozen=True)
class _Block:
    """A chunk, or a message outside of any: what is read at once."""

    start_ns: int
    offset: int
    chunk: bool


@dataclass
class McapScan:
    """A scanned file.

    Attributes:
        path: the file.
        channels: by number.
        problems: what is wrong with it, one sentence each.

    Raises:
        BagError: it is no MCAP file, or cannot be read at all.
    """

    path: Path
    channels: dict[int, Channel] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._schemas: dict[int, tuple[str, MessageDefinition]] = {}
        self._blocks: list[_Block] = []
        try:
            with self.path.open("rb") as file:
                self._scan(file)
        except OSError as error:
            raise BagError(f"bag file {self.path}: {error.strerror}") from error

    def messages(self, numbers: Collection[int]) -> Iterator[tuple[int, int, bytes]]:
        """Channel number, time of recording (ns) and CDR of each whole message, by that time."""
        with self.path.open("rb") as file:
            waiting = sorted(self._blocks, key=lambda block: block.start_ns, reverse=True)
            heap: list[tuple[int, int, int, bytes]] = []
            order = 0
            while waiting or heap:
                while waiting and (not heap or waiting[-1].start_ns <= heap[0][0]):
                    for number, time_ns, data in self._read(file, waiting.pop()):
                        if number in numbers:
                            order += 1
                            heapq.heappush(heap, (time_ns, order, number, data))
                if heap:
                    time_ns, _, number, data = heapq.heappop(heap)
                    yield number, time_ns, data

    def _scan(self, file: BinaryIO) -> None:
        if file.read(len(MAGIC)) != MAGIC:
            raise BagError(f"bag file {self.path}: is no MCAP file")
        while True:
            offset = file.tell()
            head = file.read(9)
            if not head:
                self.problems.append("ends without its index, as after a crash")
                return
            if len(head) < 9:
                self.problems.append("is cut off")
                return
            kind, size = head[0], int.from_bytes(head[1:], "little")
            if kind == DATA_END or kind == 0 or kind > 0x80:
                if kind != DATA_END:
                    self.problems.append(f"is no MCAP any more from byte {offset}")
                return
            body = file.read(size) if kind in (SCHEMA, CHANNEL, MESSAGE, CHUNK) else b""
            if kind in (SCHEMA, CHANNEL):
                if len(body) == size:
                    self._define(kind, body)
            elif kind == MESSAGE and len(body) == size >= 22:
                self._count(struct.unpack_from("<H", body)[0])
                self._blocks.append(_Block(struct.unpack_from("<Q", body, 6)[0], offset, False))
            elif kind == CHUNK:
                self._scan_chunk(body, offset)
            elif kind != MESSAGE:
                file.seek(size, io.SEEK_CUR)
            if kind in (SCHEMA, CHANNEL, MESSAGE, CHUNK) and len(body) < size:
                self.problems.append(
                    f"is cut off: the record at byte {offset} needs {size} bytes, {len(body)} are "
                    "there"
                )
                return

    def _scan_chunk(self, body: bytes, offset: int) -> None:
        problem, content = _content(body)
        if problem:
            self.problems.append(f"the chunk at byte {offset} {problem}")
        start_ns = 2**64 - 1
        for kind, record in _records(content):
            if kind in (SCHEMA, CHANNEL):
                self._define(kind, record)
            elif kind == MESSAGE and len(record) >= 22:
                self._count(struct.unpack_from("<H", record)[0])
                start_ns = min(start_ns, struct.unpack_from("<Q", record, 6)[0])
        if start_ns < 2**64 - 1:
            self._blocks.append(_Block(start_ns, offset, True))

    def _read(self, file: BinaryIO, block: _Block) -> Iterator[tuple[int, int, bytes]]:
        file.seek(block.offset)
        head = file.read(9)
        body = file.read(int.from_bytes(head[1:], "little"))
        records = _records(_content(body)[1]) if block.chunk else iter([(MESSAGE, body)])
        for kind, record in records:
            if kind == MESSAGE and len(record) >= 22:
                number, _, time_ns = struct.unpack_from("<HIQ", record)
                yield number, time_ns, record[22:]

    def _define(self, kind: int, record: bytes) -> None:
        try:
            (number,) = struct.unpack_from("<H", record)
            if kind == SCHEMA:
                name, encoding, text = _strings(record[2:], 3)
                form = _FORMATS.get(encoding, MessageDefinitionFormat.NONE)
                self._schemas[number] = (name, MessageDefinition(form, text))
                return
            (schema,) = struct.unpack_from("<H", record, 2)
            topic, _ = _strings(record[4:], 2)
        except (struct.error, UnicodeDecodeError) as error:
            self.problems.append(f"a definition in it is broken: {error}")
            return
        missing = ("", MessageDefinition(MessageDefinitionFormat.NONE, ""))
        name, definition = self._schemas.get(schema, missing)
        self.channels.setdefault(number, Channel(topic, name, definition))

    def _count(self, number: int) -> None:
        if number in self.channels:
            self.channels[number].count += 1


def _content(body: bytes) -> tuple[str, bytes]:
    """What is wrong with a chunk, empty when nothing, and what is whole of its records."""
    try:
        _, _, size, checksum, name_length = struct.unpack_from("<QQQII", body)
        name = body[32 : 32 + name_length].decode()
        (compressed,) = struct.unpack_from("<Q", body, 32 + name_length)
    except (struct.error, UnicodeDecodeError):
        return "is broken", b""
    data = body[40 + name_length : 40 + name_length + compressed]
    whole = len(data) == compressed
    problem = "" if whole else "is cut off"
    try:
        content = _decompress(name, data)
    except Exception as error:  # whatever the library says of broken bytes
        return f"cannot be decompressed: {error}", b""
    if whole and (len(content) != size or (checksum and zlib.crc32(content) != checksum)):
        return "is broken: its checksum or size is wrong", b""
    return problem, content


def _decompress(name: str, data: bytes) -> bytes:
    """As much as there is of compressed data that may be cut off."""
    if name == "":
        return data
    if name == "zstd":
        return bytes(zstd.ZstdDecompressor().decompress(data))
    if name == "lz4":
        return bytes(lz4.frame.LZ4FrameDecompressor().decompress(data))
    raise ValueError(f"compression {name!r} is unknown")


def _records(content: bytes) -> Iterator[tuple[int, bytes]]:
    """The whole records of a chunk."""
    position = 0
    while position + 9 <= len(content):
        size = int.from_bytes(content[position + 1 : position + 9], "little")
        end = position + 9 + size
        if end > len(content):
            return
        yield content[position], content[position + 9 : end]
        position = end


def _strings(data: bytes, count: int) -> list[Any]:
    found = []
    for _ in range(count):
        (length,) = struct.unpack_from("<I", data)
        if len(data) < 4 + length:
            raise struct.error("a text is cut off")
        found.append(data[4 : 4 + length].decode())
        data = data[4 + length :]
    return found
