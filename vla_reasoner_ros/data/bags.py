"""Reading and writing rosbag2 recordings, with or without ROS, and whatever state they are in.

MCAP and sqlite3, compressed by file, message or chunk, in one file or many. A recording that was
cut off, lost its ``metadata.yaml`` or has a broken part gives what is whole, and
:attr:`BagReader.problems` says the rest. Whole files are read by ``rosbags``, the others by
:mod:`~vla_reasoner_ros.data.mcap_scan` and by SQLite itself.
"""

from __future__ import annotations

import contextlib
import heapq
import re
import shutil
import sqlite3
import tempfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple

import yaml
from rosbags.interfaces import (
    MessageDefinition,
    MessageDefinitionFormat,
    Qos,
    QosDurability,
    QosHistory,
    QosLiveliness,
    QosReliability,
    QosTime,
)
from rosbags.rosbag2 import CompressionFormat, CompressionMode, Reader, StoragePlugin, Writer
from rosbags.serde import SerdeError
from rosbags.typesys import Stores, get_types_from_idl, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from vla_reasoner_ros.data.mcap_scan import McapScan, zstd
from vla_reasoner_ros.data.message_types import serialize, standard_types
from vla_reasoner_ros.errors import BagError
from vla_reasoner_ros.files import write_atomically

METADATA = "metadata.yaml"
STORAGES = {"mcap": ".mcap", "sqlite3": ".db3"}
INFORMATION = "rosbag2_bagfile_information"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_NO_DEFINITION = MessageDefinition(MessageDefinitionFormat.NONE, "")
_FORMAT_VERSION: Literal[9] = 9
"""Of ``metadata.yaml``, as Jazzy writes it."""


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


class BagReader:
    """A recording.

    Args:
        path: the bag's folder, or one of its files.

    Attributes:
        problems: what is wrong with it, one sentence each; grows while it is read.
        topics: by name.
        custom: texts that the recorder kept with it (``custom_data``).

    Raises:
        BagError: there is no bag, or nothing of it can be read.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.problems: list[str] = []
        self.custom: dict[str, str] = {}
        self._stack = contextlib.ExitStack()
        self._stores: dict[str, Typestore] = {}
        try:
            self._files = [self._open(file) for file in self._find()]
        except BaseException:
            self.close()
            raise
        self.topics: dict[str, Topic] = {}
        for file in self._files:
            for topic in file.topics.values():
                known = self.topics.get(topic.name)
                count = topic.count + (known.count if known else 0)
                base = known if known and known.definition.data else topic
                self.topics[topic.name] = Topic(topic.name, base.type, count, base.definition)
        if not any(topic.count for topic in self.topics.values()):
            self.problems.append("it has no messages")

    def __enter__(self) -> BagReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of its files."""
        self._stack.close()

    @property
    def files(self) -> list[Path]:
        """The files that are read, in their order."""
        return [file.path for file in self._files]

    @property
    def size(self) -> int:
        """Bytes of its files."""
        return sum(path.stat().st_size for path in self.files)

    @property
    def count(self) -> int:
        """Messages of all topics."""
        return sum(topic.count for topic in self.topics.values())

    @property
    def span_ns(self) -> tuple[int, int]:
        """When its first and last message were recorded, where the files say it; else (0, 0)."""
        spans = [file.span_ns for file in self._files if file.span_ns != (0, 0)]
        return (min(s[0] for s in spans), max(s[1] for s in spans)) if spans else (0, 0)

    def messages(
        self, topics: Collection[str] | None = None, span_ns: tuple[int, int] | None = None
    ) -> Iterator[BagMessage]:
        """Its messages by the time they were recorded.

        Args:
            topics: only these; None is all.
            span_ns: only those recorded from the first up to, not including, the second.
        """
        wanted = set(self.topics if topics is None else topics)
        waiting = sorted(self._files, key=lambda file: file.span_ns[0], reverse=True)
        running: list[tuple[int, int, BagMessage, Iterator[BagMessage]]] = []
        order = 0
        # A file is begun when its turn comes, so that no more of them than overlap are in memory.
        while waiting or running:
            while waiting and (not running or waiting[-1].span_ns[0] <= running[0][0]):
                source = waiting.pop().messages(wanted, span_ns)
                order += 1
                first = next(source, None)
                if first is not None:
                    heapq.heappush(running, (first.time_ns, order, first, source))
            if running:
                _, number, message, source = running[0]
                yield message
                following = next(source, None)
                if following is None:
                    heapq.heappop(running)
                else:
                    heapq.heapreplace(running, (following.time_ns, number, following, source))

    def deserialize(self, message: BagMessage) -> Any:
        """The fields of a message.

        Raises:
            BagError: its type is not known, or its bytes are not of that type.
        """
        store = self._stores.get(message.type) or self._store(message)
        try:
            try:
                return store.deserialize_cdr(message.data, message.type)
            except SerdeError:
                # Fast DDS aligns the elements of an empty sequence at the end: four bytes too many.
                return store.deserialize_cdr(message.data[:-4], message.type)
        except Exception as error:  # whatever rosbags says of wrong bytes
            raise BagError(
                f"{message.topic}: the message recorded at {message.time_ns} ns is no "
                f"{message.type}: {error or repr(error)}"
            ) from error

    def _store(self, message: BagMessage) -> Typestore:
        """The types to read a message with: the known ones, or the bag's own where they differ."""
        name, known = message.type, standard_types()
        definition = self.topics[message.topic].definition
        try:
            own = _parse(name, definition)
        except Exception as error:  # a parser's own errors
            if name not in known.fielddefs:
                raise BagError(
                    f"{message.topic}: the bag's definition of {name} is broken: {error}"
                ) from error
            own = {}
        if name not in known.fielddefs and name not in own:
            raise BagError(
                f"{message.topic}: type {name} is unknown, and the bag has no definition of it"
            )
        store = known
        if own and own[name][1] != known.fielddefs.get(name, (None, None))[1]:
            if name in known.fielddefs:
                self.problems.append(f"{name} was recorded with another definition than today's")
            store = get_typestore(Stores.EMPTY)
            store.register({**known.fielddefs, **own})
        self._stores[name] = store
        return store

    # Files.

    def _find(self) -> list[Path]:
        suffixes = tuple(STORAGES.values())
        if self.path.is_file():
            if self.path.name != METADATA:
                return [self.path]
            self.path = self.path.parent
        if not self.path.is_dir():
            raise BagError(f"bag {self.path}: there is none")
        there = sorted(
            (
                path
                for pattern in ("*", "*/*")
                for path in self.path.glob(pattern)
                if path.is_file() and path.name.removesuffix(".zstd").endswith(suffixes)
            ),
            key=lambda path: [int(t) if t.isdigit() else t for t in re.split(r"(\d+)", path.name)],
        )
        listed = self._listed()
        found = []
        for name in listed:
            path = self.path / Path(name).name
            if path in there:
                found.append(path)
            else:
                self.problems.append(f"{Path(name).name}, which {METADATA} names, is missing")
        unlisted = [path for path in there if path not in found]
        if listed and unlisted:
            self.problems.append(
                f"{METADATA} does not name {', '.join(p.name for p in unlisted)}, as after a crash"
            )
        if not there:
            raise BagError(f"bag {self.path}: no {' or '.join(suffixes)} file in it")
        return [*found, *unlisted]

    def _listed(self) -> list[str]:
        """The files that ``metadata.yaml`` names."""
        path = self.path / METADATA
        if not path.is_file():
            self.problems.append(f"there is no {METADATA}, as after a crash")
            return []
        try:
            content = _load(path)
            self.custom = {str(k): str(v) for k, v in (content.get("custom_data") or {}).items()}
            return [str(name) for name in content["relative_file_paths"]]
        except (
            OSError,
            UnicodeDecodeError,
            yaml.YAMLError,
            KeyError,
            TypeError,
            ValueError,
        ) as error:
            self.problems.append(f"{METADATA} cannot be read: {' '.join(repr(error).split())}")
            return []

    def _open(self, path: Path) -> _File:
        if path.suffix == ".zstd":
            folder = self._stack.enter_context(tempfile.TemporaryDirectory())
            unpacked = Path(folder, path.stem)
            try:
                with zstd.open(path, "rb") as source, unpacked.open("wb") as target:
                    shutil.copyfileobj(source, target)
            except (zstd.ZstdError, EOFError) as error:
                self.problems.append(f"{path.name} is cut off or broken: {error}")
            path = unpacked
        if path.suffix not in STORAGES.values():
            raise BagError(f"bag {path}: expected {' or '.join(STORAGES.values())}")
        if path.stat().st_size == 0:
            self.problems.append(f"{path.name} is empty")
            return _File(path, self.problems)
        try:
            file: _File = _WholeFile(path, self.problems)
        except BagError as error:
            self.problems.append(str(error))
            file = _salvage(path, self.problems)
        self._stack.callback(file.close)
        return file


class _File:
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


class _WholeFile(_File):
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
        rest = _salvage(self.path, self.problems)
        names = {topic.name: number for number, topic in self.topics.items()}
        for message in rest.messages(topics, span_ns):
            told = message.time_ns == last_ns and (message.topic, message.data) in at_last
            if message.time_ns >= last_ns and not told and message.topic in names:
                yield names[message.topic], message.time_ns, message.data


class _ScannedFile(_File):
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


class _DamagedDatabase(_File):
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


def _salvage(path: Path, problems: list[str]) -> _File:
    kind = _ScannedFile if path.suffix == STORAGES["mcap"] else _DamagedDatabase
    return kind(path, problems)


@lru_cache(maxsize=256)
def _parse(name: str, definition: MessageDefinition) -> Mapping[str, Any]:
    """Field definitions of a type and of those that it is made of; empty without a definition."""
    if definition.format == MessageDefinitionFormat.MSG:
        return get_types_from_msg(definition.data, name)
    if definition.format == MessageDefinitionFormat.IDL:
        separator = "=" * 80 + "\n"
        if not definition.data.startswith(f"{separator}IDL: "):
            return get_types_from_idl(definition.data)
        types: dict[str, Any] = {}
        for part in definition.data.split(separator)[1:]:
            types |= get_types_from_idl(part.split("\n", 1)[1])
        return types
    return {}


class BagWriter:
    """Writes a bag, in one file or several.

    Every file is finished by itself: after a crash all but the last have their index, and of the
    last what is whole is read. ``metadata.yaml`` is written anew with every file.

    Args:
        path: the folder; must not be there, or be a bag to go on with (``append``).
        storage: ``mcap`` or ``sqlite3``.
        compress: compress by chunks (MCAP only), which costs time and keeps images as they are.
        split_bytes: begin another file when this many bytes have been written; 0 is never.
        custom: texts to keep with the bag.
        keep: go on with a bag that is there and keep its first so many files; None begins one.

    Attributes:
        written: bytes of the messages so far, uncompressed.

    Raises:
        BagError: the folder is there already, or cannot be made.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        storage: str = "mcap",
        compress: bool = False,
        split_bytes: int = 0,
        custom: Mapping[str, str] | None = None,
        keep: int | None = None,
    ) -> None:
        self.path = Path(path)
        self.written = 0
        self._failed = False
        self._plugin = StoragePlugin[storage.upper()]
        self._suffix = STORAGES[storage]
        self._compress = compress and storage == "mcap"
        self._split_bytes = split_bytes
        self._custom = dict(custom or {})
        self._parts: list[dict[str, Any]] = []
        self._topics: dict[str, tuple[str, bool, tuple[str, str] | None]] = {}
        if self.path.exists() and keep is None:
            raise BagError(f"bag {self.path}: exists already")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BagError(f"bag {self.path}: {error.strerror}") from error
        if keep is not None:
            self._resume(keep)
        # A file is begun when there is something to write to it.
        self._writer: Writer | None = None
        self._connections: dict[str, Any] = {}
        self._in_part = 0

    def __enter__(self) -> BagWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def add_topic(
        self,
        topic: str,
        type_name: str,
        *,
        latched: bool = False,
        definition: tuple[str, str] | None = None,
    ) -> None:
        """Declare a topic.

        Args:
            topic: its name, with a leading slash.
            type_name: as in ``sensor_msgs/msg/Image``.
            latched: whether late subscribers of a player shall get its last message.
            definition: text and hash of a type that this package does not know.
        """
        self._topics[topic] = (type_name, latched, definition)
        if self._writer is not None:
            self._connect(self._writer, topic)

    def write(self, topic: str, time_ns: int, message: Any) -> None:
        """Write one message of a declared topic.

        Args:
            topic: its name.
            time_ns: its time of recording.
            message: CDR bytes, a message, or plain values for one.

        Raises:
            BagError: the topic was not declared, or the disk is full.
        """
        if topic not in self._topics:
            raise BagError(f"bag {self.path}: topic {topic} was not declared")
        data = message if isinstance(message, (bytes, memoryview)) else None
        if data is None:
            data = serialize(self._topics[topic][0], message)
        writer = self._writer or self._begin()
        try:
            writer.write(self._connections[topic], time_ns, data)
        except OSError as error:
            self._failed = True
            raise BagError(f"bag {self.path}: {error.strerror}") from error
        self.written += len(data)
        self._in_part += len(data)
        if self._split_bytes and self._in_part >= self._split_bytes:
            self.split()

    @property
    def finished(self) -> int:
        """Files that are whole."""
        return len(self._parts)

    def split(self) -> None:
        """Finish the file at hand; what comes then goes into another."""
        if self._writer is not None:
            self._finish(self._writer)

    def close(self) -> None:
        """Finish the bag; what a full disk leaves of it can still be read."""
        if self._failed:
            if self._writer is not None:
                self._writer.abort()
        elif self._writer is not None or not self._parts:
            self._finish(self._writer or self._begin())

    def _begin(self) -> Writer:
        self._folder = self.path / f"part_{len(self._parts)}"
        shutil.rmtree(self._folder, ignore_errors=True)
        writer = Writer(self._folder, version=_FORMAT_VERSION, storage_plugin=self._plugin)
        if self._compress:
            writer.set_compression(CompressionMode.STORAGE, CompressionFormat.ZSTD)
        try:
            writer.open()
        except OSError as error:
            self._failed = True
            raise BagError(f"bag {self.path}: {error.strerror}") from error
        self._writer, self._in_part = writer, 0
        self._connections.clear()
        for topic in self._topics:
            self._connect(writer, topic)
        return writer

    def _connect(self, writer: Writer, topic: str) -> None:
        type_name, latched, definition = self._topics[topic]
        text, digest = definition or (None, None)
        self._connections[topic] = writer.add_connection(
            topic,
            type_name,
            typestore=standard_types(),
            msgdef=text,
            rihs01=digest,
            offered_qos_profiles=[_latched()] if latched else [],
        )

    def _finish(self, writer: Writer) -> None:
        name = f"{self.path.name}_{len(self._parts)}{self._suffix}"
        try:
            writer.close()
            part = _load(self._folder / METADATA)
            shutil.move(self._folder / f"{self._folder.name}{self._suffix}", self.path / name)
            shutil.rmtree(self._folder)
            part["relative_file_paths"] = [name]
            part["files"][0]["path"] = name
            self._parts.append(part)
            self._writer = None
            self._write_metadata()
        except OSError as error:
            self._failed = True
            with contextlib.suppress(OSError):
                writer.abort()
            raise BagError(
                f"bag {self.path}: {error.strerror}; what was written before can be read"
            ) from error

    def _write_metadata(self) -> None:
        merged = merge_metadata(self._parts)
        merged["custom_data"] = self._custom or None
        dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
        text = yaml.dump({INFORMATION: merged}, Dumper=dumper, sort_keys=False)
        write_atomically(self.path / METADATA, text.encode())

    def _resume(self, keep: int) -> None:
        metadata = self.path / METADATA
        if not metadata.is_file():
            return
        information = _load(metadata)
        self._custom = dict(information.get("custom_data") or {}) | self._custom
        for file in information["files"][keep:]:
            (self.path / file["path"]).unlink(missing_ok=True)
        for file in information["files"][:keep]:
            with Reader(self.path / file["path"]) as reader:
                counts = {c.topic: c.msgcount for c in reader.connections}
            topics = [
                dict(topic, message_count=counts.get(topic["topic_metadata"]["name"], 0))
                for topic in information["topics_with_message_count"]
            ]
            own = {n: file[n] for n in ("starting_time", "duration", "message_count")}
            self._parts.append(
                dict(
                    information,
                    relative_file_paths=[file["path"]],
                    files=[file],
                    topics_with_message_count=topics,
                )
                | own
            )
        if self._parts:
            self._write_metadata()


def merge_metadata(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """One ``metadata.yaml`` of several files' own."""
    merged = dict(parts[0])
    full = [part for part in parts if part["message_count"]] or parts
    start = min(part["starting_time"]["nanoseconds_since_epoch"] for part in full)
    end = max(
        part["starting_time"]["nanoseconds_since_epoch"] + part["duration"]["nanoseconds"]
        for part in full
    )
    counts: dict[str, dict[str, Any]] = {}
    for part in parts:
        for topic in part["topics_with_message_count"]:
            name = topic["topic_metadata"]["name"]
            known = counts.setdefault(name, dict(topic, message_count=0))
            known["message_count"] += topic["message_count"]
    merged |= {
        "relative_file_paths": [path for part in parts for path in part["relative_file_paths"]],
        "files": [file for part in parts for file in part["files"]],
        "starting_time": {"nanoseconds_since_epoch": start},
        "duration": {"nanoseconds": end - start},
        "message_count": sum(part["message_count"] for part in parts),
        "topics_with_message_count": list(counts.values()),
    }
    return merged


def _load(path: Path) -> dict[str, Any]:
    """What ``metadata.yaml`` says; by libyaml where it is there, which is ten times as fast."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return dict(yaml.load(path.read_text(encoding="utf-8"), Loader=loader)[INFORMATION])


def _latched() -> Qos:
    never = QosTime(9223372036, 854775807)
    return Qos(
        QosHistory.KEEP_LAST,
        1,
        QosReliability.RELIABLE,
        QosDurability.TRANSIENT_LOCAL,
        never,
        never,
        QosLiveliness.AUTOMATIC,
        never,
        False,
    )
