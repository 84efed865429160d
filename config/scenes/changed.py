"""Changes of the scene that nothing was trained on, for ``vla-reasoner evaluate --scene-hook``."""

import numpy as np


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
    for name in ("red_block", "green_block", "blue_block"):
        geom = spec.geom(name)
        geom.mass *= 1.3
        geom.friction = [0.7 * geom.friction[0], *geom.friction[1:]]


def _move(camera, displacement, degrees):
    """Displace a camera, m, and turn it about its own vertical axis."""
    camera.pos = np.add(camera.pos, displacement)
    half = np.radians(degrees) / 2.0
    w, x, y, z = camera.quat
    c, s = np.cos(half), np.sin(half)
    camera.quat = [w * c - y * s, x * c - z * s, y * c + w * s, z * c + x * s]
