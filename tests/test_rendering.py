"""Films: what is recorded is what happened, and what is drawn is where it should be."""

import os
import re
import subprocess
import sys
from fractions import Fraction
from functools import partial
from types import SimpleNamespace

import imageio_ffmpeg
import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from jaxrobo import _opengl, policy, rendering
from jaxrobo._video import real_time
from jaxrobo.env import Metric, PhysicsEnv, Spec, State, TimeLimit
from jaxrobo.rendering import (
    RendererUnavailable,
    Trajectory,
    record,
    record_video,
    render,
    side_by_side,
)
from jaxrobo.rollout import run_episode

# The camera is 2 m above, and at z = 0 its picture is 2 m high.
XML = """
<mujoco>
  <option timestep="0.01" gravity="0 0 0"/>
  <visual><headlight ambient="1 1 1" diffuse="0 0 0" specular="0 0 0"/></visual>
  <worldbody>
    <camera name="above" pos="0 0 2" fovy="53.1301"/>
    <camera name="high" pos="0 0 4" fovy="53.1301"/>
    <body name="ball">
      <joint type="slide" axis="1 0 0"/>
      <geom name="ball" size="0.1" rgba="1 0 0 1"/>
    </body>
    <body name="box" mocap="true">
      <geom type="box" size="0.1 0.1 0.1" rgba="0 0 1 1" contype="0" conaffinity="0"/>
    </body>
  </worldbody>
</mujoco>
"""
MODEL = mujoco.MjModel.from_xml_string(XML)
DT = 0.02
ZERO = policy.constant(jnp.zeros(1))


def speed(key):
    return jax.random.uniform(key, minval=1.0, maxval=4.0)


class Slide(PhysicsEnv):
    """A ball slides from x = -0.5 at 1 to 4 m/s until x > 0.5; an action sets the y of the box."""

    metric = Metric("y", "count")

    def __init__(self):
        super().__init__(MODEL, substeps=2, engine="native", threads=1)

    def reset(self, key, model=None):
        data = self.physics.init(qpos=jnp.array([-0.5]), qvel=speed(key)[None], model=model)
        no = jnp.zeros((), bool)
        return State(data, data.qvel, jnp.zeros(()), jnp.zeros(()), no, no, {"y": jnp.zeros(())})

    def step(self, state, action):
        inputs = {"mocap_pos": jnp.array([[0.0, 0.0, 0.0]]).at[0, 1].set(action[0])}
        data, _ = self.physics.step(state.data, inputs, self.substeps)
        over = data.qpos[0] > 0.5
        return state.replace(
            data=data, done=over.astype(jnp.float32), terminated=over, metrics={"y": action[0]}
        )

    @property
    def action_size(self):
        return 1

    @property
    def observation_spec(self):
        return Spec((1,))


def still(x=0.0, y=0.5, episodes=1, frames=1, model=None):
    """A trajectory of a ball at x and a box at y, each a number or [episodes, frames]."""
    blank = np.zeros((episodes, frames))
    pos = np.stack([blank, blank + y, blank], -1)[:, :, None]
    quat = np.broadcast_to([1.0, 0, 0, 0], (episodes, frames, 1, 4))
    return Trajectory((blank + x)[..., None], pos, quat, model or {}, blank == 0)


def slides(keys):
    """Where the ball is, in closed form, `[n, T]`, and how long the episodes last, `[n]`."""
    reset_keys = jax.vmap(partial(jax.random.split, num=3))(keys)[:, 0]  # as `rollout.start` does
    speeds = np.array(jax.vmap(speed)(reset_keys))
    lengths = np.floor(1 / (speeds * DT)).astype(int) + 1
    steps = np.minimum(np.arange(lengths.max() + 1), lengths[:, None])
    return -0.5 + speeds[:, None] * DT * steps, lengths


def frames_of(*arguments, **options):
    return np.stack([*render(*arguments, **options)])


def centre(mask):
    """Mean row and column of the pixels of a mask."""
    return np.argwhere(mask).mean(axis=0) + 0.5


def red(frame):
    return (frame[..., 0] > 128) & (frame[..., 2] < 64)


def blue(frame):
    return (frame[..., 2] > 128) & (frame[..., 0] < 64)


def decode(path):
    """The frames of a video, its frames a second and its format, as ffmpeg reads them."""
    exe = imageio_ffmpeg.get_ffmpeg_exe()
    about = subprocess.run([exe, "-i", path], capture_output=True, text=True).stderr
    about = next(line for line in about.splitlines() if "Video:" in line)
    width, height = map(int, re.search(r", (\d+)x(\d+)", about).groups())
    raw = subprocess.run(
        [exe, "-v", "error", "-i", path, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"],
        capture_output=True,
        check=True,
    ).stdout
    return np.frombuffer(raw, np.uint8).reshape(-1, height, width, 3), about


def _cannot_draw():
    try:
        with _opengl.canvas(MODEL, 8, 8):
            return ""
    except RendererUnavailable as error:
        return str(error)


needs_gl = pytest.mark.skipif(bool(_cannot_draw()), reason=_cannot_draw())


class TestRecord:
    def test_every_state_up_to_the_last_is_kept(self):
        env = TimeLimit(Slide(), 100)
        keys = jax.random.split(jax.random.key(0), 3)
        trajectory = record(env, policy.constant(jnp.array([0.25])), None, keys)
        positions, lengths = slides(keys)
        assert len(set(lengths)) == 3
        np.testing.assert_allclose(trajectory.qpos[..., 0], positions, atol=1e-5)
        live = np.arange(lengths.max() + 1) < lengths[:, None]
        np.testing.assert_array_equal(trajectory.live, live)
        np.testing.assert_array_equal(trajectory.mocap_pos[:, 0, 0], np.zeros((3, 3)))
        np.testing.assert_allclose(trajectory.mocap_pos[:, 1:, 0, 1], 0.25)

    @pytest.mark.parametrize("period", [1, 4])
    def test_it_is_the_episode_that_evaluation_runs(self, period):
        env = TimeLimit(Slide(), 30)
        predict = lambda params, obs, key: params * jax.random.uniform(key, (period, 1))
        noisy = policy.chunked(predict, period, 1)
        params, key = jnp.array(0.5), jax.random.key(1)
        sums = jax.jit(partial(run_episode, env, noisy))(params, key)
        trajectory = record(env, noisy, params, key)
        assert trajectory.live.sum() == sums["length"] == trajectory.qpos.shape[1] - 1
        np.testing.assert_allclose(trajectory.mocap_pos[0, 1:, 0, 1].sum(), sums["y"], rtol=1e-5)

    def test_it_ends_after_the_given_steps_whatever_the_period(self):
        plan = policy.chunked(lambda params, obs, key: jnp.zeros((4, 1)), 4, 1)
        trajectory = record(Slide(), plan, None, jax.random.key(0), steps=5)
        assert trajectory.qpos.shape == (1, 6, 1)
        assert trajectory.live.all()

    def test_without_an_end_it_refuses(self):
        with pytest.raises(ValueError, match="wrap the environment in TimeLimit"):
            record(Slide(), ZERO, None, jax.random.key(0))

    def test_without_a_model_it_refuses(self):
        env = SimpleNamespace(unwrapped=object(), time_limit=3)
        with pytest.raises(ValueError, match="object can't be filmed"):
            record(env, ZERO, None, jax.random.key(0))


class TestSideBySide:
    def test_episodes_alternate_and_the_shorter_wait(self):
        first = still(x=[[0.0, 0.1], [0.2, 0.3]], episodes=2, frames=2)
        other = still(x=[[1.0, 1.1, 1.2], [1.3, 1.4, 1.5]], y=0.7, episodes=2, frames=3)
        first = first.replace(live=np.array([[True, True], [True, False]]))
        both = side_by_side(first, other)
        expected = [[0, 0.1, 0.1], [1, 1.1, 1.2], [0.2, 0.3, 0.3], [1.3, 1.4, 1.5]]
        np.testing.assert_allclose(both.qpos[..., 0], expected)
        np.testing.assert_array_equal(both.mocap_pos[:, -1, 0, 1], [0.5, 0.7, 0.5, 0.7])
        np.testing.assert_array_equal(both.live[2], [True, False, False])
        np.testing.assert_array_equal(both.live[1], [True, True, True])
        alone = side_by_side(first)
        jax.tree.map(np.testing.assert_array_equal, alone, first)

    def test_each_keeps_its_own_model(self):
        sized = lambda *size: still(episodes=2, model={"mass": np.array(size)})
        both = side_by_side(sized(1, 2), sized(3, 4), sized(5, 6))
        np.testing.assert_array_equal(both.model["mass"], [1, 3, 5, 2, 4, 6])


@needs_gl
class TestRender:
    def test_things_are_where_they_should_be(self):
        frames = frames_of(MODEL, still(x=[[-0.5, 0.0, 0.75]], y=0.5, frames=3), None, 128, 64)
        assert frames.shape == (3, 64, 128, 3)
        assert frames.dtype == np.uint8
        for frame, x in zip(frames, (-0.5, 0.0, 0.75), strict=True):
            np.testing.assert_allclose(centre(red(frame)), (32, 64 + 32 * x), atol=1)
            # The top of the box is 0.1 m nearer to the camera.
            np.testing.assert_allclose(centre(blue(frame)), (32 - 16 * 2 / 1.9, 64), atol=1)

    def test_every_stride_th_row_is_drawn(self):
        moving = still(x=[np.linspace(-0.5, 0.5, 7)], frames=7)
        every = frames_of(MODEL, moving, None, 32, 24)
        np.testing.assert_array_equal(
            frames_of(MODEL, moving, None, 32, 24, stride=3), every[[0, 3, 6]]
        )

    def test_episodes_are_tiles(self):
        x, y = [[-0.5], [0.0], [0.5]], [[0.3], [0.5], [0.7]]
        (grid,) = frames_of(MODEL, still(x, y, episodes=3), None, 32, 24)
        assert grid.shape == (48, 64, 3)
        for i, (row, column) in enumerate([(0, 0), (0, 32), (24, 0)]):
            (alone,) = frames_of(MODEL, still(x[i], y[i]), None, 32, 24)
            np.testing.assert_array_equal(grid[row : row + 24, column : column + 32], alone)
        assert not grid[24:, 32:].any()

    def test_each_episode_has_its_own_model(self):
        sizes = np.tile(MODEL.geom_size, (2, 1, 1))
        ball = MODEL.geom("ball").id
        sizes[1, ball] *= 2
        gravity = np.zeros((2, 3))
        model = {"geom_size": sizes, "opt.gravity": gravity}
        (grid,) = frames_of(MODEL, still(episodes=2, model=model), None, 64, 64)
        areas = red(grid[:, :64]).sum(), red(grid[:, 64:]).sum()
        assert areas[1] / areas[0] == pytest.approx(4, rel=0.15)
        assert MODEL.geom_size[ball, 0] == 0.1
        assert MODEL.vis.quality.offsamples == 4

    def test_what_varies_in_a_model_with_other_geoms_is_refused(self):
        sizes = np.ones((1, MODEL.ngeom - 1, 3))
        with pytest.raises(ValueError, match="'geom_size' varies between episodes, but has shape"):
            frames_of(MODEL, still(model={"geom_size": sizes}), None, 8, 8)

    def test_the_camera_can_be_chosen(self):
        first, above, high = (
            frames_of(MODEL, still(x=0.5), name, 64, 64)[0] for name in (None, "above", "high")
        )
        np.testing.assert_array_equal(first, above)
        np.testing.assert_allclose(centre(red(high)), (32, 32 + 8), atol=1)
        with pytest.raises(ValueError, match=r"unknown camera 'front'.*'above', 'high'"):
            next(render(MODEL, still(), "front"))

    def test_a_model_without_cameras_is_seen_from_mujocos_viewpoint(self):
        xml = '<mujoco><worldbody><geom size="1" rgba="1 0 0 1"/></worldbody></mujoco>'
        model = mujoco.MjModel.from_xml_string(xml)
        nothing = Trajectory(*(np.zeros((1, 1, *s)) for s in ((0,), (0, 3), (0, 4))), {}, None)
        nothing = nothing.replace(live=np.ones((1, 1), bool))
        (frame,) = frames_of(model, nothing, None, 64, 48)
        np.testing.assert_allclose(centre(frame.any(axis=-1)), (24, 32), atol=1)

    def test_two_pictures_can_be_drawn_in_turn(self):
        left, right = still(x=-0.5, frames=3), still(x=0.5, frames=3)
        pairs = [*zip(render(MODEL, left, None, 32, 24), render(MODEL, right), strict=True)]
        for small, large in pairs:
            np.testing.assert_array_equal(small, frames_of(MODEL, left, None, 32, 24)[0])
            np.testing.assert_allclose(centre(red(large)), (240, 320 + 120), atol=1)

    def test_neither_mujoco_gl_nor_a_display_is_needed(self):
        """Not even when mujoco was imported before, for GLFW."""
        code = f"""
import mujoco, numpy as np
from jaxrobo._opengl import canvas
model = mujoco.MjModel.from_xml_string('''{XML}''')
camera = mujoco.MjvCamera()
mujoco.mjv_defaultFreeCamera(model, camera)
with canvas(model, 32, 24) as picture:
    picture.draw(model, mujoco.MjData(model), camera, mujoco.MjrRect(0, 0, 32, 24))
    assert picture.read().any()
"""
        drop = ("MUJOCO_GL", "PYOPENGL_PLATFORM", "DISPLAY", "WAYLAND_DISPLAY")
        env = {k: v for k, v in os.environ.items() if k not in drop}
        command = [sys.executable, "-W", "error::ResourceWarning", "-c", code]
        done = subprocess.run(command, env=env, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")


class TestBackend:
    @pytest.fixture(autouse=True)
    def bare_linux(self, monkeypatch):
        for name in ("MUJOCO_GL", "DISPLAY", "WAYLAND_DISPLAY"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(_opengl.sys, "platform", "linux")
        monkeypatch.setattr(_opengl, "_egl_devices", lambda: 0)
        monkeypatch.setattr(_opengl.ctypes.util, "find_library", lambda name: None)

    def test_nothing_there_says_what_to_install(self):
        with pytest.raises(RendererUnavailable, match=r"libegl1 .*libgl1-mesa-dri.*libosmesa6"):
            _opengl.choose_backend()

    def test_egl_goes_before_osmesa_before_a_display(self, monkeypatch):
        monkeypatch.setenv("DISPLAY", ":0")
        assert _opengl.choose_backend() == "glfw"
        monkeypatch.setattr(_opengl.ctypes.util, "find_library", lambda name: "libOSMesa.so.8")
        assert _opengl.choose_backend() == "osmesa"
        monkeypatch.setattr(_opengl, "_egl_devices", lambda: 1)
        assert _opengl.choose_backend() == "egl"

    def test_mujoco_gl_decides(self, monkeypatch):
        monkeypatch.setenv("MUJOCO_GL", "OSMesa")
        assert _opengl.choose_backend() == "osmesa"
        monkeypatch.setenv("MUJOCO_GL", "off")
        with pytest.raises(RendererUnavailable, match="MUJOCO_GL=off"):
            _opengl.choose_backend()

    def test_a_backend_that_fails_says_why(self, monkeypatch):
        monkeypatch.setattr(_opengl, "choose_backend", lambda: "nosuch")
        with pytest.raises(RendererUnavailable, match=r"nosuch can't draw \(No module .*libegl1"):
            next(render(MODEL, still()))

    def test_no_episode_is_run_in_vain(self, monkeypatch, tmp_path):
        monkeypatch.setattr(rendering, "record", lambda *_: pytest.fail("it ran"))
        with pytest.raises(RendererUnavailable):
            record_video(Slide(), ZERO, None, tmp_path / "film.mp4", jax.random.key(0), None, 3)


class TestVideo:
    def test_what_is_written_can_be_read(self, tmp_path):
        path = tmp_path / "new" / "film.mp4"
        grey = np.arange(0, 250, 25, dtype=np.uint8)
        frames = np.broadcast_to(grey[:, None, None, None], (10, 48, 64, 3))
        rendering.write_video(path, frames, Fraction(2500, 83))
        decoded, about = decode(path)
        assert all(word in about for word in ("h264", "yuv420p", "30.12 fps"))
        assert decoded.shape == frames.shape
        assert np.abs(decoded.astype(int) - frames).max() <= 4
        assert [p.name for p in path.parent.iterdir()] == ["film.mp4"]

    @pytest.mark.parametrize(
        "frames",
        [
            [],
            [np.zeros((47, 64, 3), np.uint8)],
            [np.zeros((48, 64), np.uint8)],
            [np.zeros((48, 64, 3))],
            [np.zeros((48, 64, 3), np.uint8), np.zeros((64, 48, 3), np.uint8)],
        ],
    )
    def test_wrong_frames_are_refused_and_nothing_is_left(self, tmp_path, frames):
        path = tmp_path / "film.mp4"
        path.write_text("the old one")
        with pytest.raises(ValueError, match="frame"):
            rendering.write_video(path, frames, 30)
        assert [p.name for p in tmp_path.iterdir()] == ["film.mp4"]
        assert path.read_text() == "the old one"

    def test_the_encoder_says_why_it_failed(self, tmp_path):
        frames = [np.zeros((48, 64, 3), np.uint8)] * 100
        with pytest.raises(OSError, match=r"film\.nosuch: .*output format"):
            rendering.write_video(tmp_path / "film.nosuch", frames, 30)
        assert not [*tmp_path.iterdir()]

    @pytest.mark.parametrize(
        ("dt", "fps", "stride", "rate"),
        [
            (1 / 60, 30, 2, 30),
            (0.0166, 30, 2, 30.12),
            (0.02, 30, 2, 25),
            (0.05, 30, 1, 20),
            (0.002, 30, 16, 31.25),
            (0.01, 10, 10, 10),
        ],
    )
    def test_it_plays_in_real_time(self, dt, fps, stride, rate):
        got = real_time(dt, fps)
        assert got[0] == stride
        assert float(got[1]) == pytest.approx(rate, rel=1e-3)

    def test_frames_a_second_must_be_positive(self):
        with pytest.raises(ValueError, match="got -1"):
            real_time(0.02, -1)

    @needs_gl
    def test_a_film_shows_the_episodes(self, tmp_path):
        path = tmp_path / "film.mp4"
        env = TimeLimit(Slide(), 40)
        keys = jax.random.split(jax.random.key(0), 2)
        record_video(env, policy.constant(jnp.array([0.5])), None, path, keys)
        film, about = decode(path)
        positions = slides(keys)[0][:, ::2]
        assert film.shape == (positions.shape[1], 300, 800, 3)
        assert " 25 fps" in about
        for t, frame in enumerate(film):
            for i, tile in enumerate((frame[:, :400], frame[:, 400:])):
                x = positions[i, t]
                np.testing.assert_allclose(centre(red(tile))[1], 200 + 150 * x, atol=2)
        assert np.all(np.any(film[1:] != film[:-1], axis=(1, 2, 3)))

    @needs_gl
    def test_a_film_of_two_policies_shows_each_in_a_column(self, tmp_path):
        """Balls at -0.5 and 0.5, in two episodes each, of which the second is a frame longer."""
        env, path = TimeLimit(Slide(), 5), tmp_path / "film.mp4"
        left, right = still(x=-0.5, episodes=2, frames=4), still(x=0.5, episodes=2, frames=5)
        rendering.film(env, side_by_side(left, right), path, fps=50)
        frames, about = decode(path)
        assert frames.shape == (5, 600, 800, 3)
        assert " 50 fps" in about
        for row, column in ((0, 0), (0, 1), (1, 0), (1, 1)):
            tile = frames[-1, 300 * row : 300 * (row + 1), 400 * column : 400 * (column + 1)]
            x = 200 + 150 * (-0.5, 0.5)[column]
            np.testing.assert_allclose(centre(red(tile)), (150, x), atol=2)

    def test_a_film_has_room_for_nine(self, tmp_path):
        keys = jax.random.split(jax.random.key(0), 10)
        with pytest.raises(ValueError, match="1 to 9 episodes fit into a video, got 10"):
            record_video(TimeLimit(Slide(), 5), ZERO, None, tmp_path / "film.mp4", keys)


def test_a_trajectory_survives_a_file(tmp_path):
    rng = np.random.default_rng(0)
    trajectory = Trajectory(
        qpos=rng.normal(size=(2, 5, 3)),
        mocap_pos=rng.normal(size=(2, 5, 1, 3)),
        mocap_quat=rng.normal(size=(2, 5, 1, 4)),
        model={"geom_size": rng.normal(size=(2, 4, 3))},
        live=np.array([[True] * 5, [True] * 3 + [False] * 2]),
    )
    trajectory.save(tmp_path / "film.npz")
    jax.tree.map(np.testing.assert_array_equal, Trajectory.load(tmp_path / "film.npz"), trajectory)
    np.savez(tmp_path / "other.npz", qpos=np.zeros(3))
    with pytest.raises(ValueError, match=r"other.npz isn't a trajectory: it has no 'live'"):
        Trajectory.load(tmp_path / "other.npz")
