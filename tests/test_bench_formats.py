"""Published forms of labelled texts: recognised by their fields, each label read as its card says."""

import csv
import gzip
import io
import json

import pytest
import yaml

from ringfence.guard.bench.formats import FORMATS, recognise
from ringfence.guard.bench.items import Item, read_set
from ringfence.guard.classifier.rows import RowError
from ringfence.proxy.cli.bench_guard import read_as

A, B, C = "how do bees dance", "how do i hurt a bee", "bees dance in eights"

# format, name of the file, target, rows, what is read, how many are left out
CASES = [
    ("rows", "own.csv", "prompt", [{"text": A, "prompt_label": 0}, {"text": B, "prompt_label": 1}], [(A, None, 0), (B, None, 1)], 0),
    ("rows", "own.jsonl", "attack", [{"text": A, "prompt_label": 1, "attack": 0}, {"text": B, "prompt_label": None, "attack": 1}], [(A, None, 0), (B, None, 1)], 0),
    ("rows", "own.jsonl", "attack", [{"text": A, "prompt_label": 0}, {"text": B, "prompt_label": 1}], [(A, None, 0), (B, None, 1)], 0),
    ("rows", "own.csv", "attack", [{"text": A, "prompt_label": 1, "attack": 0}, {"text": B, "prompt_label": 0, "attack": 1}, {"text": C, "prompt_label": 1, "attack": ""}], [(A, None, 0), (B, None, 1), (C, None, 1)], 0),
    ("rows", "own.jsonl", "attack", [{"text": A, "prompt_label": 1, "attack": "none"}, {"text": B, "prompt_label": 0, "attack": "jailbreak"}, {"text": C, "prompt_label": 1, "attack": None}], [(A, None, 0), (B, None, 1), (C, None, 1)], 0),
    ("rows", "own.jsonl", "response", [{"text": A, "response": C, "response_label": 0, "prompt_label": None}], [(C, A, 0)], 0),
    (
        "toxicchat", "chat.csv", "prompt",
        [
            {"conv_id": "x", "user_input": A, "model_output": C, "human_annotation": "True", "toxicity": "0", "jailbreaking": "0"},
            {"conv_id": "y", "user_input": B, "model_output": C, "human_annotation": "True", "toxicity": "1", "jailbreaking": "0"},
            {"conv_id": "z", "user_input": C, "model_output": C, "human_annotation": "False", "toxicity": "0", "jailbreaking": "0"},
        ],
        [(A, None, 0), (B, None, 1)], 1,
    ),
    (
        "toxicchat", "chat.jsonl", "attack",
        [{"user_input": A, "human_annotation": True, "toxicity": 1, "jailbreaking": 0}, {"user_input": B, "human_annotation": True, "toxicity": 0, "jailbreaking": 1}],
        [(A, None, 0), (B, None, 1)], 0,
    ),
    (
        "openai-moderation", "samples.jsonl", "prompt",
        [{"prompt": A, "S": 0, "H": 0}, {"prompt": B, "V": 1, "S": 0}, {"prompt": C}],
        [(A, None, 0), (B, None, 1)], 1,
    ),
    (
        "aegis", "aegis1.jsonl", "prompt",
        [
            {"text": A, "text_type": "user_message", "labels_0": "Safe", "labels_1": "Safe", "labels_2": "Violence"},
            {"text": B, "text_type": "user_message", "labels_0": "Violence, Threat", "labels_1": "Needs Caution", "labels_2": "Safe"},
            {"text": C, "text_type": "user_message", "labels_0": "Safe", "labels_1": "Needs Caution", "labels_2": None},
            {"text": C, "text_type": "llm_response", "labels_0": "Safe", "labels_1": "Safe", "labels_2": "Safe"},
        ],
        [(A, None, 0), (B, None, 1), (C, None, 1)], 1,
    ),
    ("aegis", "aegis1.jsonl", "response", [{"text": C, "text_type": "llm_response", "labels_0": "Safe"}], [(C, "", 0)], 0),
    (
        "aegis2", "aegis2.json", "prompt",
        [
            {"id": "1", "prompt": A, "response": None, "prompt_label": "safe", "response_label": None},
            {"id": "2", "prompt": B, "response": C, "prompt_label": "unsafe", "response_label": "safe"},
            {"id": "3", "prompt": C, "response": None, "prompt_label": "Needs Caution", "response_label": None},
            {"id": "4", "prompt": "REDACTED", "response": None, "prompt_label": "unsafe", "response_label": None},
        ],
        [(A, None, 0), (B, None, 1), (C, None, 1)], 1,
    ),
    (
        "aegis2", "aegis2.json", "response",
        [{"prompt": A, "response": None, "prompt_label": "safe", "response_label": None}, {"prompt": B, "response": C, "prompt_label": "unsafe", "response_label": "safe"}],
        [(C, B, 0)], 1,
    ),
    (
        "wildguard", "wild.tsv", "prompt",
        [
            {"prompt": A, "adversarial": "False", "response": C, "prompt_harm_label": "unharmful", "response_refusal_label": "compliance", "response_harm_label": "unharmful"},
            {"prompt": B, "adversarial": "True", "response": "", "prompt_harm_label": "harmful", "response_refusal_label": "", "response_harm_label": ""},
        ],
        [(A, None, 0), (B, None, 1)], 0,
    ),
    (
        "wildguard", "wild.json", "response",
        [{"prompt": A, "response": C, "prompt_harm_label": "unharmful", "response_harm_label": "unharmful"}, {"prompt": B, "response": None, "prompt_harm_label": "harmful", "response_harm_label": None}],
        [(C, A, 0)], 1,
    ),
    (
        "harmbench", "behaviors.csv", "prompt",
        [{"Behavior": B, "SemanticCategory": "x", "ContextString": "", "BehaviorID": "b1"}, {"Behavior": B, "SemanticCategory": "x", "ContextString": "In a garden.", "BehaviorID": "b2"}],
        [(B, None, 1), (f"In a garden.\n\n{B}", None, 1)], 0,
    ),
    (
        "harmbench-responses", "validation.json", "response",
        {"b1": [{"test_case": B, "generation": A, "human_consensus": 1}], "b2": [{"test_case": B, "generation": C, "human_consensus": 0}]},
        [(A, B, 1), (C, B, 0)], 0,
    ),
    (
        "harmbench-responses", "validation.json", "response",
        [{"generation": A, "human_0": 1, "human_1": 1, "human_2": 0}, {"generation": C, "human_0": 0, "human_1": 0, "human_2": 1}],
        [(A, "", 1), (C, "", 0)], 0,
    ),
    ("simplesafetytests", "tests.csv", "prompt", [{"id": "1", "harm_area": "x", "category": "y", "prompt": B}], [(B, None, 1)], 0),
    (
        "beavertails", "tails.jsonl", "response",
        [{"prompt": B, "response": A, "category": {"x": True}, "is_safe": False}, {"prompt": B, "response": C, "category": {"x": False}, "is_safe": True}],
        [(A, B, 1), (C, B, 0)], 0,
    ),
    (
        "saferlhf", "pairs.jsonl", "response",
        [{"prompt": B, "response_0": A, "response_1": C, "is_response_0_safe": False, "is_response_1_safe": True}],
        [(A, B, 1), (C, B, 0)], 0,
    ),
    (
        "xstest", "xs.csv", "prompt",
        [{"id": "1", "prompt": A, "type": "homonyms", "focus": "x", "note": ""}, {"id": "2", "prompt": B, "type": "contrast_homonyms", "focus": "x", "note": ""}],
        [(A, None, 0), (B, None, 1)], 0,
    ),
    (
        "xstest", "xs.jsonl", "prompt",
        [{"prompt": A, "type": "homonyms", "focus": "x", "label": "safe"}, {"prompt": B, "type": "other", "focus": "x", "label": "unsafe"}],
        [(A, None, 0), (B, None, 1)], 0,
    ),
    (
        "xstest-responses", "xr.jsonl", "response",
        [{"prompt": B, "response": A, "label": "harmful", "prompt_type": "prompt_harmful"}, {"prompt": B, "response": C, "label": "unharmful", "prompt_type": "prompt_safe"}],
        [(A, B, 1), (C, B, 0)], 0,
    ),
    ("or-bench", "or-bench-hard-1k.csv", "prompt", [{"prompt": A, "category": "x"}], [(A, None, 0)], 0),
    ("or-bench-toxic", "or-bench-toxic.csv", "prompt", [{"prompt": B, "category": "x"}], [(B, None, 1)], 0),
    ("notinject", "one.json", "attack", [{"prompt": A, "word_list": ["dance"], "category": "x"}], [(A, None, 0)], 0),
    ("deepset-injections", "test.jsonl", "attack", [{"text": A, "label": 0}, {"text": B, "label": 1}], [(A, None, 0), (B, None, 1)], 0),
    ("jailbreakbench", "harmful-behaviors.csv", "prompt", [{"Index": "0", "Goal": B, "Target": C, "Behavior": "x", "Category": "y", "Source": "z"}], [(B, None, 1)], 0),
    ("jailbreakbench-benign", "benign-behaviors.csv", "prompt", [{"Index": "0", "Goal": A, "Target": C, "Behavior": "x", "Category": "y", "Source": "z"}], [(A, None, 0)], 0),
    ("advbench", "harmful_behaviors.csv", "prompt", [{"goal": B, "target": C}], [(B, None, 1)], 0),
    ("do-not-answer", "dna.csv", "prompt", [{"id": "1", "risk_area": "x", "types_of_harm": "y", "specific_harms": "z", "question": B}], [(B, None, 1)], 0),
    (
        "pint", "set.yaml", "attack",
        [{"text": A, "category": "chat", "label": False}, {"text": B, "category": "jailbreak", "label": True}],
        [(A, None, 0), (B, None, 1)], 0,
    ),
]  # fmt: skip


def write(path, rows):
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1))
    elif path.suffix == ".yaml":
        path.write_text(yaml.safe_dump(rows))
    else:
        out = io.StringIO()
        table = csv.DictWriter(out, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
        table.writeheader()
        table.writerows(rows)
        path.write_text(out.getvalue())
    return path


@pytest.mark.parametrize(("form", "name", "target", "rows", "items", "skipped"), CASES)
def test_format_is_recognised_and_its_labels_read(tmp_path, form, name, target, rows, items, skipped):
    found = read_set(write(tmp_path / name, rows), target)
    assert found.format == form
    assert [(item.text, item.prompt, item.label) for item in found.items] == items
    assert found.skipped == skipped


def test_every_format_and_target_has_a_case():
    shown = {(form, target) for form, _, target, *_ in CASES}
    alike = {("notinject", "prompt")}  # read as their --target attack is
    assert {(name, target) for name, form in FORMATS.items() for target in form.readings} - alike == shown


def test_fields_that_several_formats_share_are_refused_unless_the_name_tells(tmp_path):
    path = write(tmp_path / "prompts.csv", [{"prompt": A, "category": "x"}])
    with pytest.raises(RowError, match=r"prompts\.csv:2: .* could be or-bench or or-bench-toxic; say which"):
        read_set(path, "prompt")
    assert read_set(path, "prompt", "or-bench-toxic").items == (Item(A, None, 1),)


def test_more_fields_make_the_more_particular_format():
    assert recognise(["prompt", "response", "label"], "x.json") == []
    assert recognise(["prompt", "response", "label", "prompt_type"], "x.json") == ["xstest-responses"]
    assert recognise(["text", "label", "category"], "x.json") == ["pint"]
    assert recognise(["text", "label", "anything"], "x.json") == []


def test_unknown_fields_are_named_with_the_formats_there_are(tmp_path):
    with pytest.raises(RowError, match=r"x\.json:2: rows with the fields hue, size .* --format takes rows, toxicchat"):
        read_set(write(tmp_path / "x.json", [{"hue": 1, "size": 2}]), "prompt")


def test_target_that_a_set_says_nothing_of_is_refused(tmp_path):
    path = write(tmp_path / "tails.jsonl", [{"prompt": A, "response": C, "is_safe": True}])
    with pytest.raises(RowError, match="beavertails is not labelled for --target prompt, only for response"):
        read_set(path, "prompt")


@pytest.mark.parametrize(
    ("name", "target", "content", "says"),
    [
        ("w.json", "prompt", '[\n{"prompt": "a", "prompt_harm_label": "harmful", "response_harm_label": null},\n{"prompt": "b", "prompt_harm_label": "bad"}]', "w.json:3: prompt_harm_label must be harmful or unharmful, got 'bad'"),
        ("w.json", "prompt", '[\n{"prompt": 7, "prompt_harm_label": "harmful", "response_harm_label": null}]', "w.json:2: prompt must be a string, got int"),
        ("w.json", "prompt", '[{"prompt": "a"},\n"b"]', "w.json:2: an array of objects is expected, got str"),
        ("w.json", "prompt", '[{"prompt": "a",\n}]', "w.json:2: "),
        ("b.jsonl", "response", '{"prompt": "a", "response": "b", "is_safe": "maybe"}', "b.jsonl:1: is_safe must be true, false, 0 or 1, got 'maybe'"),
        ("t.csv", "attack", 'text,label\n"two\nlines",0\nlast,5\n', "t.csv:4: label must be true, false, 0 or 1, got '5'"),
        ("r.jsonl", "attack", '{"text": "a", "prompt_label": 0, "attack": true}', "r.jsonl:1: attack must be 0, 1 or null, got True"),
        ("r.csv", "attack", "text,prompt_label,attack\na,0,DAN\n", "r.csv:2: attack must be 0, 1, null or one of none, jailbreak, injection, got 'DAN'"),
        ("t.csv", "attack", "text,label\na,0,9\n", "t.csv:2: 2 cells are expected"),
        ("t.csv", "attack", 'text,label\n"a"b,0\n', "t.csv:2: "),
        ("t.csv", "attack", "text,label\n,1\n", "t.csv: every row that has a label has an empty text"),
        ("p.yaml", "attack", "- text: a\n  label: true\n  category: c\n- just words\n", "p.yaml:4: a mapping is expected, got str"),
        ("p.yaml", "attack", "text: a\n", "p.yaml:1: a list of mappings is expected"),
        ("p.yaml", "attack", "- text: a\n  label: [\n", "p.yaml:3: "),
        ("p.yaml", "attack", "- text: a\n  label: true\n  category: \"\x01\"\n", "p.yaml:3: special characters are not allowed"),
        ("p.yaml", "attack", "- text: a\n- text: 2020-13-45\n", "p.yaml:2: month must be in 1..12"),
        ("w.json", "prompt", '\n"words"', "w.json:1: an array of objects is expected"),
        ("t.csv", "attack", "text,label,label\na,0,1\n", "t.csv:1: there are two columns called 'label'"),
        ("d.json", "prompt", "[" * 100_000, "d.json: nested too deeply"),
        ("a.jsonl", "prompt", '{"text": "a", "text_type": "user_message", "labels_0": 3}', "a.jsonl:1: labels_0 must be safe or the names of categories, got 3"),
    ],
)  # fmt: skip
def test_bad_row_is_named_by_file_and_line(tmp_path, name, target, content, says):
    (tmp_path / name).write_text(content)
    with pytest.raises(RowError) as caught:
        read_set(tmp_path / name, target)
    assert says in str(caught.value)


def test_text_that_is_not_utf_8_is_named_by_line(tmp_path):
    (tmp_path / "t.csv").write_bytes(b"text,label\nfine,0\n\xff,1\n")
    with pytest.raises(RowError, match=r"t\.csv:3: .*UTF-8 is expected"):
        read_set(tmp_path / "t.csv", "attack")


def test_damaged_packing_is_an_error_of_the_file(tmp_path):
    packed = bytearray(gzip.compress(b"text,label\nfine,0\n" * 50))
    packed[12:20] = b"\xff" * 8
    for name in ("t.csv.gz", "t.jsonl.gz"):
        (tmp_path / name).write_bytes(packed)
        with pytest.raises(RowError, match=name):
            read_set(tmp_path / name, "attack")


def test_folder_is_read_as_one_set_in_order_of_names(tmp_path):
    write(tmp_path / "b.json", [{"prompt": B, "word_list": [], "category": "x"}])
    write(tmp_path / "a.json", [{"prompt": A, "word_list": [], "category": "x"}])
    (tmp_path / "README.md").write_text("not rows")
    assert [item.text for item in read_set(tmp_path, "attack").items] == [A, B]


def test_folder_whose_files_differ_is_refused_and_says_which_is_what(tmp_path):
    write(tmp_path / "a.csv", [{"goal": A, "target": B}])
    write(tmp_path / "b.json", [{"prompt": A, "word_list": [], "category": "x"}])
    write(tmp_path / "c.jsonl", [{"prompt": A, "category": "x"}])
    write(tmp_path / "d.jsonl", [{"hue": 1}])
    with pytest.raises(RowError) as caught:
        read_set(tmp_path, "prompt")
    says = (
        "a.csv is advbench, b.json is notinject, c.jsonl is or-bench or or-bench-toxic, d.jsonl is of no format known"
    )
    assert f"{tmp_path}: its files differ: {says}; give each" in str(caught.value)


def test_folder_of_two_kinds_of_file_says_what_was_read_and_what_not(tmp_path):
    write(tmp_path / "a.csv", [{"goal": A, "target": B}])
    write(tmp_path / "b.jsonl", [{"goal": B, "target": A}])
    for name in ("c.parquet", ".hidden"):
        (tmp_path / name).touch()
    found = read_set(tmp_path, "prompt")
    assert (found.format, found.files, found.unread) == ("advbench", ("a.csv", "b.jsonl"), ("c.parquet",))
    assert read_as(found).endswith("from a.csv, b.jsonl; not read: c.parquet")


def test_name_of_a_folder_tells_between_formats_where_its_files_do_not(tmp_path):
    (tmp_path / "toxic").mkdir()
    write(tmp_path / "toxic" / "1.jsonl", [{"prompt": A, "category": "x"}])
    assert read_set(tmp_path / "toxic", "prompt").format == "or-bench-toxic"


def test_packed_files_and_lines_named_json_and_a_byte_order_mark_are_read(tmp_path):
    lines = "".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in ((A, 0), (B, 1)))
    (tmp_path / "lines.json").write_text(lines)
    (tmp_path / "packed.csv.gz").write_bytes(gzip.compress(f"\ufefftext,label\n{A},0\n{B},1\n".encode()))
    for name in ("lines.json", "packed.csv.gz"):
        assert [item.label for item in read_set(tmp_path / name, "attack").items] == [0, 1]
