"""The surroundings: they show the target in the middle, and change nothing in the physics."""

import mujoco
import numpy as np
import pytest

from envs import scenery
from envs.robots import dofbot

TARGET, EYE = np.array([0.1, -0.2, 0.3]), np.array([0.9, -0.7, 0.8])


@pytest.fixture
def data():
    spec = mujoco.MjSpec()
    scenery.furnish(spec, TARGET, EYE)
    data = mujoco.MjData(spec.compile())
    mujoco.mj_forward(data.model, data)
    return data


def test_the_camera_looks_at_the_target_and_is_level(data):
    camera = data.camera(scenery.CAMERA)
    right, up, back = camera.xmat.reshape(3, 3).T
    np.testing.assert_allclose(camera.xpos, EYE)
    np.testing.assert_allclose(back, (EYE - TARGET) / np.linalg.norm(EYE - TARGET))
    assert right[2] == pytest.approx(0)
    assert up[2] > 0


def test_it_is_the_first_camera(data):
    assert data.model.camera(scenery.CAMERA).id == 0


def test_the_lights_shine_on_the_target(data):
    for position, direction in zip(data.light_xpos, data.light_xdir, strict=True):
        np.testing.assert_allclose(np.cross(TARGET - position, direction), 0, atol=1e-12)
        assert direction @ (TARGET - position) > 0
        assert direction[2] < 0


def test_nothing_collides(data):
    assert not data.model.geom_contype.any()
    assert not data.model.geom_conaffinity.any()


def test_the_looks_of_a_dofbot_weigh_nothing():
    model = dofbot.load().compile()
    looks = model.geom_group == 2
    assert looks.sum() > 10
    plain = dofbot.load()
    for geom in [g for g in plain.geoms if g.group == 2]:
        plain.delete(geom)
    plain = plain.compile()
    assert plain.ngeom == (~looks).sum()
    for field in ("body_mass", "body_inertia", "body_ipos", "body_iquat"):
        np.testing.assert_array_equal(getattr(model, field), getattr(plain, field))
    assert not model.geom_contype.any()
    assert not model.geom_conaffinity.any()
