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
from ringfence.policies.types import Action, Decision, Finding, Rewrite, Rule, Span, Stage
from ringfence.policies.words import root

Originals = Mapping[str, str]
"""What stood in the request, by placeholder."""

_NAME = r"(?:[A-Z0-9]|\\?_)"
# As it was given, or as Markdown escapes it. Not in other case, without brackets, with spaces: what is missed stays a
# placeholder and is seen to be one, while `row[email_1]` in a program would quietly become somebody's address.
_FORM = re.compile(rf"\[{_NAME}++\]|\\\[{_NAME}++\\\]")
_BEGUN = re.compile(rf"\\?\[{_NAME}*+\\?")
_WORD = re.compile(r"\w+|[^\w\s]")
_WITHIN_WORD = re.compile(r"\w\w")


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
    taken = {_plain(match[0]) for text in theirs for match in _FORM.finditer(text)}
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
    text that begins with `{`, which is JSON, an original is escaped as in a JSON string.
    """

    def __init__(self, table: Originals) -> None:
        self._table = table
        self._longest = 2 * max(map(len, table), default=0)  # every sign of it escaped
        self._held = ""
        self._json: bool | None = None

    def feed(self, text: str, *, last: bool = False) -> str:
        """Take more text and return what may leave: all but what may be the beginning of a placeholder.

        Args:
            last: no more will come; nothing is held back.
        """
        if not self._table:
            return text
        text = self._held + text
        if self._json is None and (first := text.lstrip()[:1]):
            self._json = first == "{"
        cut = len(text) if last else self._cut(text)
        self._held = text[cut:]
        return _restored(text[:cut], self._table, in_json=bool(self._json))

    def _cut(self, text: str) -> int:
        start = text.rfind("[", max(0, len(text) - self._longest))
        if start > 0 and text[start - 1] == "\\":
            start -= 1
        begun = start >= 0 and _BEGUN.fullmatch(text, start)
        return start if begun else len(text) - text.endswith("\\")


def restored(value: Any, table: Originals) -> Any:
    """Return a copy of a JSON value with the originals back in every string, names of fields too."""
    match value:
        case str():
            return _restored(value, table, in_json=value.lstrip()[:1] == "{")
        case Mapping():
            return {restored(key, table): restored(item, table) for key, item in value.items()}
        case list() | tuple():
            return [restored(item, table) for item in value]
        case _:
            return value


def _restored(text: str, table: Originals, *, in_json: bool) -> str:
    def original(match: re.Match[str]) -> str:
        found = table.get(_plain(match[0]))
        if found is None:
            return match[0]
        return json.dumps(found, ensure_ascii=False)[1:-1] if in_json else found

    return _FORM.sub(original, text)


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


def _plain(placeholder: str) -> str:
    return placeholder.replace("\\", "")
