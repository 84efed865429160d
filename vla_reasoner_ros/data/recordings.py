"""Recordings that trainers read: folders of episodes, of bags, or of both.

Bags go through the ingest of the live camera node, once: what becomes of them is kept as
memory-mapped episodes under a name made of their contents, the contract and the options, so a
changed bag or contract is read anew and nothing stale is ever used.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from vla_reasoner_ros.control.kinematics import Kinematics
from vla_reasoner_ros.control.robots import load_robot
from vla_reasoner_ros.data.bag_episodes import ImportOptions, bags_in, episodes_from_bag
from vla_reasoner_ros.data.bags import STORAGES
from vla_reasoner_ros.data.contract import Contract, load_contract
from vla_reasoner_ros.data.episode_sets import EpisodeSet
from vla_reasoner_ros.data.episodes import SUFFIX, Episode
from vla_reasoner_ros.errors import BagError, EpisodeError

CACHE = Path("data/bag_cache")


def open_recordings(
    folders: Sequence[str | Path],
    contract: Contract | str = "sim",
    cache: str | Path = CACHE,
    options: ImportOptions | None = None,
) -> EpisodeSet:
    """All episodes of some folders, whether they lie there as episodes or as bags.

    Bags that are unusable are said on standard error and left out.

    Args:
        folders: searched with the folders in them, but for the cache.
        contract: maps the bags' topics, or its name or file.
        cache: where episodes made of bags are kept.
        options: what bags do not say.

    Raises:
        EpisodeError: a folder is missing, holds nothing usable, the cache cannot be written, or
            two episodes differ in cameras, joints, frame or action convention.
    """
    episodes: list[Episode] = []
    for folder in map(Path, folders):
        if not folder.exists():
            raise EpisodeError(f"episode folder {folder}: there is none")
        files = _without(Path(cache), folder, _files(folder, SUFFIX))
        bags = bags_in([folder]) if any(_files(folder, s) for s in STORAGES.values()) else []
        if not files and not bags:
            raise EpisodeError(f"episode folder {folder}: no *{SUFFIX} file and no bag in it")
        found = [Episode(path) for path in files]
        if bags:
            found += _from_bags(bags, contract, Path(cache), options)
        if not found:
            raise EpisodeError(f"episode folder {folder}: none of its {len(bags)} bags is usable")
        episodes += found
    return EpisodeSet(episodes, ", ".join(map(str, folders)))


def _files(folder: Path, suffix: str) -> list[Path]:
    """Files that end so, hidden ones and what lies in hidden folders left out."""
    paths = [folder] if folder.is_file() else folder.rglob(f"*{suffix}*")
    return sorted(
        path
        for path in paths
        if path.name.removesuffix(".zstd").endswith(suffix)
        and not any(part[0] == "." for part in path.relative_to(folder.parent).parts)
    )


def _without(cache: Path, folder: Path, files: Sequence[Path]) -> list[Path]:
    """The files that do not lie in a cache within the folder: their bags are read themselves."""
    kept, searched = cache.resolve(), folder.resolve()
    if kept == searched or not kept.is_relative_to(searched):
        return list(files)
    return [path for path in files if not path.resolve().is_relative_to(kept)]


def _from_bags(
    bags: Sequence[Path], contract: Contract | str, cache: Path, options: ImportOptions | None
) -> list[Episode]:
    if isinstance(contract, str):
        contract = load_contract(contract)
    kinematics = Kinematics(load_robot(contract.moments.robot))
    found: list[Episode] = []
    for number, bag in enumerate(bags, start=1):
        try:
            files, problems = episodes_from_bag(bag, contract, cache, options, kinematics)
        except BagError as error:
            print(f"recordings: {error}; left out", file=sys.stderr)
            continue
        except OSError as error:
            raise EpisodeError(f"cache {cache}: {error.strerror} ({bag})") from error
        for problem in problems:
            print(f"recordings: {bag}: {problem}", file=sys.stderr)
        found += [Episode(file) for file in files]
        if number % 50 == 0 or number == len(bags):
            print(f"recordings: {number}/{len(bags)} bags", file=sys.stderr)
    return found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of a verb that reads recordings."""
    parser.add_argument(
        "--contract", default="sim", help="of bags among the recordings, by name or its YAML file"
    )
    parser.add_argument(
        "--bag-cache", type=Path, default=CACHE, help="where episodes made of bags are kept"
    )


def recordings_of(arguments: argparse.Namespace, folders: Sequence[Path]) -> EpisodeSet:
    """The recordings in some folders, by the options of :func:`add_arguments`."""
    return open_recordings(folders, arguments.contract, arguments.bag_cache)
