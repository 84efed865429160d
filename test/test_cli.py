import errno
import os
import subprocess
import sys
import types

import pytest

from vla_reasoner_ros import cli
from vla_reasoner_ros.errors import ModelError


@pytest.fixture
def verb(monkeypatch):
    """A verb whose body the test gives."""

    def install(body, name="try it"):
        module = types.ModuleType("a_verb")
        module.__doc__ = "Do a thing.\n\nAt length."
        module.add_arguments = lambda parser: parser.add_argument("--number", type=int, default=1)
        module.run = body
        monkeypatch.setitem(sys.modules, "a_verb", module)
        monkeypatch.setitem(cli.VERBS, name, cli.Verb("do a thing", "a_verb"))

    return install


def test_a_nested_verb_gets_its_arguments_and_gives_its_exit_code(verb):
    verb(lambda arguments: arguments.number)
    assert cli.main(["try", "it", "--number", "7"]) == 7


def test_an_error_of_ours_is_one_line_on_stderr_and_exit_code_2(verb, capsys):
    def fail(arguments):
        raise ModelError("weights of 'small_vla':\n  truncated")

    verb(fail)
    assert cli.main(["try", "it"]) == 2
    assert capsys.readouterr().err == "vla-reasoner: weights of 'small_vla': truncated\n"


def test_an_error_of_the_program_is_not_hidden(verb):
    def fail(arguments):
        raise ZeroDivisionError

    verb(fail)
    with pytest.raises(ZeroDivisionError):
        cli.main(["try", "it"])


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "data/latents/a.npz"),
            "No space left on device (data/latents/a.npz); what is finished is kept",
        ),
        (PermissionError(errno.EACCES, "Permission denied", "data"), "data: Permission denied"),
        (IsADirectoryError(errno.EISDIR, "Is a directory", b"d\xe9"), "d\\udce9: Is a directory"),
    ],
)
def test_a_file_that_refuses_is_named_in_one_line(verb, capsys, fault, said):
    def refused(arguments):
        raise fault

    verb(refused)
    assert cli.main(["try", "it"]) == 2
    assert capsys.readouterr().err == f"vla-reasoner: {said}\n"


def test_a_fault_of_the_system_that_names_no_file_is_not_hidden(verb):
    def broken(arguments):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    verb(broken)
    with pytest.raises(BrokenPipeError):
        cli.main(["try", "it"])


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ModuleNotFoundError("No module named 'rclpy'", name="rclpy"), "this verb needs ROS 2"),
        (ImportError("librcl_action.so: no such file\nThe C extension ..."), "needs ROS 2"),
        (ImportError("cannot import name 'A'", name="vla_reasoner_ros.srv"), "needs ROS 2"),
        (ImportError("No module named 'a'", name="vla_reasoner_ros.a"), "build it again"),
        (ModuleNotFoundError("No module named 'ray'", name="ray"), "is the extra that brings it"),
    ],
)
def test_a_missing_package_is_one_line_that_says_where_it_comes_from(verb, capsys, error, said):
    def missing(arguments):
        raise error

    verb(missing)
    assert cli.main(["try", "it"]) == 2
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == 1


def test_interrupt_is_exit_code_130(verb):
    def interrupted(arguments):
        raise KeyboardInterrupt

    verb(interrupted)
    assert cli.main(["try", "it"]) == 130


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["evaluat"], "did you mean evaluate?"),
        (["train", "polcy"], "did you mean train policy?"),
        (["train"], "no verb 'train'"),
    ],
)
def test_an_unknown_verb_is_named_and_the_nearest_suggested(words, expected, capsys):
    assert cli.main(words) == 2
    assert expected in capsys.readouterr().err


def test_a_wrong_option_is_one_line_that_says_where_to_look(verb, capsys):
    verb(lambda arguments: 0)
    with pytest.raises(SystemExit) as ended:
        cli.main(["try", "it", "--numbr", "7"])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("vla-reasoner try it: unrecognized arguments: --numbr 7")
    assert said.endswith("(vla-reasoner try it --help tells more)\n")


def test_whoever_reads_the_output_may_stop_reading():
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "vla_reasoner_ros.cli", "--help"]
    ended = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, timeout=60, check=False)
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (cli.EXIT_BROKEN_PIPE, b"")


@pytest.mark.parametrize("words", [[], ["--help"], ["train", "--help"]])
def test_help_lists_the_verbs(words, capsys):
    assert cli.main(words) == 0
    listed = capsys.readouterr().out
    assert "train policy" in listed
    assert ("evaluate" in listed) == (words != ["train", "--help"])
