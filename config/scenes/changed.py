"""Changes of the scene that nothing was trained on, for ``vla-reasoner evaluate --scene-hook``."""

import numpy as np

BLOCKS = ("red_block", "green_block", "blue_block")


def shifted_camera(spec):
    """The agent's camera 2 cm to the side and 1 cm up, and turned by a degree."""
    _move(spec.camera("agent"), [0.0, 0.02, 0.01], 1.0)


def knocked_camera(spec):
    """The agent's camera 4 cm from where it was, and turned by two degrees."""
    _move(spec.camera("agent"), [0.02, -0.03, 0.02], 2.0)


def other_lens(spec):
    """The agent's camera sees 5 % more."""
    spec.camera("agent").fovy *= 1.05


def dim_light(spec):
    """Two thirds of the light."""
    for light in spec.lights:
        light.diffuse = [0.25, 0.25, 0.25]
    spec.visual.headlight.ambient = [0.2, 0.2, 0.2]


def glaring_light(spec):
    """So much light that bright things are white."""
    for light in spec.lights:
        light.diffuse = [0.9, 0.9, 0.9]
    spec.visual.headlight.ambient = [0.55, 0.55, 0.55]


def changed_light(spec):
    """A warmer and stronger lamp from the other side, less light from everywhere."""
    for light in spec.lights:
        light.pos = [0.2, -0.8, 1.8]
        light.dir = [0.2, 0.5, -1.0]
        light.diffuse = [0.65, 0.58, 0.48]
    spec.visual.headlight.ambient = [0.30, 0.30, 0.30]


def changed_colours(spec):
    """A grey table and blocks of other shades, still red, green and blue."""
    shades = {
        "table": (0.50, 0.52, 0.55, 1.0),
        "red_block": (0.70, 0.20, 0.15, 1.0),
        "green_block": (0.25, 0.55, 0.20, 1.0),
        "blue_block": (0.20, 0.35, 0.75, 1.0),
    }
    for name, rgba in shades.items():
        spec.geom(name).rgba = rgba


def heavier(spec):
    """Blocks 30 % heavier and more slippery."""
    for name in BLOCKS:
        geom = spec.geom(name)
        geom.mass *= 1.3
        geom.friction = [0.7 * geom.friction[0], *geom.friction[1:]]


def lighter(spec):
    """Blocks 40 % lighter."""
    for name in BLOCKS:
        spec.geom(name).mass *= 0.6


def rough(spec):
    """Blocks half as rough again."""
    for name in BLOCKS:
        geom = spec.geom(name)
        geom.friction = [1.5 * geom.friction[0], *geom.friction[1:]]


def smaller(spec):
    """Blocks 12 % smaller."""
    _resize(spec, 0.88)


def larger(spec):
    """Blocks 12 % larger."""
    _resize(spec, 1.12)


def soft_arm(spec):
    """Joints that follow with 30 % less stiffness."""
    for actuator in spec.actuators:
        actuator.gainprm[0] *= 0.7
        actuator.biasprm[1] *= 0.7


def turned_camera(spec):
    """The agent's camera turned by four degrees about the picture's middle."""
    camera = spec.camera("agent")
    half = np.radians(4.0) / 2.0
    w, x, y, z = camera.quat
    c, s = np.cos(half), np.sin(half)
    camera.quat = [w * c - z * s, x * c + y * s, y * c - x * s, z * c + w * s]


def far_camera(spec):
    """The agent's camera 6 % farther from the robot's base."""
    camera = spec.camera("agent")
    camera.pos = np.multiply(camera.pos, 1.06)


def moved_wrist_camera(spec):
    """The wrist's camera a centimetre from where it was."""
    camera = spec.camera("wrist")
    camera.pos = np.add(camera.pos, [0.01, 0.0, 0.005])


def distractors(spec):
    """A yellow and a purple cube that nobody trained with."""
    for place, rgba in (
        ((0.40, 0.22, 0.015), (0.9, 0.8, 0.1, 1.0)),
        ((0.62, -0.22, 0.015), (0.6, 0.1, 0.6, 1.0)),
    ):
        body = spec.worldbody.add_body(pos=place)
        body.add_geom(type=6, size=[0.015] * 3, rgba=rgba)  # mjGEOM_BOX


def pale_blocks(spec):
    """Blocks of paler shades."""
    shades = ((0.85, 0.35, 0.25, 1.0), (0.35, 0.75, 0.35, 1.0), (0.30, 0.45, 0.85, 1.0))
    for name, rgba in zip(BLOCKS, shades, strict=True):
        spec.geom(name).rgba = rgba


def dark_targets(spec):
    """A dark plate and a dark tray."""
    for name in ("plate", "tray"):
        spec.geom(name).rgba = (0.30, 0.30, 0.35, 1.0)


def brown_table(spec):
    """A dark brown table."""
    spec.geom("table").rgba = (0.35, 0.24, 0.15, 1.0)


def white_table(spec):
    """A white table."""
    spec.geom("table").rgba = (0.9, 0.9, 0.9, 1.0)


def green_table(spec):
    """A green table."""
    spec.geom("table").rgba = (0.30, 0.45, 0.30, 1.0)


def _resize(spec, factor):
    for name in BLOCKS:
        geom = spec.geom(name)
        geom.size = np.multiply(geom.size, factor)


def _move(camera, displacement, degrees):
    """Displace a camera, m, and turn it about its own vertical axis."""
    camera.pos = np.add(camera.pos, displacement)
    half = np.radians(degrees) / 2.0
    w, x, y, z = camera.quat
    c, s = np.cos(half), np.sin(half)
    camera.quat = [w * c - y * s, x * c - z * s, y * c + w * s, z * c + x * s]
