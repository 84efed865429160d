import pytest

from vla_reasoner_ros import plugins
from vla_reasoner_ros.errors import ConfigurationError


@pytest.mark.parametrize("name", ["lerobot", "openpi", "openvla", "pi0", "process"])
def test_a_component_names_the_options_that_it_needs(name):
    with pytest.raises(ConfigurationError, match=rf"policy '{name}': needs the options \w+"):
        plugins.create("policy", name)


def test_an_option_that_is_not_taken_is_named_with_those_that_are():
    with pytest.raises(ConfigurationError, match="no option 'speed'; it takes weights, encoder"):
        plugins.create("policy", "small_vla", {"speed": 2})


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a: [1", "not valid YAML"),
        (b"\x84\xff", "not valid YAML: 'utf-8' codec"),
        (b"- 1", "expected a mapping, got list"),
        (b"", None),
    ],
)
def test_a_file_of_options_is_a_mapping_in_yaml(tmp_path, content, said):
    path = tmp_path / "options.yaml"
    path.write_bytes(content)
    if said is None:
        assert plugins.read_options(path) == {}
        return
    with pytest.raises(ConfigurationError, match=f"options file {path}: {said}"):
        plugins.read_options(path)
