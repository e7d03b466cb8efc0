"""What a policy does to somebody's texts: what is counted, over what, and how sure that is."""

import json

import pytest
from typer.testing import CliRunner

from ringfence.guard.bench.rules import Rate, judge_texts, read_texts, report_on
from ringfence.guard.pipeline import Pipeline
from ringfence.policies.types import Action, Condition, Policy, Rule, Stage
from ringfence.proxy.cli import bench as cli

POLICY = """
version: 1
name: tiny
rules:
  - { id: no-bombs, category: bomb, action: block }
  - { id: no-numbers, category: number, action: rewrite, stages: [input] }
  - { id: note-knives, category: knife, action: log, roles: [tool] }
  - { id: try-leaks, category: leak, action: block, stages: [output], shadow: true }
  - { id: no-media, category: unjudged.media, action: block }
"""


def written(path, *rows):
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


@pytest.fixture
def bench(tmp_path, checks, monkeypatch):
    """Run the command with checks that look for words; returns what it printed, as JSON where asked for."""
    monkeypatch.setattr("ringfence.guard.guard.load_checks", lambda: checks)
    (tmp_path / "tiny.yaml").write_text(POLICY)

    def run(*arguments, policy="tiny.yaml"):
        given = ["rules", "--policy", str(tmp_path / policy), *map(str, arguments)]
        return CliRunner().invoke(cli.app, given, terminal_width=200)

    return run


def judged(policy, checks, path, **how):
    texts = read_texts(path, policy.rules, **how).texts
    return report_on(policy.rules, list(judge_texts(Pipeline(policy, checks), texts)))


def by_id(report):
    return {one.rule.id: one for one in report.rules}


def test_each_rule_is_counted_over_the_texts_that_it_reads(bench, tmp_path):
    data = written(
        tmp_path / "talk.jsonl",
        {"text": "a bomb, and 12345"},
        {"text": "a knife"},
        {"text": "hello", "response": "a leak of 12345"},
    )
    found = json.loads(bench("--data", data, "--json").stdout)["total"]
    counted = {name: (rule["n"], rule["of"]) for name, rule in found["rules"].items()}
    assert counted == {
        "no-bombs": (1, 4),
        "no-numbers": (1, 3),
        "note-knives": (0, 0),
        "try-leaks": (1, 1),
        "no-media": (0, 0),
    }
    assert {action: rate["n"] for action, rate in found["actions"].items()} == {
        "block": 1,
        "rewrite": 0,  # what was blocked is not rewritten as well
        "log": 0,
        "allow": 3,  # a rule in shadow changes nothing
    }
    assert found["median_ms"] > 0
    assert found["rules"]["note-knives"]["share"] is None


def test_interval_is_wilsons():
    low, high = Rate(3, 100).ci95
    # the roots of (p - 0.03)² = z² p (1 - p) / 100
    z = 1.959963984540054
    for root in (low, high):
        assert (root - 0.03) ** 2 == pytest.approx(z**2 * root * (1 - root) / 100)
    assert Rate(0, 50).ci95[0] == 0
    assert Rate(0, 0).ci95 is Rate(0, 0).share is None


def test_labels_give_precision_and_recall_of_the_rules_that_they_are_about(checks, policy, tmp_path):
    data = written(
        tmp_path / "labelled.jsonl",
        {"text": "bomb", "bomb": 1},
        {"text": "bomb shelter", "bomb": 0},
        {"text": "b0mb", "bomb": 1},
        {"text": "another bomb", "bomb": 1},
        {"text": "tea", "bomb": 0},
        {"text": "a bomb that nobody labelled", "bomb": None},
    )
    rules = by_id(judged(policy, checks, data))
    assert rules["no-bombs"].precision == Rate(2, 3)
    assert rules["no-bombs"].recall == Rate(2, 3)
    assert rules["no-bombs"].rate == Rate(4, 6)
    assert rules["no-numbers"].precision is rules["no-numbers"].recall is None


def test_labels_of_one_kind_say_nothing_of_precision(checks, policy, tmp_path):
    alike = written(tmp_path / "alike.jsonl", {"text": "bomb", "bomb": 1}, {"text": "b0mb", "bomb": 1})
    rule = by_id(judged(policy, checks, alike))["no-bombs"]
    assert (rule.precision, rule.recall) == (None, Rate(1, 2))


def test_benign_leaves_out_what_is_harmful_and_what_nobody_labelled(policy, tmp_path):
    data = written(
        tmp_path / "mixed.jsonl",
        {"text": "tea", "prompt_label": 0},
        {"text": "ignore all that", "prompt_label": 0, "attack": "jailbreak"},
        {"text": "harm", "prompt_label": 1, "response": "No.", "response_label": 0},
        {"text": "who knows", "prompt_label": None},
    )
    read = read_texts(data, policy.rules, benign=True)
    assert [text.passage.text for text in read.texts] == ["tea", "No."]
    assert read.skipped == 3


def test_published_forms_are_read_with_their_labels(checks, tmp_path):
    harm = Policy("one", (Rule("harm", "harm", Action.BLOCK), Rule("attack", "attack", Action.BLOCK)))
    data = written(
        tmp_path / "set.jsonl",
        {"user_input": "tea", "toxicity": 0, "jailbreaking": 0},
        {"user_input": "a bomb", "toxicity": 1, "jailbreaking": 0},
    )
    tea, bomb = read_texts(data, harm.rules).texts
    assert (tea.passage.text, tea.labels) == ("tea", {"harm": 0, "attack": 0})
    assert (bomb.passage.text, bomb.labels) == ("a bomb", {"harm": 1, "attack": 0})
    answers = written(tmp_path / "answers.jsonl", {"prompt": "tea?", "response": "a bomb", "is_safe": False})
    (answer,) = read_texts(answers, harm.rules).texts
    assert (answer.passage.stage, answer.passage.prompt) == (Stage.OUTPUT, "tea?")
    assert answer.labels == {"harm": 1}


def test_texts_may_be_those_of_a_tool(bench, tmp_path):
    data = written(tmp_path / "pages.jsonl", {"text": "a knife"}, {"text": "a spoon"})
    found = json.loads(bench("--data", data, "--role", "tool", "--json").stdout)["total"]
    assert found["rules"]["note-knives"]["share"] == 0.5
    assert found["actions"]["log"]["n"] == 1


def test_what_nobody_could_answer_is_not_taken_for_silence(checks, broken_check, tmp_path):
    checks["broken"] = broken_check
    rules = (Rule("sure", "bomb", Action.LOG), Rule("open", "broken", Action.LOG, shadow=True))
    report = judged(Policy("broken", rules), checks, written(tmp_path / "a.jsonl", {"text": "bomb"}, {"text": "tea"}))
    sure, left_open = report.rules
    assert (sure.rate, sure.unanswered) == (Rate(1, 2), 0)
    assert (left_open.rate, left_open.unanswered) == (Rate(0, 0), 2)


def test_condition_of_a_rule_counts(checks, tmp_path):
    rule = Rule("both", "bomb", Action.BLOCK, when=Condition(category="knife"))
    data = written(tmp_path / "a.jsonl", {"text": "a bomb"}, {"text": "a bomb and a knife"})
    assert judged(Policy("both", (rule,)), checks, data).rules[0].rate == Rate(1, 2)


def test_several_files_have_a_column_each_and_a_total(bench, tmp_path):
    for name, text in (("one", "a bomb"), ("two", "tea")):
        (tmp_path / name).mkdir()
        written(tmp_path / name / "train.jsonl", {"text": text})
    files = ("--data", tmp_path / "one/train.jsonl", "--data", tmp_path / "two/train.jsonl")
    found = json.loads(bench(*files, "--json").stdout)
    shares = {name: report["rules"]["no-bombs"]["share"] for name, report in found["files"].items()}
    assert shares == {"one/train.jsonl": 1.0, "two/train.jsonl": 0.0}
    assert found["total"]["rules"]["no-bombs"]["n"] == 1
    shown = bench(*files).stdout
    (row,) = [line.split() for line in shown.splitlines() if line.startswith("no-bombs")]
    assert row == ["no-bombs", "block", "100.00", "%", "0.00", "%", "1/2", "50.00", "%", "9.45–90.55"]


def test_limit_draws_the_same_texts_again_in_their_order(policy, tmp_path):
    data = written(tmp_path / "many.jsonl", *({"text": f"text {at:03}"} for at in range(200)))
    first, again = (read_texts(data, policy.rules, limit=20) for _ in range(2))
    said = [text.passage.text for text in first.texts]
    assert said == [text.passage.text for text in again.texts] == sorted(said)
    assert said != [f"text {at:03}" for at in range(20)]
    assert (len(said), first.left) == (20, 180)


def test_examples_are_short_show_what_fired_and_cannot_move_the_cursor(bench, tmp_path):
    data = written(
        tmp_path / "long.jsonl", {"text": "word " * 200 + "\x1b[2J a bomb " + "word " * 200}, *[{"text": "bomb"}] * 5
    )
    shown = bench("--data", data, "--examples").stdout
    examples = shown.partition("\nno-bombs\n")[2].strip().splitlines()
    assert len(examples) == 3
    assert examples[0].startswith(f"{data}:1  … ")
    assert "\\u001b[2J a bomb" in examples[0]
    assert len(examples[0]) < len(str(data)) + 120
    told = json.loads(bench("--data", data, "--examples", "--json").stdout)["examples"]
    assert [one["at"] for one in told["no-bombs"]] == [f"{data}:{line}" for line in (1, 2, 3)]


def test_markdown_has_one_row_a_rule(bench, tmp_path):
    data = written(tmp_path / "a.jsonl", {"text": "12345", "prompt_label": 0}, {"text": "tea", "prompt_label": 0})
    assert bench("--data", data, "--benign", "--markdown").stdout.splitlines() == [
        "| rule | fires on benign texts | share | 95 % |",
        "|---|---|---|---|",
        "| `no-bombs` | 0/2 | 0.00 % | 0.00–65.76 |",
        "| `no-numbers` | 1/2 | 50.00 % | 9.45–90.55 |",
        "| `note-knives` | – | – | – |",
        "| `try-leaks` | – | – | – |",
        "| `no-media` | – | – | – |",
    ]


@pytest.mark.parametrize(
    ("content", "arguments", "said"),
    [
        ("", (), "there are no rows"),
        ('{"text": "tea"}\n{"text": 3}\n', (), "data.jsonl:2: text must be a string"),
        ('{"text": "tea"}\n{"text"', (), "data.jsonl:2: "),
        ('{"text": "tea", "bomb": 7}\n', (), "data.jsonl:1: bomb must be 0, 1 or null, got 7"),
        ('{"words": "tea"}\n', (), "of no format known"),
        ('{"text": " "}\n', (), "no row has a text with words in it"),
        ('{"text": "tea"}\n', ("--stage", "output"), "no row has a text of the output stage"),
        ('{"text": "tea"}\n', ("--benign",), "leave out --benign if all are"),
        ('{"text": "tea"}\n', ("--format", "tables"), "no format is called tables"),
        ('{"text": "tea"}\n', ("--markdown", "--json"), "ask for one at a time"),
    ],
)
def test_what_cannot_be_measured_is_said_in_one_line(bench, tmp_path, content, arguments, said):
    data = tmp_path / "data.jsonl"
    data.write_text(content)
    result = bench("--data", data, *arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert said in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_policy_that_cannot_be_used_is_said_in_one_line(bench, tmp_path):
    data = written(tmp_path / "a.jsonl", {"text": "tea"})
    unknown = POLICY.replace("category: bomb", "category: bmob")
    for name, content in (("unknown.yaml", unknown), ("broken.yaml", "version: 1\nname: x\nrule: []\n")):
        (tmp_path / name).write_text(content)
        result = bench("--data", data, policy=name)
        assert result.exit_code == 2
        assert name in result.stderr
        assert len(result.stderr.splitlines()) == 1
    assert bench("--data", data, policy="missing.yaml").exit_code == 2
    assert "given twice" in bench("--data", data, "--data", data).stderr
    assert bench("--data", tmp_path / "missing.jsonl").exit_code == 2
