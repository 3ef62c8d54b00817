import json

from experiments import evaluate
from jaxrobo import rundir, training
from tests.tiny import make_trainer


def test_all_seeds_run_in_one_program(tmp_path, monkeypatch):
    """And what they're said to do is what the run says."""
    trainer, traced = make_trainer(), []
    trainer.env.unwrapped.engine = "none"
    options = {"evaluate_every": 16, "evaluation_episodes": 2, "test_episodes": 6, "seeds": 3}
    done = training.run(trainer, tmp_path, steps=32, config={"env": "Tiny"}, **options)
    policy = trainer.act(True)

    def act(*arguments):
        traced.append(arguments)
        return policy.act(*arguments)

    counted = trainer._replace(act=lambda deterministic: policy._replace(act=act))
    monkeypatch.setattr(evaluate, "restore_trainer", lambda *_: counted)
    evaluate.main(["--run-dir", str(tmp_path), "--episodes", "6"])
    stored = json.loads((tmp_path / "evaluation-best-test-0-none-6.json").read_text())["estimates"]
    assert [*stored] == ["seed 0", "seed 1", "seed 2"]
    for found, known in zip(stored.values(), done.evaluation, strict=True):
        assert found == rundir.plain(known)
    assert len(traced) == 1
