"""Writing a rosbag2 recording, file by file."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from rosbags.interfaces import (
    Qos,
    QosDurability,
    QosHistory,
    QosLiveliness,
    QosReliability,
    QosTime,
)
from rosbags.rosbag2 import CompressionFormat, CompressionMode, Reader, StoragePlugin, Writer

from vla_reasoner_ros.data.bag_files import STORAGES
from vla_reasoner_ros.data.bag_metadata import (
    METADATA,
    load_metadata,
    merge_metadata,
    write_metadata,
)
from vla_reasoner_ros.data.message_types import serialize, standard_types
from vla_reasoner_ros.errors import BagError

_FORMAT_VERSION: Literal[9] = 9
"""Of ``metadata.yaml``, as Jazzy writes it."""


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
            part = load_metadata(self._folder / METADATA)
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
        write_metadata(self.path, merged)

    def _resume(self, keep: int) -> None:
        metadata = self.path / METADATA
        if not metadata.is_file():
            return
        information = load_metadata(metadata)
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
