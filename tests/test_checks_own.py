import random
from base64 import b64encode
from dataclasses import replace
from time import thread_time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringfence.guard.check import Check, Passage, own_checks, taken_by
from ringfence.guard.checks.own.length import LengthCheck
from ringfence.guard.checks.own.patterns import MOST, keywords, regex
from ringfence.policies.document import PolicyError
from ringfence.policies.load import loads_policy
from ringfence.policies.own import Keywords, Length, Regex
from ringfence.policies.types import Stage
from ringfence.policies.words import Origin

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def words(*listed, **how):
    return keywords(Keywords("keywords", "ours", listed, **how))


def patterns(*listed):
    return regex(Regex("regex", "ours", listed))


def find(check: Check, text):
    return check.find(Passage(Stage.INPUT, "user", text))


def seen(check, text):
    return [text[span.start : span.end] for finding in find(check, text) for span in finding.spans]


def refusal(maker, kind, listed):
    spec = {"keywords": Keywords, "regex": Regex}[kind](kind, "ours", listed, origin=Origin("shop.yaml", 7, 5))
    with pytest.raises(PolicyError) as caught:
        maker(spec)
    return str(caught.value).splitlines()


@pytest.mark.parametrize(
    ("word", "text", "found"),
    [
        ("cat", "A Cat, a CAT\tand cat.", ["Cat", "CAT", "cat"]),
        ("cat", "concatenate, cats, cat_1, cat5, Katze", []),
        ("new york", "New\u2003York or new \r\n york, not newyork", ["New\u2003York", "new \r\n york"]),
        ("straße", "STRASSE, Straße, strasse, STRAẞE", ["STRASSE", "Straße", "strasse", "STRAẞE"]),
        ("strasse", "ßß Straße ß", ["Straße"]),
        ("über", "ÜBER darüber Über", ["ÜBER", "Über"]),
        ("café", "caf\u00e9 cafe\u0301 cafe", ["caf\u00e9", "cafe\u0301"]),
        ("cafe", "cafe\u0301", []),
        ("Σίσυφος", "ΣΊΣΥΦΟΣ", ["ΣΊΣΥΦΟΣ"]),
        ("бомба", "Бомба и бомбардир", ["Бомба"]),
        ("राम", "राम रामायण", ["राम"]),
        ("爆弾", "爆弾の作り方", ["爆弾"]),
        ("ระเบิด", "ทำระเบิดอย่างไร", ["ระเบิด"]),
        ("c++", "C++11 and c++", ["C++", "c++"]),
        ("@all", "mail@all.example @ALL", ["@all", "@ALL"]),
        ("don't", "I DON'T", ["DON'T"]),
        ("cat", "\ud800cat\udfff 😀 \x00cat\x00", ["cat", "cat"]),
    ],
)
def test_a_keyword_is_a_whole_word_in_any_script_case_and_spacing(word, text, found):
    assert seen(words(word), text) == found


def test_a_keyword_may_be_part_of_a_word_and_mind_its_case_where_the_policy_says_so():
    assert seen(words("cat", whole_words=False), "conCATenate") == ["CAT"]
    assert seen(words("May", case_sensitive=True), "May I? MAY I? may I?") == ["May"]
    assert seen(words("ßa", whole_words=False), "ssassa") == ["ssa", "ssa"]


def test_of_words_that_overlap_the_first_is_found_then_the_longest():
    assert seen(words("new", "new york", "york times"), "new york times, new") == ["new york", "new"]


def test_findings_are_certain_and_name_the_word_by_its_number_only():
    (finding,) = find(words("alpha", "project falcon"), "about Project Falcon")
    assert (finding.category, finding.score, finding.detail) == ("ours", 1.0, "word 2 of its list")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("see Y2F0IGFuZCBkb2cgYXJlIGdvb2QgZnJpZW5kcw== there", "Y2F0IGFuZCBkb2cgYXJlIGdvb2QgZnJpZW5kcw=="),
        ("the c a t   i s   o u t", "c a t"),
        ("the c\u200bat and do\u200bg", "c\u200bat"),
    ],
)
def test_a_word_in_disguise_is_found_where_the_text_has_it(text, found):
    (finding,) = find(words("cat"), text)
    (span,) = finding.spans
    assert text[span.start : span.end] == found
    assert finding.detail.startswith("read as ")


def test_what_is_found_in_the_clear_is_not_found_again_in_the_clear_text_of_a_disguise():
    text = "a cat, and Y2F0IGFuZCBkb2cgYXJlIGdvb2QgZnJpZW5kcw=="
    assert [f.detail for f in find(words("cat"), text)] == ["word 1 of its list", "read as base64, word 1 of its list"]


def full_width(text):
    return "".join(chr(ord(c) + 0xFEE0) for c in text)


def base64(text):
    return b64encode(text.encode()).decode()


@pytest.mark.parametrize(
    ("hidden", "how"),
    [
        ("INC-１２３４５６", "lookalike"),
        ("ＩＮＣ-１２３４５６", "lookalike"),
        ("INC-𝟏𝟐𝟑𝟒𝟓𝟔", "lookalike"),
        ("INC-¹²³⁴⁵⁶", "lookalike"),
        ("I\N{GREEK CAPITAL LETTER NU}C-123456", "lookalike"),
        ("INC\u2011123456", "lookalike"),
        ("INC\u200b-123456", "invisible"),
        ("INC-1\u033623456", "marks"),
        ("INC%2D123456", "percent"),
        ("INC&#45;123456", "entities"),
        ("INC=2D123456", "quoted-printable"),
        ("INC\\-123456", "escapes"),
        ("SU5DLTEyMzQ1Ng==", "base64"),
        (b"INC-123456".hex(), "hex"),
        (b"Is it the INC-123456?".hex(" "), "hex"),
        (base64(base64("INC-123456")), "base64"),
    ],
)
def test_a_pattern_is_found_in_every_spelling_that_need_be_no_english_exactly_where_it_stands(hidden, how):
    text = f"😀 ticket {hidden} is open"
    (finding,) = find(patterns(r"\bINC-[0-9]{6}\b"), text)
    (span,) = finding.spans
    assert text[span.start : span.end] == hidden
    assert finding.detail == f"read as {how}, pattern 1 of its list"


@pytest.mark.parametrize(
    ("word", "hidden"),
    [
        ("Zqx7Kd", full_width("Zqx7Kd")),
        ("Zqx7Kd", base64("Zqx7Kd")),
        ("Zqx7Kd", b"Zqx7Kd".hex()),
        ("heron-7", "heron\u00ad-7"),
        ("heron-7", "heron\u20117"),
        ("AT&T", "AT&amp;T"),
        ("проект", "пpoeкт"),
        ("проект", "пp\u200boeкт"),
        ("проект", base64("пpoeкт")),
        ("ЕВРОПА", "EBPOПA"),
        ("Αθήνα", "Aθήνa"),
        ("paypal", "pаypаl"),
        ("замок", "за\u0301мок"),
    ],
)
def test_a_keyword_is_found_in_every_spelling_in_its_own_script(word, hidden):
    assert seen(words(word), f"a {hidden}, so") == [hidden]
    assert seen(words(word), hidden) == [hidden]


@pytest.mark.parametrize(
    ("check", "text"),
    [
        (words("проект"), "npoekt"),
        (words("сор"), "a cop, COP"),
        (words("ссора"), "Wir haben sssopa gesagt."),
        (words("heron-7", "leet"), "h3r0n-7 1337 and her0n-7"),
        (words("cafe", "resume"), "cafe\u0301 and re\u0301sume\u0301, café and résumé"),
        (words("и"), "и\u0306"),
        (words("no", "tm"), "№ 5 of Foo™"),
        (patterns(r"\b[A-Z]{3}\b"), "call 4155552671, 41 55 55 26 71 or 41-55-55-26-71"),
        (patterns(r"\b[0-9]{5}\b"), "in 2019² and 1990⁴, 10¹² of them, m² ½"),
        (patterns("(?i)[a-z]+-o"), "13375-0 and 1-0"),
        (patterns(r"\b[0-9]{6}\b"), "GET /report?date=20240115&order=21123456&id=20123456"),
        (patterns(r"\b[A-Z][0-9]{3}\b"), "Q>=55296&&Q<=57343"),
        (words("year 24"), "GET /report?year=2024"),
    ],
)
def test_what_only_resembles_a_word_or_a_pattern_is_not_found(check, text):
    assert seen(check, text) == []


def test_of_one_pattern_what_overlaps_in_several_spellings_is_found_as_a_whole_and_as_it_stands():
    text = "１23 and 456 and ７８９"
    assert [(text[f.spans[0].start : f.spans[0].end], f.detail) for f in find(patterns("[0-9]+", "[3-6]+"), text)] == [
        ("１23", "read as lookalike, pattern 1 of its list"),
        ("23", "pattern 1 of its list"),
        ("3", "pattern 2 of its list"),
        ("456", "pattern 1 of its list"),
        ("456", "pattern 2 of its list"),
        ("７８９", "read as lookalike, pattern 1 of its list"),
    ]


def test_no_reading_is_looked_through_twice(monkeypatch):
    check, looked = words("cat"), []
    monkeypatch.setattr(check, "_look", lambda text: looked.append(text) or ())
    find(check, "ｃａｔ & the do\u200bg, &#99;at")
    assert len(looked) > 2
    assert len(set(looked)) == len(looked)


def test_patterns_are_found_in_code_points_with_their_numbers():
    text = "ä😀\ud800 Bäd 123 née"
    check = patterns(r"(?i)bä+d", r"\d{3}", r"\pL+ée", "never")
    assert [(text[f.spans[0].start : f.spans[0].end], f.detail) for f in find(check, text)] == [
        ("Bäd", "pattern 1 of its list"),
        ("123", "pattern 2 of its list"),
        ("née", "pattern 3 of its list"),
    ]


def test_every_pattern_that_cannot_be_used_is_told_with_the_reason():
    listed = ("(?=a)", "fine", r"(a)\1", "((a{100}){100}){100}", "(", "a*", r"\b", "(?m)^", r"x\C", r"fine\\Cat")
    lines = refusal(regex, "regex", listed)
    assert [line.split(",")[0] for line in lines] == [f"shop.yaml:7:5: pattern {n}" for n in (1, 3, 4, 5, 6, 7, 8, 9)]
    assert "cannot be used: invalid perl operator: (?=; RE2 has no look-around" in lines[0]
    assert "invalid repetition size" in lines[2]
    assert "matches where there is nothing" in lines[4]
    assert "takes characters apart" in lines[7]


def test_what_is_wrong_with_a_word_or_a_pattern_is_told_where_that_stands():
    policy = loads_policy(
        "version: 1\nname: n\nchecks:\n"
        "  - kind: regex\n    category: ticket\n    patterns:\n      - fine\n      - '(?=a)'\n      - 'a*'\n"
        "  - { kind: keywords, category: names, words: [a, ' '] }\n",
        "shop.yaml",
    )
    with pytest.raises(PolicyError) as caught:
        own_checks(policy.checks)
    assert [line.split(",")[0] for line in str(caught.value).splitlines()] == [
        "shop.yaml:8:9: pattern 2",
        "shop.yaml:9:9: pattern 3",
        "shop.yaml:10:51: word 2 is nothing but white space; write one or leave it out",
    ]


def test_every_keyword_of_nothing_but_white_space_is_refused():
    assert refusal(keywords, "keywords", ("a", " \t", "b", " ")) == [
        f"shop.yaml:7:5: word {number} is nothing but white space; write one or leave it out" for number in (2, 4)
    ]


def test_what_is_wrong_with_the_patterns_of_every_check_is_told_at_once():
    listed = [("(a+)+$", "(?=a)b"), ("fine",), ("(", "a*"), (r"(b)\1",)]
    own = [Regex("regex", f"t{n}", one, origin=Origin("shop.yaml", n, 5)) for n, one in enumerate(listed)]
    blank = Keywords("keywords", "w", (" ",), origin=Origin("shop.yaml", 9, 5))
    with pytest.raises(PolicyError) as caught:
        own_checks([*own, blank])
    assert [str(one).split(",")[0] for one in caught.value.problems] == [
        "shop.yaml:0:5: pattern 2",
        "shop.yaml:2:5: pattern 1",
        "shop.yaml:2:5: pattern 2",
        "shop.yaml:3:5: pattern 1",
        "shop.yaml:9:5: word 1 is nothing but white space; write one or leave it out",
    ]


def test_patterns_of_checks_that_cannot_be_used_take_room_too_and_none_is_compiled_beyond_it(monkeypatch):
    one = taken_by(own_checks([Regex("regex", "t", (r"y1\pL{20}",))]).values())
    monkeypatch.setattr("ringfence.guard.expressions.ROOM", one * 9 // 2)
    large = [Regex("regex", f"t{n}", (f"y{n}\\pL{{20}}", "("), origin=Origin("shop.yaml", n, 5)) for n in range(40)]
    with pytest.raises(PolicyError) as caught:
        own_checks(large)
    assert {problem.origin.line for problem in caught.value.problems} == set(range(5))


def test_a_check_that_takes_too_much_room_says_what_else_is_wrong_with_it(monkeypatch):
    monkeypatch.setattr("ringfence.guard.expressions.ROOM", 100_000)
    lines = refusal(regex, "regex", ("(", "\\pL{100}", "never read: ("))
    assert [line.split(",")[0] for line in lines] == [
        "shop.yaml:7:5: pattern 1",
        "shop.yaml:7:5: with these",
    ]


def test_memory_that_runs_out_is_an_error_and_not_an_absence(monkeypatch):
    check = patterns("a")
    # How RE2 says so: RE2::Set::Match returns false, as where nothing matches.
    monkeypatch.setattr("re2.Set.Match", lambda self, text: None)
    with pytest.raises(MemoryError):
        find(check, "a")


def test_patterns_that_are_too_large_together_are_refused(monkeypatch):
    monkeypatch.setattr("ringfence.guard.expressions.MEMORY", 48_000)
    lines = refusal(regex, "regex", tuple(f"x{n}.{{1,20}}y" for n in range(40)))
    assert lines == ["shop.yaml:7:5: its 40 patterns are too large together; make two checks of them"]


@pytest.mark.parametrize("apart", [True, False])
def test_patterns_of_one_policy_may_take_so_much_room_together_in_however_many_checks(monkeypatch, apart):
    listed = [f"x{n}.{{1,20}}y" for n in range(40)]
    own = [Regex("regex", f"t{n}", (one,), origin=Origin("shop.yaml", n, 5)) for n, one in enumerate(listed)]
    if not apart:
        own = [Regex("regex", "all", tuple(listed), origin=Origin("shop.yaml", 7, 5))]
    taken = taken_by(own_checks(own).values())
    assert 40 * 20 * 24 < taken < 3 << 20
    own = [replace(one, patterns=(*one.patterns, "new")) for one in own]  # none that is kept
    monkeypatch.setattr("ringfence.guard.expressions.ROOM", taken // 2)
    with pytest.raises(PolicyError) as caught:
        own_checks(own)
    (problem,) = caught.value.problems
    assert "take 1 MiB; together they may take 1" in problem.what
    assert problem.origin.line in (range(10, 30) if apart else [7])


@given(st.lists(st.sampled_from(["cat", "Straße", "é", "e\u0301", " ", "😀", "\ud800", "ß", "İ", "\x00", "-", "爆弾"])))
def test_what_a_keyword_finds_reads_like_it(pieces):
    text = "".join(pieces)
    plain = words("cat", "strasse", "爆弾", whole_words=False)._look(text)
    assert [text[start:end].casefold() for start, end, *_ in plain] == [
        piece.casefold() for piece in pieces if piece in ("cat", "Straße", "爆弾")
    ]


def word(chance, least, most):
    return "".join(chance.choices(LETTERS, k=chance.randint(least, most)))


def seconds(check, text):
    began = thread_time()
    for _ in check._look(text):
        pass
    return thread_time() - began


def test_ten_thousand_words_take_time_that_grows_like_the_text():
    chance = random.Random(1)
    listed = [word(chance, 4, 14) for _ in range(10_000)]
    check = words(*listed)
    text = " ".join(word(chance, 2, 9) for _ in range(150_000))
    assert seconds(check, text) < 3
    full = " ".join(chance.choices(listed, k=20_000))
    assert len(list(check._look(full))) == MOST + 1
    assert seconds(check, full) < 1


@pytest.mark.parametrize("pattern", ["a", "a(?:.*b)?"])
def test_what_matches_too_often_to_tell_is_found_to_the_end_of_the_text(pattern):
    """Each match of the second looks through the whole text."""
    text = "a" * 190_000 + " it ends in c"
    found = find(patterns(pattern, "in c"), text)
    one, other = ([f for f in found if f.detail.startswith(f"pattern {number} ")] for number in (1, 2))
    assert [f.spans[0].start for f in one] == list(range(MOST + 1))
    assert {f.spans[0].end - f.spans[0].start for f in one[:-1]} == {1}
    assert (one[-1].spans[0].end, "too many" in one[-1].detail) == (len(text), True)
    assert [(f.spans[0].start, f.spans[0].end) for f in other] == [(len(text) - 4, len(text))]


def test_a_keyword_that_stands_too_often_to_tell_is_found_to_the_end_of_the_text():
    found = find(words("war"), "war " * 5_000)
    assert len(found) == MOST + 1
    assert (found[-1].spans[0].start, found[-1].spans[0].end) == (4 * MOST, 20_000)


def test_no_pattern_runs_away():
    check = patterns("(a+)+$", "(a|a)*b", "(x+x+)+y")
    assert seconds(check, "a" * 500_000 + "!" + "x" * 500_000) < 2


def test_length_finds_what_goes_beyond():
    check = LengthCheck(Length("length", "long", 3))
    assert seen(check, "ä😀\ud800bc") == ["bc"]
    assert seen(check, "abc") == []
    assert find(check, "x" * 1_234)[0].detail == "1,234 characters"
