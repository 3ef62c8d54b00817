"""Plays a session in time: pauses, slows down, takes what users want in, loads new parameters.

What draws the frames and asks the users is somebody else's: `jaxrobo.viewer.page`.
"""

import functools
import queue
import time
from collections.abc import Callable

import jax

from jaxrobo.env import Env
from jaxrobo.policy import Params, Policy
from jaxrobo.viewer import session as core
from jaxrobo.viewer.session import Frame, Session
from jaxrobo.viewer.shapes import parts

SPEEDS = (0.1, 4.0)
"""The slowest and the fastest, as multiples of real time."""


class Player:
    """Plays many simulations under a policy. All methods but `tick` may be called from any thread.

    Attributes:
      abilities: what can be done by hand.
      looks: the parts that the poses of a frame are of.
      num_envs: how many simulations.
      paused: whether time stands still.
      params: the policy's parameters; a new value acts from the next step on.
    """

    def __init__(
        self, env: Env, policy: Policy, params: Params, num_envs: int, seed: int = 0
    ) -> None:
        """Starts the simulations.

        Args:
          env: an environment on a MuJoCo model, without automatic resets.
          policy: what acts.
          params: its parameters.
          num_envs: how many simulations.
          seed: of their starts and of the policy's noise.

        Raises:
          ValueError: if nothing can be shown of the environment, or `num_envs` isn't positive.
        """
        self.env, self.policy, self.params = env, policy, params
        self.num_envs = num_envs
        self.paused = False
        self.abilities = core.abilities(env)
        self.looks = parts(env.visual_model)
        self._key = jax.random.key(seed)
        self._speed = 1.0
        self._due = 0.0
        self._wishes: queue.SimpleQueue[Callable[[Session], Session]] = queue.SimpleQueue()
        self._begin = jax.jit(functools.partial(core.begin, env, policy, num_envs))
        self._step = jax.jit(functools.partial(core.step, env, policy))
        self._look = jax.jit(functools.partial(core.look, env, self.looks))
        self._session = self._start()
        jax.block_until_ready(self._step(params, self._session))  # compiles before time passes

    @property
    def session(self) -> Session:
        """The simulations as they are now."""
        return self._session

    @property
    def speed(self) -> float:
        """How fast time passes, as a multiple of real time."""
        return self._speed

    @speed.setter
    def speed(self, value: float) -> None:
        """Raises ValueError if it's out of `SPEEDS`."""
        if not SPEEDS[0] <= value <= SPEEDS[1]:
            raise ValueError(f"speed must be in {SPEEDS[0]} .. {SPEEDS[1]}, got {value}")
        self._speed = value

    def tick(self) -> float:
        """Does what users want, then a control step if it's time for one.

        Returns:
          Seconds until there's something to do; a machine that can't keep up does one step a tick.
        """
        while not self._wishes.empty():
            self._session = self._wishes.get()(self._session)
        now = time.monotonic()
        if self.paused:
            self._due = now
            return 1e-2
        if now >= self._due:
            self._session = self._step(self.params, self._session)
            period = self.env.dt * self.env.steps_per_action / self._speed
            self._due = max(self._due + period, now)  # what is late stays late
        return max(0.0, self._due - time.monotonic())

    def look(self) -> Frame:
        """What can be seen now, in numpy arrays."""
        return jax.device_get(self._look(self._session))

    def step_once(self) -> None:
        """Pauses, and does one control step."""
        self.paused = True
        self._wishes.put(lambda session: self._step(self.params, session))

    def reset(self) -> None:
        """Starts all simulations in new episodes, none of them taken over."""
        self._wishes.put(lambda session: self._start())

    def take_over(self, index: int) -> None:
        """Takes over a simulation; see `session.take_over`.

        Raises:
          ValueError: if there's no such simulation, or its actions aren't those of joints.
        """
        if not self.abilities.joints:
            raise ValueError("actions of this environment don't move its joints one by one")
        core.check(self._session, index)
        self._wishes.put(lambda session: core.take_over(self.env, session, index))

    def give_back(self) -> None:
        """Gives it back to the policy."""
        self._wishes.put(core.give_back)

    def nudge(self, joint: int, by: float) -> None:
        """Adds to one number of the action by hand; see `session.nudge`."""
        self._wishes.put(lambda session: core.nudge(session, joint, by))

    def command(self, joint: int, value: float) -> None:
        """Sets one number of the action by hand; see `session.command`."""
        self._wishes.put(lambda session: core.command(session, joint, value))

    def move_goal(self, index: int, pos: jax.Array) -> None:
        """Moves the goal of a simulation; see `session.move_goal`.

        Raises:
          ValueError: if there's no such simulation, or the environment has no goals to move.
        """
        if not self.abilities.goals:
            raise ValueError("this environment has no goals to move")
        core.check(self._session, index)
        self._wishes.put(lambda session: core.move_goal(session, index, pos))

    def _start(self) -> Session:
        self._key, key = jax.random.split(self._key)
        return self._begin(key)
