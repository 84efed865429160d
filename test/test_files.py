import os
from pathlib import Path

import pytest

from vla_reasoner_ros.files import beside, write_atomically


def test_a_file_is_whole_and_its_folder_is_made(tmp_path):
    path = tmp_path / "a" / "b.json"
    write_atomically(path, b"first")
    write_atomically(path, b"second")
    assert path.read_bytes() == b"second"
    assert os.listdir(path.parent) == ["b.json"]


def test_a_fault_names_the_file_that_was_asked_for_and_leaves_nothing(tmp_path):
    folder = tmp_path / "results.json"
    folder.mkdir()
    with pytest.raises(IsADirectoryError) as fault:
        write_atomically(folder, b"{}")
    assert (fault.value.filename, fault.value.filename2) == (str(folder), None)
    assert os.listdir(tmp_path) == ["results.json"]


def test_files_beside_another_share_its_name_and_no_file():
    assert beside(Path("out/loop.json"), ".md") == Path("out/loop.md")
    assert beside(Path("out/loop"), ".md") == Path("out/loop.md")
    assert beside(Path("out/loop.md"), ".md") == Path("out/loop.md.md")
    assert beside(Path("alpha_0.5"), ".md") == beside(Path("alpha_0.5.json"), ".md")
    assert beside(Path("alpha_0.5"), ".md") != beside(Path("alpha_0.6"), ".md")
