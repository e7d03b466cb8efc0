"""Finds credentials by their form: provider keys, tokens, private keys, passwords in assignments and addresses.

It knows forms; it asks no provider whether a key works, and takes what is plainly a placeholder for none.

Scores say how sure the form alone makes it:
    0.99  a form that nothing else has (a provider's prefix with its exact length, a PEM block)
    0.9   a prefix that other things could share, with a tail that looks random
    0.8   no form of its own: a random-looking value right after a name such as `api_key` or `Bearer`
"""

import re
from base64 import b64decode
from collections import Counter
from collections.abc import Callable, Sequence
from math import log2

from ringfence.guard.check import Finding, Passage
from ringfence.guard.checks.formats import Format, by_pattern, find_formats

EXACT, LIKELY, NAMED = 0.99, 0.9, 0.8

PLACEHOLDER = re.compile(
    r"your|xxxx|placeholder|changeme|change_me|dummy|redacted|replace|insert|\.\.\.|\*\*\*|[<>{}$]", re.IGNORECASE
)


class SecretsCheck:
    """Reports `secret.*`, one category for each provider or form; see `FORMATS`."""

    name = "secrets"
    categories = frozenset({"secret"})

    def find(self, passage: Passage) -> Sequence[Finding]:
        """Return every stretch of the passage that has one of the forms. Time is linear in its length."""
        return find_formats(self.name, FORMATS, passage)


def is_meant(value: str) -> bool:
    """Whether a value stands for itself: not `sk-xxxx…`, not `YOUR_API_KEY`."""
    return len(set(value)) > 5 and not PLACEHOLDER.search(value)


def is_random(value: str) -> bool:
    """Whether a value looks drawn, not written: letters and digits mixed, at 3 bits a character or more."""
    mixed = sum(c.isdigit() for c in value) >= 2 and any(c.isalpha() for c in value)
    return mixed and is_meant(value) and _entropy(value) >= 3


def is_password(value: str) -> bool:
    """Whether a value after `password =` is one: no placeholder, no code, no word of prose."""
    code = re.search(r"[()\[\]{}<>$]|^(?:os|env|process|config|self|settings)\.|^https?:", value)
    # A digit or a symbol that prose does not end or join its words with.
    drawn = re.search(r"[0-9!@#^&*_+=~?]", value.rstrip(".!?"))
    return bool(drawn) and not code and not PLACEHOLDER.search(value) and len(set(value)) > 3


def is_web_token(value: str) -> bool:
    """Whether the first of the three parts of a JWT says how it is signed."""
    return b'"alg"' in _decoded(value.split(".", 1)[0])


def is_basic(value: str) -> bool:
    """Whether HTTP basic credentials decode to `user:password`."""
    return b":" in _decoded(value)


def _decoded(value: str) -> bytes:
    value = value.rstrip("=").replace("-", "+").replace("_", "/")
    try:
        return b64decode(value + "=" * (-len(value) % 4))
    except ValueError:
        return b""


def _entropy(value: str) -> float:
    """Return Shannon's measure of the characters, in bits a character."""
    return -sum(n / len(value) * log2(n / len(value)) for n in Counter(value).values())


def _row(
    name: str,
    what: str,
    pattern: str,
    score: float = EXACT,
    valid: Callable[[str], bool] = is_meant,
    hint: str = "",
    flags: re.RegexFlag = re.NOFLAG,
) -> Format:
    return Format(f"secret.{name}", what, by_pattern(pattern, score, valid, hint, flags))


# A run may begin only where the character before is not of the run: that is what keeps every row linear.
_FREE = r"(?<![A-Za-z0-9_-])"
_END = r"(?![A-Za-z0-9])"
# `name = "`, `"name": "`, `name is `: what stands between a name and its value.
_IS = r"""["']?\s{0,4}(?::?=>?|:|\sis\s)\s{0,4}["'`]?"""
_PEM = r"(?:[A-Z0-9]{1,12} ){0,2}PRIVATE KEY(?: BLOCK)?-----"
_PEM_BODY = r"""(?:[\s"'>]|\\[nr]){0,16}(?:[A-Za-z0-9+/=]{20}|[A-Za-z0-9+/=]{0,19}\Z|[A-Z][A-Za-z-]{3,20}: )"""

# First row first: an assignment of a key that a provider's row knows is the provider's.
FORMATS = (
    # Without its end a block runs to the end of the text: a cut-off key is still most of a key.
    _row(
        "private_key",
        "private key",
        rf"-----BEGIN {_PEM}(?={_PEM_BODY})(?s:(?:(?!-----END).){{0,16384}})(?:-----END {_PEM})?",
        valid=lambda _: True,
        hint="-----BEGIN ",
    ),
    _row("anthropic", "Anthropic key", _FREE + r"sk-ant-[a-z]{2,8}[0-9]{2}-[A-Za-z0-9_-]{20,}", hint="sk-ant-"),
    _row(
        "openai_key",
        "OpenAI key",
        _FREE + r"sk-(?!ant-)(?=[\w-]{0,40}[A-Za-z0-9]{16})[\w-]{20,}",
        LIKELY,
        is_random,
        "sk-",
    ),
    _row("aws_access_key", "AWS access key id", r"(?<![A-Za-z0-9])(?:AKIA|ASIA)[A-Z0-9]{16}" + _END),
    _row(
        "aws_secret",
        "AWS secret access key",
        rf"(?:secret[_ -]?access[_ -]?key|aws[_ -]?secret[_ -]?key){_IS}([A-Za-z0-9/+]{{40}})(?![A-Za-z0-9/+=])",
        flags=re.IGNORECASE,
    ),
    _row("github", "GitHub token", r"gh[pousr]_[A-Za-z0-9]{36,255}" + _END),
    _row("github", "GitHub token", r"github_pat_[A-Za-z0-9]{22}_[A-Za-z0-9]{59}", hint="github_pat_"),
    _row("gitlab", "GitLab token", _FREE + r"gl(?:pat|ptt|dt|rt|ft|soat|cbt|agent)-[A-Za-z0-9_-]{20,}", hint="gl"),
    _row("google_api_key", "Google API key", r"AIza[A-Za-z0-9_-]{35}(?![A-Za-z0-9_-])", hint="AIza"),
    _row("google_oauth", "Google OAuth secret", r"GOCSPX-[A-Za-z0-9_-]{28}", hint="GOCSPX-"),
    _row("google_oauth", "Google access token", _FREE + r"ya29\.[A-Za-z0-9_-]{30,}", hint="ya29."),
    _row("slack", "Slack token", _FREE + r"xox[abeoprs]-[A-Za-z0-9-]{10,}", LIKELY, is_random, "xox"),
    _row("slack", "Slack app token", _FREE + r"xapp-[0-9]-[A-Za-z0-9-]{20,}", hint="xapp-"),
    _row("slack", "Slack webhook", r"hooks\.slack\.com/services/(T[A-Z0-9]{6,14}/B[A-Z0-9]{6,14}/[A-Za-z0-9]{20,30})"),
    _row("stripe", "Stripe key", r"(?<![A-Za-z0-9])[sr]k_(?:live|test)_[A-Za-z0-9]{16,}", hint="k_"),
    _row("stripe", "Stripe webhook secret", r"(?<![A-Za-z0-9])whsec_[A-Za-z0-9+/]{32,}", hint="whsec_"),
    _row("huggingface", "Hugging Face token", r"(?<![A-Za-z0-9])hf_[A-Za-z0-9]{34}" + _END, hint="hf_"),
    _row("npm", "npm token", r"(?<![A-Za-z0-9])npm_[A-Za-z0-9]{36}" + _END, hint="npm_"),
    _row("pypi", "PyPI token", _FREE + r"pypi-AgE[A-Za-z0-9_-]{50,}", hint="pypi-AgE"),
    _row("sendgrid", "SendGrid key", _FREE + r"SG\.[A-Za-z0-9_-]{22}\.[A-Za-z0-9_-]{43}", hint="SG."),
    _row(
        "telegram",
        "Telegram bot token",
        r"(?<![A-Za-z0-9])[0-9]{8,10}:AA[A-Za-z0-9_-]{33}(?![A-Za-z0-9_-])",
        hint=":AA",
    ),
    _row("digitalocean", "DigitalOcean token", r"do[opr]_v1_[a-f0-9]{64}", hint="_v1_"),
    _row("shopify", "Shopify token", r"shp(?:at|ca|pa|ss)_[a-fA-F0-9]{32}", hint="shp"),
    _row("databricks", "Databricks token", r"(?<![A-Za-z0-9])dapi[a-f0-9]{32}" + _END, hint="dapi"),
    _row("groq", "Groq key", r"(?<![A-Za-z0-9])gsk_[A-Za-z0-9]{40,}", hint="gsk_"),
    _row("xai", "xAI key", _FREE + r"xai-[A-Za-z0-9]{60,}", hint="xai-"),
    _row("vault", "Vault token", _FREE + r"hv[sbr]\.[A-Za-z0-9_-]{24,}", LIKELY, is_random, "hv"),
    _row("docker", "Docker token", _FREE + r"dckr_pat_[A-Za-z0-9_-]{20,}", hint="dckr_pat_"),
    _row("age", "age secret key", r"AGE-SECRET-KEY-1[0-9A-Z]{58}", hint="AGE-SECRET-KEY-1"),
    _row(
        "jwt",
        "JSON web token",
        _FREE + r"eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{10,}",
        valid=is_web_token,
        hint="eyJ",
    ),
    _row("azure", "Azure storage key", r"AccountKey=([A-Za-z0-9+/]{86}==)", hint="AccountKey="),
    _row("azure", "Azure shared access signature", r"[?&;]sig=([A-Za-z0-9%+/]{40,90}(?:=|%3[Dd]))", hint="sig="),
    _row("azure", "Azure client secret", r"(?<![\w~.-])[\w~.-]{3}[0-9]Q~[\w~.-]{31,34}(?![\w~-])", hint="Q~"),
    _row(
        "password",
        "password in an address",
        r"://[^\s:/@\"']{0,64}:([^\s/@\"']{3,128})@[\w\[]",
        LIKELY,
        is_password,
        "://",
    ),
    _row("bearer", "bearer token", r"bearer\s{1,4}([\w.~+/=-]{19,}[\w+/=-])", NAMED, is_random, flags=re.IGNORECASE),
    _row("basic_auth", "basic credentials", r"basic\s{1,4}([\w+/-]{8,}=*)", NAMED, is_basic, flags=re.IGNORECASE),
    _row(
        "api_key",
        "key or token in an assignment",
        r"(?:api[_ -]?key|(?:secret|access|private|auth)[_ -]?(?:key|token)|client[_ -]?secret|secret|token)"
        rf"{_IS}([\w.~+/=-]{{15,}}[\w+/=-])",
        NAMED,
        is_random,
        flags=re.IGNORECASE,
    ),
    _row(
        "password",
        "password in an assignment",
        # Punctuation is part of a password, but for what ends a sentence: half of one is most of one.
        rf"(?:password|passwd|passphrase|pwd){_IS}([^\s\"'`]{{5,127}}[^\s\"'`,;.!?)}}\]])",
        NAMED,
        is_password,
        flags=re.IGNORECASE,
    ),
)
