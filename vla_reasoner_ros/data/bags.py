"""Reading rosbag2 recordings, with or without ROS, and whatever state they are in.

MCAP and sqlite3, compressed by file, message or chunk, in one file or many. A recording that was
cut off, lost its ``metadata.yaml`` or has a broken part gives what is whole, and
:attr:`BagReader.problems` says the rest.
"""

from __future__ import annotations

import contextlib
import heapq
import re
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from rosbags.interfaces import MessageDefinition, MessageDefinitionFormat
from rosbags.typesys import Stores, get_types_from_idl, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from vla_reasoner_ros.data.bag_files import STORAGES, BagFile, BagMessage, Topic, open_file
from vla_reasoner_ros.data.bag_metadata import METADATA, load_metadata
from vla_reasoner_ros.data.bag_writer import BagWriter
from vla_reasoner_ros.data.mcap_scan import zstd
from vla_reasoner_ros.data.message_types import deserialize, standard_types
from vla_reasoner_ros.errors import BagError

__all__ = ["STORAGES", "BagMessage", "BagReader", "BagWriter", "Topic"]


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
            return deserialize(message.type, message.data, store)
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
            own = _definitions(name, definition)
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
            content = load_metadata(path)
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

    def _open(self, path: Path) -> BagFile:
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
        file = open_file(path, self.problems)
        self._stack.callback(file.close)
        return file


@lru_cache(maxsize=256)
def _definitions(name: str, definition: MessageDefinition) -> Mapping[str, Any]:
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
