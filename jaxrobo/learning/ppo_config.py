"""Options of PPO."""

import dataclasses
import math
from typing import get_args

from jaxrobo.learning.schedules import Schedule
from jaxrobo.networks import check_layers

_POSITIVE = (
    *("num_envs", "horizon", "action_repeat", "training_episode_steps", "epochs", "minibatches"),
    *("learning_rate", "critic_learning_rate", "decay_steps", "kl_stop"),
    *("clip", "kl_target", "max_grad_norm"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Options of PPO.

    Attributes:
      num_envs: simulations side by side.
      horizon: control steps a simulation makes in an iteration, at most: an episode that ends while
        an action is held ends the holding.
      whole_episodes: whether an iteration resets all simulations and plays each to its end, if it
        comes within the horizon; what follows isn't learned from. If not, simulations go on from
        one iteration to the next.
      training_episode_steps: control steps after which an episode of training is cut short, so that
        simulations don't spend their time where the policy is stuck; the environment's own if None.
        Evaluations aren't cut short.
      action_repeat: control steps for which an action is held in training, and that make one sample
        together: exploration goes further where drives are slow, and there's less to compute.
        Evaluations act in every step.
      epochs: passes over the samples of an iteration.
      minibatches: gradient steps of a pass; they divide its samples.
      discount: gamma, from one sample to the next.
      gae_decay: lambda of the advantages.
      clip: how far the probability ratio may move, and the value if `clip_values`.
      learning_rate: of Adam; where the schedule starts.
      critic_learning_rate: of the parameters that only the value has; `learning_rate` if None. The
        schedule scales both.
      schedule: "adaptive" holds the KL divergence of each epoch near `kl_target`, by factors of 1.5
        within [1e-6, 1e-2] (as rl_games; the divergence is from the policy that collected);
        "cosine" falls to zero over `decay_steps`; in "adaptive_cosine" the target does.
      kl_target: nats.
      decay_steps: control steps of all simulations until the learning rate, or the target, is zero;
        schedules with a cosine need it, and `experiments.train` gives all of the run.
      value_coef: weight of the value's loss.
      entropy_coef: weight of the policy's entropy.
      bounds_coef: weight of the squared part of the mean action beyond +-1.1.
      max_grad_norm: to which the gradient is clipped.
      kl_stop: the divergence of an epoch that ends an iteration's epochs; none does if None.
      clip_values: whether the value's loss is clipped like the policy's.
      normalise_observations: whether observations are normalised by their running statistics.
      normalise_values: whether the value is learned in units of the running statistics of the
        returns.
      normalise_advantages: whether each iteration's advantages are normalised.
      truncation_as_done: whether the end of the time counts as a terminal state.
      reward_scale: factor on rewards.
      hidden: widths of the hidden layers.
      activation: of the hidden layers.
      shared_trunk: whether policy and value share the hidden layers.
      randomisation_steps: control steps of all simulations over which the environment's
        randomisation grows from nothing to all of it, episode by episode; all of it at once if 0.
      init_log_std: initial logarithm of the policy's standard deviation.
      learn_std: whether that is learned.
    """

    num_envs: int = 2048
    horizon: int = 32
    whole_episodes: bool = False
    training_episode_steps: int | None = None
    action_repeat: int = 1
    epochs: int = 5
    minibatches: int = 4
    discount: float = 0.99
    gae_decay: float = 0.95
    clip: float = 0.2
    learning_rate: float = 1e-3
    critic_learning_rate: float | None = None
    schedule: Schedule = "adaptive"
    kl_target: float = 0.02
    decay_steps: int | None = None
    kl_stop: float | None = None
    value_coef: float = 2.0
    entropy_coef: float = 0.0
    bounds_coef: float = 1e-4
    max_grad_norm: float = 1.0
    clip_values: bool = True
    normalise_observations: bool = True
    normalise_values: bool = True
    normalise_advantages: bool = True
    truncation_as_done: bool = False
    reward_scale: float = 1.0
    hidden: tuple[int, ...] = (64, 64)
    activation: str = "tanh"
    shared_trunk: bool = True
    randomisation_steps: int = 0
    init_log_std: float = 0.0
    learn_std: bool = True

    def __post_init__(self) -> None:
        for name in _POSITIVE:
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be positive, got {value}")
        if self.critic_learning_rate is not None and self.shared_trunk:
            raise ValueError("critic_learning_rate needs a critic of its own: shared_trunk=False")
        if self.horizon % self.action_repeat:
            raise ValueError(
                f"horizon must be a multiple of action_repeat = {self.action_repeat}, "
                f"got {self.horizon}"
            )
        if self.num_envs * self.decisions % self.minibatches:
            raise ValueError(
                "minibatches must divide num_envs * horizon / action_repeat = "
                f"{self.num_envs * self.decisions}, got {self.minibatches}"
            )
        if self.schedule not in (valid := get_args(Schedule)):
            raise ValueError(f"unknown schedule {self.schedule!r}; valid: {', '.join(valid)}")
        if self.decay_steps is not None and not self.schedule.endswith("cosine"):
            raise ValueError(f"the schedule {self.schedule!r} has no end: decay_steps must be None")
        if (steps := self.randomisation_steps) < 0:
            raise ValueError(f"randomisation_steps must not be negative, got {steps}")
        for name in ("discount", "gae_decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        if not math.isfinite(self.reward_scale):
            raise ValueError(f"reward_scale must be finite, got {self.reward_scale}")
        check_layers(self.hidden, self.activation)

    @property
    def steps_per_iteration(self) -> int:
        """Control steps of all simulations in an iteration."""
        return self.num_envs * self.horizon

    @property
    def decisions(self) -> int:
        """Samples that a simulation makes in an iteration."""
        return self.horizon // self.action_repeat
