import argparse
import importlib
from pathlib import Path

import pytest

from vla_reasoner_ros.arguments import AMOUNT, COUNT, POSITIVE, SHARE, WHOLE, Parser
from vla_reasoner_ros.cli import VERBS


@pytest.mark.parametrize(
    ("kind", "taken", "refused"),
    [
        (COUNT, ["1", "7"], ["0", "-1", "1.5", "many", "nan", ""]),
        (WHOLE, ["0", "3"], ["-1", "0.0", "inf"]),
        (POSITIVE, ["0.1", "2"], ["0", "-2", "nan", "inf"]),
        (AMOUNT, ["0", "2.5"], ["-0.1", "nan", "inf"]),
        (SHARE, ["0", "0.5", "1"], ["1.1", "-0.1", "nan"]),
    ],
)
def test_a_number_out_of_range_is_refused_and_the_range_said(kind, taken, refused):
    for text in taken:
        assert kind(text) == kind.kind(text)
    for text in refused:
        with pytest.raises(argparse.ArgumentTypeError, match=f"expected {kind}, got"):
            kind(text)


def test_help_tells_defaults_and_what_kind_of_word_an_option_takes():
    parser = Parser(prog="a")
    parser.add_argument("--steps", type=COUNT, default=20, help="of training")
    parser.add_argument("--data", type=Path, nargs="+", default=[Path("a"), Path("b")])
    parser.add_argument("--share", default="5 %", help="of all")
    parser.add_argument("--jobs", type=WHOLE, default=0, help="workers (default: one a core)")
    parser.add_argument("--fresh", action="store_true", help="forget")
    said = " ".join(parser.format_help().split())
    assert "--steps N of training (default: 20)" in said
    assert "(default: a b)" in said
    assert "--share SHARE of all (default: 5 %)" in said
    assert "--jobs N workers (default: one a core)" in said
    assert "--fresh forget" in said


@pytest.mark.parametrize("name", VERBS)
def test_every_option_of_every_verb_says_what_it_is(name):
    parser = Parser(prog=name)
    importlib.import_module(VERBS[name].module).add_arguments(parser)
    for action in parser._actions:
        assert action.help or action.choices, f"{name} {action.option_strings}"
        assert action.type not in (int, float), f"{action.option_strings} takes any number"
