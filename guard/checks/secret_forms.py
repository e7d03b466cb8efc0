"""The credentials that one knows by their own form, one row for each form of each provider. Asks no provider anything.

A form that others could share is found only where its value looks random, and scores `LIKELY`.
"""

import re
from collections.abc import Callable

from ringfence.guard.checks.formats import Format, by_pattern
from ringfence.guard.checks.secret_values import (
    is_basic,
    is_meant,
    is_private_key,
    is_random,
    is_strewn,
    is_web_token,
)

EXACT, LIKELY, NAMED = 0.99, 0.9, 0.8


def secret(
    name: str,
    what: str,
    pattern: str,
    score: float = EXACT,
    valid: Callable[[str], bool] = is_meant,
    hint: str | tuple[str, ...] = "",
    flags: re.RegexFlag = re.NOFLAG,
) -> Format:
    """Return the row of `secret.NAME`; the other arguments are those of `by_pattern`."""
    return Format(f"secret.{name}", what, by_pattern(pattern, score, valid, hint, flags))


# A run may begin only where the character before is not of the run: that is what keeps every row linear.
_FREE = r"(?<![A-Za-z0-9_-])"
_FRESH = r"(?<![A-Za-z0-9])"
_END = r"(?![A-Za-z0-9])"
_PEM = r"(?:[A-Z0-9]{1,12} ){0,2}PRIVATE KEY(?: BLOCK)?-----"
_PEM_BODY = r"""(?:[\s"'>]|\\[nr]){0,16}(?:[A-Za-z0-9+/=]{20}|[A-Za-z0-9+/=]{0,19}\Z|[A-Z][A-Za-z-]{3,20}: )"""
# Between an id and the secret that belongs to it: quotes, commas, a line, another name.
_BESIDE = r"""["'`]?[\s,;:|]{1,8}(?:[A-Za-z_]{2,32}["']?[ \t]{0,4}[:=][ \t]{0,4})?["'`]?"""

FORMS = (
    # Without its end a block runs to the end of the text: a cut-off key is still most of a key.
    secret(
        "private_key",
        "private key",
        rf"-----BEGIN {_PEM}(?={_PEM_BODY})(?s:(?:(?!-----END).){{0,16384}})(?:-----END {_PEM})?",
        valid=lambda _: True,
        hint="-----BEGIN ",
    ),
    secret(
        "private_key",
        "private key in base64",
        r"(?<![A-Za-z0-9+/])LS0tLS1CRUdJTi[A-Za-z0-9+/]{60,}={0,2}",
        valid=is_private_key,
        hint="LS0tLS1CRUdJTi",
    ),
    secret(
        "private_key",
        "PuTTY private key",
        r"Private-Lines: [0-9]{1,3}\r?\n([A-Za-z0-9+/=]{16,80}(?:\r?\n[A-Za-z0-9+/=]{1,80}(?![^\r\n])){0,999})",
        hint="Private-Lines: ",
    ),
    secret("anthropic", "Anthropic key", _FREE + r"sk-ant-[a-z]{2,8}[0-9]{2}-[A-Za-z0-9_-]{20,}", hint="sk-ant-"),
    secret(
        "openai_key",
        "OpenAI key",
        _FREE + r"sk-(?!ant-)(?=[\w-]{0,40}[A-Za-z0-9]{16})[\w-]{20,}",
        LIKELY,
        is_random,
        "sk-",
    ),
    secret("aws_access_key", "AWS access key id", _FRESH + r"(?:AKIA|ASIA)[A-Z0-9]{16}" + _END, hint=("AKIA", "ASIA")),
    secret(
        "aws_secret",
        "AWS secret access key beside its id",
        rf"{_FRESH}(?:AKIA|ASIA)[A-Z0-9]{{16}}{_BESIDE}([A-Za-z0-9/+]{{40}})(?![A-Za-z0-9/+=])",
        valid=is_random,
        hint=("AKIA", "ASIA"),
    ),
    secret("github", "GitHub token", r"gh[pousr]_[A-Za-z0-9]{36,255}" + _END),
    secret("github", "GitHub token", r"github_pat_[A-Za-z0-9]{22}_[A-Za-z0-9]{59}", hint="github_pat_"),
    secret("gitlab", "GitLab token", _FREE + r"gl(?:pat|ptt|dt|rt|ft|soat|cbt|agent)-[A-Za-z0-9_-]{20,}", hint="gl"),
    secret("google_api_key", "Google API key", r"AIza[A-Za-z0-9_-]{35}(?![A-Za-z0-9_-])", hint="AIza"),
    secret("google_oauth", "Google OAuth secret", r"GOCSPX-[A-Za-z0-9_-]{28}", hint="GOCSPX-"),
    secret("google_oauth", "Google access token", _FREE + r"ya29\.[A-Za-z0-9_-]{30,}", hint="ya29."),
    secret("slack", "Slack token", _FREE + r"xox[abeoprs]-[A-Za-z0-9-]{10,}", LIKELY, is_random, "xox"),
    secret("slack", "Slack app token", _FREE + r"xapp-[0-9]-[A-Za-z0-9-]{20,}", hint="xapp-"),
    secret(
        "slack",
        "Slack webhook",
        r"hooks\.slack\.com/services/(T[A-Z0-9]{6,14}/B[A-Z0-9]{6,14}/[A-Za-z0-9]{20,30})",
        hint="hooks.slack.com",
    ),
    secret("stripe", "Stripe key", _FRESH + r"[sr]k_(?:live|test)_[A-Za-z0-9]{16,}", hint="k_"),
    secret("stripe", "Stripe webhook secret", _FRESH + r"whsec_[A-Za-z0-9+/]{32,}", hint="whsec_"),
    secret("huggingface", "Hugging Face token", _FRESH + r"hf_[A-Za-z0-9]{34}" + _END, hint="hf_"),
    secret("npm", "npm token", _FRESH + r"npm_[A-Za-z0-9]{36}" + _END, hint="npm_"),
    secret("pypi", "PyPI token", _FREE + r"pypi-AgE[A-Za-z0-9_-]{50,}", hint="pypi-AgE"),
    secret("sendgrid", "SendGrid key", _FREE + r"SG\.[A-Za-z0-9_-]{22}\.[A-Za-z0-9_-]{43}", hint="SG."),
    secret(
        "telegram",
        "Telegram bot token",
        rf"(?:{_FRESH}|(?<=/bot))[0-9]{{8,10}}:AA[A-Za-z0-9_-]{{33}}(?![A-Za-z0-9_-])",
        hint=":AA",
    ),
    secret("digitalocean", "DigitalOcean token", r"do[opr]_v1_[a-f0-9]{64}", hint="_v1_"),
    secret("shopify", "Shopify token", r"shp(?:at|ca|pa|ss)_[a-fA-F0-9]{32}", hint="shp"),
    secret("databricks", "Databricks token", _FRESH + r"dapi[a-f0-9]{32}" + _END, hint="dapi"),
    secret("groq", "Groq key", _FRESH + r"gsk_[A-Za-z0-9]{40,}", hint="gsk_"),
    secret("xai", "xAI key", _FREE + r"xai-[A-Za-z0-9]{60,}", hint="xai-"),
    secret("vault", "Vault token", _FREE + r"hv[sbr]\.[A-Za-z0-9_-]{24,}", LIKELY, is_random, "hv"),
    secret("docker", "Docker token", _FREE + r"dckr_pat_[A-Za-z0-9_-]{20,}", hint="dckr_pat_"),
    secret("docker", "Docker login", r'"auth"\s{0,4}:\s{0,4}"([A-Za-z0-9+/]{8,}={0,2})"', EXACT, is_basic, '"auth"'),
    secret("age", "age secret key", r"AGE-SECRET-KEY-1[0-9A-Z]{58}", hint="AGE-SECRET-KEY-1"),
    secret(
        "discord",
        "Discord bot token",
        r"[MNO](?<![A-Za-z0-9_-].)[A-Za-z0-9_-]{22,27}\.[A-Za-z0-9_-]{6}\.[A-Za-z0-9_-]{27,40}(?![A-Za-z0-9_-])",
        LIKELY,
        is_strewn,
    ),
    secret(
        "discord",
        "Discord webhook",
        r"discord(?:app)?\.com/api/(?:v[0-9]{1,2}/)?webhooks/([0-9]{17,20}/[A-Za-z0-9_-]{60,80})",
        hint="/webhooks/",
    ),
    secret("twilio", "Twilio API key", _FRESH + r"SK[a-f0-9]{32}" + _END, hint="SK"),
    secret("twilio", "Twilio auth token", rf"{_FRESH}AC[a-f0-9]{{32}}{_BESIDE}([a-f0-9]{{32}}){_END}", hint="AC"),
    secret("mailgun", "Mailgun key", _FREE + r"key-[a-f0-9]{32}" + _END, hint="key-"),
    secret(
        "mailgun",
        "Mailgun key",
        r"[a-f0-9]{2}(?<![A-Za-z0-9_-]..)[a-f0-9]{30}-[a-f0-9]{8}-[a-f0-9]{8}(?![A-Za-z0-9-])",
        hint="-",
    ),
    secret("notion", "Notion token", _FRESH + r"ntn_[0-9]{11}[A-Za-z0-9]{35}" + _END, hint="ntn_"),
    secret("notion", "Notion token", _FRESH + r"secret_[A-Za-z0-9]{43}" + _END, LIKELY, is_strewn, "secret_"),
    secret(
        "doppler",
        "Doppler token",
        _FREE + r"dp\.(?:pt|st|ct|sa|scim|audit)\.(?:[a-z0-9_-]{2,35}\.)?[A-Za-z0-9]{40,44}" + _END,
        hint="dp.",
    ),
    secret("grafana", "Grafana token", _FRESH + r"glsa_[A-Za-z0-9]{32}_[a-f0-9]{8}" + _END, hint="glsa_"),
    secret("linear", "Linear key", _FRESH + r"lin_api_[A-Za-z0-9]{40}" + _END, hint="lin_api_"),
    secret("perplexity", "Perplexity key", _FREE + r"pplx-[A-Za-z0-9]{48}" + _END, hint="pplx-"),
    secret("postman", "Postman key", _FREE + r"PMAK-[a-f0-9]{24}-[a-f0-9]{34}" + _END, hint="PMAK-"),
    secret("new_relic", "New Relic key", _FREE + r"NRAK-[A-Z0-9]{27}" + _END, hint="NRAK-"),
    secret("sentry", "Sentry token", _FRESH + r"sntryu_[a-f0-9]{64}" + _END, hint="sntryu_"),
    secret("deepl", "DeepL key", _FREE + r"[a-f0-9]{8}-(?:[a-f0-9]{4}-){3}[a-f0-9]{12}:fx" + _END, hint=":fx"),
    secret(
        "onepassword",
        "1Password secret key",
        _FREE + r"A3-[A-Z0-9]{6}-(?:[A-Z0-9]{11}|[A-Z0-9]{6}-[A-Z0-9]{5})(?:-[A-Z0-9]{5}){3}(?![A-Za-z0-9-])",
        hint="A3-",
    ),
    secret(
        "jwt",
        "JSON web token",
        _FREE + r"eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{10,}",
        valid=is_web_token,
        hint="eyJ",
    ),
    secret("azure", "Azure shared access signature", r"[?&;]sig=([A-Za-z0-9%+/]{40,90}(?:=|%3[Dd]))", hint="sig="),
    secret("azure", "Azure client secret", r"(?<![\w~.-])[\w~.-]{3}[0-9]Q~[\w~.-]{31,34}(?![\w~-])", hint="Q~"),
)
