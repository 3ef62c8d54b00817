"""Simulators outside JAX, in numpy, that write down all that really happened."""

import jax.numpy as jnp
import numpy as np

from jaxrobo.env import HostEnv, Metric, Outcome, Spec

LIMIT = 6


class Walks:
    """Walks from a drawn place: terminated beyond +-1 (a success on the right), truncated after 6.

    `state [n, 2]` is place and step. A step moves by a third of the action, and pays the place it
    leads to.

    Attributes:
      history: by simulation, (obs, clipped action, reward, next_obs, terminated, truncated) of each
        step of an episode.
    """

    def __init__(self, n):
        self.n, self.rng = n, np.random.default_rng(0)
        self.state = np.zeros((n, 2), np.float32)
        self.history = [[] for _ in range(n)]

    def reset(self, where):
        for i in np.flatnonzero(where):
            self.state[i] = self.rng.uniform(-0.5, 0.5), 0.0

    def step(self, action, where=None):
        """Reward, terminated, truncated, success of each; only some move, if told so."""
        where = np.ones(self.n, bool) if where is None else where
        action = np.clip(np.asarray(action, np.float32), -1, 1)[:, 0]
        before = self.state.copy()
        self.state[where] += np.stack([action / 3, np.ones(self.n, np.float32)], -1)[where]
        place, step = self.state.T.copy()
        terminated = where & (abs(place) > 1)
        truncated = where & (step >= LIMIT) & ~terminated
        for i in np.flatnonzero(where):
            flags = bool(terminated[i]), bool(truncated[i])
            row = before[i], action[i], place[i], self.state[i].copy(), *flags
            self.history[i].append(row)
        return place * where, terminated, truncated, terminated & (place > 1)


class Walkers(HostEnv):
    """The walks as a `HostEnv`, in either mode.

    Attributes:
      walks: the simulations.
      starts: the seeds it was started with.
    """

    metric = Metric("success")
    metric_names = ("success",)
    time_limit = LIMIT
    action_size = 1
    observation_spec = Spec((2,))

    def __init__(self, num_envs=3, autoreset="same_step", tells_final=True):
        self.num_envs, self.autoreset, self.tells_final = num_envs, autoreset, tells_final
        self.walks, self.starts = Walks(num_envs), []

    @property
    def history(self):
        return self.walks.history

    def start(self, seed):
        self.starts.append(seed)
        self.walks.rng = np.random.default_rng(seed)
        self.over = np.zeros(self.num_envs, bool)
        self.walks.reset(~self.over)
        return jnp.array(self.walks.state)

    def advance(self, action):
        reward, terminated, truncated, success = self.walks.step(action, ~self.over)
        final = jnp.array(self.walks.state) if self.tells_final else None
        ended = terminated | truncated
        if self.autoreset == "same_step":
            self.walks.reset(ended)
        else:
            self.walks.reset(self.over)
            self.over = ended
        return Outcome(
            obs=jnp.array(self.walks.state),
            reward=jnp.array(reward),
            terminated=jnp.array(terminated),
            truncated=jnp.array(truncated),
            metrics={"success": jnp.array(success, float)},
            final_obs=final,
        )


def assert_live_rows_are(history, batch, tells_final=True, first_steps=True):
    """Whether the live transitions of a batch are what happened, in every simulation.

    Args:
      history: of `Walks`.
      batch: transitions `[T, N]`.
      tells_final: whether the last observations are known; if not, those before stand in.
      first_steps: whether the first step of an episode is there.
    """
    ends = 0
    for i, happened in enumerate(history):
        live = batch.live[:, i]
        happened = [row for row in happened if first_steps or row[0][1] > 0]
        assert live.sum() == len(happened)
        rows = batch.obs, np.clip(batch.action[..., 0], -1, 1), batch.reward, batch.next_obs
        rows = [x[live, i] for x in (*rows, batch.terminated, batch.truncated)]
        for t, (obs, action, reward, last, terminated, truncated) in enumerate(happened):
            over = terminated or truncated
            last = obs if over and not tells_final else last
            expected = obs, action, reward, last, terminated, truncated
            for mine, theirs in zip(rows, expected, strict=True):
                np.testing.assert_allclose(mine[t], theirs, atol=1e-6)
            ends += over
    assert ends > 10
