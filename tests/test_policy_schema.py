"""The schemas for editors: equal to the files that ship, true of every file that ships, and complete."""

import re

import pytest
import yaml
from jsonschema import Draft202012Validator, ValidationError
from typer.testing import CliRunner

from ringfence.policies.load import PACKS, SHIPPED, canonical, load_policy
from ringfence.policies.schema import KINDS, schema_of
from ringfence.policies.types import Limits, StreamSettings
from ringfence.proxy.cli.policy import app

FILES = [SHIPPED, PACKS.parent / "enterprise-default.yaml", *sorted(PACKS.glob("*.yaml"))]
HEADER = re.compile(r"# yaml-language-server: \$schema=(\S+)\n")


def kind_of(path):
    return "policy" if path.parent != PACKS else "cases" if path.name.endswith(".cases.yaml") else "pack"


@pytest.mark.parametrize("kind", KINDS)
def test_schema_file_is_what_the_command_prints(kind):
    flags = [] if kind == "policy" else [f"--{kind}"]
    printed = CliRunner().invoke(app, ["schema", *flags])
    shipped = (PACKS.parent / f"{kind}.schema.json").read_text()
    assert printed.exit_code == 0
    assert shipped == printed.stdout, f"write it anew: ringfence policy schema {' '.join(flags)}"


@pytest.mark.parametrize("kind", KINDS)
def test_schema_is_one_and_describes_every_key(kind):
    schema = schema_of(kind)
    Draft202012Validator.check_schema(schema)
    objects = [part for part in (schema, *schema["$defs"].values()) if part.get("type") == "object"]
    assert objects
    for part in objects:
        assert part["additionalProperties"] is False
        assert part["description"]
        assert "Attributes" not in part["description"]
        for name, key in part["properties"].items():
            assert key.get("description"), f"{part['title']}.{name}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_shipped_file_fits_the_schema_that_its_first_line_names(path):
    header = HEADER.match(path.read_text())
    assert header, "the first line should name the schema"
    named = path.resolve().parent / header[1]
    assert named.resolve() == (PACKS.parent / f"{kind_of(path)}.schema.json").resolve()
    Draft202012Validator(schema_of(kind_of(path))).validate(yaml.safe_load(path.read_text()))


def test_schema_files_are_found_from_the_installed_package_too():
    # There the policy lies beside the folder of the packs as well: the same relative paths hold.
    assert (SHIPPED.parent / HEADER.match(SHIPPED.read_text())[1]).is_file()


def test_effective_policy_fits_the_schema():
    Draft202012Validator(schema_of("policy")).validate(canonical(load_policy()))


def test_defaults_bounds_and_choices_are_those_of_the_types():
    schema = schema_of("policy")
    rule, stream = schema["$defs"]["Rule"]["properties"], schema["$defs"]["StreamSettings"]["properties"]
    assert (rule["threshold"]["default"], rule["threshold"]["minimum"], rule["threshold"]["maximum"]) == (0.5, 0, 1)
    assert (rule["on_error"]["default"], rule["on_error"]["anyOf"][0]["enum"]) == ("block", ["allow", "log", "block"])
    assert rule["stages"]["default"] == ["input", "output"]
    assert schema["properties"]["limits"]["default"]["check_seconds"] == Limits().check_seconds
    assert schema["properties"]["stream"]["default"]["window"] == stream["window"]["default"] == StreamSettings().window
    assert "default" not in rule["action"]


def test_pack_takes_no_key_of_a_policy_and_a_case_needs_an_expectation():
    pack = {"version": 1, "name": "x", "rules": [{"id": "a", "category": "pii", "action": "block"}]}
    packs, cases = (Draft202012Validator(schema_of(kind)) for kind in ("pack", "cases"))
    packs.validate(pack)
    with pytest.raises(ValidationError, match="'upstream' was unexpected"):
        packs.validate(pack | {"upstream": {}})
    cases.validate([{"text": ["a", "b"], "expect": {"action": "allow"}}])
    with pytest.raises(ValidationError, match="'expect' is a required property"):
        cases.validate([{"text": "a"}])


def test_schema_of_two_files_at_once_is_refused():
    result = CliRunner().invoke(app, ["schema", "--pack", "--cases"])
    assert result.exit_code == 2
