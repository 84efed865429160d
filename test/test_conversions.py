import array
import dataclasses
import math
from contextlib import suppress

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("rclpy", reason="rclpy is not importable: source a ROS 2 or run make setup")

from rclpy.serialization import serialize_message
from sensor_msgs.msg import CompressedImage, Image, JointState

from vla_reasoner_ros.control.executor import ControllerState, ExecutorStatus
from vla_reasoner_ros.control.trajectory import JointTrajectory
from vla_reasoner_ros.data import messages
from vla_reasoner_ros.data.images import ENCODINGS, decode_image, resize
from vla_reasoner_ros.data.joints import JointLayout
from vla_reasoner_ros.errors import (
    ActionChunkError,
    ConfigurationError,
    ObservationError,
    SearchReportError,
    TrajectoryError,
)
from vla_reasoner_ros.ros import conversions, reports
from vla_reasoner_ros.ros.clock import to_nanoseconds, to_stamp
from vla_reasoner_ros.search.statistics import SearchStatistics, Status, TreeSnapshot
from vla_reasoner_ros.types import (
    ActionChunk,
    ActionSpec,
    ChunkSource,
    GripperSpec,
    Observation,
    Representation,
)

TOPIC = "wrist/image_raw"
STAMP = 12_345_678_901
RNG = np.random.default_rng(3)
PICTURE = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)


def message(pixels, encoding, step=None, big=0):
    height, width = pixels.shape[:2]
    rows = pixels.reshape(height, -1)
    step = rows.shape[1] if step is None else step
    padded = np.full((height, step), 255, dtype=np.uint8)
    padded[:, : rows.shape[1]] = rows
    result = Image(height=height, width=width, encoding=encoding, step=step, is_bigendian=big)
    result.data = array.array("B", padded.tobytes())
    return result


def pixels_of(sent):
    """What a raw subscription makes of a message."""
    word = "compressed" if isinstance(sent, CompressedImage) else "image"
    return conversions.image_from_bytes(serialize_message(sent), word, TOPIC)


# Images.


@pytest.mark.parametrize(
    ("encoding", "pixels"),
    [
        ("rgb8", PICTURE),
        ("bgr8", PICTURE[..., ::-1]),
        ("8UC3", PICTURE[..., ::-1]),
        ("rgba8", np.dstack([PICTURE, PICTURE[..., 0]])),
        ("bgra8", np.dstack([PICTURE[..., ::-1], PICTURE[..., 0]])),
        ("8UC4", np.dstack([PICTURE[..., ::-1], PICTURE[..., 0]])),
    ],
)
@pytest.mark.parametrize("padding", [0, 5])
def test_color_encodings_become_rgb(encoding, pixels, padding):
    step = pixels.shape[1] * pixels.shape[2] + padding
    image = pixels_of(message(pixels, encoding, step))
    np.testing.assert_array_equal(image, PICTURE)
    assert image.flags.c_contiguous


@pytest.mark.parametrize("encoding", ["mono8", "8UC1"])
def test_grey_becomes_three_equal_channels(encoding):
    grey = PICTURE[..., :1]
    image = pixels_of(message(grey, encoding, step=11))
    np.testing.assert_array_equal(image, np.repeat(grey, 3, axis=2))


@pytest.mark.parametrize(("big", "dtype"), [(0, "<u2"), (1, ">u2")])
@pytest.mark.parametrize("encoding", ["mono16", "rgb16", "bgr16"])
def test_two_byte_samples_are_scaled_to_one_in_either_byte_order(encoding, big, dtype):
    channels = ENCODINGS[encoding].channels
    deep = RNG.integers(0, 65536, (5, 7, channels)).astype(dtype)
    raw = deep.view(np.uint8).reshape(5, 7, channels * 2)
    image = pixels_of(message(raw, encoding, step=60, big=big))
    expected = np.rint(deep * (255.0 / 65535.0)).astype(np.uint8)
    if encoding == "bgr16":
        expected = expected[..., ::-1]
    np.testing.assert_array_equal(image, np.broadcast_to(expected, (5, 7, 3)))


@pytest.mark.parametrize(
    ("encoding", "corner"),
    [("bayer_rggb8", 0), ("bayer_bggr8", 2), ("bayer_grbg8", 1), ("bayer_gbrg8", 1)],
)
def test_a_bayer_pattern_is_named_by_its_first_pixels(encoding, corner):
    """A sensor that sees one pure color lights only the pixels below filters of that color."""
    letters = encoding.removeprefix("bayer_")[:4]
    filters = np.array(["rgb".index(c) for c in letters]).reshape(2, 2)
    assert filters[0, 0] == corner
    for color in range(3):
        mosaic = np.where(np.tile(filters, (8, 8)) == color, 200, 0).astype(np.uint8)
        image = pixels_of(message(mosaic[..., None], encoding))
        inner = image[4:-4, 4:-4].reshape(-1, 3).mean(axis=0)
        assert inner.argmax() == color


@pytest.mark.parametrize(("encoding", "order"), [("uyvy", (1, 0)), ("yuv422_yuy2", (0, 1))])
def test_yuv_of_a_grey_picture_is_grey(encoding, order):
    pixels = np.zeros((4, 6, 2), dtype=np.uint8)
    pixels[..., order[0]], pixels[..., order[1]] = 128, 128
    image = pixels_of(message(pixels, encoding))
    assert np.ptp(image) <= 3
    assert abs(int(image.mean()) - 130) < 5


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"encoding": "32FC1"}, "encoding '32FC1' (is unknown|cannot be converted)"),
        ({"encoding": ""}, "encoding '' (is unknown|cannot be converted)"),
        ({"step": 20}, "step is 20 bytes, expected at least 21"),
        ({"step": 24}, "data has 105 bytes, expected 5 rows x 24 = 120"),
        ({"height": 6}, "data has 105 bytes, expected 6 rows x 21 = 126"),
        ({"height": 0}, "7 x 0 pixels"),
        ({"width": 0}, "0 x 5 pixels"),
        ({"data": array.array("B")}, "data has 0 bytes"),
        ({"height": 2**31, "width": 2**31}, "expected 1 to"),
    ],
)
def test_an_unusable_image_is_named_by_topic_and_fault(change, complaint):
    broken = message(PICTURE, "rgb8")
    for name, value in change.items():
        setattr(broken, name, value)
    with pytest.raises(ObservationError, match=complaint) as error:
        pixels_of(broken)
    assert str(error.value).startswith(TOPIC)


def test_an_odd_width_that_shares_chroma_is_refused():
    with pytest.raises(ObservationError, match="uyvy image of 7 x 4 pixels"):
        pixels_of(message(np.zeros((4, 7, 2), np.uint8), "uyvy"))


@given(st.binary(max_size=60), st.integers(0, 9), st.integers(0, 9), st.integers(0, 40))
def test_no_header_and_no_bytes_make_anything_but_an_image_or_a_named_error(
    data, height, width, step
):
    for encoding in ENCODINGS:
        any_message = Image(height=height, width=width, encoding=encoding, step=step)
        any_message.data = array.array("B", data)
        try:
            image = decode_image(any_message, TOPIC)
        except ObservationError:
            continue
        assert image.shape == (height, width, 3)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**31 - 1))
def test_an_image_survives_the_way_there_and_back(height, width, seconds):
    image = RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)
    sent = conversions.image_to_message(image, seconds * 10**9 + 7, "camera")
    assert to_nanoseconds(sent.header.stamp) == seconds * 10**9 + 7
    np.testing.assert_array_equal(pixels_of(sent), image)


def test_a_jpeg_is_nearly_the_picture_and_a_png_the_picture():
    smooth = cv2.resize(PICTURE, (64, 48))
    jpeg = conversions.compressed_to_message(smooth, STAMP, "camera", quality=95)
    decoded = pixels_of(jpeg)
    assert np.abs(decoded.astype(int) - smooth).mean() < 4
    png = CompressedImage(format="png")
    png.data = array.array("B", cv2.imencode(".png", smooth[..., ::-1])[1].tobytes())
    np.testing.assert_array_equal(pixels_of(png), smooth)


@pytest.mark.parametrize(
    ("format_", "data", "complaint"),
    [
        ("jpeg", b"", "empty"),
        ("jpeg", b"no picture at all", "not a JPEG"),
        ("16UC1; compressedDepth png", b"x" * 20, "depth image"),
    ],
)
def test_an_unusable_compressed_image_is_named(format_, data, complaint):
    broken = CompressedImage(format=format_)
    broken.data = array.array("B", data)
    with pytest.raises(ObservationError, match=complaint) as error:
        pixels_of(broken)
    assert str(error.value).startswith(TOPIC)


@given(
    st.sampled_from(["image", "compressed"]),
    st.lists(st.tuples(st.integers(0, 199), st.integers(0, 255)), max_size=8),
    st.integers(0, 200),
)
def test_broken_bytes_make_an_image_or_a_named_error(word, changes, length):
    whole = {
        "image": conversions.image_to_message(PICTURE, STAMP),
        "compressed": CompressedImage(format="png", data=array.array("B", range(150))),
    }
    data = bytearray(serialize_message(whole[word]))
    for place, value in changes:
        data[place % len(data)] = value
    with suppress(ObservationError):
        image = conversions.image_from_bytes(bytes(data[:length]), word, TOPIC)
        assert image.ndim == 3
        assert image.shape[2] == 3


def test_what_is_no_rgb_image_is_not_sent():
    with pytest.raises(ObservationError, match=r"expected \(H, W, 3\) uint8"):
        conversions.image_to_message(np.zeros((4, 4), np.uint8), STAMP)


def test_the_stamp_of_a_serialized_message_is_read_without_the_rest():
    data = serialize_message(conversions.image_to_message(PICTURE, STAMP))
    assert conversions.stamp_from_bytes(data, TOPIC) == STAMP
    np.testing.assert_array_equal(conversions.image_from_bytes(data, "image", TOPIC), PICTURE)
    with pytest.raises(ObservationError, match="has no header"):
        conversions.stamp_from_bytes(data[:8], TOPIC)


def test_resizing_averages_and_keeps_what_fits():
    image = np.zeros((4, 8, 3), np.uint8)
    image[:, ::2] = 200
    assert (resize(image, 2, 4, "stretch") == 100).all()
    wide = np.zeros((4, 8, 3), np.uint8)
    wide[:, 2:6] = 90
    assert (resize(wide, 4, 4, "crop") == 90).all()
    assert resize(wide, 8, 8, "crop").shape == (8, 8, 3)
    np.testing.assert_array_equal(resize(PICTURE, 5, 7, "stretch"), PICTURE)


def shares(pixels, kept):
    """(kept, pixels): how much of each pixel lies in each of the fewer that are kept."""
    edges, starts = np.linspace(0.0, pixels, kept + 1)[:, None], np.arange(pixels)
    within = np.minimum(edges[1:], starts + 1) - np.maximum(edges[:-1], starts)
    return np.maximum(within, 0.0) * kept / pixels


@pytest.mark.parametrize("size", [(480, 640), (480, 480), (96, 128), (200, 301), (96, 96)])
def test_shrinking_weighs_pixels_by_area(size):
    image = RNG.integers(0, 256, (*size, 3), dtype=np.uint8)
    expected = np.einsum("yh,hwc,xw->yxc", shares(size[0], 96), image, shares(size[1], 96))
    assert np.abs(resize(image, 96, 96, "stretch") - expected).max() <= 1.0


# Joint states.

LAYOUT = JointLayout(("a", "b"), ignored=("wheel",))


def joints(names=("b", "wheel", "a"), position=(2.0, 9.0, 1.0), velocity=(0.2, 0.9, 0.1)):
    return JointState(name=list(names), position=list(position), velocity=list(velocity))


def test_joints_are_put_in_the_robots_order():
    position, velocity = LAYOUT.read(joints(), "joint_states")
    assert position.tolist() == [1.0, 2.0]
    assert velocity.tolist() == [0.1, 0.2]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"names": ("b", "wheel", "c")}, "joints a are missing; got b, wheel, c"),
        ({"names": ("b", "a", "c")}, "joints c are unknown"),
        ({"names": ("b", "a", "a")}, "named twice"),
        ({"names": (), "position": (), "velocity": ()}, "joints a, b are missing; got none"),
        ({"position": (1.0, 2.0, math.nan)}, "position of joint a is nan"),
        ({"velocity": (math.inf, 0.0, 0.0)}, "velocity of joint b is inf"),
        ({"position": (1.0, 2.0)}, "2 numbers of position for 3 joints"),
        ({"velocity": ()}, "0 numbers of velocity for 3 joints"),
    ],
)
def test_an_unusable_joint_state_is_named(change, complaint):
    with pytest.raises(ObservationError, match=f"joint_states: .*{complaint}"):
        LAYOUT.read(joints(**change), "joint_states")


def test_velocities_may_be_left_out_where_they_are_not_needed():
    layout = JointLayout(("a", "b"), ("wheel",), needs_velocities=False)
    position, velocity = layout.read(joints(velocity=()), "joint_states")
    assert position.tolist() == [1.0, 2.0]
    assert np.isnan(velocity).all()


def test_a_joint_is_named_once():
    with pytest.raises(ConfigurationError, match="a named more than once"):
        JointLayout(("a", "b", "a"))


# Stamps.


@given(st.integers(0, 2**31 * 10**9 - 1))
def test_a_stamp_survives_the_way_there_and_back(nanoseconds):
    assert to_nanoseconds(to_stamp(nanoseconds)) == nanoseconds


@pytest.mark.parametrize("nanoseconds", [-1, 2**31 * 10**9])
def test_a_stamp_that_does_not_fit_is_refused(nanoseconds):
    with pytest.raises(ObservationError, match="stamp: expected 0 to"):
        to_stamp(nanoseconds)


# Observations.


def observation(**changes):
    values = {
        "stamp_ns": STAMP,
        "images": {"agent": PICTURE, "wrist": PICTURE[:3]},
        "joint_names": ("a", "b"),
        "joint_positions": np.array([0.1, -0.2]),
        "joint_velocities": np.array([0.0, 0.5]),
        "ee_position": np.array([0.4, 0.0, 0.3]),
        "ee_quaternion": np.array([1.0, 0.0, 0.0, 0.0]),
        "gripper": 0.25,
        "instruction": "push the red block onto the plate",
        "ages": {"agent": 0.0, "joint_states": 0.004},
    }
    return Observation(**(values | changes))


def equal(one, other):
    for field in dataclasses.fields(one):
        first, second = getattr(one, field.name), getattr(other, field.name)
        if isinstance(first, dict) and first and isinstance(next(iter(first.values())), np.ndarray):
            assert first.keys() == second.keys()
            for key in first:
                np.testing.assert_array_equal(first[key], second[key])
        elif isinstance(first, np.ndarray):
            np.testing.assert_array_equal(first, second)
        else:
            assert first == second, field.name


def test_an_observation_survives_the_way_there_and_back():
    sent = observation()
    equal(sent, conversions.observation_from_message(conversions.observation_to_message(sent)))


def test_a_simulators_state_is_put_beside_the_message():
    state = np.array([1.0, 2.0])
    message_ = conversions.observation_to_message(observation())
    assert conversions.observation_from_message(message_, state).simulator_state is state


def test_a_broken_observation_is_named():
    broken = conversions.observation_to_message(observation())
    broken.image_names = ["agent"]
    with pytest.raises(ObservationError, match="1 image_names for 2 images"):
        conversions.observation_from_message(broken)
    broken = conversions.observation_to_message(observation())
    broken.joint_state.position[1] = math.nan
    with pytest.raises(ObservationError, match="joint_positions is not finite"):
        conversions.observation_from_message(broken)


# Action chunks.

SPECS = [
    ActionSpec(
        Representation.EE_DELTA,
        ("x", "y", "z", "rx", "ry", "rz", "gripper"),
        "base",
        0.1,
        GripperSpec(index=6),
    ),
    ActionSpec(Representation.JOINT_POSITION, ("a", "b"), "", 0.05),
]


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.representation.value)
@pytest.mark.parametrize("source", list(ChunkSource))
def test_a_chunk_survives_the_way_there_and_back(spec, source):
    sent = ActionChunk(
        spec, RNG.normal(size=(4, spec.dimensions)), STAMP, 9, source, consumed=2, confidence=0.5
    )
    equal(sent, conversions.chunk_from_message(conversions.chunk_to_message(sent, STAMP + 1)))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"dimensions": 6}, "7 names for 6 dimensions"),
        ({"steps": 5}, "28 numbers, expected 5 steps x 7 dimensions"),
        ({"steps": 0, "actions": []}, "expected .steps >= 1"),
        ({"representation": "guess"}, "'guess' is not a valid Representation"),
        ({"dt": 0.0}, "dt must be positive"),
        ({"dt": math.nan}, "dt must be positive"),
        ({"gripper_index": 7}, "gripper index 7 is outside"),
        ({"gripper_index": -2}, "gripper index -2 is outside"),
        ({"gripper_open": 0.0}, "open and closed must be finite and differ"),
        ({"source": 9}, "source 9 is unknown"),
        ({"actions": [math.nan] * 28}, "x at step 0 is nan"),
    ],
)
def test_an_unusable_chunk_is_named(change, complaint):
    broken = conversions.chunk_to_message(ActionChunk(SPECS[0], np.zeros((4, 7)), STAMP), STAMP)
    for name, value in change.items():
        setattr(broken, name, value)
    with pytest.raises(ActionChunkError, match=complaint):
        conversions.chunk_from_message(broken)


# Trajectories and reports.


def test_a_trajectory_is_sent_knot_for_knot():
    knots = JointTrajectory(
        ("a", "b"),
        np.array([0.0, 0.1, 1.25]),
        RNG.normal(size=(3, 2)),
        RNG.normal(size=(3, 2)),
        RNG.normal(size=(3, 2)),
    )
    sent = conversions.trajectory_to_message(knots, STAMP)
    assert to_nanoseconds(sent.header.stamp) == STAMP
    received = conversions.trajectory_from_message(sent)
    np.testing.assert_array_equal(received.times, knots.times)
    np.testing.assert_array_equal(received.positions, knots.positions)
    np.testing.assert_array_equal(received.accelerations, knots.accelerations)
    for bad in (math.nan, -2e6):  # the second would take a stop of days
        sent.points[1].velocities[0] = bad
        with pytest.raises(TrajectoryError, match="point 1 has velocities"):
            conversions.trajectory_from_message(sent)
    sent.points = []
    with pytest.raises(TrajectoryError, match="0 points for 2 joints"):
        conversions.trajectory_from_message(sent)


def test_statistics_survive_the_way_there_and_back():
    sent = SearchStatistics(
        observation_stamp_ns=STAMP,
        sequence=4,
        status=Status.DEADLINE,
        fallback_reason="deadline of 100 ms",
        seed=2**63,
        stage_names=("policy", "value"),
        stage_ms=(1.5, 2.5),
        candidate_ids=[0, 3],
        candidate_visits=[7, 5],
        candidate_values=[0.5, 0.4],
        candidate_priors=[0.6, 0.4],
        candidate_origins=["policy", "kde"],
        drift=0.25,
    )
    received = messages.statistics_from_message(reports.statistics_to_message(sent, STAMP))
    assert received == sent


def test_a_tree_survives_the_way_there_and_back_but_for_its_states():
    sent = snapshot()
    received = messages.tree_from_message(reports.tree_to_message(sent, STAMP, 4, STAMP))
    equal(dataclasses.replace(sent, slots=np.full(3, -1)), received)


def snapshot(**changed):
    fields = {
        "parents": np.array([-1, 0, 0], np.int32),
        "visits": np.array([3, 1, 2], np.int32),
        "values": np.array([0.1, 0.2, 0.3]),
        "leaf_values": np.array([0.1, 0.2, 0.35]),
        "priors": np.array([1.0, 0.5, 0.5]),
        "depths": np.array([0, 1, 1], np.int32),
        "origins": ("root", "policy", "kde"),
        "actions": RNG.normal(size=(3, 4, 7)),
        "slots": np.arange(3),
        "ee_positions": RNG.normal(size=(3, 3)),
    }
    return TreeSnapshot(**fields | changed)


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("nodes", 2, "one length, got nodes 2, parents 3"),
        ("parents", [-1, 2, 0], "the parent of node 1 is 2, expected 0 to 0"),
        ("parents", [0, 0, 0], "the parent of node 0 is 0, expected -1"),
        ("visits", [3, 2**32 - 1, 0], "visits has 4294967295, expected below"),
        ("dimensions", 6, "actions has 84 numbers, expected 72 for 3 nodes"),
        ("ee_positions", [0.0] * 6, "ee_positions has 6 numbers, expected 9 for 3 nodes"),
    ],
)
def test_a_tree_that_contradicts_itself_is_refused(field, value, says):
    message = reports.tree_to_message(snapshot(), STAMP, 4, STAMP)
    setattr(message, field, value)
    with pytest.raises(SearchReportError, match=says):
        messages.tree_from_message(message)


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("status", 9, "status is 9, expected one of 0 .OK"),
        ("candidate_ids", [1], "one length, got candidate_ids 1"),
        ("stage_ms", [1.0], "one length, got stage_names .*, stage_ms 1"),
    ],
)
def test_statistics_that_contradict_themselves_are_refused(field, value, says):
    statistics = SearchStatistics(STAMP, 4, Status.OK, "", 1)
    message = reports.statistics_to_message(statistics, STAMP)
    setattr(message, field, value)
    with pytest.raises(SearchReportError, match=says):
        messages.statistics_from_message(message)


def test_the_controllers_status_survives_the_way_there_and_back():
    sent = ExecutorStatus(ControllerState.HOLDING, "no chunk for 1 s", 4, 2, 9, 1, "too old", 0.01)
    assert conversions.status_from_message(conversions.status_to_message(sent, STAMP)) == sent


def random_image(encoding, height=4, width=6, padding=0, big_endian=False):
    """A message of this encoding with random bytes, and so many pixels more in each row."""
    known = ENCODINGS[encoding]
    pixel = known.channels * known.bytes_per_sample
    step = (width + padding) * pixel
    data = np.random.default_rng(0).integers(0, 256, height * step, dtype=np.uint8)
    return Image(
        height=height,
        width=width,
        encoding=encoding,
        is_bigendian=int(big_endian),
        step=step,
        data=array.array("B", data.tobytes()),
    )


def test_sixteen_bits_are_scaled_and_rounded_as_opencv_does():
    values = np.arange(65536, dtype="<u2").reshape(256, 256)
    data = array.array("B", values.tobytes())
    message = Image(height=256, width=256, encoding="mono16", step=512, data=data)
    grey = pixels_of(message)[:, :, 0]
    assert (grey == cv2.convertScaleAbs(values, alpha=255.0 / 65535.0)).all()


# 8UC1, 8UC3 and 8UC4 name no colours: cv_bridge leaves their channels as they are.
COLOURS = [name for name in ENCODINGS if not name.startswith("8U")]
TWO_BYTES = [name for name in COLOURS if ENCODINGS[name].bytes_per_sample == 2]


@pytest.mark.parametrize(
    ("encoding", "options"),
    [(name, {}) for name in COLOURS]
    + [(name, {"padding": 2}) for name in COLOURS]
    + [(name, {"big_endian": True}) for name in TWO_BYTES],
)
def test_cv_bridge_makes_the_same_picture(encoding, options):
    bridge = pytest.importorskip("cv_bridge", reason="needs the package cv_bridge of a ROS 2")
    try:
        bridge.CvBridge().imgmsg_to_cv2(random_image(encoding, **options), "rgb8")
    except (bridge.CvBridgeError, AttributeError) as error:
        # Not all know uyvy and yuyv, nor that NumPy 2 has no ndarray.newbyteorder any more.
        if "Unrecognized image encoding" in str(error) or "newbyteorder" in str(error):
            pytest.skip(f"cv_bridge: {error}")
        raise
    for size in ((4, 6), (5, 8), (48, 64), (480, 640)):
        message = random_image(encoding, *size, **options)
        expected = bridge.CvBridge().imgmsg_to_cv2(message, "rgb8")
        assert (pixels_of(message) == expected).all()


def test_what_only_cv_bridge_knows_is_taken_whole_or_refused():
    pytest.importorskip("cv_bridge", reason="needs the package cv_bridge of a ROS 2")
    data = array.array("B", range(96))
    message = Image(height=2, width=6, encoding="bgra16", step=48, data=data)
    assert pixels_of(message).shape == (2, 6, 3)
    message.step = 40  # five pixels
    with pytest.raises(ObservationError, match="step is 40 bytes for 6 pixels of bgra16"):
        pixels_of(message)
    message.encoding = "nonsense"
    with pytest.raises(ObservationError, match="encoding 'nonsense' cannot be converted"):
        pixels_of(message)
