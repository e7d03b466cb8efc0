from time import thread_time

import pytest

from ringfence.guard.check import Passage
from ringfence.guard.checks.language import LanguageCheck
from ringfence.policies.types import Stage

CHECK = LanguageCheck()

ENGLISH = (
    "The ferry leaves the northern pier every morning at seven, and it takes about an hour to cross the bay. "
    "Bring a coat, because the wind out there is colder than you would think, and something to eat.\n"
)
GERMAN = (
    "Die Fähre legt jeden Morgen um sieben am nördlichen Anleger ab und braucht etwa eine Stunde über die Bucht. "
    "Nehmen Sie einen Mantel mit, denn der Wind ist dort draußen kälter, als man denkt, und etwas zu essen.\n"
)
JAPANESE = "フェリーは毎朝七時に北の桟橋を出て、湾を渡るのに一時間ほどかかります。"


def spoken(text):
    return CHECK.find(Passage(Stage.INPUT, "user", text))


@pytest.mark.parametrize(
    ("text", "code"), [(ENGLISH, "en"), (GERMAN, "de"), (JAPANESE, "ja"), ("Das ist ein kurzer Satz.", "de")]
)
def test_a_text_in_one_language_is_one_finding_over_all_of_it(text, code):
    (finding,) = spoken(text)
    assert finding.category == f"language.{code}"
    assert finding.score > 0.9
    assert [(span.start, span.end) for span in finding.spans] == [(0, len(text))]


@pytest.mark.parametrize(
    "text", ["", "ok", "12345 67890", "def f(x): return x+1", "https://shop.example/a/b", "\ud800"]
)
def test_what_is_in_no_language_that_can_be_told_is_no_finding(text):
    assert not spoken(text)


def test_a_text_in_two_languages_is_in_both_where_it_speaks_them():
    text = f"{ENGLISH}{ENGLISH}\n{GERMAN}"
    english, german = spoken(text)
    assert (english.category, german.category) == ("language.en", "language.de")
    assert text[german.spans[0].start : german.spans[0].end].strip() == GERMAN.strip()
    assert english.spans[0].end == german.spans[0].start


def test_another_language_after_a_long_beginning_is_seen():
    found = spoken(ENGLISH * 12 + "\n" + GERMAN * 12)
    assert {finding.category for finding in found} == {"language.en", "language.de"}


def test_a_quotation_does_not_make_a_text_foreign():
    assert [f.category for f in spoken(f"{ENGLISH}\n{ENGLISH}\n{ENGLISH}\n{ENGLISH}\n{GERMAN}")] == ["language.en"]


def test_time_grows_like_the_length():
    began = thread_time()
    for text in (ENGLISH * 2_500, "\n" * 500_000, "\n" + " " * 500_000):
        spoken(text)
    assert thread_time() - began < 5
