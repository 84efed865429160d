"""Compiled functions are never older than the code that they stand for."""

import os
import subprocess
import sys

import pytest

from vla_reasoner_ros.kernels import STAMP, compiled, forget_stale

INNER = """
from vla_reasoner_ros.kernels import kernel


@kernel
def inner(x):
    return x + {number}
"""
OUTER = """
from inner import inner
from vla_reasoner_ros.kernels import kernel


@kernel
def outer(x):
    return 2 * inner(x)
"""
MAIN = """
from pathlib import Path
from vla_reasoner_ros.kernels import forget_stale

forget_stale(Path(__file__).parent)

from outer import outer

print(outer(1))
"""


@pytest.fixture
def package(tmp_path):
    (tmp_path / "outer.py").write_text(OUTER)
    (tmp_path / "inner.py").write_text(INNER.format(number=1))
    (tmp_path / "plain.py").write_text("x = 1\n")
    kept = tmp_path / "__pycache__" / "outer.outer-6.py311.nbi"
    kept.parent.mkdir()
    kept.touch()
    return tmp_path


def test_what_was_compiled_from_other_sources_is_forgotten_once(package):
    assert forget_stale(package)
    assert [path.suffix for path in compiled(package)] == [".sha256"]
    assert not forget_stale(package)


def test_what_was_compiled_from_these_sources_is_kept(package):
    forget_stale(package)
    kept = package / "__pycache__" / "inner.inner-5.py311.1.nbc"
    kept.touch()
    (package / "plain.py").write_text("x = 2\n")
    assert not forget_stale(package)
    assert kept.exists()


def test_the_stamp_of_another_tree_says_nothing(package, tmp_path):
    forget_stale(package)
    stamp = package / "__pycache__" / STAMP
    elsewhere = tmp_path / "elsewhere"
    stamp.rename(elsewhere)
    stamp.symlink_to(elsewhere)
    before = elsewhere.read_text()
    (package / "__pycache__" / "inner.inner-5.py311.1.nbc").touch()
    assert forget_stale(package)
    assert compiled(package) == [stamp]
    assert not stamp.is_symlink()
    assert elsewhere.read_text() == before
    assert not forget_stale(package)


def test_the_link_of_a_module_that_is_gone_does_no_harm(package):
    forget_stale(package)
    (package / "gone.py").symlink_to(package / "nowhere.py")
    assert not forget_stale(package)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_package_that_may_not_be_written_is_left_as_it_is(package):
    (package / "__pycache__").chmod(0o500)
    assert not forget_stale(package)
    assert compiled(package)


@pytest.mark.slow
def test_a_kernel_runs_the_present_code_of_one_that_it_calls(package):
    (package / "main.py").write_text(MAIN)

    def answer():
        return subprocess.run(
            [sys.executable, str(package / "main.py")], capture_output=True, text=True, check=True
        ).stdout.strip()

    assert [answer(), answer()] == ["4", "4"]
    (package / "inner.py").write_text(INNER.format(number=10))
    assert answer() == "22"
