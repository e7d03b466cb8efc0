"""Makes one policy of a policy file and the packs it names. Knows files and YAML; knows nothing of judging."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Literal

import rfc8785
from annotated_types import Ge, Le, MinLen
from pydantic import TypeAdapter

from ringfence.policies.document import (
    Document,
    Loc,
    PolicyError,
    Problem,
    did_you_mean,
    name_of,
    parse_document,
    read_document,
)
from ringfence.policies.lock import resolve
from ringfence.policies.types import (
    DEFAULT_MESSAGE,
    STRICT_KEYS,
    Action,
    AuditSettings,
    Exemption,
    Limits,
    Name,
    Origin,
    Policy,
    Rule,
    Stage,
    StreamSettings,
    Target,
    Text,
    UpstreamChoice,
)

__all__ = [
    "Override",
    "PackFile",
    "PolicyError",
    "PolicyFile",
    "canonical",
    "load_draft",
    "load_policy",
    "loads_policy",
]

SHIPPED = Path(__file__).parent.parent / "policy.yaml"
PACKS = Path(__file__).parent / "packs"


@dataclass(frozen=True, slots=True)
class Override:
    """What a policy changes about one rule of a pack; everything left out stays as the pack has it.

    Attributes:
        action: what it asks for when it fires.
        threshold: it fires on a finding whose score is at or above this.
        target: what to fit the threshold to, in place of naming one.
        stages: when it applies.
        message: what a blocked caller is told.
        replacement: what a rewritten span becomes; `{category}` is filled in.
        on_error: what it asks for when the check behind its category could not answer.
        shadow: record that it would have fired, change nothing.
        why: the reason, for the reader and the auditor.
    """

    __pydantic_config__ = STRICT_KEYS

    action: Action | None = None
    threshold: Annotated[float, Ge(0), Le(1)] | None = None
    target: Target | None = None
    stages: Annotated[tuple[Stage, ...], MinLen(1)] | None = None
    message: Text | None = None
    replacement: str | None = None
    on_error: Literal[Action.ALLOW, Action.LOG, Action.BLOCK] | None = None
    shadow: bool | None = None
    why: Text | None = None


@dataclass(frozen=True, slots=True)
class PackFile:
    """Rules that belong together, under a name that policies can ask for.

    Attributes:
        version: of this language.
        name: the pack's own.
        rules: what it judges by.
        why: the reason, for the reader and the auditor.
    """

    __pydantic_config__ = STRICT_KEYS

    version: Literal[1]
    name: Name
    rules: Annotated[tuple[Rule, ...], MinLen(1)]
    why: str = ""


@dataclass(frozen=True, slots=True)
class PolicyFile:
    """A policy as it is written: rules, and everything else that a deployment decides.

    Attributes:
        version: of this language.
        name: the policy's own, for whoever reads it.
        packs: names of packs that ship, or paths (`./ours.yaml`) relative to the policy's folder.
        rules: the policy's own, after those of its packs.
        override: changes to pack rules, by rule id.
        message: what a blocked caller is told where the rule says nothing.
        exempt: roles whose text is not judged.
        upstream: who answers.
        stream: how far output is held back until it is judged.
        audit: what is remembered.
        limits: bounds on one request.
    """

    __pydantic_config__ = STRICT_KEYS

    version: Literal[1]
    name: Name
    packs: tuple[Text, ...] = ()
    rules: tuple[Rule, ...] = ()
    override: Mapping[str, Override] = field(default_factory=dict)
    message: Text = DEFAULT_MESSAGE
    exempt: tuple[Exemption, ...] = ()
    upstream: UpstreamChoice = field(default_factory=UpstreamChoice)
    stream: StreamSettings = field(default_factory=StreamSettings)
    audit: AuditSettings = field(default_factory=AuditSettings)
    limits: Limits = field(default_factory=Limits)


def load_policy(path: Path | None = None) -> Policy:
    """Read a policy file; without a path, the one that ships. Targets become the thresholds of the lock file beside it.

    Raises:
        PolicyError: with every problem of the file and its packs; of a target that no threshold was fitted to.
    """
    path = path or SHIPPED
    return _revised(resolve(load_draft(path), path))


def load_draft(path: Path) -> Policy:
    """Read a policy file as `ringfence policy fit` needs it: without revision, its targets not yet thresholds.

    Raises:
        PolicyError: with every problem of the file and its packs.
    """
    return _assemble(read_document(path, PolicyFile), path.parent)


def loads_policy(text: str, name: str = "<memory>") -> Policy:
    """Read a policy from text, which can have no targets; packs given as paths are relative to the working directory.

    Args:
        name: what to call the text in problems and origins.

    Raises:
        PolicyError: with every problem of the text and its packs.
    """
    return _revised(resolve(_assemble(parse_document(text, name, PolicyFile), Path()), None))


def canonical(policy: Policy) -> dict[str, Any]:
    """Return everything effective as plain JSON: packs, overrides, targets resolved, defaults written out, no origins.

    It is itself a policy file: reading it gives an equal policy, with the same revision.
    """
    plain: dict[str, Any] = TypeAdapter(Policy).dump_python(
        policy,
        mode="json",
        exclude={
            "revision": True,
            "rules": {"__all__": {"origin", "target", "fitted"}},
            "exempt": {"__all__": {"origin"}},
        },
    )
    return {"version": 1} | plain


def _assemble(document: Document[PolicyFile], folder: Path) -> Policy:
    file, problems = document.value, list[Problem]()
    packed: list[Rule] = []
    for index, pack in enumerate(file.packs):
        try:
            contents = read_document(_pack_path(pack, folder, document.at("packs", index)), PackFile)
            packed += _rules(contents)
            problems += _torn(contents, [("rules", i) for i in range(len(contents.value.rules))])
        except PolicyError as error:
            problems += error.problems
    rules = [_overridden(rule, file.override) for rule in packed] + list(_rules(document))
    problems += _torn(document, [("rules", i) for i in range(len(file.rules))])
    problems += _torn(document, [("override", name) for name in file.override])
    problems += _repeated(rules)
    problems += _strange_replacements(rules)
    if not problems:  # with a pack missing, every override of its rules would look like a mistake
        problems += _aimless(document, {rule.id: rule for rule in packed})
    if problems:
        raise PolicyError(problems)
    return Policy(
        name=file.name,
        rules=tuple(rules),
        message=file.message,
        exempt=tuple(replace(e, origin=document.at("exempt", i)) for i, e in enumerate(file.exempt)),
        upstream=file.upstream,
        stream=file.stream,
        audit=file.audit,
        limits=file.limits,
    )


def _revised(policy: Policy) -> Policy:
    return replace(policy, revision=sha256(rfc8785.dumps(canonical(policy))).hexdigest())


def _pack_path(pack: str, folder: Path, origin: Origin) -> Path:
    if "/" in pack or pack.endswith((".yaml", ".yml")):
        path = folder / pack
        what = f"there is no pack file {name_of(path)}"
        known: list[str] = []
    else:
        path = PACKS / f"{pack}.yaml"
        what = f"no pack '{pack}' ships"
        known = sorted(p.stem for p in PACKS.glob("*.yaml") if not p.stem.endswith(".cases"))
    if not path.is_file():
        raise PolicyError([Problem(origin, what + did_you_mean(pack, known))])
    return path


def _rules(document: Document[PackFile] | Document[PolicyFile]) -> Iterator[Rule]:
    return (replace(rule, origin=document.at("rules", i)) for i, rule in enumerate(document.value.rules))


def _overridden(rule: Rule, override: Mapping[str, Override]) -> Rule:
    change = override.get(rule.id, Override())
    given = {f.name: value for f in fields(change) if (value := getattr(change, f.name)) is not None}
    if "threshold" in given:
        given["target"] = None  # it takes the place of the pack's target
    return replace(rule, **given)


def _torn(document: Document[PackFile] | Document[PolicyFile], places: Iterable[Loc]) -> Iterator[Problem]:
    for place in places:
        threshold, target = document.origins.get((*place, "threshold")), document.origins.get((*place, "target"))
        if threshold and target:
            yield Problem(target, "a rule has a 'threshold' or a 'target', not both")


def _repeated(rules: list[Rule]) -> Iterator[Problem]:
    first: dict[str, Rule] = {}
    for rule in rules:
        if (known := first.setdefault(rule.id, rule)) is not rule:
            hint = "choose another, or change a pack's rule under 'override'"
            yield Problem(rule.origin, f"id '{rule.id}' is already used at {known.origin}; {hint}")


def _strange_replacements(rules: list[Rule]) -> Iterator[Problem]:
    for rule in rules:
        if "{" in rule.replacement.replace("{category}", ""):
            yield Problem(rule.origin, f"'replacement' may hold {{category}} only, got {rule.replacement!r}")


def _aimless(document: Document[PolicyFile], packed: Mapping[str, Rule]) -> Iterator[Problem]:
    for rule_id in document.value.override:
        if rule_id not in packed:
            what = f"'override' names '{rule_id}', which is no rule of the packs used"
            yield Problem(document.at("override", rule_id), what + did_you_mean(rule_id, packed))
