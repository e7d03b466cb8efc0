import json

from typer.testing import CliRunner

from ringfence.guard.audit.verify import Verified, verify
from ringfence.guard.bench import policies as bench
from ringfence.guard.bench.traffic import write_log
from ringfence.guard.check import load_checks
from ringfence.policies.decide import decide
from ringfence.policies.load import load_policy, loads_policy
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
    assert [(pace.what, pace.size, pace.rounds) for pace in paces] == [
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


def test_replay_is_timed_on_a_log_that_is_whole(tmp_path):
    log, policy = tmp_path / "log.db", load_policy()
    assert list(write_log(log, policy, 60)) == [*range(1, 61)]
    verified = verify(log)
    assert isinstance(verified, Verified)
    assert verified.count == 60
    pace = bench.measure_replay(log, policy, load_checks())
    assert (pace.what, pace.size, pace.rounds) == ("replay", 60, 1)
    assert 0 < pace.median_ms == pace.least_ms


def test_bench_replays_a_log_where_it_is_asked_to(monkeypatch):
    monkeypatch.setattr(bench, "measure_policies", list)
    result = CliRunner().invoke(cli.app, ["policies", "--replay", "20", "--json"])
    assert [(pace["what"], pace["size"]) for pace in json.loads(result.stdout)["paces"]] == [("replay", 20)]
