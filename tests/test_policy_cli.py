import json
import re
import sqlite3
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ringfence.guard.audit.record import record_of
from ringfence.guard.audit.store import Store
from ringfence.guard.check import Finding
from ringfence.guard.checks.exfiltration import ExfiltrationCheck
from ringfence.guard.checks.hidden import HiddenCheck
from ringfence.guard.checks.leakage import LeakageCheck
from ringfence.guard.checks.pii import PiiCheck
from ringfence.guard.checks.secrets import SecretsCheck
from ringfence.guard.exchange import Exchange, Kind, Part
from ringfence.guard.guard import Guard
from ringfence.policies.decide import decide
from ringfence.policies.load import canonical, load_policy, loads_policy
from ringfence.policies.overlay import effective
from ringfence.policies.types import Span, Stage
from ringfence.proxy.cli import policy as cli
from ringfence.proxy.wire.fms_detectors import judge, read_contents
from ringfence.proxy.wire.openai_moderations import read_request

HEAD = "version: 1\nname: tiny\n"


@pytest.fixture(autouse=True)
def installed(monkeypatch, sure_of_war):
    real = (PiiCheck(), SecretsCheck(), HiddenCheck(), ExfiltrationCheck(), LeakageCheck())
    monkeypatch.setattr(cli, "load_checks", lambda: {check.name: check for check in (sure_of_war, *real)})


def run(*arguments):
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


@pytest.fixture
def policy(tmp_path):
    def write(text, cases=None):
        path = tmp_path / "policy.yaml"
        path.write_text(HEAD + text)
        if cases is not None:
            path.with_suffix(".cases.yaml").write_text(cases)
        return path

    return write


def test_lint_of_the_shipped_policy_is_clean(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run("lint")
    assert result.exit_code == 0, result.output
    assert result.stdout.endswith(f"policy.yaml: {len(load_policy().rules)} rules, 0 warnings\n")


def test_lint_tells_errors_with_their_place_and_exits_2(policy):
    path = policy("rules:\n  - {id: a, category: pii, action: blok}\n")
    result = run("lint", path)
    assert result.exit_code == 2
    assert result.stderr == f"{path}:4:28: 'action' cannot be \"blok\"; did you mean 'block'?\n"


@pytest.mark.parametrize("use", ["embeded", "http:/example.com", "http"])
def test_lint_refuses_an_upstream_that_serve_would(policy, use):
    path = policy(f"upstream: {{use: '{use}'}}\n" + RULES)
    result = run("lint", path)
    assert (result.exit_code, f"{path}:3:12: upstream '{use}' is not known" in result.stderr) == (2, True)


def test_a_text_that_is_cut_short_says_so(policy):
    words = "and so on " * 30
    told = run("test", "--own", policy(RULES, f"- {{text: {words}war, expect: {{action: block}}}}\n")).stdout
    assert next(line for line in told.splitlines() if "PASS" in line).endswith("…")


def test_lint_refuses_a_category_that_no_check_answers_for(policy):
    path = policy("rules: [{id: a, category: horoscope, action: block}]\n")
    result = run("lint", path)
    assert result.exit_code == 2
    assert f"{path}:3:17: rule 'a' looks at category 'horoscope'" in result.stderr


UNKNOWN = """\
rules:
  - {id: a, category: harmm, action: block}
  - id: b
    category: pii
    on_error: {degrade: kwords}
    action: block
overlays:
  - id: o
    scope: {model: [m]}
    override: {b: {when: {category: sekret}}}
"""


@pytest.mark.parametrize("command", [["lint"], ["test"], ["diff"]])
def test_categories_that_no_check_answers_for_are_refused_all_at_once_where_they_stand(command, policy):
    path = policy(UNKNOWN)
    result = run(*command, path, *([path] if command == ["diff"] else []))
    assert result.exit_code == 2
    told = [line.removeprefix(f"{path}:") for line in result.stderr.splitlines()]
    assert told[0] == "4:13: rule 'a' looks at category 'harmm', which no check answers for; did you mean 'harm'?"
    assert told[1].startswith(
        "7:5: rule 'b' looks at category 'kwords', which no check answers for; choose from: attack, "
    )
    assert told[2] == "12:20: rule 'b' looks at category 'sekret', which no check answers for; did you mean 'secret'?"
    assert len(told) == 3


def test_lint_tells_the_first_hundred_warnings_and_how_many_more_there_are(policy):
    path = policy("rules:\n" + "".join(f"  - {{id: r{n}, category: pii.ip, action: log}}\n" for n in range(80)))
    told = run("lint", path).stdout.splitlines()
    assert len(told) == 102
    assert told[100] == f"and 59 more warnings, from {path}:25:5 on"
    assert told[101] == f"{path}: 80 rules, 159 warnings"


def test_lint_warns_and_exits_0(policy):
    path = policy("rules: [{id: a, category: pii, action: block}]\n")
    result = run("lint", path)
    assert result.exit_code == 0
    assert result.stdout.startswith(f"{path}:3:9: warning: rule 'a' has no case")
    assert result.stdout.endswith("1 rule, 1 warning\n")


def test_show_names_every_rule_and_where_it_stands():
    result = run("show")
    assert result.exit_code == 0
    for rule in load_policy().rules:
        (line,) = [line for line in result.stdout.splitlines() if line.startswith(f"{rule.id} ")]
        assert f":{rule.origin.line}" in line


def test_show_as_json_is_the_canonical_form_with_origins_and_revision():
    shown = json.loads(run("show", "--json").stdout)
    assert shown.pop("revision") == load_policy().revision
    for rule in shown["rules"]:
        origins = rule.pop("origins")
        assert rule.pop("origin") == origins["id"]
        assert {"category", "action"} <= origins.keys() <= rule.keys()
    assert (shown.pop("applied"), shown.pop("removed")) == ([], [])
    file, line, column = shown.pop("origins")["audit.path"].rsplit(":", 2)
    assert Path(file).read_text().splitlines()[int(line) - 1][int(column) - 1 :].startswith("path: ")
    assert shown == canonical(load_policy())


LAYERED = """\
packs: [pii, secrets]
remove: [secrets]
rules:
  - id: war
    category: harm
    action: log
overlays:
  - id: desk
    scope: {model: [m]}
    override:
      pii:
        threshold: 0.8
    remove:
      - war
    message: Call the desk.
    rules:
      - id: no-ids
        category: pii.national_id
        action: block
"""


def test_show_effective_has_the_line_of_every_value_and_of_every_removal(policy, tmp_path):
    path = policy(LAYERED)
    shown = run("show", path, "--effective", "--for", "model=m").stdout.splitlines()
    rows = {tuple(line[:60].split()[:2]): line for line in shown}
    file = f"{tmp_path.name}/policy.yaml"
    assert f" {file}:14 " in next(line for line in shown if line.split()[:1] == ["threshold"])
    assert f" {file}:20 " in rows["no-ids", "category"]
    assert f" {file}:21 " in shown[shown.index(rows["no-ids", "category"]) + 1]
    assert " packs/pii.yaml:9 " in rows["pii", "category"]
    assert rows["removed", "secrets"].split()[2:] == [f"{file}:4", "by", "policy", "tiny"]
    assert rows["removed", "war"].split()[2:] == [f"{file}:16", "by", "overlay", "desk"]
    (message,) = [line.split(maxsplit=2) for line in shown if line.startswith("message")]
    assert message[1:] == [f"{file}:17", "Call the desk.".ljust(len(message[2]))]


def test_show_effective_has_the_line_of_a_null_that_took_a_value_out(policy, tmp_path):
    rule = "  - {id: r, category: pii, action: block, seconds: 2, when: {category: harm}}\n"
    overlay = "overlays:\n  - id: o\n    scope: {model: [m]}\n    override:\n      r:\n        when: null\n"
    path = policy(f"rules:\n{rule}{overlay}")
    shown = [line.split() for line in run("show", path, "--effective", "--for", "model=m").stdout.splitlines()]
    assert ["when", f"{tmp_path.name}/policy.yaml:10", "null"] in shown
    plain = [line.split()[:3] for line in run("show", path, "--effective").stdout.splitlines()]
    assert ["when", f"{tmp_path.name}/policy.yaml:4", "category"] in plain


def test_show_as_json_for_somebody_has_the_same_places(policy):
    path = policy(LAYERED)
    shown = json.loads(run("show", path, "--json", "--for", "model=m").stdout)
    assert shown["origins"]["message"] == f"{path}:17:5"
    assert shown["rules"][0]["origins"]["threshold"] == f"{path}:14:9"
    assert shown["removed"] == [
        {"rule": "secrets", "by": "policy tiny", "origin": f"{path}:4:10"},
        {"rule": "war", "by": "overlay desk", "origin": f"{path}:16:9"},
    ]


def test_show_names_what_was_removed(policy):
    assert "removed   secrets: by policy tiny" in run("show", policy(LAYERED)).stdout


def test_show_takes_no_route_that_there_is_not(policy):
    assert run("show", policy(LAYERED), "--for", "route=openai.chat").exit_code == 0
    result = run("show", policy(LAYERED), "--for", "route=openai.chatt")
    assert (result.exit_code, "--for route=openai.chatt is none of openai.chat, " in result.stderr) == (2, True)


@pytest.mark.parametrize(
    "pair", ["tenant=acme,model=gpt-4", "model=gpt-4,tenant=acme", "route=cli, key=k", "tenant=acme,globex", "key=a=b"]
)
def test_show_takes_no_pair_that_holds_several(policy, pair):
    result = run("show", policy(LAYERED), "--effective", "--for", pair)
    key, _, value = pair.partition("=")
    told = f"--for {pair}: no {key} is called '{value}'; give each KEY=VALUE with a --for of its own\n"
    assert (result.exit_code, result.stdout, result.stderr) == (2, "", told)


@pytest.mark.parametrize("model", ["gpt-4o,claude", "ft:gpt-4o:org::id", "x?t=0", "models/m=1", "a b", "my,model"])
def test_show_takes_a_model_by_whatever_name(policy, model):
    assert run("show", policy(LAYERED), "--for", "tenant=acme.eu", "--for", f"model={model}").exit_code == 0


def test_show_takes_one_value_of_a_key(policy):
    result = run("show", policy(LAYERED), "--for", "tenant=a", "--for", "tenant=b")
    told = "--for tenant=b: the tenant is 'a' already, and an exchange has one\n"
    assert (result.exit_code, result.stderr) == (2, told)


def test_show_marks_an_exception_that_ran_out(policy):
    spared = "{{id: {0}, rules: [war], pattern: x, why: y, until: {1}}}"
    exceptions = f"exceptions: [{spared.format('old', '2020-01-01')}, {spared.format('new', '2999-01-01')}]\n"
    path = policy(LAYERED + exceptions)
    shown = run("show", path).stdout
    assert "old: war until 2020-01-01 (ran out): y" in shown
    assert "new: war until 2999-01-01: y" in shown
    every_value = run("show", path, "--effective").stdout
    assert re.search(r"^exceptions +old \(ran out\) +\S+:\d+ ", every_value, re.MULTILINE)
    assert re.search(r"^exceptions +new +\S+:\d+ ", every_value, re.MULTILINE)


CASES = """\
- text: war
  expect: {action: block, rules: [harm]}
- text: bob@example.com
  expect: {action: rewrite, text: "[PII_EMAIL]"}
- text: hello
  expect: {action: allow}
"""
RULES = """\
rules:
  - {id: harm, category: harm, action: block}
  - {id: mail, category: pii.email, action: rewrite}
"""


def test_test_judges_the_cases_of_pack_and_policy_through_the_pipeline(policy):
    result = run("test", policy(RULES, CASES))
    assert result.exit_code == 0, result.output
    assert result.stdout.endswith("3 cases: 3 pass, 0 fail, 0 error\n")


def test_test_exits_1_and_says_what_differs(policy):
    path = policy(RULES, CASES + "- {text: war, expect: {action: log}}\n- {text: peace, expect: {action: allow}}\n")
    result = run("test", path)
    assert result.exit_code == 1
    assert f"{path.with_suffix('.cases.yaml')}:7:3: fail: expected log, got block by harm\n" in result.stdout
    assert "classifier: failed with RuntimeError" in result.stdout
    assert result.stderr.strip() == "the check 'classifier' could not answer: RuntimeError: cannot imagine"
    assert "5 cases: 3 pass, 1 fail, 1 error" in result.stdout


def test_test_as_json_lists_results_and_rules_without_a_case(policy):
    result = run("test", policy("packs: [pii]\n" + RULES), "--json")
    assert result.exit_code == 0
    told = json.loads(result.stdout)
    assert told["without_cases"] == ["harm", "mail"]
    assert {row["outcome"] for row in told["results"]} == {"pass"}


def test_test_of_the_policys_own_cases_takes_no_rule_of_a_pack_for_one_without_a_case(policy):
    told = json.loads(run("test", policy("packs: [pii]\n" + RULES, CASES), "--own", "--json").stdout)
    assert (told["without_cases"], len(told["results"])) == (["mail"], 3)


def test_test_of_no_case_at_all_proves_nothing_and_exits_2(policy):
    path = policy("packs: [pii]\n" + RULES)
    path.with_name("polcy.cases.yaml").write_text(CASES)
    result = run("test", path, "--own")
    assert result.exit_code == 2
    assert result.stderr.strip().endswith(f"{path}: no cases; its own belong in {path.with_suffix('.cases.yaml')}")


def test_test_of_a_broken_case_file_exits_2(policy):
    result = run("test", policy(RULES, "- {text: a}\n"))
    assert result.exit_code == 2
    assert "1:3: 'expect' is missing here" in result.stderr


def test_schema_is_of_a_policy_file_and_knows_no_origin():
    schema = json.loads(run("schema").stdout)
    assert schema["required"] == ["version", "name"]
    assert "threshold" in schema["$defs"]["Rule"]["properties"]
    assert "origin" not in schema["$defs"]["Rule"]["properties"]


def test_policy_in_the_working_directory_is_the_default(policy, monkeypatch):
    path = policy("message: ours\n")
    monkeypatch.chdir(path.parent)
    assert json.loads(run("show", "--json").stdout)["message"] == "ours"
    assert loads_policy(path.read_text()).message == "ours"


EXPLAINED = """\
rules:
  - {id: harm, category: harm, action: block, threshold: 0.5}
  - {id: harm-mild, category: harm, action: log, threshold: 0.3}
  - {id: trial, category: attack, action: block, shadow: true}
  - {id: mail, category: pii.email, action: rewrite}
"""


@pytest.fixture
def recorded(policy, tmp_path):
    """Judge findings by a policy as the proxy would, and keep the record in a real log; returns both paths."""

    def record(*findings, stage=Stage.INPUT, text=EXPLAINED, applied=(), reply=""):
        path, db = policy(text), tmp_path / "log.db"
        decision = decide(effective(load_policy(path), applied), stage, findings)
        exchange = Exchange("openai.chat", "small", [Part(Kind.TEXT, "user", ("messages", 0, "content"), "some text")])
        exchange.decisions.append(decision)
        exchange.reply += [Part(Kind.TEXT, "assistant", ("choices", 0), reply)] if reply else []
        store = Store.open(db)
        store.append(record_of(exchange, text="masked"))
        store.close()
        return path, db, exchange.id

    return record


def scored(category, score, **others):
    return Finding("classifier", category, score, (Span(0, 0, 4),), **others)


def test_explain_tells_rule_by_rule_why_and_what_would_have_changed_it(recorded):
    path, db, name = recorded(scored("harm", 0.9312), scored("harm.S4", 0.2), scored("attack", 0.75))
    result = run("explain", name, "--db", db, "--policy", path)
    assert result.exit_code == 0, result.output
    lines = {line.split()[0]: line.split() for line in result.stdout.splitlines() if line}
    assert lines["harm"] == ["harm", "harm", "0.9312", "harm", "0.5", "fired:", "block"]
    assert lines["harm-mild"][-2:] == ["fired:", "log"]
    assert lines["trial"][-3:] == ["would", "block", "(shadow)"]
    assert lines["mail"] == ["mail", "pii.email", "nothing", "0.5"]
    assert "It would have been log with\n  harm: threshold 0.5 → 0.9313\n" in result.stdout
    assert "Not the policy" not in result.stdout


def test_explain_says_by_how_much_a_rule_did_not_fire_and_takes_a_number(recorded):
    path, db, _ = recorded(scored("harm", 0.4))
    result = run("explain", 1, "--db", db, "--policy", path)
    assert "short by 0.1000" in result.stdout
    assert "It would have been block with\n  harm: threshold 0.5 → 0.4\n" in result.stdout
    assert "It would have been allow with\n  harm-mild: threshold 0.3 → 0.4001\n" in result.stdout


LAYERED_DESK = """\
rules:
  - {id: mail, category: pii.email, action: log}
  - {id: phone, category: pii.phone, action: log}
overlays:
  - id: desk
    scope: {model: [sm*]}
    remove: [phone]
    rules: [{id: no-mail, category: pii.email, action: block}]
"""


def test_explain_is_about_the_policy_as_the_overlays_of_the_exchange_had_it(recorded, policy):
    path, db, _ = recorded(scored("pii.email", 0.95), text=LAYERED_DESK, applied=("desk",))
    result = run("explain", 1, "--db", db, "--policy", path)
    assert "overlays: desk\noverlay desk removes phone\n" in result.stdout
    lines = {line.split()[0]: line.split() for line in result.stdout.splitlines() if line}
    assert lines["no-mail"][-2:] == ["fired:", "block"]
    assert "phone" not in lines
    assert "on record" not in result.stdout
    assert "It would have been log with\n  no-mail: threshold 0.5 → 0.9501 (overlay desk)\n" in result.stdout
    told = json.loads(run("explain", 1, "--db", db, "--policy", path, "--json").stdout)
    assert (told["recorded"]["action"], told["action"], told["overlays"]) == ("block", "block", ["desk"])
    assert [one["overlay"] for one in told["milder"]["changes"]] == ["desk"]


def test_explain_by_another_policy_takes_its_overlays_by_whose_the_exchange_was(recorded, policy):
    path, db, _ = recorded(scored("pii.email", 0.95), text=LAYERED_DESK, applied=("desk",))
    policy(LAYERED_DESK.replace("desk", "small").replace("action: block", "action: rewrite"))
    result = run("explain", 1, "--db", db, "--policy", path)
    assert "overlays: small (on record: desk)\n" in result.stdout
    assert json.loads(run("explain", 1, "--db", db, "--policy", path, "--json").stdout)["action"] == "rewrite"


def test_explain_tells_of_the_exceptions_that_spared_a_text_and_what_ending_one_would_do(recorded):
    ours = "exceptions: [{id: ours, rules: [harm, harm-mild], until: 2999-01-01, why: ours, pattern: x}]\n"
    path, db, _ = recorded(scored("harm", 0.9, excepted=("ours",)), text=EXPLAINED + ours)
    result = run("explain", 1, "--db", db, "--policy", path)
    assert "excepted: ours" in result.stdout
    assert "It would have been block with\n  exception ours: ended\n" in result.stdout
    as_json = json.loads(run("explain", 1, "--db", db, "--policy", path, "--json").stdout)
    assert as_json["stronger"] == {"action": "block", "changes": [], "ended": ["ours"]}
    assert as_json["decisions"][0]["rules"][0]["excepted"] == ["ours"]
    store = Store.open(db)
    assert store.get(1).body["decisions"][0]["excepted"] == {"harm": ["ours"], "harm-mild": ["ours"]}
    store.close()


def test_explain_names_an_exception_that_spared_a_part_where_the_rule_fired_besides(recorded):
    ours = "exceptions: [{id: ours, rules: [harm], until: 2999-01-01, why: ours, pattern: x}]\n"
    spared, other = scored("harm", 0.9, excepted=("ours",)), scored("harm", 0.8)
    path, db, _ = recorded(spared, other, text=EXPLAINED + ours)
    result = run("explain", 1, "--db", db, "--policy", path)
    assert "fired: block; not on what is excepted: ours" in result.stdout


def test_explain_says_where_only_a_window_of_the_reply_would_tell(recorded, policy):
    tick = "rules: [{id: harm, category: harm, action: block, stages: [output], when: {category: attack}}]\n"
    found = [scored("harm", 0.9), scored("attack", 0.9)]
    path, db, _ = recorded(*found, stage=Stage.OUTPUT, text=tick, reply="x " * 90)
    assert "fired: block" in run("explain", 1, "--db", db, "--policy", path).stdout
    policy(tick.replace("attack", "attack, threshold: 0.8"))
    result = run("explain", 1, "--db", db, "--policy", path)
    assert "what was found together in one window of the reply is not on record" in result.stdout
    assert "What would have changed it nobody knows" in result.stdout
    told = json.loads(run("explain", 1, "--db", db, "--policy", path, "--json").stdout)
    assert told["decisions"][0]["rules"][0]["unknown"] is True


def test_explain_says_what_a_failed_check_left_open(recorded):
    path, db, _ = recorded(Finding("classifier", "harm", 0.0, error="took too long"))
    result = run("explain", 1, "--db", db, "--policy", path)
    assert "unanswered: block (classifier: took too long)" in result.stdout
    assert "  harm: on_error block → log\n  harm-mild: on_error block → log\n" in result.stdout


def test_explain_says_so_where_another_policy_decided(recorded, policy):
    path, db, _ = recorded(scored("harm", 0.6))
    policy(EXPLAINED.replace("threshold: 0.5", "threshold: 0.7"))
    result = run("explain", 1, "--db", db, "--policy", path)
    assert "Not the policy that decided then" in result.stdout
    assert "on record: block" in result.stdout
    told = json.loads(run("explain", 1, "--db", db, "--policy", path, "--json").stdout)
    assert (told["recorded"]["action"], told["action"], told["policy"]["same"]) == ("block", "log", False)


def test_explain_knows_from_the_record_that_a_span_could_not_be_replaced(recorded):
    path, db, _ = recorded(scored("pii.email", 0.9, rewritable=False))
    told = json.loads(run("explain", 1, "--db", db, "--policy", path, "--json").stdout)
    assert (told["recorded"]["action"], told["action"]) == ("block", "block")
    assert told["milder"] == {
        "action": "allow",
        "changes": [{"rule": "mail", "key": "threshold", "from": 0.5, "to": 0.9001}],
        "ended": [],
    }


def test_explain_as_json_has_every_rule_and_null_for_a_score_that_is_no_number(recorded):
    path, db, name = recorded(scored("harm", float("nan")), scored("attack", 0.25))
    told = json.loads(run("explain", 1, "--db", db, "--policy", path, "--json").stdout)
    assert (told["seq"], told["id"]) == (1, name)
    by_id = {rule["rule"]: rule for rule in told["decisions"][0]["rules"]}
    assert by_id["harm"]["finding"] == {"check": "classifier", "category": "harm", "score": None}
    assert (by_id["harm"]["fired"], by_id["trial"]["fired"], by_id["trial"]["short_by"]) == (True, False, 0.25)
    assert told["milder"]["changes"][0] == {"rule": "harm", "key": "action", "from": "block", "to": "log"}
    assert told["stronger"] is None


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["hello", "war", "bob@example.com"], ["input[0] · allow", "", "input[1] · block", "input[2] · rewrite", ""]),
        ("war", ["input · block"]),
    ],
)
def test_explain_tells_of_texts_that_are_apart_each_by_itself_and_by_its_name(policy, tmp_path, given, expected):
    path, db = policy(RULES), tmp_path / "log.db"
    exchange, _ = read_request({"input": given})
    Guard(path, checks=cli.load_checks()).judge_request(exchange)
    store = Store.open(db)
    store.append(record_of(exchange, text="masked"))
    store.close()
    told = run("explain", 1, "--db", db, "--policy", path).stdout
    heads = [line for line in told.splitlines() if line.startswith(("input", "on record"))]
    together = "on record: block, of all texts together: each is decided by itself"
    assert heads == [one or together for one in expected]
    assert "window" not in told
    as_json = json.loads(run("explain", 1, "--db", db, "--policy", path, "--json").stdout)
    assert [f"{one['text']} · {one['action']}" for one in as_json["decisions"]] == list(filter(None, expected))


def test_explain_tells_of_a_models_texts_that_are_apart_what_was_found_in_each(policy, tmp_path):
    path, db = policy(RULES), tmp_path / "log.db"
    body = {"contents": ["hello", "war", "bob@example.com"], "detector_params": {"stage": "output"}}
    exchange, asked = read_contents(body, "any")
    judge(Guard(path, checks=cli.load_checks()), exchange, asked)
    store = Store.open(db)
    store.append(record_of(exchange, text="masked"))
    store.close()
    said = json.loads(run("explain", 1, "--db", db, "--policy", path, "--json").stdout)
    told = [
        (one["text"], one["action"], [rule["rule"] for rule in one["rules"] if rule["fired"]])
        for one in said["decisions"]
    ]
    assert told == [
        ("contents[0]", "allow", []),
        ("contents[1]", "block", ["harm"]),
        ("contents[2]", "rewrite", ["mail"]),
    ]
    assert "window" not in run("explain", 1, "--db", db, "--policy", path).stdout


def test_explain_refuses_what_it_cannot_explain(recorded, tmp_path):
    path, db, _ = recorded(scored("harm", 0.6))
    assert "no record 7" in run("explain", 7, "--db", db, "--policy", path).stderr
    assert "no such audit log" in run("explain", 1, "--db", tmp_path / "none.db", "--policy", path).stderr
    store = Store.open(db)
    store.append(record_of(Exchange("openai.chat", "small", [], error="too long"), text="masked"))
    store.close()
    undecided = run("explain", 2, "--db", db, "--policy", path)
    assert (undecided.exit_code, "nothing was judged (too long)" in undecided.stderr) == (2, True)
    with sqlite3.connect(db) as connection:
        connection.execute("UPDATE records SET body = replace(body, '0.6', '0.1') WHERE seq = 1")
    altered = run("explain", 1, "--db", db, "--policy", path)
    assert (altered.exit_code, "record 1 was altered" in altered.stderr) == (2, True)
