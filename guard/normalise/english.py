"""What English looks like: its common words, and how much each pair of letters comes as a surprise."""

import re
from itertools import pairwise

LETTERS = " abcdefghijklmnopqrstuvwxyz"
"""The blank is the beginning of a word, and its end."""

# Row: a letter, or the beginning of a word; column: what follows it, or the end of the word; digit: how many bits that
# comes as a surprise, 9 for nine and more. Counted over the English rows of classifier/data.
_BITS = """
    935456564487545458543774959 395559669595452969443667949 537992999589499299467499949 639693993594599299574599979
    149963979499787399559789959 148655779798564669345967669 249994499399699299394599999 249993973499695499459599979
    338991999399999399685699979 467455559996452579533959898 739993999689999289969199999 269992999399784789848899989
    349843799396379469856688949 335992999499868359869599949 259533839596797499954789969 377757479796543559354364989
    339983995499399355599359979 599999999999699999998079999 248752979496766489645678959 159693994596777469953697989
    259893992499799399556697969 366565859699353959333999979 749990999399999499999999989 339993992399895399469999989
    239594997499999829992699979 187895999799879279856998999 348992999398679499987597934
"""
COST = {
    a + b: int(bits)
    for a, row in zip(LETTERS, _BITS.split(), strict=True)
    for b, bits in zip(LETTERS, row, strict=True)
}
"""Bits by which two letters after each other come as a surprise."""

# What nearly every English sentence has some of, and what is most often disguised.
COMMON = frozenset(
    """the and you that for this with what how are can not your from have who one him her his she they them their
    would should could about when where which will was were has had but all any some into out over more than then there
    here just like know tell give show make made want need help please write read explain answer give me my we us our
    it is in on of to if an as at be by do go he so no or up am let get use best way time day people person man woman
    first only before after because without while why don does did these those very much many long new old good bad
    now never ever own off too also ignore previous instructions system prompt password bomb bombs
    kill kills killed steal hack hacked drug drugs rape raped gun guns shoot shot murder meth cocaine heroin porn nude
    nudes sexy child girl girls boys suicide dead hurt poison weapon weapons explosive attack hate fuck shit bitch
    nazi stab""".split()  # noqa: SIM905 - read as prose
)

PROSE = 4.75
WORD = 5.0
"""Bits a letter (its pair with the one before) up to which letters pass for English prose, and for one word of it."""


def surprise(word: str) -> float:
    """Return the mean surprise of a word's letter pairs, its beginning and end among them; letters only."""
    padded = f" {word.lower()} "
    return sum(COST.get(a + b, 9) for a, b in pairwise(padded)) / (len(padded) - 1)


def is_word(word: str) -> bool:
    """Whether letters may pass for an English word: one of the common ones, or long enough and no surprise."""
    return word.lower() in COMMON or (len(word) >= 4 and surprise(word) <= WORD)


def is_english(text: str, limit: float = PROSE) -> bool:
    """Whether the words of a text may pass for English, at so many bits a letter at most."""
    words = re.findall(r"[A-Za-z]+", text)
    total = sum(map(len, words))
    return total >= 4 and sum(surprise(word) * len(word) for word in words) <= limit * total
