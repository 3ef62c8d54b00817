"""Episodes of random numbers, with every field that there is."""

import jax
import numpy as np

from jaxrobo.data import Metadata, Trajectories

ABOUT = Metadata(
    env="Toy",
    config={"randomness": "low", "sizes": [1, 2.5], "cap": None},
    action="pos",
    dt=0.1,
    split="train",
    seed=3,
    engine="native",
    versions={"jax": "0.10"},
)


def sample(lengths=(3, 1, 4), seed=0, success=True, **metadata):
    rng = np.random.default_rng(seed)
    n, e = sum(lengths), len(lengths)
    single = lambda *shape: rng.normal(size=shape).astype(np.float32)
    ends = np.cumsum(lengths)
    last = np.isin(np.arange(n), ends - 1)
    image = lambda count: rng.integers(0, 255, (count, 2, 3, 3), np.uint8)
    return Trajectories(
        obs={"parts_poses": single(n, 7), "robot_state": single(n, 16), "image": image(n)},
        action=single(n, 10),
        reward=single(n),
        terminated=last,
        truncated=~last & (rng.random(n) < 0.5),
        episode_ends=ends,
        success=np.full(e, success),
        episode=np.cumsum(rng.integers(1, 4, e)),
        final_obs={"parts_poses": single(e, 7), "robot_state": single(e, 16), "image": image(e)},
        poses={"qpos": single(n, 9), "mocap_pos": single(n, 0, 3), "mocap_quat": single(n, 0, 4)},
        model={"geom_size": single(e, 2, 3), "opt.gravity": single(e, 3)},
        metadata=Metadata(**{**ABOUT.to_dict(), **metadata}),
    )


def assert_same(there, here):
    """Every number, type and setting."""
    assert there.metadata == here.metadata
    assert jax.tree.structure(there) == jax.tree.structure(here)
    for x, y in zip(jax.tree.leaves(there), jax.tree.leaves(here), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)
