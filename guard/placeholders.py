"""Placeholders in place of what a model must not see, and the way back. Knows no API and no storage.

`numbered` makes `[EMAIL_1]` of what a rule with `restore` replaces in a request; `Restorer` puts the original back into
the reply, after the reply was judged. There is no table to keep: decision and request, together, are the table.
"""

import json
import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, count
from operator import itemgetter
from typing import Any

from ringfence.guard.actions import by_piece
from ringfence.guard.exchange import Exchange, Part, words
from ringfence.guard.quoted import DEEPEST, Reader, Sign
from ringfence.policies.types import Action, Decision, Finding, Rewrite, Rule, Span, Stage
from ringfence.policies.words import root

Originals = Mapping[str, str]
"""What stood in the request, by placeholder."""

_NAME = r"(?:[A-Z0-9]|\\?_)"
# As it was given, or as Markdown escapes it. Not in other case, without brackets, with spaces: what is missed stays a
# placeholder and is seen to be one, while `row[email_1]` in a program would quietly become somebody's address.
_FORM = re.compile(rf"\[{_NAME}++\]|\\\[{_NAME}++\\\]")
_BACKSLASH = re.compile(r"\\u005[cC]")
_ASCII = re.compile(r"\\u00([0-7][0-9a-fA-F])")
_MORE = re.compile(r"[A-Z0-9_]+|[\\\]]")
# One value without a value inside: as the request had it, it may stand in JSON as it is.
_JSON_VALUE = re.compile(
    r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?|true|false|null"
    r'|"(?:[^"\\\x00-\x1f]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*+"'
)
_WORD = re.compile(r"\w+|[^\w\s]")
_WITHIN_WORD = re.compile(r"\w\w")
# Fields of a call that hold what the tool is given; the names of the fields below are the model's.
_GIVEN = frozenset({"args", "arguments", "input"})


def numbered(decision: Decision, exchange: Exchange, judged: Mapping[int, Part], rules: Iterable[Rule]) -> Decision:
    """Return the decision on a request with a placeholder as replacement wherever its rule restores.

    The same original has the same placeholder throughout the request, also where nothing was found this time: a reply
    that was restored comes back with the next request, and what showed the original to be one need not stand by it
    there. A number is left out where the request, or a rule's own replacement, spells the placeholder already.

    Args:
        judged: by index, the parts in which originals may be replaced.
    """
    rules = list(rules)
    restoring = {rule.id: root(rule.category) for rule in rules if rule.restore}
    if restoring.keys().isdisjoint(item.rule for item in decision.rewrites):
        return decision
    theirs = chain(
        (part.text for part in exchange.request),
        (text for _, text in words(exchange.body)),
        (rule.replacement for rule in rules),
    )
    taken = {_plain(match[0]) for text in theirs for way in _ways(text) for match in _FORM.finditer(way)}
    numbers: defaultdict[str, Iterator[int]] = defaultdict(lambda: count(1))
    given: dict[str, Rewrite] = {}
    rewrites: list[Rewrite] = []
    for item in decision.rewrites:
        if item.rule in restoring:
            original = _stretch(exchange, item.span)
            if original not in given:
                name = _label(item.replacement).removeprefix(f"{_label(restoring[item.rule])}_")
                free = (text for n in numbers[name] if (text := f"[{name}_{n}]") not in taken)
                given[original] = replace(item, replacement=next(free))
            rewrites.append(replace(given[original], span=item.span))
        else:
            rewrites.append(item)
    rewrites += _repeated(given, judged, decision.rewrites)
    return replace(decision, rewrites=tuple(sorted(rewrites, key=lambda item: (item.span.part, item.span.start))))


def originals(exchange: Exchange, rules: Iterable[Rule]) -> Originals:
    """Return what the placeholders in a judged request stand for."""
    restoring = {rule.id for rule in rules if rule.restore}
    return {
        item.replacement: _stretch(exchange, item.span)
        for decision in exchange.decisions
        if decision.stage is Stage.INPUT and decision.action is Action.REWRITE
        for item in decision.rewrites
        if item.rule in restoring
    }


def about_others(findings: tuple[Finding, ...], text: str, table: Originals) -> tuple[Finding, ...]:
    """Return the findings without what was found in a placeholder alone; spans that touch one take all of it.

    So no rule masks, blocks or tears apart what is ours; an address that holds a placeholder is replaced whole.
    """
    ours = [match.span() for match in _FORM.finditer(text) if _plain(match[0]) in table]
    if not ours:
        return findings

    def around(place: int) -> tuple[int, int]:
        start, end = ours[bisect_right(ours, place, key=itemgetter(0)) - 1]
        return (start, end) if start <= place < end else (place, place + 1)

    kept, alone = [], set(ours)
    for finding in findings:
        grown = [replace(s, start=around(s.start)[0], end=around(s.end - 1)[1]) for s in finding.spans]
        spans = tuple(s for s in grown if (s.start, s.end) not in alone)
        if spans or not finding.spans:
            kept.append(replace(finding, spans=spans))
    return tuple(kept)


class Restorer:
    """Puts originals back into one text that comes in pieces. Sans-io; cuts are a function of the text alone.

    What stays as it is: a placeholder that the request did not have, and whatever an original itself looks like. In a
    string of JSON the original is escaped as often as the string is quoted, so that it is all that the string says;
    deeper than `DEEPEST` the placeholder stays. In JSON, but in no string, it is put in as a value.

    Args:
        is_json: all of the text is JSON; else what reads as JSON is (see `quoted`).
    """

    def __init__(self, table: Originals, *, is_json: bool = False) -> None:
        self._table = table
        self._longest = 2 * max(map(len, table), default=0)  # every sign of it escaped as in Markdown
        self._reader = Reader(is_json=is_json)
        self._begun: list[Sign] = []
        self._held = ""
        self._done = 0  # code points of the text that left

    def feed(self, text: str, *, last: bool = False) -> str:
        """Take more text and return what may leave: all but what may be the beginning of a placeholder.

        Args:
            last: no more will come; nothing is held back.
        """
        if not self._table:
            return text
        text, first = self._held + text, self._done
        out: list[str] = []
        for sign in self._reader.read(text[len(self._held) :]):
            if (placeholder := self._completed(sign)) and (original := self._original(placeholder)) is not None:
                out += [text[self._done - first : placeholder.start - first], original]
                self._done = placeholder.end
        free = first + len(text)
        if not last:
            free = min(self._reader.settled, self._begun[0].start if self._begun else free)
        out.append(text[self._done - first : free - first])
        self._held, self._done = text[free - first :], free
        return "".join(out)

    def _completed(self, sign: Sign) -> Sign | None:
        """Take one sign more and return the placeholder that ends with it."""
        begun = self._begun
        escaped = bool(begun) and begun[-1].text == "\\"
        if sign.text == "[":
            self._begun = [begun[-1], sign] if escaped else [sign]
        elif sign.text == "\\" and (escaped or not begun):
            self._begun = [sign]
        elif len(begun) > escaped and _MORE.fullmatch(sign.text) and self._may_grow_to(sign):
            begun.append(sign)
        else:
            self._begun = []
        if sign.text != "]" or not self._begun:
            return None
        self._begun = []
        found = _FORM.search("".join(part.text for part in begun))
        return begun[found.start()]._replace(text=found[0], end=sign.end) if found else None

    def _may_grow_to(self, sign: Sign) -> bool:
        # Each string that it stands in makes one sign six at most, as `\u005b` is.
        return sign.end - self._begun[0].start <= self._longest << 3 * sign.depth

    def _original(self, placeholder: Sign) -> str | None:
        """Return what stands for a placeholder where it stands."""
        original = self._table.get(_plain(placeholder.text))
        if original is None or placeholder.depth > DEEPEST:
            return None
        if placeholder.bare and not _JSON_VALUE.fullmatch(original):
            original = json.dumps(original, ensure_ascii=False)
        for _ in range(placeholder.depth):
            original = json.dumps(original, ensure_ascii=False)[1:-1]
        return original


def restored(value: Any, table: Originals, *, is_json: bool = False, given: bool = False) -> Any:
    """Return a copy of a JSON value with the originals back in every string, names of fields too.

    Args:
        is_json: a string is JSON, as that of the API's own field `arguments` always is.
        given: it is what a tool is given, where a field `arguments` is one as any other.
    """
    match value:
        case str():
            return Restorer(table, is_json=is_json).feed(value, last=True)
        case Mapping():
            return {
                restored(key, table): restored(
                    item, table, is_json=key == "arguments" and not given, given=given or key in _GIVEN
                )
                for key, item in value.items()
            }
        case list() | tuple():
            return [restored(item, table, given=given) for item in value]
        case _:
            return value


def _repeated(
    given: Mapping[str, Rewrite], judged: Mapping[int, Part], rewrites: Sequence[Rewrite]
) -> Iterator[Rewrite]:
    """Yield a rewrite for each other place where an original stands by itself, the longest where several begin."""
    lengths: defaultdict[str, set[int]] = defaultdict(set)
    for original in given:
        if word := _WORD.match(original):
            lengths[word[0]].add(len(original))
    longest_first = {word: sorted(found, reverse=True) for word, found in lengths.items()}
    by_part: defaultdict[int, list[Rewrite]] = defaultdict(list)
    for item in rewrites:
        by_part[item.span.part].append(item)
    for index, part in judged.items():
        text = part.text
        for start, end in _left_alone(part, by_part[index]):
            done = start
            for word in _WORD.finditer(text, start, end):
                for length in longest_first.get(word[0], ()) if word.start() >= done else ():
                    stop = word.start() + length
                    known = given.get(text[word.start() : stop])
                    if known and stop <= end and not _WITHIN_WORD.fullmatch(text, stop - 1, stop + 1):
                        yield replace(known, span=Span(index, word.start(), stop))
                        done = stop
                        break


def _left_alone(part: Part, rewrites: Sequence[Rewrite]) -> Iterator[tuple[int, int]]:
    """Yield the stretches of a part that could be rewritten, and are not."""
    for piece, inside in by_piece(part, rewrites):
        if piece.path is not None:
            edges = [piece.start, *chain.from_iterable((r.span.start, r.span.end) for r in inside), piece.end]
            yield from zip(edges[::2], edges[1::2], strict=True)


def _stretch(exchange: Exchange, span: Span) -> str:
    return exchange.request[span.part].text[span.start : span.end]


def _label(text: str) -> str:
    """Return a text as the name of a placeholder: `[pii.email]` as `PII_EMAIL`."""
    return re.sub(r"[^A-Z0-9]+", "_", text.upper()).strip("_") or "TEXT"


def _ways(text: str) -> Iterator[str]:
    """Yield a text as it is, and about as JSON in it would mean it."""
    yield text
    if "\\" in text:
        yield _plain(_ASCII.sub(lambda match: chr(int(match[1], 16)), _BACKSLASH.sub(r"\\", text)))


def _plain(placeholder: str) -> str:
    return placeholder.replace("\\", "")
