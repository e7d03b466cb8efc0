"""Makes the JSON Schema of what people write: policies, packs, cases. Knows their types, and no file."""

import re
from dataclasses import MISSING, fields
from inspect import cleandoc
from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema, to_jsonable_python

from ringfence.policies.cases import Case
from ringfence.policies.load import PackFile, PolicyFile

KINDS: dict[str, Any] = {"policy": PolicyFile, "pack": PackFile, "cases": tuple[Case, ...]}
"""What can be written, by the name of its schema file: `policy.schema.json`."""


def schema_of(kind: str) -> dict[str, Any]:
    """Return the JSON Schema of one of `KINDS`, with a description for every key, from the docstrings of its types.

    It refuses nothing that the loader takes. What concerns more than one value (an id used twice, a pack that there is
    not) or YAML itself (repeated keys, anchors) only the loader can refuse.

    Source: JSON Schema, draft 2020-12.
    """
    found = TypeAdapter(KINDS[kind]).json_schema(schema_generator=_Described)
    return {"$schema": _Described.schema_dialect, "title": f"ringfence {kind}"} | _without_title(found)


class _Described(GenerateJsonSchema):
    def field_title_should_be_set(self, schema: Any) -> bool:
        return False  # "On Error" tells nobody more than `on_error`

    def dataclass_schema(self, schema: core_schema.DataclassSchema) -> JsonSchemaValue:
        made = super().dataclass_schema(schema)
        summary, described = _docs(schema["cls"])
        made["description"] = summary
        for field in fields(schema["cls"]):
            # `not` cannot be the name of a field; it is `not_` there.
            if (key := made["properties"].get(field.name.rstrip("_"))) is not None:
                if field.name in described:
                    key["description"] = described[field.name]
                if field.default_factory is not MISSING:  # pydantic writes out plain defaults only
                    key["default"] = to_jsonable_python(field.default_factory())
                if field.default is None:  # says no more than that it may be left out, and of a change something else
                    del key["default"]
        return made


def _docs(kind: type) -> tuple[str, dict[str, str]]:
    """Return what a class's docstring says of the class, and of each attribute under `Attributes:`."""
    summary, _, attributes = cleandoc(kind.__doc__ or "").partition("\n\nAttributes:\n")
    entries = re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", attributes, re.MULTILINE)
    return summary, {name: " ".join(text.split()) for name, text in entries}


def _without_title(schema: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in schema.items() if key != "title"}
