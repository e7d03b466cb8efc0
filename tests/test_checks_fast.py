"""What checks pass over to save time would have found nothing: each beside the slow twin that reads everything."""

import re
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringfence.guard.bench.checks import replies_and_prompts
from ringfence.guard.bench.spans import load_corpus_of
from ringfence.guard.checks import (  # noqa: F401 - patched by name
    addresses,
    formats,
    hidden,
    identity,
    leakage,
    phones,
    pii,
    repetition,
    secrets,
    words,
)
from ringfence.guard.checks.secret_forms import EXACT, FORMS, LIKELY
from ringfence.guard.checks.secret_values import is_meant, is_strewn
from ringfence.guard.normalise import characters, encodings, letters  # noqa: F401 - patched by name
from ringfence.guard.normalise.readings import DISGUISES, variants

CORPUS = [text.text for name in ("pii", "secrets") for text in load_corpus_of(name)]
TEXTS = [*CORPUS, *(reply for reply, _ in replies_and_prompts())]
EVERYTHING = re.compile("")

PIECES = st.one_of(
    st.sampled_from(
        [
            *("68656c6c6f20776f726c64", "68 65 6c 6c 6f", "0x68 0x69 0x21", "dab1dab1", "fabaceae", "dead-beef-c3-a4"),
            *(
                "aGVsbG8gd29ybGQsIGhvdyBhcmUgeW91",
                "aGVsbG8g/d29ybGQs",
                "k i l l",
                "ki\x08ll",
                "b.o.m.b",
                "a b",
                "I",
                "k!  i? l, l",
            ),
            *(
                "b0mb",
                "h4t3",
                "k1ll!",
                "'5h00t'",
                "x" * 41,
                "\nAbcdefgh",
                "\r\naBcd",
                "\nabcdEfgh",
                "=",
                "... --- ...",
                "-.-",
            ),
            *("212 555 0187", "+44 (0) 20 7946 0018", "2024", "1–2–3–4–5–6–7", "٣٤٥ ٦٧٨ ٩٠١٢", "tel 030 1234567"),
            *(
                "DE89370400440532013000",
                "GB82 WEST 1234 5698 7654 32",
                "756.1234.5678.97",
                "123.456.789-09",
                "85.07.30-033.28",
            ),
            *("131052-308T", "RSSMRA85T10A562S", "GOMC850101HDFRRR04", "1 85 05 78 006 084 91", "880101-1234567"),
            *(
                "mia [at] post [dot] example",
                "mia at post dot example",
                "mia(ät)post.example",
                "MIA AT POST DOT EXAMPLE",
            ),
            *(
                'src="//h/x"',
                "href=x:y",
                "url(//h/a)",
                "URL( 'data:x",
                "ſrc='http://h'",
                "\x1b[31m",
                "\x08",
                "\x7f",
                "\x85",
            ),
            *("ａ", "\U0001d400", "\U0001f600", "日本語", "हिन्दी", "Straße", "ǅ", "İ", "K", "\u200b", "\ud800"),
        ]
    ),
    st.text("0123456789abcdefABCDEFxX ,:;-\n", max_size=24),
    st.text("abcXYZ./+-_ \r\n!?|$@01", max_size=24),
    st.text(max_size=8),
)
ANY_TEXT = st.one_of(
    st.tuples(st.lists(PIECES, max_size=6), st.sampled_from(["", " ", "\n"])).map(lambda made: made[1].join(made[0])),
    st.sampled_from(TEXTS),
)


@contextmanager
def patched(**replaced):
    """Put others in place of `module__name` for a while."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in replaced.items():
            module, _, attribute = name.partition("__")
            patch.setattr(globals()[module], attribute, value)
        yield


def every_leet_word(text):
    sign = re.compile(r"[A-Za-z][0134578@$!|]|[0134578@$][A-Za-z]")
    return [word for word in letters._LEET_WORD.finditer(text) if sign.search(word[1])]


@settings(max_examples=200)
@given(ANY_TEXT)
def test_no_disguise_is_passed_over(text):
    with patched(
        encodings___HEX_SHAPES=(b"",),
        encodings___CAPITAL_IN_BASE64=EVERYTHING,
        letters___SPACED_GOES_ON=EVERYTHING,
        letters___DOTTED_GOES_ON=EVERYTHING,
        characters__UNSEEN_ASCII=EVERYTHING,
        letters___leet_words=every_leet_word,
    ):
        slow = variants.__wrapped__(text)
    assert variants.__wrapped__(text) == slow


@settings(max_examples=200)
@given(ANY_TEXT)
def test_each_look_finds_what_it_finds_without_a_first_look(text):
    looks = [look for kind, look in DISGUISES if kind in ("invisible", "hex", "base64", "spaced")]
    fast = [look(text) for look in looks]
    with patched(
        encodings___HEX_SHAPES=(b"",),
        encodings___CAPITAL_IN_BASE64=EVERYTHING,
        letters___SPACED_GOES_ON=EVERYTHING,
        letters___DOTTED_GOES_ON=EVERYTHING,
        characters__UNSEEN_ASCII=EVERYTHING,
    ):
        assert fast == [look(text) for look in looks]
    assert [word.span() for word in letters._leet_words(text)] == [word.span() for word in every_leet_word(text)]
    morse = r"(?<!\S)[.·•\-–—−]{1,6}(?:[ \t/|]{1,5}[.·•\-–—−]{1,6}(?![^\s/|])){3,}+"
    assert encodings.MORSE.findall(text) == re.findall(morse, text)


WITHOUT = re.compile(f"[{words.UNSPACED}]")


@settings(max_examples=150)
@given(ANY_TEXT)
def test_words_are_the_runs_of_their_characters(text):
    expected, run = [], ""
    for character in f"{text} ":
        if ord(character) < 0x20000 and words._is_part(character, WITHOUT):
            run += character
            continue
        expected += [run] if run else []
        expected += [character] if WITHOUT.match(character) else []
        run = ""
    assert words.tokens().findall(text) == expected
    assert words.said(text) == [word.casefold() for word in expected]


def all_of(finders, text):
    return [list(find(text)) for find in finders]


@settings(max_examples=200)
@given(ANY_TEXT)
def test_no_personal_number_is_passed_over(text):
    finders = [row.find for row in pii.FORMATS]
    fast = all_of(finders, text)
    with patched(identity__DISTINCTIVE_DIGITS=EVERYTHING, pii__IBAN_BEGINS=EVERYTHING, pii__may_dot=lambda _: True):
        assert fast == all_of(finders, text)


REGIONS = ("US", "DE", "ZZ")
FAST_PHONES = [phones.phones_of(region) for region in REGIONS]
with patched(phones__SHORTEST=1):
    SLOW_PHONES = [phones.phones_of(region) for region in REGIONS]


@settings(max_examples=200)
@given(ANY_TEXT)
def test_no_telephone_number_is_passed_over(text):
    assert all_of(FAST_PHONES, text) == all_of(SLOW_PHONES, text)


SLOW_FORMS = {
    "Discord bot token": (
        r"(?<![A-Za-z0-9_-])[MNO][A-Za-z0-9_-]{22,27}\.[A-Za-z0-9_-]{6}\.[A-Za-z0-9_-]{27,40}(?![A-Za-z0-9_-])",
        is_strewn,
    ),
    "Mailgun key": (r"(?<![A-Za-z0-9_-])[a-f0-9]{32}-[a-f0-9]{8}-[a-f0-9]{8}(?![A-Za-z0-9-])", is_meant),
    "AWS access key id": (r"(?<![A-Za-z0-9])(?:AKIA|ASIA)[A-Z0-9]{16}(?![A-Za-z0-9])", is_meant),
}
TOKENS = st.tuples(
    st.sampled_from(["", " ", "x", "-", "Ab"]),
    st.sampled_from(
        [
            "MTIzNDU2Nzg5MDEyMzQ1Njc4.GhT4x2.aB3dE5fG7hJ9kL1mN3pQ5rS7tU9vW1xY3zA5",
            f"{'0123456789abcdef' * 2}-12ab34cd-ef567890",
            *("AKIA" + "Q7RT2ZK9W4XN6B3V", "ASIA" + "Q7RT2ZK9W4XN6B3V"),
        ]
    ),
    st.sampled_from(["", " ", "x", "-", "."]),
).map("".join)


@settings(max_examples=150)
@given(ANY_TEXT | st.lists(TOKENS, max_size=3).map(" ".join))
def test_no_key_is_passed_over(text):
    for what, (pattern, valid) in SLOW_FORMS.items():
        row = [row for row in FORMS if row.what == what][-1]
        assert list(row.find(text)) == list(formats.by_pattern(pattern, row_score(what), valid)(text))


@settings(max_examples=150)
@given(ANY_TEXT | st.lists(TOKENS, max_size=3).map(" ".join))
def test_rows_that_one_pass_over_a_text_rules_out_find_nothing_in_it(text):
    possible = secrets.FORMATS.possible(text)
    assert [row for row in secrets.FORMATS.rows if row in possible] == possible
    assert not [row.what for row in secrets.FORMATS.rows if row not in possible and list(row.find(text))]


def row_score(what):
    return LIKELY if what == "Discord bot token" else EXACT


@settings(max_examples=150)
@given(ANY_TEXT, st.lists(st.sampled_from(["pass", "secret", "key", "mot de passe", "密码"]), min_size=1, max_size=4))
def test_every_place_of_a_word_is_seen_in_any_case(text, looked_for):
    folded = text.replace("\u0130", "I").lower()
    places = [match.start() for word in looked_for for match in re.finditer(re.escape(word), folded)]
    assert formats._places_of(tuple(looked_for), text) == tuple(sorted(places))


@settings(max_examples=200)
@given(ANY_TEXT, st.integers(0, 3))
def test_what_is_repeated_is_what_stood_there_before(text, times):
    text = (text + "x" * 70) * times + text
    grams = [text[at : at + repetition.LONG] for at in range(len(text) - repetition.LONG + 1)]
    covered = np.zeros(len(text), dtype=np.bool_)
    for at, gram in enumerate(grams) if len(text) >= repetition.LEAST else ():
        if grams.index(gram) < at:
            covered[at : at + repetition.LONG] = True
    assert (repetition.repeated(text) == covered).all()


@settings(max_examples=150)
@given(ANY_TEXT)
def test_attributes_and_controls_are_looked_for_wherever_they_may_be(text):
    if "=" not in text:
        assert not addresses.ATTRIBUTE.search(text)
    if "(" not in text and "@" not in text:
        assert not addresses.STYLE.search(text)
    if text.isascii():
        held = bool(hidden.CONTROLS.search(text)) or "\x1b" in text
        assert bool(hidden.ASCII_CONTROLS.search(text)) == held


@settings(max_examples=100)
@given(ANY_TEXT)
def test_letters_of_a_system_message_weigh_what_their_words_weigh(text):
    for alphabet, fast in zip(leakage.ALPHABETS, leakage._letters.__wrapped__(text), strict=True):
        slow = leakage.rows(
            leakage.ways(text),
            alphabet,
            lambda way: ((*m.span(), leakage._words([m[0]])) for m in words.tokens().finditer(way)),
        )
        for one, other in zip(
            (fast.numbers, fast.weights, fast.last), (slow.numbers, slow.weights, slow.last), strict=True
        ):
            assert (one == other).all()
