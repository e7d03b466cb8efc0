import json

from typer.testing import CliRunner

from ringfence.guard.bench import policies as bench
from ringfence.policies.decide import decide
from ringfence.policies.load import loads_policy
from ringfence.policies.types import Action, Stage
from ringfence.proxy.cli import bench as cli


def test_policy_that_is_timed_has_work_to_do():
    policy = loads_policy(bench.policy_text(100))
    decision = decide(policy, Stage.OUTPUT, bench.findings())
    assert len(policy.rules) == 100
    assert decision.action is Action.BLOCK
    assert decision.rules
    assert decision.logged
    assert decision.rewrites


def test_bench_prints_medians_beside_what_is_promised(monkeypatch):
    monkeypatch.setattr(bench, "LOADED", (1, 2))
    monkeypatch.setattr(bench, "DECIDED", (100,))
    paces = bench.measure_policies(seconds=0)
    assert [(pace.what, pace.rules, pace.rounds) for pace in paces] == [
        ("load", 1, 3),
        ("load", 2, 3),
        ("decide", 100, 3),
    ]
    monkeypatch.setattr(bench, "measure_policies", lambda: paces)
    told = json.loads(CliRunner().invoke(cli.app, ["policies", "--json"]).stdout)
    assert told["paces"][2] == paces[2].to_json()
    assert (told["paces"][2]["bar_ms"], told["paces"][0]["bar_ms"]) == (0.05, None)
    shown = CliRunner().invoke(cli.app, ["policies"])
    assert shown.exit_code == 0
    assert "≤ 50 µs" in shown.stdout
