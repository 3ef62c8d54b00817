"""Exported policies against the originals, in this process and under older Pythons."""

import ast
import shutil
import subprocess
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobo import data
from jaxrobo.deploy import (
    arm_server,
    extract,
    load_npz,
    predict,
    restore,
    runner,
    save_npz,
    save_stablehlo,
)
from jaxrobo.learning import bc, diffusion_bc, ppo
from jaxrobo.learning.normaliser import RunningStats
from tests.deploy.pythons import VERSIONS, older_python
from tests.learning.diagnostic_envs import Aim, Tasks, Walk, aiming

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
AGREE = dict(rtol=0, atol=1e-5)


def shaken(params):
    """The same parameters with noise, so that no layer is as small as a fresh one."""
    leaves, tree = jax.tree.flatten(params)
    noisy = [x + 0.2 * RNG.standard_normal(x.shape).astype(np.float32) for x in leaves]
    return jax.tree.unflatten(tree, noisy)


def ppo_policy(**options):
    """A trainer of PPO, whose observation has two entries, and what could have been learned."""
    env = Tasks()
    config = ppo.Config(**{"num_envs": 4, "horizon": 4, "hidden": (16, 16), **options})
    network = shaken(ppo.actor_critic(env, config).init(KEY, jnp.zeros(7)))
    mean, var = RNG.normal(size=7), RNG.uniform(0.1, 2.0, 7)
    stats = RunningStats(jnp.ones(()), jnp.asarray(mean), jnp.asarray(var))
    return ppo.make(env, config), {"network": network, "observation_stats": stats}


@pytest.fixture(scope="module")
def demos():
    return data.collect(Aim(), aiming(), (), 10)


def bc_policy(demos, **options):
    trainer = bc.make(Aim(), demos, bc.Config(hidden=(16, 16), decay_steps=1000, **options))
    learned = trainer.learned(trainer.init(KEY, trainer.inputs))
    return trainer, {**learned, "network": shaken(learned["network"])}


def observations(env, steps=12):
    """Random observations, a dict each; some numbers are large enough to be clipped."""
    specs = data.named(env.observation_spec)
    draw = lambda spec: (4 * RNG.standard_normal(spec.shape)).astype(spec.dtype)
    return [{k: draw(spec) for k, spec in specs.items()} for _ in range(steps)]


def original(trainer, params, seen):
    """The actions of the original policy, as rollouts carry them out."""
    return acted(trainer.act(True), params, trainer.env, seen)


def acted(policy, params, env, seen):
    bare = lambda o: o if isinstance(env.observation_spec, dict) else o["obs"]
    plan, act = jax.jit(policy.plan), jax.jit(policy.act)
    carry, actions = policy.init(bare(seen[0]), KEY), []
    for i, observation in enumerate(map(bare, seen)):
        if i % policy.period == 0:
            carry = plan(params, carry, observation, KEY)
        action, carry, _ = act(params, carry, observation, KEY)
        actions.append(np.clip(action, -1, 1))
    return np.array(actions)


CASES = {
    **{name: dict(activation=name) for name in runner.ACTIVATIONS},
    "apart": dict(shared_trunk=False),
    "raw": dict(normalise_observations=False),
    "linear": dict(hidden=()),
}


@pytest.mark.parametrize("name", CASES)
def test_ppo_in_numpy_is_the_original(name, tmp_path):
    trainer, params = ppo_policy(**CASES[name])
    save_npz(extract(trainer, params), tmp_path / "policy.npz")
    policy = runner.Policy(str(tmp_path / "policy.npz"))
    seen = observations(trainer.env, 40)
    expected = original(trainer, params, seen)
    assert expected.std() > 0.1
    assert (abs(expected) < 1).any()
    np.testing.assert_allclose([policy.act(o) for o in seen], expected, **AGREE)
    flat = [np.concatenate([o["task"], o["x"]]) for o in seen]
    np.testing.assert_allclose([policy.act(o) for o in flat], expected, **AGREE)
    assert policy.check() <= 1e-5


@pytest.mark.parametrize(
    ("horizon", "action_horizon", "obs_horizon"), [(1, 1, 1), (5, 3, 1), (4, 2, 3)]
)
def test_a_clone_in_numpy_is_the_original(demos, horizon, action_horizon, obs_horizon, tmp_path):
    horizons = dict(horizon=horizon, action_horizon=action_horizon, obs_horizon=obs_horizon)
    trainer, params = bc_policy(demos, **horizons)
    save_npz(extract(trainer, params), tmp_path / "policy.npz")
    policy = runner.Policy(str(tmp_path / "policy.npz"))
    seen = observations(trainer.env)
    expected = original(trainer, params, seen)
    assert expected.std() > 0.1
    for _ in range(2):
        policy.reset()
        np.testing.assert_allclose([policy.act(o) for o in seen], expected, **AGREE)
    assert policy.check() <= 1e-5


@pytest.mark.parametrize("algorithm", ["ppo", "bc"])
def test_a_policy_comes_back_from_its_file(algorithm, demos, tmp_path):
    many = dict(horizon=4, action_horizon=2, obs_horizon=3)
    trainer, params = ppo_policy() if algorithm == "ppo" else bc_policy(demos, **many)
    save_npz(extract(trainer, params), tmp_path / "policy.npz")
    network, seen = load_npz(tmp_path / "policy.npz"), observations(trainer.env)
    policy = restore(network, trainer.env)
    found = acted(policy, network, trainer.env, seen)
    np.testing.assert_allclose(found, original(trainer, params, seen), **AGREE)


def test_a_policy_comes_back_only_for_what_it_was_trained_on(exported):
    network = load_npz(exported)
    with pytest.raises(ValueError, match=r"reads 7 numbers of task, x, but .* shows \d of obs"):
        restore(network, Walk())
    short = network.replace(action_scale=np.ones(3))
    with pytest.raises(ValueError, match="actions have 3 numbers, expected 1"):
        restore(short, Tasks())


@pytest.mark.parametrize("algorithm", ["ppo", "bc"])
def test_stablehlo_is_the_original(algorithm, demos, tmp_path):
    many = dict(horizon=4, action_horizon=2, obs_horizon=3)
    trainer, params = ppo_policy() if algorithm == "ppo" else bc_policy(demos, **many)
    network = extract(trainer, params)
    save_stablehlo(network, tmp_path / "policy.stablehlo")
    exported = jax.export.deserialize(bytearray((tmp_path / "policy.stablehlo").read_bytes()))
    assert set(exported.platforms) >= {"cpu", "cuda"}
    seen = observations(trainer.env)
    expected = original(trainer, params, seen)
    flat = [np.concatenate([o[name] for name in network.names], dtype=np.float32) for o in seen]
    history = np.stack([flat[0]] * network.obs_horizon)
    for i, x in enumerate(flat):
        history = np.concatenate([history[1:], x[None]])
        if i % network.period == 0:
            chunk = exported.call(history)
            np.testing.assert_allclose(chunk, predict(network, history), **AGREE)
        np.testing.assert_allclose(chunk[i % network.period], expected[i], **AGREE)


def test_only_feed_forward_networks_are_exported(demos):
    config = diffusion_bc.Config(widths=(8,), horizon=4, action_horizon=4, decay_steps=1000)
    trainer = diffusion_bc.make(Aim(), demos, config)
    with pytest.raises(
        ValueError, match=r"diffusion_bc is no feed-forward network; valid: bc, ppo$"
    ):
        extract(trainer, {})


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    path = tmp_path_factory.mktemp("exported") / "policy.npz"
    save_npz(extract(*ppo_policy()), path)
    return path


@pytest.mark.parametrize(
    ("observation", "words"),
    [
        (np.zeros(6), "an observation has 7 numbers, got 6"),
        (np.full(7, np.nan), "isn't finite"),
        ({"x": np.zeros(1)}, r"lacks \['task'\], of \['task', 'x'\]"),
    ],
)
def test_the_runner_refuses_what_was_not_observed_in_training(exported, observation, words):
    policy = runner.Policy(str(exported))
    with pytest.raises(ValueError, match=words):
        policy.act(observation)


def test_another_format_is_refused(exported, tmp_path):
    with np.load(exported) as archive:
        np.savez(tmp_path / "new.npz", **{**archive, "format": runner.FORMAT + 1})
    for read in (runner.Policy, load_npz):
        with pytest.raises(ValueError, match="has format 2, expected 1"):
            read(str(tmp_path / "new.npz"))


@pytest.mark.parametrize("read", [runner.Policy, load_npz])
@pytest.mark.parametrize(
    "name", ["layers", "weight0", "bias2", "names", "clip", "period", "example_chunks"]
)
def test_a_file_that_lacks_an_array_is_refused(read, name, exported, tmp_path):
    with np.load(exported) as archive:
        np.savez(tmp_path / "less.npz", **{k: v for k, v in archive.items() if k != name})
    with pytest.raises(ValueError, match=f"less.npz lacks {name}"):
        read(str(tmp_path / "less.npz"))


@pytest.mark.parametrize("read", [runner.Policy, load_npz])
def test_an_unknown_activation_is_refused(read, exported, tmp_path):
    with np.load(exported) as archive:
        np.savez(tmp_path / "other.npz", **{**archive, "activation": "mish"})
    with pytest.raises(ValueError, match="has activation 'mish'; valid: elu, relu, tanh"):
        read(str(tmp_path / "other.npz"))


@pytest.mark.parametrize("read", [runner.Policy, load_npz])
@pytest.mark.parametrize("length", [0, 3, 1000, -1])
def test_a_file_that_was_cut_short_is_refused(read, length, exported, tmp_path):
    path = tmp_path / "policy.npz"
    path.write_bytes(exported.read_bytes()[:length])
    with pytest.raises(ValueError, match=r"policy.npz isn't an exported policy, or was cut short"):
        read(str(path))


@pytest.mark.parametrize("read", [runner.Policy, load_npz])
def test_a_damaged_file_is_refused_or_read(read, exported, tmp_path):
    """Of bytes that are wrong, most are noticed by the checksums, and some don't matter."""
    whole, path, refused = exported.read_bytes(), tmp_path / "policy.npz", 0
    for place in [*range(0, 100, 7), *range(len(whole) - 700, len(whole), 7)]:
        damaged = bytearray(whole)
        damaged[place] ^= 0xFF
        path.write_bytes(damaged)
        try:
            read(str(path))
        except ValueError:
            refused += 1
    assert refused > 20


def test_a_single_array_is_refused(exported, tmp_path, monkeypatch):
    np.save(tmp_path / "array.npy", np.zeros(3))
    monkeypatch.setattr("sys.argv", ["runner.py", str(tmp_path / "array.npy")])
    with pytest.raises(SystemExit, match=r"error: .* isn't an exported policy"):
        runner.main()


def test_large_actions_may_differ_by_more(exported, tmp_path):
    network = load_npz(exported)
    save_npz(network.replace(action_scale=1e4 * network.action_scale), tmp_path / "large.npz")
    policy = runner.Policy(str(tmp_path / "large.npz"))
    data = runner.read(str(tmp_path / "large.npz"))
    found = np.array([policy.predict(x) for x in data["example_histories"]])
    assert np.abs(found - data["example_chunks"]).max() > 1e-5
    assert policy.check() <= 1e-5


def test_the_runner_notices_that_it_differs(exported, tmp_path):
    with np.load(exported) as archive:
        np.savez(tmp_path / "policy.npz", **{**archive, "bias0": archive["bias0"] + 1})
    assert runner.Policy(str(tmp_path / "policy.npz")).check() > 1e-5


# --- older Pythons --------------------------------------------------------------------------------


@pytest.mark.parametrize("module", [runner, arm_server])
def test_the_files_for_robots_are_of_python_3_6(module):
    ast.parse(Path(module.__file__).read_text(), feature_version=(3, 6))


@pytest.mark.parametrize("version", VERSIONS)
def test_the_runner_agrees_under_an_older_python(version, exported, tmp_path):
    python = older_python(version, "numpy")
    script = shutil.copy(runner.__file__, tmp_path)
    command = [python, script, str(exported)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "7 numbers in, 1 out" in done.stdout
