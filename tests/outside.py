"""A simulator outside JAX, in numpy, that writes down all that really happened."""

import jax.numpy as jnp
import numpy as np

from jaxrobo.env import HostEnv, Metric, Outcome, Spec


class Walkers(HostEnv):
    """Walks from a drawn place: terminated beyond +-1 (a success on the right), truncated after 6.

    It shows place and step. A step moves by a third of the action, and pays the place it leads to.

    Attributes:
      history: by simulation, (obs, clipped action, reward, next_obs, terminated, truncated) of each
        step of an episode.
    """

    metric = Metric("success")
    metric_names = ("success",)
    time_limit = 6
    action_size = 1
    observation_spec = Spec((2,))

    def __init__(self, num_envs=3, autoreset="same_step", tells_final=True):
        self.num_envs, self.autoreset, self.tells_final = num_envs, autoreset, tells_final
        self.history = [[] for _ in range(num_envs)]
        self.starts = []

    def _new(self):
        return np.array([self._rng.uniform(-0.5, 0.5), 0.0], np.float32)

    def start(self, seed):
        self.starts.append(seed)
        self._rng = np.random.default_rng(seed)
        self.state = np.stack([self._new() for _ in range(self.num_envs)])
        self.over = np.zeros(self.num_envs, bool)
        return jnp.asarray(self.state)

    def advance(self, action):
        action = np.clip(np.asarray(action), -1, 1)[:, 0]
        reward, terminated, truncated, success = np.zeros((4, self.num_envs), np.float32)
        final = self.state.copy()
        for i in range(self.num_envs):
            if self.over[i]:  # next_step: the action is ignored
                self.state[i] = self._new()
                self.over[i] = False
                continue
            before = self.state[i].copy()
            self.state[i] += np.array([action[i] / 3, 1.0], np.float32)
            place, step = final[i] = self.state[i]
            reward[i], terminated[i] = place, abs(place) > 1
            truncated[i], success[i] = step >= 6 and not terminated[i], place > 1
            row = before, action[i], place, final[i].copy(), bool(terminated[i]), bool(truncated[i])
            self.history[i].append(row)
            self.over[i] = terminated[i] or truncated[i]
            if self.over[i] and self.autoreset == "same_step":
                self.state[i], self.over[i] = self._new(), False
        return Outcome(
            obs=jnp.asarray(self.state),
            reward=jnp.asarray(reward),
            terminated=jnp.asarray(terminated > 0),
            truncated=jnp.asarray(truncated > 0),
            metrics={"success": jnp.asarray(success)},
            final_obs=jnp.asarray(final) if self.tells_final else None,
        )
