"""The files of a recording, one class for each state that they may be in.

Whole files are read by ``rosbags``, damaged ones by :mod:`~vla_reasoner_ros.data.mcap_scan` and by
SQLite itself.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from rosbags.interfaces import MessageDefinition, MessageDefinitionFormat
from rosbags.rosbag2 import Reader

from vla_reasoner_ros.data.mcap_scan import McapScan, zstd
from vla_reasoner_ros.errors import BagError

STORAGES = {"mcap": ".mcap", "sqlite3": ".db3"}
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_NO_DEFINITION = MessageDefinition(MessageDefinitionFormat.NONE, "")


class BagMessage(NamedTuple):
    """One recorded message.

    Attributes:
        topic: its topic.
        type: its type, as in ``sensor_msgs/msg/Image``.
        time_ns: when it was recorded, by the recorder's clock.
        data: it, serialized (CDR).
    """

    topic: str
    type: str
    time_ns: int
    data: bytes


@dataclass(frozen=True)
class Topic:
    """One topic of a bag.

    Attributes:
        name: as recorded, usually with a leading slash.
        type: of its messages.
        count: messages, as far as is known without reading them.
        definition: of the type, as the bag has it.
    """

    name: str
    type: str
    count: int
    definition: MessageDefinition = _NO_DEFINITION


class BagFile:
    """One file of a bag; this one has nothing in it."""

    def __init__(self, path: Path, problems: list[str]) -> None:
        self.path = path
        self.problems = problems
        self.topics: dict[int, Topic] = {}
        self.span_ns = (0, 0)

    def close(self) -> None:
        """Let go of it."""

    def messages(
        self, topics: Collection[str], span_ns: tuple[int, int] | None
    ) -> Iterator[BagMessage]:
        """Its messages of some topics, by time."""
        for number, time_ns, data in self._raw(topics, span_ns):
            if data[:4] == _ZSTD_MAGIC:  # no CDR begins so: its first byte is 0
                try:
                    data = zstd.decompress(data)
                except zstd.ZstdError as error:
                    self._report(f"a message recorded at {time_ns} ns is broken: {error}")
                    continue
            topic = self.topics[number]
            yield BagMessage(topic.name, topic.type, time_ns, data)

    def _raw(
        self, topics: Collection[str], span_ns: tuple[int, int] | None
    ) -> Iterator[tuple[int, int, bytes]]:
        return iter(())

    def _numbers(self, topics: Collection[str]) -> set[int]:
        return {number for number, topic in self.topics.items() if topic.name in topics}

    def _report(self, problem: str) -> None:
        text = f"{self.path.name}: {problem}"
        if text not in self.problems:
            self.problems.append(text)


class WholeFile(BagFile):
    """A file that ``rosbags`` opens; where it fails on the way, the rest is salvaged."""

    def __init__(self, path: Path, problems: list[str]) -> None:
        super().__init__(path, problems)
        try:
            self._reader = Reader(path)
            self._reader.open()
        except Exception as error:  # rosbags, SQLite, struct and assertions, by what is broken
            raise BagError(f"{path.name}: {error or repr(error)}") from error
        self._connections = {c.id: c for c in self._reader.connections}
        self.topics = {
            number: Topic(c.topic, c.msgtype, c.msgcount, c.msgdef)
            for number, c in self._connections.items()
        }
        if self._reader.message_count:
            self.span_ns = (self._reader.start_time, self._reader.end_time)

    def close(self) -> None:
        """Let go of it."""
        self._reader.close()

    def _raw(
        self, topics: Collection[str], span_ns: tuple[int, int] | None
    ) -> Iterator[tuple[int, int, bytes]]:
        chosen = [self._connections[number] for number in self._numbers(topics)]
        if not chosen:
            return
        start, stop = span_ns or (None, None)
        last_ns, at_last = -1, list[tuple[str, bytes]]()
        try:
            for connection, time_ns, data in self._reader.messages(chosen, start, stop):
                yield connection.id, time_ns, data
                if time_ns != last_ns:
                    last_ns, at_last = time_ns, []
                at_last.append((connection.topic, data))
            return
        except Exception as error:  # as in opening
            self._report(f"{error or repr(error)}; what is whole of it is read all the same")
        rest = salvage(self.path, self.problems)
        names = {topic.name: number for number, topic in self.topics.items()}
        for message in rest.messages(topics, span_ns):
            told = message.time_ns == last_ns and (message.topic, message.data) in at_last
            if message.time_ns >= last_ns and not told and message.topic in names:
                yield names[message.topic], message.time_ns, message.data


class ScannedFile(BagFile):
    """An MCAP file that is not whole."""

    def __init__(self, path: Path, problems: list[str]) -> None:
        super().__init__(path, problems)
        self._scan = McapScan(path)
        for problem in self._scan.problems:
            self._report(problem)
        self.topics = {
            number: Topic(c.topic, c.type, c.count, c.definition)
            for number, c in self._scan.channels.items()
        }

    def _raw(
        self, topics: Collection[str], span_ns: tuple[int, int] | None
    ) -> Iterator[tuple[int, int, bytes]]:
        start, stop = span_ns or (0, 2**64)
        for number, time_ns, data in self._scan.messages(self._numbers(topics)):
            if start <= time_ns < stop:
                yield number, time_ns, data


class DamagedDatabase(BagFile):
    """An SQLite file that is not whole: its rows in the order of recording, up to the first bad."""

    def __init__(self, path: Path, problems: list[str]) -> None:
        super().__init__(path, problems)
        self._database = sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True)
        try:
            # Without it SQLite refuses a file with fewer pages than its header says.
            self._database.execute("PRAGMA writable_schema = ON")
            rows = self._database.execute("SELECT id, name, type FROM topics").fetchall()
        except sqlite3.Error as error:
            self._database.close()
            raise BagError(f"bag file {path}: no topic in it can be read: {error}") from error
        self.topics = {int(n): Topic(str(name), str(kind), 0) for n, name, kind in rows}
        found: dict[int, int] = dict.fromkeys(self.topics, 0)
        for number, *_ in self._rows("topic_id"):
            found[number] = found.get(number, 0) + 1
        self.topics = {n: Topic(t.name, t.type, found[n]) for n, t in self.topics.items()}

    def close(self) -> None:
        """Let go of it."""
        self._database.close()

    def _raw(
        self, topics: Collection[str], span_ns: tuple[int, int] | None
    ) -> Iterator[tuple[int, int, bytes]]:
        numbers, (start, stop) = self._numbers(topics), span_ns or (0, 2**64)
        for number, time_ns, data in self._rows("topic_id, timestamp, data"):
            if number in numbers and start <= time_ns < stop and isinstance(data, bytes):
                yield number, time_ns, data

    def _rows(self, columns: str) -> Iterator[Any]:
        try:
            yield from self._database.execute(f"SELECT {columns} FROM messages NOT INDEXED")
        except sqlite3.Error as error:
            self._report(f"{error}; the messages before it are read")


def open_file(path: Path, problems: list[str]) -> BagFile:
    """A file in whatever state it is.

    Args:
        path: the file, not compressed as a whole.
        problems: gets a sentence for each thing that is wrong with it.

    Raises:
        BagError: nothing of it can be read.
    """
    if path.stat().st_size == 0:
        problems.append(f"{path.name} is empty")
        return BagFile(path, problems)
    try:
        return WholeFile(path, problems)
    except BagError as error:
        problems.append(str(error))
        return salvage(path, problems)


def salvage(path: Path, problems: list[str]) -> BagFile:
    """What is whole of a damaged file.

    Raises:
        BagError: nothing of it can be read.
    """
    kind = ScannedFile if path.suffix == STORAGES["mcap"] else DamagedDatabase
    return kind(path, problems)
