"""The scene of the peg-in-hole task: a Panda, a peg and a plate with a slot, both free."""

import mujoco

from envs.assembly import parts, workcell
from envs.assembly.workcell import add_part

FRICTION = 0.25
"""Of both parts (`sim_config.py` of furniture-bench, Factory's parts)."""

PEG_POS = (0.4, 0.05, 0.0)
HOLE_POS = (0.4, -0.05, 0.0)
"""Where the parts start, m; the original drops them from 1 cm."""


def build(visual: bool = False) -> mujoco.MjModel:
    """The model; contact sensors `left` and `right` measure what each fingertip does to the peg.

    Args:
      visual: whether to keep what is only to be seen.
    """
    scene = workcell.build(width=0.07)
    add_part(scene, parts.peg(), "peg", FRICTION, PEG_POS, rests="peg", bumps="core", held="peg")
    add_part(
        scene, parts.hole(), "hole", FRICTION, HOLE_POS, rests="hole", bumps="hole", held="hole"
    )
    scene.group("walls", *(f"hole/{name}" for name in parts.WALLS))
    scene.pair("walls", "peg/peg", FRICTION, solref=parts.FIT_SOLREF, solimp=parts.FIT_SOLIMP)
    for side in ("left", "right"):
        scene.contact_sensor(side, f"panda/{side}_tip", "peg/peg", force=True)
    return scene.compile(visual)
