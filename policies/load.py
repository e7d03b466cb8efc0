"""Makes one policy of a policy file and the packs it names. Knows files and YAML; knows nothing of judging."""

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, fields, replace
from functools import partial
from hashlib import sha256
from itertools import chain, islice
from pathlib import Path
from typing import Annotated, Any, TypeVar

import rfc8785
from annotated_types import MinLen
from pydantic import TypeAdapter

from ringfence.policies.document import (
    MOST,
    Document,
    Loc,
    PolicyError,
    Problem,
    did_you_mean,
    name_of,
    parse_document,
    read_document,
)
from ringfence.policies.findable import UNREAD, scored_by, sought
from ringfence.policies.lock import resolve
from ringfence.policies.overlay import as_any_overlay_has_them, changed
from ringfence.policies.own import OwnCheck, written_at
from ringfence.policies.types import (
    DEFAULT_MESSAGE,
    MAY_BE_ABSENT,
    AuditSettings,
    Counter,
    Exemption,
    Limits,
    Message,
    Overlay,
    Override,
    Policy,
    Removal,
    Rule,
    RuleException,
    StreamSettings,
    UpstreamChoice,
)
from ringfence.policies.words import STRICT_KEYS, Name, Origin, Text, Version, root

__all__ = ["PackFile", "PolicyError", "PolicyFile", "canonical", "load_draft", "load_policy", "loads_policy"]

SHIPPED = Path(__file__).parent.parent / "policy.yaml"
PACKS = Path(__file__).parent / "packs"

SETTINGS = ("upstream", "stream", "audit", "limits")
"""Keys that hold keys of their own: what a policy leaves out of one, it has from the policy that it extends."""

MOST_LAYERS = 20
"""Policies that may extend each other, the first one counted; reading them goes by recursion."""

Placed = TypeVar("Placed", Counter, RuleException, Exemption)


@dataclass(frozen=True, slots=True)
class PackFile:
    """Rules that belong together, under a name that policies can ask for.

    Attributes:
        version: of this language.
        name: the pack's own.
        rules: what it judges by.
        checks: what it looks for itself, beside the installed checks.
        why: the reason, for the reader and the auditor.
    """

    __pydantic_config__ = STRICT_KEYS

    version: Version
    name: Name
    rules: Annotated[tuple[Rule, ...], MinLen(1)]
    checks: tuple[OwnCheck, ...] = ()
    why: str = ""


@dataclass(frozen=True, slots=True)
class PolicyFile:
    """A policy as it is written: rules, and everything else that a deployment decides.

    Attributes:
        version: of this language.
        name: the policy's own, for whoever reads it.
        extends: a policy that ships, by name, or another's path, relative to this one's folder: everything it says
            holds here too, but for what is written here.
        packs: names of packs that ship, or paths (`./ours.yaml`) relative to the policy's folder.
        rules: the policy's own, after those of its packs.
        override: changes to rules of packs and of the policy that it extends, by rule id.
        remove: ids of such rules that do not apply here.
        checks: what the policy looks for itself, beside the installed checks.
        counters: what is counted over several exchanges.
        exceptions: what rules are not to fire on, for a time.
        overlays: what is different for some tenants, keys, models or routes.
        message: what a blocked caller is told where the rule says nothing, in one language or by language.
        exempt: roles whose text is not judged.
        upstream: who answers.
        stream: how far output is held back until it is judged.
        audit: what is remembered.
        limits: bounds on one request.
    """

    __pydantic_config__ = STRICT_KEYS

    version: Version
    name: Name
    extends: Text | None = None
    packs: tuple[Text, ...] = ()
    rules: tuple[Rule, ...] = ()
    override: Mapping[str, Override] = field(default_factory=dict)
    remove: tuple[Name, ...] = ()
    checks: tuple[OwnCheck, ...] = ()
    counters: tuple[Counter, ...] = ()
    exceptions: tuple[RuleException, ...] = ()
    overlays: tuple[Overlay, ...] = ()
    message: Message = DEFAULT_MESSAGE
    exempt: tuple[Exemption, ...] = ()
    upstream: UpstreamChoice = field(default_factory=UpstreamChoice)
    stream: StreamSettings = field(default_factory=StreamSettings)
    audit: AuditSettings = field(default_factory=AuditSettings)
    limits: Limits = field(default_factory=Limits)


def load_policy(path: Path | str | None = None) -> Policy:
    """Read a policy file; without a path, the one that ships. Targets become the thresholds of the lock file beside it.

    Raises:
        PolicyError: with every problem of the file and its packs; of a target that no threshold was fitted to.
    """
    path = Path(path) if path else SHIPPED
    return _revised(resolve(load_draft(path), path))


def load_draft(path: Path) -> Policy:
    """Read a policy file as `ringfence policy fit` needs it: without revision, its targets not yet thresholds.

    Raises:
        PolicyError: with every problem of the file and its packs.
    """
    return _assemble(read_document(path, PolicyFile), path.parent, (path.resolve(),))


def loads_policy(text: str, name: str = "<memory>") -> Policy:
    """Read a policy from text, which can have no targets; paths in it are relative to the working directory.

    Args:
        name: what to call the text in problems and origins.

    Raises:
        PolicyError: with every problem of the text and its packs.
    """
    return _revised(resolve(_assemble(parse_document(text, name, PolicyFile), Path(), ()), None))


def canonical(policy: Policy) -> dict[str, Any]:
    """Return everything effective as plain JSON: packs, overrides, targets resolved, defaults written out, no origins.

    It is itself a policy file: reading it gives an equal policy, with the same revision.
    """
    plain = _PLAIN.dump_python(policy, mode="json", by_alias=True, exclude=_NOT_CANONICAL)
    for overlay in plain["overlays"]:  # of a change, what is not given cannot be written: a null takes out
        for name, change in overlay["override"].items():
            gone = change.pop("without")
            overlay["override"][name] = {
                key: value for key, value in change.items() if value is not None or key in gone
            }
    for one in (*plain["overlays"], *plain["exceptions"]):
        if one["scope"]:  # a list that is not given cannot be written, as an empty one is refused
            one["scope"] = {key: names for key, names in one["scope"].items() if names}
    return {"version": 1} | {key: value for key, value in plain.items() if value is not None}


_PLAIN = TypeAdapter(Policy)
_NO_PLACE = {"__all__": {"origin", "origins"}}
_RULES = {"__all__": {"origin", "origins", "target", "fitted"}}
_NOT_CANONICAL: Any = {
    "revision": True,
    "files": True,
    "layers": True,
    "applied": True,
    "removed": True,
    "origins": True,
    "looking": True,
    "rules": _RULES,
    "checks": _NO_PLACE,
    "counters": _NO_PLACE,
    "exceptions": _NO_PLACE,
    "overlays": {"__all__": {"origin": True, "origins": True, "rules": _RULES}},
    "exempt": _NO_PLACE,
}


def _assemble(document: Document[PolicyFile], folder: Path, above: tuple[Path, ...]) -> Policy:
    """Make a policy of a file, of what it extends, and of its packs.

    Args:
        above: the files that led here by extending each other, this one last; none for a text.
    """
    file, problems = document.value, list[Problem]()
    base = Policy(file.name, (), message=DEFAULT_MESSAGE)
    packs: list[Document[PackFile]] = []
    files = list(above[-1:])
    try:
        if file.extends:
            base = _extended(file.extends, folder, document.at("extends"), above)
    except PolicyError as error:
        problems += error.problems
    taken = {one.origin.file: "the policy extended has it" for one in (*base.rules, *base.checks)}
    for index, name in enumerate(file.packs):
        place = document.at("packs", index)
        try:
            path = _pack_path(name, folder, place)
            if known := taken.get(name_of(path)):
                raise PolicyError([Problem(place, f"pack '{name}' is used twice: {known} already; leave it out here")])
            taken[name_of(path)] = f"{place} names it"
            packs.append(read_document(path, PackFile))
            files.append(path)
        except PolicyError as error:
            problems += error.problems
    inherited = [*base.rules, *(rule for pack in packs for rule in _rules(pack, pack.value.rules, "rules"))]
    gone = set(file.remove)
    rules = [*_overridden((rule for rule in inherited if rule.id not in gone), document)]
    rules += _rules(document, file.rules, "rules")
    added = (rule.id for overlay in (*base.overlays, *file.overlays) for rule in overlay.rules)
    counted = {one.id for one in base.counters}
    base = _without(base, gone.difference((rule.id for rule in rules), added))
    lost = counted - {one.id for one in base.counters}
    given = _places(document, file)
    policy = Policy(
        name=file.name,
        rules=tuple(rules),
        checks=(
            *base.checks,
            *(check for pack in packs for check in _checks(pack, pack.value.checks)),
            *_checks(document, file.checks),
        ),
        counters=(*base.counters, *_placed(document, "counters", file.counters)),
        exceptions=(*base.exceptions, *_placed(document, "exceptions", file.exceptions)),
        overlays=(*base.overlays, *_overlays(document)),
        message=file.message if "message" in given else base.message,
        exempt=(*base.exempt, *_placed(document, "exempt", file.exempt)),
        upstream=_merged(base.upstream, file.upstream, document, "upstream"),
        stream=_merged(base.stream, file.stream, document, "stream"),
        audit=_merged(base.audit, file.audit, document, "audit"),
        limits=_merged(base.limits, file.limits, document, "limits"),
        removed=(*base.removed, *_removals(document)),
        files=(*base.files, *files),
        layers=(*base.layers, *above[-1:]),
        origins={**base.origins, **given, **_settings_written(document)},
    )
    for one in packs:
        problems += _torn(one, [("rules", i) for i in range(len(one.value.rules))])
    problems += _torn(document, [("rules", i) for i in range(len(file.rules))])
    problems += _torn(document, [("override", name) for name in file.override])
    problems += [*_idle(document), *_crossed(document)]
    problems += _misplaced(policy)
    if not problems:  # with a pack missing, every override of its rules would look like a mistake
        problems += islice(chain(_aimless(document, inherited), _unmet(policy, lost), _unsettled(policy)), MOST)
    if problems:
        raise PolicyError(problems)
    return policy


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


def _extended(name: str, folder: Path, origin: Origin, above: tuple[Path, ...]) -> Policy:
    shipped = "/" not in name and not name.endswith((".yaml", ".yml"))
    path = PACKS.parent / f"{name}.yaml" if shipped else folder / name
    if not path.is_file():
        what = f"there is no policy file {name_of(path)} to extend"
        if shipped:
            what = f"no policy '{name}' ships" + did_you_mean(name, sorted(p.stem for p in path.parent.glob("*.yaml")))
        raise PolicyError([Problem(origin, what)])
    if path.resolve() in above:
        chain = " → ".join(one.name for one in (*above[above.index(path.resolve()) :], path))
        raise PolicyError([Problem(origin, f"policies extend each other in a circle: {chain}")])
    if len(above) == MOST_LAYERS:
        what = f"this would be policy {MOST_LAYERS + 1} of those that extend each other, from {name_of(above[0])} on"
        raise PolicyError([Problem(origin, f"{what}; {MOST_LAYERS} at most: share rules in a pack instead")])
    return _assemble(read_document(path, PolicyFile), path.parent, (*above, path.resolve()))


def _placed(document: Document[Any], key: str, items: Iterable[Placed]) -> list[Placed]:
    """Return the items of a list with the places that they were written at."""
    return [replace(item, origin=document.at(key, index)) for index, item in enumerate(items)]


def _checks(document: Document[Any], checks: Iterable[OwnCheck]) -> Iterator[OwnCheck]:
    for index, check in enumerate(checks):
        place, origins = ("checks", index), _places(document, check, "checks", index)
        for key in [*origins]:
            listed = getattr(check, key)
            if isinstance(listed, tuple):
                origins |= {f"{key}.{item}": document.at(*place, key, item) for item in range(len(listed))}
        yield replace(check, origin=document.at(*place), origins=origins)


def _places(document: Document[Any], item: Any, *loc: str | int) -> dict[str, Origin]:
    """Return where the keys of a mapping were written that is at this place; those that were not are missing."""
    keys = ((f.name, document.origins.get((*loc, f.name))) for f in fields(item))
    return {key: origin for key, origin in keys if origin}


def _rules(document: Document[Any], rules: Iterable[Rule], *loc: str | int) -> Iterator[Rule]:
    for index, rule in enumerate(rules):
        place = (*loc, index)
        yield replace(rule, origin=document.at(*place), origins=_places(document, rule, *place))


def _overlays(document: Document[PolicyFile]) -> Iterator[Overlay]:
    for index, overlay in enumerate(document.value.overlays):
        place = ("overlays", index)
        origins = _places(document, overlay, *place)
        override = _changes(document, overlay.override, *place, "override")
        for name, change in override.items():
            origins[f"override.{name}"] = document.at(*place, "override", name)
            keys = _places(document, change, *place, "override", name)
            origins |= {f"override.{name}.{key}": origin for key, origin in keys.items()}
        origins |= {f"remove.{name}": document.at(*place, "remove", i) for i, name in enumerate(overlay.remove)}
        rules = tuple(_rules(document, overlay.rules, *place, "rules"))
        yield replace(overlay, override=override, rules=rules, origin=document.at(*place), origins=origins)


def _changes(
    document: Document[PolicyFile], changes: Mapping[str, Override], *loc: str | int
) -> Mapping[str, Override]:
    """Return changes with what they take out: of a key that is null, the document alone knows that it is written."""
    return {name: replace(change, without=_nulls(document, change, *loc, name)) for name, change in changes.items()}


def _nulls(document: Document[PolicyFile], change: Override, *loc: str | int) -> frozenset[str]:
    return frozenset(key for key in _places(document, change, *loc) if getattr(change, key) is None)


def _removals(document: Document[PolicyFile]) -> Iterator[Removal]:
    for index, name in enumerate(document.value.remove):
        yield Removal(name, f"policy {document.value.name}", document.at("remove", index))


def _without(base: Policy, gone: Set[str]) -> Policy:
    """Return what is inherited without the names of rules that are gone, and without what named no others."""

    def left(names: Iterable[str]) -> tuple[str, ...]:
        return tuple(name for name in names if name not in gone)

    counters = (replace(one, rules=left(one.rules)) for one in base.counters)
    exceptions = (replace(one, rules=left(one.rules)) for one in base.exceptions)
    overlays = (
        replace(one, remove=left(one.remove), override={name: one.override[name] for name in left(one.override)})
        for one in base.overlays
    )
    return replace(
        base,
        counters=tuple(one for one in counters if one.rules),
        exceptions=tuple(one for one in exceptions if one.rules),
        overlays=tuple(overlays),
    )


def _overridden(rules: Iterable[Rule], document: Document[PolicyFile]) -> Iterator[Rule]:
    changes = _changes(document, document.value.override, "override")
    for rule in rules:
        written_at = partial(document.at, "override", rule.id)
        yield changed(rule, changes[rule.id], written_at) if rule.id in changes else rule


Section = TypeVar("Section", UpstreamChoice, StreamSettings, AuditSettings, Limits)


def _merged(base: Section, given: Section, document: Document[PolicyFile], key: str) -> Section:
    """Return the base's section with the keys that the file gives."""
    return replace(base, **{name: getattr(given, name) for name in _places(document, given, key)})


def _settings_written(document: Document[PolicyFile]) -> Mapping[str, Origin]:
    found = (loc for loc in document.origins if len(loc) == 2 and loc[0] in SETTINGS)
    return {".".join(map(str, loc)): document.origins[loc] for loc in found}


def _torn(document: Document[PackFile] | Document[PolicyFile], places: Iterable[Loc]) -> Iterator[Problem]:
    for place in places:
        threshold, target = document.origins.get((*place, "threshold")), document.origins.get((*place, "target"))
        if threshold and target:
            yield Problem(target, "a rule has a 'threshold' or a 'target', not both")


def _idle(document: Document[PolicyFile]) -> Iterator[Problem]:
    """Yield every null in a change that takes nothing out: whoever wrote it meant something."""
    changes = [((*at, "override", name), one) for at, part in _parts(document) for name, one in part.override.items()]
    for place, change in changes:
        for key in sorted(_nulls(document, change, *place) - {*MAY_BE_ABSENT}):
            hint = "; a 'threshold' takes its place" if key == "target" else ""
            what = f"'{key}' cannot be null here: leave it out, and it stays as it is{hint}"
            yield Problem(document.at(*place, key), what)


def _crossed(document: Document[PolicyFile]) -> Iterator[Problem]:
    """Yield every change to a rule that the same file, or the same overlay, removes."""
    for place, part in _parts(document):
        removed = {name: document.at(*place, "remove", index) for index, name in enumerate(part.remove)}
        for name in part.override:
            if name in removed:
                what = f"rule '{name}' is changed here and removed at {removed[name]}; leave one of the two out"
                yield Problem(document.at(*place, "override", name), what)


def _parts(document: Document[PolicyFile]) -> Sequence[tuple[Loc, PolicyFile | Overlay]]:
    """Return what changes and removes rules, the file and each of its overlays, with the way to it."""
    overlays = enumerate(document.value.overlays)
    return [((), document.value), *((("overlays", index), overlay) for index, overlay in overlays)]


def _misplaced(policy: Policy) -> Iterator[Problem]:
    """Yield what is wrong with the parts by themselves: ids that are used twice, replacements that say nothing."""
    hint = "choose another, or change a pack's rule under 'override'"
    yield from _repeated("id", [(rule.id, rule.origin) for rule in policy.every_rule], hint)
    yield from _repeated("check", [(one.category, one.origin) for one in policy.checks], "choose another category")
    for one in policy.checks:
        if one.category in UNREAD:
            what = f"a check cannot have the category '{one.category}', which is for {UNREAD[one.category]}"
            yield Problem(written_at(one, "category"), f"{what}; choose another")
    for kind in (policy.counters, policy.exceptions, policy.overlays):
        yield from _repeated("id", [(one.id, one.origin) for one in kind], "choose another")
    for rule in policy.every_rule:
        if "{" in rule.replacement.replace("{category}", ""):
            yield Problem(rule.origin, f"'replacement' may hold {{category}} only, got {rule.replacement!r}")


def _repeated(what: str, named: Iterable[tuple[str, Origin]], hint: str) -> Iterator[Problem]:
    first: dict[str, Origin] = {}
    for name, origin in named:
        if (known := first.setdefault(name, origin)) is not origin:
            yield Problem(origin, f"{what} '{name}' is already used at {known}; {hint}")


def _aimless(document: Document[PolicyFile], inherited: Iterable[Rule]) -> Iterator[Problem]:
    known = dict.fromkeys(rule.id for rule in inherited)
    named: list[tuple[str, str, Loc]] = [("override", name, ("override", name)) for name in document.value.override]
    named += [("remove", name, ("remove", index)) for index, name in enumerate(document.value.remove)]
    for key, name, loc in named:
        if name not in known:
            sources = "of the packs used" + (" or of the policy extended" if document.value.extends else "")
            what = f"'{key}' names '{name}', which is no rule {sources}"
            yield Problem(document.at(*loc), what + did_you_mean(name, known))


def _unmet(policy: Policy, lost: Set[str]) -> Iterator[Problem]:
    """Yield every name of a rule or a counter that there is not.

    Args:
        lost: inherited counters of which every rule was removed.
    """
    known = dict.fromkeys(rule.id for rule in policy.rules)
    for overlay in policy.overlays:
        for key, names in (("override", overlay.override), ("remove", overlay.remove)):
            for name in names:
                if name not in known:
                    what = f"overlay '{overlay.id}' names rule '{name}'" + _which(name, known)
                    yield Problem(overlay.written_at(f"{key}.{name}"), what)
        known |= dict.fromkeys(rule.id for rule in overlay.rules)
    naming = [(one.id, one.rules, one.origin) for kind in (policy.counters, policy.exceptions) for one in kind]
    for who, rules, origin in naming:
        for name in rules:
            if name not in known:
                yield Problem(origin, f"'{who}' names rule '{name}'" + _which(name, known))
    counters = dict.fromkeys(counter.id for counter in policy.counters)
    looking = ((rule, one) for rule in as_any_overlay_has_them(policy) for one in sought(rule))
    hint = ", and all that this counts was removed; remove the rule as well"
    yield from dict.fromkeys(
        Problem(
            rule.written_at(one.key),
            f"rule '{rule.id}' looks at counter '{name}'" + (hint if name in lost else _which(name, counters)),
        )
        for rule, one in looking
        if (name := one.category.removeprefix("count.")) != one.category and name not in counters
    )


def _unsettled(policy: Policy) -> Iterator[Problem]:
    """Yield every rule, as it is or as an overlay has it, whose score or target nobody can settle."""
    for overlay in policy.overlays:
        aimed = {name: overlay.written_at(f"override.{name}") for name, one in overlay.override.items() if one.target}
        aimed |= {rule.id: rule.written_at("target") for rule in overlay.rules if rule.target}
        for name, origin in aimed.items():
            what = f"overlay '{overlay.id}' has a 'target' for rule '{name}': only the policy's own are fitted"
            yield Problem(origin, f"{what}; write a 'threshold'")
    for rule in as_any_overlay_has_them(policy):
        if rule.escalate and root(rule.escalate.to) == root(rule.category):
            what = f"rule '{rule.id}' escalates to '{rule.escalate.to}', which the check behind '{rule.category}' finds"
            yield Problem(rule.written_at("escalate"), f"{what} itself; choose a category of another check")
        if rule.escalate and rule.target:
            what = f"rule '{rule.id}' has a 'target' and an 'escalate': where it fires, two scores decide, and a target"
            hint = "comes to a threshold for one; write a 'threshold'"
            yield Problem(rule.written_at("escalate"), f"{what} {hint}")
        if rule.target:
            for one in (one for one in scored_by(rule) if root(one.category) in UNREAD):
                what = f"rule '{rule.id}' has a 'target' and looks at '{one.category}', which no labelled text shows"
                yield Problem(rule.written_at(one.key), f"{what}; write a 'threshold'")


def _which(name: str, known: Iterable[str]) -> str:
    return ", which there is not" + did_you_mean(name, known)
