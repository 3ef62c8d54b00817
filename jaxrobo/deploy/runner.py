"""Runs an exported policy with numpy alone, in one file (Python 3.6 or later).

Copy this file and the `.npz` that `jaxrobo.deploy.save_npz` wrote to the robot's computer:

    python3 runner.py policy.npz                   # checks it there, and tells how fast it is

    policy = Policy("policy.npz")
    policy.reset()                                 # at the start of an episode
    action = policy.act(observation)               # every control step

A policy is a stack of dense layers between two affine maps. With x the last `obs_horizon`
observations, one after another:

    x = clip((x - offset) / scale, -clip, clip)
    x = activation(W x + b), layer by layer, the last one without activation
    chunk = clip(x, -action_clip, action_clip) * action_scale + action_offset

`chunk` holds `horizon` actions. The first `period` of them are carried out, then the next chunk is
computed. Actions are in [-1, 1], as tasks carry them out: one that is observed again (a reacher's
last action) is the one returned here. The file knows the names of an observation's entries
(`names`, in the order in which they are put together) and how many numbers they are; what each
number is says the docstring of the task (of a reacher, `envs.reacher.base.Reacher`).
"""

import sys
import time

import numpy as np

FORMAT = 1
"""Of the `.npz`; a file of another number is refused."""

ARRAYS = ("offset", "scale", "clip", "action_offset", "action_scale", "action_clip")
NUMBERS = ("obs_horizon", "horizon", "period")
_OTHERS = ("layers", "activation", "names", "example_histories", "example_chunks")


def _swish(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(0.5 * x))  # x * sigmoid(x), which can't overflow


def _gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(np.float32(np.sqrt(2 / np.pi)) * (x + 0.044715 * x * x * x)))


ACTIVATIONS = {
    "elu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
    "relu": lambda x: np.maximum(x, 0),
    "tanh": np.tanh,
    "swish": _swish,
    "gelu": _gelu,
}


def read(path: str) -> dict:
    """The arrays of an exported policy. Raises ValueError if it isn't one of this format."""
    with open(path, "rb") as file:
        try:
            with np.load(file, allow_pickle=False) as archive:
                data = {name: archive[name] for name in archive.files}
        except Exception as error:  # the parsers of zip files and of arrays raise many kinds
            message = f"{path} isn't an exported policy, or was cut short ({error})"
            raise ValueError(message) from error
    found = int(data.get("format", 0))
    if found != FORMAT:
        raise ValueError(f"{path} has format {found}, expected {FORMAT}")
    _check(path, data)
    return data


def _check(path: str, data: dict) -> None:
    """Raises ValueError if an array is missing, or the activation is unknown."""
    layers = range(int(data.get("layers", 0)))
    stack = [name.format(i) for i in layers for name in ("weight{}", "bias{}")]
    missing = [name for name in (*_OTHERS, *NUMBERS, *ARRAYS, *stack) if name not in data]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}")
    found = str(data["activation"])
    if found not in ACTIVATIONS:
        raise ValueError(f"{path} has activation {found!r}; valid: {', '.join(ACTIVATIONS)}")


class Policy:
    """An exported policy, and where it is in its chunk of actions.

    Attributes:
      names: of the observation's entries, in the order in which they are put together.
      size: numbers in an observation.
      action_size: numbers in an action.
    """

    def __init__(self, path: str) -> None:
        """Reads a file. Raises ValueError if it isn't an exported policy of this format."""
        self._data = data = read(path)
        self.names = [str(name) for name in data["names"]]
        self.size, self.action_size = len(data["offset"]), len(data["action_scale"])
        self._horizon, self._period = int(data["horizon"]), int(data["period"])
        self._activation = ACTIVATIONS[str(data["activation"])]
        count = int(data["layers"])
        # Rows times columns of a contiguous matrix is what numpy does fastest.
        self._layers = [
            (np.ascontiguousarray(data[f"weight{i}"].T), data[f"bias{i}"]) for i in range(count)
        ]
        self.reset()

    def reset(self) -> None:
        """Forgets what was observed and planned."""
        self._history, self._chunk, self._index = None, None, 0

    def act(self, observation: object) -> np.ndarray:
        """The action of the next control step, `[action_size]`.

        Args:
          observation: `[size]`, or a dict of arrays with `names`.

        Raises:
          ValueError: if it has another size, or isn't finite.
        """
        seen = self._flat(observation)
        if self._history is None:
            self._history = np.stack([seen] * int(self._data["obs_horizon"]))
        self._history = np.concatenate([self._history[1:], seen[None]])
        if self._index % self._period == 0:
            self._chunk, self._index = self.predict(self._history), 0
        self._index += 1
        return self._chunk[self._index - 1]

    def predict(self, history: np.ndarray) -> np.ndarray:
        """`[obs_horizon, size]` -> `[horizon, action_size]`."""
        data = self._data
        x = np.clip((history - data["offset"]) / data["scale"], -data["clip"], data["clip"])
        x = x.reshape(-1)
        for weight, bias in self._layers[:-1]:
            x = self._activation(weight.dot(x) + bias)
        weight, bias = self._layers[-1]
        x = (weight.dot(x) + bias).reshape(self._horizon, self.action_size)
        clip = data["action_clip"]
        return np.clip(x, -clip, clip) * data["action_scale"] + data["action_offset"]

    def check(self) -> float:
        """The largest difference from the original, on the examples in the file.

        As a share of the largest number of their actions, if that is above 1.
        """
        expected = self._data["example_chunks"]
        chunks = np.array([self.predict(x) for x in self._data["example_histories"]])
        return float(np.max(np.abs(chunks - expected)) / max(1.0, np.max(np.abs(expected))))

    def _flat(self, observation: object) -> np.ndarray:
        if isinstance(observation, dict):
            missing = [name for name in self.names if name not in observation]
            if missing:
                raise ValueError(f"the observation lacks {missing}, of {self.names}")
            observation = np.concatenate([np.ravel(observation[name]) for name in self.names])
        x = np.asarray(observation, np.float32).reshape(-1)
        if len(x) != self.size:
            raise ValueError(f"an observation has {self.size} numbers, got {len(x)}")
        if not np.all(np.isfinite(x)):
            raise ValueError("the observation isn't finite")
        return x


def rate(policy: Policy, calls: int = 2000) -> float:
    """How often a second a policy can act."""
    policy.reset()
    observation = np.zeros(policy.size, np.float32)
    begin = time.perf_counter()
    for _ in range(calls):
        policy.act(observation)
    return calls / (time.perf_counter() - begin)


def main() -> None:
    """Runs the command line."""
    if len(sys.argv) != 2:
        sys.exit("usage: python3 runner.py policy.npz")
    try:
        policy = Policy(sys.argv[1])
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    difference = policy.check()
    print(f"{policy.size} numbers in, {policy.action_size} out, {rate(policy):,.0f} a second")
    print(f"differs from the original by at most {difference:.1e} of the largest action, or of 1")
    if not difference <= 1e-5:
        sys.exit("error: that is more than 1e-5")


if __name__ == "__main__":
    main()
