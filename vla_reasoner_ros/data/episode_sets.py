"""Recorded episodes of one contract, chosen and split."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vla_reasoner_ros.data.episodes import SUFFIX, Episode, Kind
from vla_reasoner_ros.errors import ConfigurationError, EpisodeError
from vla_reasoner_ros.types import ActionSpec


class EpisodeSet(Sequence[Episode]):
    """Episodes of one contract.

    Args:
        episodes: the episodes; :meth:`open` reads a folder.

    Raises:
        EpisodeError: there is none, or two differ in action convention, cameras, joints or frame.
    """

    def __init__(self, episodes: Sequence[Episode], name: str = "episode set") -> None:
        self._episodes = tuple(episodes)
        self.name = name
        if not self._episodes:
            raise EpisodeError(f"{name}: there are no episodes; record more, or others")
        first = self._episodes[0]
        for episode in self._episodes[1:]:
            for part, expected in first.contract.items():
                if episode.contract[part] != expected:
                    raise EpisodeError(
                        f"{name}: episodes differ in {part}: {first.path.name} has {expected}, "
                        f"{episode.path.name} has {episode.contract[part]}"
                    )

    @classmethod
    def open(cls, *folders: str | Path) -> EpisodeSet:
        """All episodes of one or more folders, by file name.

        Raises:
            EpisodeError: a folder is missing or empty, or an episode is unusable.
        """
        paths: list[Path] = []
        for folder in map(Path, folders):
            if not folder.is_dir():
                raise EpisodeError(f"episode folder {folder}: there is none")
            if not os.access(folder, os.R_OK | os.X_OK):
                raise EpisodeError(f"episode folder {folder}: may not be read")
            found = sorted(path for path in folder.rglob(f"*{SUFFIX}") if path.name[0] != ".")
            if not found:
                raise EpisodeError(f"episode folder {folder}: no *{SUFFIX} file in it")
            paths += found
        return cls([Episode(path) for path in paths], ", ".join(map(str, folders)))

    def __len__(self) -> int:
        return len(self._episodes)

    def __getitem__(self, index: Any) -> Any:
        return self._episodes[index]

    def __iter__(self) -> Iterator[Episode]:
        return iter(self._episodes)

    @property
    def action_spec(self) -> ActionSpec:
        """The convention of all actions."""
        return self._episodes[0].meta.action_spec

    @property
    def cameras(self) -> dict[str, tuple[int, int]]:
        """Camera name to (height, width)."""
        return self._episodes[0].cameras

    @property
    def steps(self) -> int:
        """Steps of all episodes together."""
        return sum(map(len, self._episodes))

    @property
    def content_hash(self) -> str:
        """SHA-256 over the episodes' contents, whatever their order and file names."""
        hashes = sorted(episode.content_hash for episode in self._episodes)
        return hashlib.sha256("".join(hashes).encode()).hexdigest()

    def counts(self, attribute: Callable[[Episode], str]) -> dict[str, int]:
        """How many episodes there are of each value of an attribute, sorted by value."""
        values = [attribute(episode) for episode in self._episodes]
        return {value: values.count(value) for value in sorted(set(values))}

    def where(
        self,
        *,
        kind: Collection[Kind | str] | Kind | str | None = None,
        task: str | None = None,
        success: bool | None = None,
    ) -> EpisodeSet:
        """The episodes that fit; None fits all.

        Raises:
            EpisodeError: none fits.
        """
        kinds = {Kind(k) for k in ({kind} if isinstance(kind, str) else set(kind or ()))}
        chosen = [
            episode
            for episode in self._episodes
            if (not kinds or episode.meta.kind in kinds)
            and task in (None, episode.meta.task)
            and success in (None, episode.meta.success)
        ]
        said = {"kind": " or ".join(sorted(k.value for k in kinds)), "task": task or ""}
        said["success"] = "" if success is None else str(success)
        wanted = ", ".join(f"{name} {value}" for name, value in said.items() if value)
        return EpisodeSet(chosen, f"{self.name} ({wanted})" if wanted else self.name)

    def split(self, held_out: float) -> tuple[EpisodeSet, EpisodeSet]:
        """Training and held-out episodes, by a hash of each episode's seed.

        Episodes of one seed stay together, and an episode keeps its side when others are added.

        Args:
            held_out: the expected share held out, in (0, 1).

        Raises:
            EpisodeError: one side would be empty.
            ConfigurationError: the share is out of range.
        """
        if not 0.0 < held_out < 1.0:
            raise ConfigurationError(f"held-out share: expected 0 < share < 1, got {held_out}")
        sides: Mapping[bool, list[Episode]] = {False: [], True: []}
        for episode in self._episodes:
            sides[_fraction(episode.meta.seed) < held_out].append(episode)
        return (
            EpisodeSet(sides[False], f"{self.name} (training)"),
            EpisodeSet(sides[True], f"{self.name} (held out)"),
        )


def _fraction(seed: int) -> float:
    digest = hashlib.sha256(str(seed).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2.0**64
