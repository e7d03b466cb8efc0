import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from ringfence.policies.load import PolicyError, PolicyFile, canonical, load_policy, loads_policy
from ringfence.policies.schema import schema_of
from ringfence.policies.types import Action, Stage

SCHEMA = Draft202012Validator(schema_of("policy"))
MINIMAL = "version: 1\nname: tiny\n"
RULE = "  - id: mail\n    category: pii.email\n    action: rewrite\n"
ONE_RULE = MINIMAL + "rules:\n" + RULE


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
keys = st.sampled_from(["version", "name", "packs", "rules", "override", "exempt", "stream", "audit", "x"])


def problems(load, given):
    """The lines of the error, without the name of the file."""
    with pytest.raises(PolicyError) as caught:
        load(given)
    return [line.split("p.yaml:", 1)[1] for line in str(caught.value).splitlines()]


def from_text(text):
    return loads_policy(text, "p.yaml")


def test_shipped_policy_has_every_pack_and_knows_where_its_rules_stand():
    policy = load_policy()
    assert policy.name == "default"
    by_id = {rule.id: rule for rule in policy.rules}
    assert by_id["pii"].action is Action.REWRITE
    assert by_id["attack"].stages == (Stage.INPUT,)
    for rule in policy.rules:
        line = Path(rule.origin.file).read_text().splitlines()[rule.origin.line - 1]
        assert line[rule.origin.column - 1 :] == f"id: {rule.id}"


def test_shipped_policy_uses_its_packs_and_a_policy_that_extends_the_shipped_one_has_the_same_rules():
    used = {Path(rule.origin.file).stem for rule in load_policy().rules}
    assert used == {"policy", "mlcommons", "injection", "pii", "secrets", "hidden", "exfiltration"}
    mine = loads_policy(MINIMAL + "extends: enterprise-default\n")
    assert mine.rules == load_policy().rules
    with pytest.raises(PolicyError, match="no policy 'enterprise' ships"):
        loads_policy(MINIMAL + "extends: enterprise\n")


def test_canonical_form_reads_back_as_the_same_policy_with_the_same_revision():
    policy = load_policy()
    again = loads_policy(yaml.safe_dump(canonical(policy)))
    assert again == policy
    assert again.revision == policy.revision


def test_revision_changes_with_what_is_effective_and_not_with_how_it_is_written():
    first = loads_policy(MINIMAL + "packs: [pii]\n")
    same = loads_policy("# a comment\n" + MINIMAL + 'packs:\n  - "pii"\nlimits: {text: 200000}\n')
    other = loads_policy(MINIMAL + "packs: [pii]\noverride: {pii: {threshold: 0.6}}\n")
    assert first.revision == same.revision != other.revision
    assert len(first.revision) == 64


def test_override_changes_the_named_fields_only():
    policy = loads_policy(MINIMAL + "packs: [injection]\noverride: {attack: {threshold: 0.7, shadow: true}}\n")
    plain = loads_policy(MINIMAL + "packs: [injection]\n")
    changed, original = policy.rules[0], plain.rules[0]
    assert (changed.threshold, changed.shadow) == (0.7, True)
    assert (changed.action, changed.message, changed.why) == (original.action, original.message, original.why)
    assert policy.rules[1] == plain.rules[1]


def test_own_pack_is_found_relative_to_the_policy_and_its_problems_are_told_with_its_name(tmp_path):
    (tmp_path / "packs").mkdir()
    (tmp_path / "packs" / "ours.yaml").write_text(MINIMAL + "rules:\n" + RULE)
    path = tmp_path / "policy.yaml"
    path.write_text(MINIMAL + "packs: [packs/ours.yaml]\n")
    assert [rule.id for rule in load_policy(path).rules] == ["mail"]
    (tmp_path / "packs" / "ours.yaml").write_text(ONE_RULE + "    threshold: 7\n")
    with pytest.raises(PolicyError, match=r"packs/ours\.yaml:7:5: 'threshold' must be at most 1, got 7$"):
        load_policy(path)


MALFORMED = [
    ("", ["1:1: the file is empty"]),
    ("# only a comment\n", ["1:1: the file is empty"]),
    ("- 3\n", ["1:1: the file must be a mapping, got [3]"]),
    ("version: 1\n", ["1:1: 'name' is missing here"]),
    ("version: 2\nname: x\n", ["1:1: 'version' cannot be 2; choose from: 1"]),
    (
        "version: 1\nname: no\n",
        ["2:1: 'name' must be text in quotes, got false, which YAML makes of no without quotes"],
    ),
    (MINIMAL + "message: 12:30\n", None),
    (MINIMAL + "ruels: []\n", ["3:1: unknown key 'ruels'; did you mean 'rules'?"]),
    (MINIMAL + "name: y\n", ["3:1: key 'name' is repeated; it is already on line 2"]),
    (MINIMAL + "packs: pii\n", ["3:1: 'packs' must be a list, got \"pii\""]),
    (MINIMAL + "packs: [pij]\n", ["3:9: no pack 'pij' ships; did you mean 'pii'?"]),
    (
        MINIMAL + "packs: [pii, pii]\n",
        ["3:14: pack 'pii' is used twice: p.yaml:3:9 names it already; leave it out here"],
    ),
    (
        MINIMAL + "extends: enterprise-default\npacks: [pii]\n",
        ["4:9: pack 'pii' is used twice: the policy extended has it already; leave it out here"],
    ),
    (MINIMAL + "packs: [./pij.yaml]\n", ["3:9: there is no pack file pij.yaml"]),
    (MINIMAL + "rules: [7]\n", ["3:9: an item of 'rules' must be a mapping, got 7"]),
    (ONE_RULE + "    threshold: 1.4\n", ["7:5: 'threshold' must be at most 1, got 1.4"]),
    (ONE_RULE + "    threshold: -1\n", ["7:5: 'threshold' must be at least 0, got -1"]),
    (ONE_RULE + '    threshold: "0.5"\n', ["7:5: 'threshold' must be a number, got \"0.5\""]),
    (ONE_RULE + "    treshold: 0.5\n", ["7:5: unknown key 'treshold'; did you mean 'threshold'?"]),
    (ONE_RULE + "    shadow: 'yes'\n", ["7:5: 'shadow' must be true or false, got \"yes\""]),
    (
        ONE_RULE + "    on_error: rewrite\n",
        ["7:5: 'on_error' cannot be \"rewrite\"; choose from: allow, log, block"],
    ),
    (ONE_RULE + "    stages: []\n", ["7:5: 'stages' must not be empty"]),
    (ONE_RULE + "    stages: [inptu]\n", ["7:14: an item of 'stages' cannot be \"inptu\"; did you mean 'input'?"]),
    (ONE_RULE.replace("rewrite", "blok"), ["6:5: 'action' cannot be \"blok\"; did you mean 'block'?"]),
    (
        ONE_RULE.replace("rewrite", "no"),
        [
            "6:5: 'action' cannot be false, which YAML makes of no without quotes; "
            "choose from: allow, log, rewrite, block"
        ],
    ),
    (ONE_RULE.replace("rewrite", "false"), ["6:5: 'action' cannot be false; choose from: allow, log, rewrite, block"]),
    (ONE_RULE + "    seconds: 1:30:00x\n", ["7:5: 'seconds' must be a number, got \"1:30:00x\""]),
    (
        ONE_RULE + "    why: 1:30\n",
        ["7:5: 'why' must be text in quotes, got 90, which YAML makes of 1:30 without quotes"],
    ),
    (
        ONE_RULE + "    threshold: .nan\n",
        ["7:5: 'threshold' cannot be .nan: a number is finite and at most 2^53; text goes in quotes"],
    ),
    (ONE_RULE + "    origin: {line: 3}\n", None),
    (
        ONE_RULE + "    replacement: '[{categry}]'\n",
        ["4:5: 'replacement' may hold {category} only, got '[{categry}]'"],
    ),
    (
        ONE_RULE + RULE,
        ["7:5: id 'mail' is already used at p.yaml:4:5; choose another, or change a pack's rule under 'override'"],
    ),
    (
        MINIMAL + "checks:\n  - {kind: length, more_than: 3, category: count}\n"
        "  - {kind: keywords, words: [a], category: unjudged}\n",
        [
            "4:34: a check cannot have the category 'count', which is for counters; choose another",
            "5:34: a check cannot have the category 'unjudged', which is for what nobody can read; choose another",
        ],
    ),
    (
        MINIMAL + "packs: [pii]\noverride: {pij: {shadow: true}}\n",
        ["4:12: 'override' names 'pij', which is no rule of the packs used; did you mean 'pii'?"],
    ),
    (
        MINIMAL + "packs: [pii]\noverride: {pii: {treshold: 1}}\n",
        ["4:18: unknown key 'treshold'; did you mean 'threshold'?"],
    ),
    (MINIMAL + "stream: {window: 3.5}\n", ["3:10: 'window' must be a whole number, got 3.5"]),
    (
        MINIMAL + "limits: {check_seconds: .inf}\n",
        ["3:10: 'check_seconds' cannot be .inf: a number is finite and at most 2^53; text goes in quotes"],
    ),
    (MINIMAL + "audit: {text: maskd}\n", ["3:9: 'text' cannot be \"maskd\"; did you mean 'masked'?"]),
    (MINIMAL + "upstream: {timeout_s: 0}\n", ["3:12: 'timeout_s' must be more than 0, got 0"]),
    (MINIMAL + "---\nversion: 1\n", ["3:1: a second document begins here ('---'); a file holds one"]),
    ("version: &v 1\nname: *v\n", ["1:10: anchors and aliases are not allowed ('v'); write the value out"]),
    ("version: 1\n\tname: x\n", ["2:1: a tab cannot indent YAML; use spaces"]),
    ("version: [\n", None),
    (
        "version: 1\nname: !!python/name:os.system x\n",
        ["2:1: 'name' cannot have the tag !!python/name:os.system; leave it out"],
    ),
    (MINIMAL + "packs: !ours [pii]\n", ["3:1: 'packs' cannot have the tag !ours; leave it out"]),
    (MINIMAL + "packs: [!!binary cGlp]\n", ["3:9: an item of 'packs' cannot have the tag !!binary; leave it out"]),
    ("--- !!set {a, b}\n", None),
    ("[" * 50_000, ["1:17: nested deeper than 16 levels"]),
    (f"version: {'9' * 5000}\nname: x\n", None),
    ('version: 1\nname: "\\ud800"\n', ["2:1: 'name' cannot be \\ud800: half a character is no text"]),
    ("? [a]\n: 1\n", None),
]
"""Text, and the lines that are told of it; None where those are another library's words."""


@pytest.mark.parametrize(("text", "expected"), MALFORMED)
def test_problem_is_told_with_its_place_and_key(text, expected):
    lines = problems(from_text, text)
    if expected is None:
        assert lines
        assert all(line.split(":")[0].isdigit() and line.split(":")[1].isdigit() for line in lines)
    else:
        assert lines == expected


BEYOND_A_SCHEMA = (
    "key 'name' is repeated",
    "no pack 'pij' ships",
    "there is no pack file",
    "'replacement' may hold",
    "id 'mail' is already used",
    "'override' names 'pij'",
    "anchors and aliases",
    "a second document",
    "pack 'pii' is used twice",
    "'check_seconds' cannot be .inf",
    "'threshold' cannot be .nan",
    "'packs' cannot have the tag",
    "an item of 'packs' cannot have the tag",
    "a check cannot have the category 'count'",
)
"""What concerns YAML itself, or more than one value: the loader's alone to refuse."""


def schema_can_know(expected):
    return expected is None or not expected[0].split(": ", 1)[1].startswith(BEYOND_A_SCHEMA)


@pytest.mark.parametrize("text", [text for text, expected in MALFORMED if schema_can_know(expected)])
def test_malformed_policy_is_refused_by_the_schema_as_well(text):
    try:
        data = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError):
        return  # refused before anybody asks the schema
    assert not SCHEMA.is_valid(data)


@given(st.data())
def test_schema_never_refuses_what_the_loader_takes(data):
    mapping = data.draw(st.dictionaries(keys, plain, max_size=5)) | {"version": 1, "name": "x"}
    text = yaml.safe_dump(mapping, allow_unicode=True)
    try:
        loads_policy(text)
    except PolicyError:
        return
    SCHEMA.validate(mapping)


@pytest.mark.parametrize("day", ["soon", "2027-13-01", "2027-3-1", "2027-03-01T10:00:00", "20270301", "[no]"])
def test_what_is_no_date_is_told_what_one_looks_like(day):
    exception = f"exceptions:\n  - {{id: x, rules: [a], why: y, pattern: z, until: {day}}}\n"
    [line] = problems(from_text, MINIMAL + exception)
    assert line.startswith("4:45: 'until' must be a date, as 2027-03-01, got ")


def test_all_problems_are_told_at_once_in_the_order_of_the_file():
    text = "nmae: x\nversion: 1\nrules:\n  - id: a\n    action: blok\n    threshold: 2\n"
    assert [line.split(":")[0] for line in problems(from_text, text)] == ["1", "1", "4", "5", "6"]


def test_problems_of_names_are_told_in_the_order_of_the_file_too():
    text = MINIMAL + "counters: [{id: k, rules: [nobody], at_least: 1, within: 1m, hold: 1m}]\n"
    text += "rules:\n" + RULE + "  - {id: mail2, category: count.x, action: log}\noverride: {nobody: {shadow: true}}\n"
    assert [line.split(":")[0] for line in problems(from_text, text)] == ["3", "8", "9"]


def test_change_to_a_rule_that_the_same_file_or_overlay_removes_is_refused_where_it_stands():
    twice = "remove: [pii]\noverride:\n  pii: {threshold: 0.7}\n"
    lines = problems(from_text, MINIMAL + "packs: [pii]\n" + twice)
    assert lines == ["6:3: rule 'pii' is changed here and removed at p.yaml:4:10; leave one of the two out"]
    overlay = "overlays: [{id: o, scope: {tenant: [t]}, remove: [pii], override: {pii: {threshold: 0.7}}}]\n"
    lines = problems(from_text, MINIMAL + "packs: [pii]\n" + overlay)
    assert lines == ["4:68: rule 'pii' is changed here and removed at p.yaml:4:51; leave one of the two out"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (ONE_RULE.replace("version: 1", 'version: "1"'), "1:1: 'version' must be the number 1, without quotes"),
        (ONE_RULE.replace("version: 1", "version: true"), "1:1: 'version' must be a whole number, got true"),
        (ONE_RULE.replace("version: 1", "version: 1.0"), "1:1: 'version' must be a whole number, got 1.0"),
        (ONE_RULE.replace("version: 1", "version: 2"), "1:1: 'version' cannot be 2; choose from: 1"),
        (
            ONE_RULE + "checks: [{kind: llama-guard-3, category: g, use: local, model: m, bits: 8.0}]\n",
            "7:67: 'bits' must be a whole number, got 8.0",
        ),
        (ONE_RULE + "    on_error: {degrade: 3}\n", "7:16: 'degrade' must be text in quotes, got 3"),
        (ONE_RULE + "    on_error: 3\n", "7:5: 'on_error' cannot be 3; choose from: allow, log, block"),
        (ONE_RULE + "    message: {en: 3}\n", "7:15: 'en' must be text in quotes, got 3"),
    ],
)
def test_wrong_value_is_told_of_as_what_it_was_meant_to_be(text, expected):
    assert problems(from_text, text) == [expected]


def test_origin_is_not_a_key_that_a_file_may_have():
    (line,) = problems(from_text, ONE_RULE + "    origin: {file: x}\n")
    assert line.startswith("7:5: unknown key 'origin'")
    assert "origin" not in line.split(";")[1]


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"version: 1\nname: a\xff\n", "2:8: byte 0xff is not UTF-8; save the file as UTF-8"),
        ("version: 1\nname: 'ü\0'\n".encode(), "2:9: character U+0000 is not allowed in YAML"),
    ],
)
def test_bytes_that_are_no_text_are_told_with_their_place(raw, expected, tmp_path):
    (tmp_path / "p.yaml").write_bytes(raw)
    assert problems(load_policy, tmp_path / "p.yaml") == [expected]


def test_byte_order_mark_is_no_problem(tmp_path):
    path = tmp_path / "p.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + MINIMAL.encode())
    assert load_policy(path).name == "tiny"


def test_missing_file_and_directory_are_told(tmp_path):
    with pytest.raises(PolicyError, match=r"none\.yaml:1:1: cannot read the file: No such file"):
        load_policy(tmp_path / "none.yaml")
    with pytest.raises(PolicyError, match=r":1:1: cannot read the file: Is a directory"):
        load_policy(tmp_path)


@given(st.dictionaries(keys, plain, max_size=5))
def test_any_mapping_gives_a_policy_or_a_located_error(data):
    try:
        policy = loads_policy(yaml.safe_dump(data, allow_unicode=True))
    except PolicyError:  # the one exception there may be
        return
    assert loads_policy(yaml.safe_dump(canonical(policy))) == policy


@given(st.text(max_size=60))
def test_any_text_gives_a_policy_or_a_located_error(text):
    with pytest.raises(PolicyError) as caught:
        loads_policy(text)
    assert str(caught.value).startswith("<memory>:")


def test_canonical_form_is_json():
    assert json.loads(json.dumps(canonical(load_policy())))["version"] == 1
    assert set(canonical(load_policy())) <= set(PolicyFile.__dataclass_fields__)
