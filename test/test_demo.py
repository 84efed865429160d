import pytest

from vla_reasoner_ros.nodes import demo


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--tasks", "juggle"], "task 'juggle' is unknown; known are red_on_plate"),
        (["--tasks", ""], "task '' is unknown"),
        (["--tasks", "lift_green,lift_green"], "tasks: a name stands twice"),
        (["--set", "search.dephts=3"], "did you mean search.depth"),
        (["--set", "search.depth=deep"], "search.depth: expected int, got 'deep'"),
    ],
)
def test_what_the_demonstration_cannot_do_is_said_before_anything_starts(
    tmp_path, capsys, words, said
):
    assert demo.main([*words, "--out", str(tmp_path / "out")]) == 1
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path, capsys):
    (tmp_path / "out").write_text("a file")
    assert demo.main(["--out", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err == f"demo: {tmp_path / 'out' / 'log'}: Not a directory\n"
