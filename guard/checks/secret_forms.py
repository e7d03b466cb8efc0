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
    """Return the row of `secret.NAME`.

    Args:
        what: as in `Format`, the others as in `by_pattern`.
        hint: text of which one must be there for the pattern to match.
    """
    hints = (hint,) if isinstance(hint, str) else hint
    return Format(f"secret.{name}", what, by_pattern(pattern, score, valid, flags), tuple(filter(None, hints)))


def token(
    name: str,
    what: str,
    prefix: str | tuple[str, ...],
    rest: str,
    score: float = EXACT,
    valid: Callable[[str], bool] = is_meant,
) -> Format:
    """Return the row of `secret.NAME` that begins with a prefix, as no part of a word, and with nothing joined to it.

    Args:
        prefix: as it is written, or several of which one begins it.
        rest: the pattern of what follows.
    """
    prefixes = (prefix,) if isinstance(prefix, str) else prefix
    pattern = rf"{_FREE}(?:{'|'.join(map(re.escape, prefixes))}){rest}{_END}"
    return secret(name, what, pattern, score, valid, prefixes)


# A run may begin only where the character before is not of the run: that is what keeps every row linear.
_FREE = r"(?<![A-Za-z0-9_-])"
# Where base64 is full of zeros it has this prefix; there `+` or `/` may stand before it.
_UNCODED = r"(?<![A-Za-z0-9_+/-])"
_FRESH = r"(?<![A-Za-z0-9])"
_END = r"(?![A-Za-z0-9])"
# What joins two names or ends a file's belongs to them: a hash within such a name is none of these.
_ALONE = r"(?![A-Za-z0-9_-]|\.[A-Za-z0-9])"
_GITLAB = tuple(f"gl{kind}-" for kind in ("pat", "ptt", "dt", "rt", "ft", "ffct", "imt", "oas", "soat", "cbt", "agent"))
_PEM = r"(?:[A-Z0-9]{1,12} ){0,2}PRIVATE KEY(?: BLOCK)?-----"
_PEM_BODY = r"""(?:[\s"'>]|\\[nr]){0,16}(?:[A-Za-z0-9+/=]{20}|[A-Za-z0-9+/=]{0,19}\Z|[A-Z][A-Za-z-]{3,20}: )"""
_UUID = r"[a-f0-9]{8}-(?:[a-f0-9]{4}-){3}[a-f0-9]{12}"
# An address that lets whoever has it write is found whole.
_HTTPS = r"(?:https://)?"
_SNYK = r"[A-Za-z0-9]{8}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}"
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
    token("openrouter", "OpenRouter key", "sk-or-v1-", r"[a-f0-9]{64}"),
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
    secret(
        "github",
        "GitHub token",
        r"gh[pousr]_[A-Za-z0-9]{36,255}" + _END,
        hint=("ghp_", "gho_", "ghu_", "ghs_", "ghr_"),
    ),
    secret("github", "GitHub token", r"github_pat_[A-Za-z0-9]{22}_[A-Za-z0-9]{59}", hint="github_pat_"),
    secret(
        "gitlab",
        "GitLab token",
        # Routable ones end in the length of what they say and a checksum.
        _FREE + rf"(?:{'|'.join(_GITLAB)})[A-Za-z0-9_-]{{20,}}(?:(?:\.[0-9a-z]{{2}})?\.[0-9][0-9a-z]{{8}}{_END})?",
        hint=_GITLAB,
    ),
    token("gitlab", "GitLab registration token of a runner", "GR1348941", r"[A-Za-z0-9_-]{20}"),
    secret("google_api_key", "Google API key", r"AIza[A-Za-z0-9_-]{35}(?![A-Za-z0-9_-])", hint="AIza"),
    secret("google_oauth", "Google OAuth secret", r"GOCSPX-[A-Za-z0-9_-]{28}", hint="GOCSPX-"),
    secret("google_oauth", "Google access token", _FREE + r"ya29\.[A-Za-z0-9_-]{30,}", hint="ya29."),
    secret("slack", "Slack token", _FREE + r"(?:xoxe\.)?xox[abceoprs]-[A-Za-z0-9-]{10,}", LIKELY, is_random, "xox"),
    secret("slack", "Slack cookie", _FREE + r"xoxd-[A-Za-z0-9%/+_-]{40,}={0,2}", LIKELY, is_random, "xoxd-"),
    secret("slack", "Slack app token", _FREE + r"xapp-[0-9]-[A-Za-z0-9-]{20,}", hint="xapp-"),
    secret(
        "slack",
        "Slack webhook",
        _HTTPS + r"hooks\.slack\.com/services/T[A-Z0-9]{6,14}/B[A-Z0-9]{6,14}/[A-Za-z0-9]{20,30}",
        hint="hooks.slack.com/services/",
    ),
    secret(
        "slack",
        "Slack webhook of a workflow",
        _HTTPS + r"hooks\.slack\.com/(?:workflows|triggers)/[A-Z0-9]{6,14}/[A-Za-z0-9/]{30,56}" + _END,
        hint=("hooks.slack.com/workflows/", "hooks.slack.com/triggers/"),
    ),
    secret("stripe", "Stripe key", _FRESH + r"[sr]k_(?:live|test)_[A-Za-z0-9]{16,}", hint=("k_live_", "k_test_")),
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
    secret("databricks", "Databricks token", _FRESH + r"dapi[a-f0-9]{32}(?:-[0-9])?" + _END, hint="dapi"),
    secret("groq", "Groq key", _FRESH + r"gsk_[A-Za-z0-9]{40,}", hint="gsk_"),
    secret("xai", "xAI key", _FREE + r"xai-[A-Za-z0-9]{60,}", hint="xai-"),
    secret("vault", "Vault token", _FREE + r"hv[sbr]\.[A-Za-z0-9_-]{24,}", LIKELY, is_random, ("hvs.", "hvb.", "hvr.")),
    secret("docker", "Docker token", _FREE + r"dckr_[po]at_[A-Za-z0-9_-]{20,}", hint="dckr_"),
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
        _HTTPS + r"discord(?:app)?\.com/api/(?:v[0-9]{1,2}/)?webhooks/[0-9]{17,20}/[A-Za-z0-9_-]{60,80}",
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
        _FREE + r"dp\.(?:pt|st|ct|sa|said|scim|audit)\.(?:[a-z0-9_-]{2,35}\.)?[A-Za-z0-9]{40,44}" + _END,
        hint="dp.",
    ),
    secret("grafana", "Grafana token", _FRESH + r"glsa_[A-Za-z0-9]{32}_[a-f0-9]{8}" + _END, hint="glsa_"),
    secret("linear", "Linear key", _FRESH + r"lin_api_[A-Za-z0-9]{40}" + _END, hint="lin_api_"),
    secret("perplexity", "Perplexity key", _FREE + r"pplx-[A-Za-z0-9]{48}" + _END, hint="pplx-"),
    secret("postman", "Postman key", _FREE + r"PMAK-[a-f0-9]{24}-[a-f0-9]{34}" + _END, hint="PMAK-"),
    secret("new_relic", "New Relic key", _FREE + r"NRAK-[A-Z0-9]{27}" + _END, hint="NRAK-"),
    secret("sentry", "Sentry token", _FRESH + r"sntryu_[a-f0-9]{64}" + _END, hint="sntryu_"),
    secret("deepl", "DeepL key", _FREE + _UUID + ":fx" + _END, hint=":fx"),
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
    token("adafruit", "Adafruit IO key", "aio_", r"(?=[A-Za-z]*[0-9])[A-Za-z0-9]{28}"),
    token("adobe", "Adobe client secret", "p8e-", r"[A-Za-z0-9]{32}"),
    # The prefix begins many words: looked for first, what stands before it after that.
    secret(
        "airtable",
        "Airtable token",
        r"pat(?<![A-Za-z0-9_-]...)[A-Za-z0-9]{14}\.[a-f0-9]{64}" + _END,
        hint="pat",
    ),
    token("alibaba", "Alibaba Cloud access key id", "LTAI", r"[A-Za-z0-9]{17,21}"),
    secret(
        "alibaba",
        "Alibaba Cloud access key secret beside its id",
        rf"{_FREE}LTAI[A-Za-z0-9]{{17,21}}{_BESIDE}([A-Za-z0-9]{{30}}){_END}",
        valid=is_random,
        hint="LTAI",
    ),
    token("artifactory", "Artifactory API key", "AKCp", r"[A-Za-z0-9]{69}"),
    token("artifactory", "Artifactory reference token", "cmVmdGtu", r"[A-Za-z0-9]{56}"),
    token("atlassian", "Atlassian token", ("ATATT3", "ATCTT3"), r"[A-Za-z0-9_-]{100,250}=[A-Za-z0-9]{8}"),
    secret(
        "authress",
        "Authress access key of a service",
        _FREE + r"(?:sc|ext|scauth|authress)_[A-Za-z0-9]{5,30}\.[A-Za-z0-9]{4,6}\.acc[_-][A-Za-z0-9-]{10,32}"
        r"\.[A-Za-z0-9+/_=-]{30,120}(?![A-Za-z0-9+/_-])",
        hint=(".acc_", ".acc-"),
    ),
    secret(
        "aws_bedrock",
        "Amazon Bedrock key",
        _UNCODED + r"ABSK[A-Za-z0-9+/]{100,280}={0,2}(?![A-Za-z0-9+/=])",
        LIKELY,
        is_strewn,
        "ABSK",
    ),
    # What follows is an address in base64; this much of it is the host.
    secret(
        "aws_bedrock",
        "Amazon Bedrock key that ends soon",
        _FREE + r"bedrock-api-key-YmVkcm9jay5hbWF6b25hd3MuY29t[A-Za-z0-9+/]{40,}={0,2}",
        hint="bedrock-api-key-",
    ),
    token("brevo", "Brevo key", "xkeysib-", r"[a-f0-9]{64}-[A-Za-z0-9]{16}"),
    token("buildkite", "Buildkite token", "bkua_", r"[a-z0-9]{40}"),
    token("clickhouse", "ClickHouse Cloud key", "4b1d", r"[A-Za-z0-9]{38}", LIKELY, is_strewn),
    token("clojars", "Clojars token", "CLOJARS_", r"[A-Za-z0-9]{60}"),
    token("cloudflare", "Cloudflare origin CA key", "v1.0-", r"[a-f0-9]{24}-[a-f0-9]{146}"),
    token("contentful", "Contentful token", "CFPAT-", r"[A-Za-z0-9_-]{43}"),
    token("defined_networking", "Defined Networking key", "dnkey-", r"[A-Za-z0-9_=-]{26}-[A-Za-z0-9_=-]{52}"),
    secret(
        "dropbox",
        "Dropbox access token",
        _FREE + r"sl\.(?:u\.)?[A-Za-z0-9_-]{130,}",
        LIKELY,
        is_strewn,
        "sl.",
    ),
    token("duffel", "Duffel token", ("duffel_live_", "duffel_test_"), r"[A-Za-z0-9_=-]{43}"),
    secret(
        "dynatrace",
        "Dynatrace token",
        _FREE + r"dt0[a-z][0-9]{2}\.[A-Z0-9]{24}\.[A-Z0-9]{64}" + _END,
        hint="dt0",
    ),
    token("easypost", "EasyPost key", ("EZAK", "EZTK"), r"[A-Za-z0-9]{54}"),
    secret(
        "facebook",
        "Facebook access token",
        _UNCODED + r"EAA[A-Za-z0-9]{100,}(?![A-Za-z0-9+/])",
        LIKELY,
        is_strewn,
        "EAA",
    ),
    secret("figma", "Figma token", _FREE + r"figd_[A-Za-z0-9_-]{40,}", hint="figd_"),
    token("fireworks", "Fireworks key", "fw_", r"[A-Za-z0-9]{20,}", LIKELY, is_strewn),
    token("flutterwave", "Flutterwave secret key", ("FLWSECK-", "FLWSECK_TEST-"), r"[a-z0-9]{32}-X"),
    token("flutterwave", "Flutterwave encryption key", "FLWSECK_TEST-", r"[a-z0-9]{12}"),
    token("fly", "Fly.io token", "fo1_", r"[A-Za-z0-9_-]{43}"),
    token("fly", "Fly.io token", ("fm1a_", "fm1r_", "fm2_"), r"[A-Za-z0-9+/]{100,}={0,3}"),
    token("frameio", "Frame.io token", "fio-u-", r"[A-Za-z0-9_=-]{64}"),
    token("grafana", "Grafana Cloud token", "glc_", r"[A-Za-z0-9+/]{32,400}={0,2}", valid=is_random),
    token("grafana", "Grafana key", "eyJrIjoi", r"[A-Za-z0-9]{70,400}={0,2}", LIKELY, is_random),
    token("harness", "Harness token", ("pat.", "sat."), r"[A-Za-z0-9_-]{22}\.[A-Za-z0-9]{24}\.[A-Za-z0-9]{20}"),
    token("heroku", "Heroku key", "HRKU-AA", r"[A-Za-z0-9_-]{58}"),
    token("huggingface", "Hugging Face token of an organisation", "api_org_", r"[A-Za-z0-9]{34}"),
    token("infracost", "Infracost key", "ico-", r"(?=[a-z0-9]*[A-Z])[A-Za-z0-9]{32}" + _ALONE, LIKELY, is_strewn),
    token("intra42", "Intra42 client secret", ("s-s4t2ud-", "s-s4t2af-"), r"[a-f0-9]{64}"),
    token("langsmith", "LangSmith key", ("lsv2_pt_", "lsv2_sk_"), r"[a-f0-9]{32}_[a-f0-9]{10}"),
    token("linear", "Linear access token", "lin_oauth_", r"[a-f0-9]{64}"),
    secret(
        "mailchimp",
        "Mailchimp key",
        r"[a-f0-9](?<![A-Za-z0-9_-].)[a-f0-9]{31}-us[0-9]{1,2}" + _ALONE,
        LIKELY,
        hint="-us",
    ),
    token("mapbox", "Mapbox secret token", ("sk.eyJ", "tk.eyJ"), r"[A-Za-z0-9_-]{20,}\.[A-Za-z0-9_-]{22}"),
    secret("maxmind", "MaxMind key", _FREE + r"[A-Za-z0-9]{6}_[A-Za-z0-9]{29}_mmk" + _END, hint="_mmk"),
    token("netlify", "Netlify token", "nfp_", r"[A-Za-z0-9_]{36,40}"),
    token("new_relic", "New Relic insert key", "NRII-", r"[A-Za-z0-9_-]{32}"),
    token("nuget", "NuGet key", "oy2", r"[a-z0-9]{43}", LIKELY, is_random),
    token("octopus", "Octopus Deploy key", "API-", r"[A-Z0-9]{26}", LIKELY, is_random),
    secret("okta", "Okta token", _FREE + r"SSWS\s{1,4}(00[A-Za-z0-9_-]{40})" + _END, valid=is_random, hint="SSWS"),
    token("onepassword", "1Password service account token", "ops_eyJ", r"[A-Za-z0-9+/]{250,}={0,3}"),
    token("openshift", "OpenShift token", "sha256~", r"[A-Za-z0-9_-]{43}"),
    token("pinecone", "Pinecone key", "pcsk_", r"[A-Za-z0-9]{5,6}_[A-Za-z0-9]{63}"),
    token("plaid", "Plaid access token", ("access-sandbox-", "access-development-", "access-production-"), _UUID),
    token(
        "planetscale",
        "PlanetScale token or password",
        ("pscale_tkn_", "pscale_pw_", "pscale_oauth_"),
        r"[A-Za-z0-9_.=-]{31,63}[A-Za-z0-9_=-]",
    ),
    token("posthog", "PostHog key", ("phx_", "phs_", "pha_", "phr_"), r"[A-Za-z0-9]{40,60}"),
    token("prefect", "Prefect key", "pnu_", r"[A-Za-z0-9]{36}"),
    token("pulumi", "Pulumi token", "pul-", r"[a-f0-9]{40}"),
    token("readme", "ReadMe key", "rdme_", r"[a-z0-9]{70}"),
    token("replicate", "Replicate token", "r8_", r"[A-Za-z0-9_-]{37}", LIKELY, is_strewn),
    token("rubygems", "RubyGems key", "rubygems_", r"[a-f0-9]{48}"),
    token("scalingo", "Scalingo token", "tk-us-", r"[A-Za-z0-9_-]{48}", LIKELY, is_random),
    token("sentry", "Sentry token of an organisation", "sntrys_eyJ", r"[A-Za-z0-9+/]{10,400}={0,2}_[A-Za-z0-9+/]{43}"),
    token("settlemint", "SettleMint token", ("sm_aat_", "sm_pat_", "sm_sat_"), r"[A-Za-z0-9]{16}"),
    token("shippo", "Shippo token", ("shippo_live_", "shippo_test_"), r"[a-fA-F0-9]{40}"),
    token("snyk", "Snyk token", ("snyk_uat.", "snyk_sat."), _SNYK, LIKELY, is_random),
    token("sonarqube", "SonarQube token", ("squ_", "sqp_", "sqa_"), r"[a-f0-9]{40}"),
    token("sourcegraph", "Sourcegraph token", "sgp_", r"(?:(?:[a-f0-9]{16}|local)_)?[a-f0-9]{40}"),
    token("square", "Square access token", "sq0atp-", r"[A-Za-z0-9_-]{22}"),
    token("square", "Square application secret", "sq0csp-", r"[A-Za-z0-9_-]{43}"),
    secret(
        "square",
        "Square access token",
        _UNCODED + r"EAAA[A-Za-z0-9_+=-]{60}(?![A-Za-z0-9+/])",
        LIKELY,
        is_strewn,
        "EAAA",
    ),
    token("supabase", "Supabase access token", "sbp_", r"(?:oauth_|v0_)?[a-f0-9]{40}"),
    token("supabase", "Supabase secret key", "sb_secret_", r"[A-Za-z0-9_-]{20,}", LIKELY, is_random),
    token("tailscale", "Tailscale key", "tskey-", r"(?:[a-z]{3,12}-)?[A-Za-z0-9]{8,40}-[A-Za-z0-9]{16,60}"),
    secret(
        "teams",
        "Microsoft Teams webhook",
        rf"{_HTTPS}{_FREE}[A-Za-z0-9-]{{1,63}}\.webhook\.office\.com/webhookb2/{_UUID}@{_UUID}/IncomingWebhook"
        r"/[A-Za-z0-9]{32}(?:/[A-Za-z0-9_-]{1,128}){1,2}",
        hint=".webhook.office.com/webhookb2/",
    ),
    token("tencent", "Tencent Cloud secret id", "AKID", r"[A-Za-z0-9]{32}", LIKELY, is_strewn),
    secret(
        "tencent",
        "Tencent Cloud secret key beside its id",
        rf"{_FREE}AKID[A-Za-z0-9]{{32}}{_BESIDE}([A-Za-z0-9]{{32}}){_END}",
        valid=is_random,
        hint="AKID",
    ),
    secret(
        "terraform",
        "Terraform Cloud token",
        _FREE + r"[A-Za-z0-9]{14}\.atlasv1\.[A-Za-z0-9_=-]{60,70}" + _END,
        hint=".atlasv1.",
    ),
    # It begins with a number of 128 bits that is nearly all zeros, in base64 with `%2B`, `%2F` and `%3D`.
    secret(
        "twitter",
        "X (Twitter) bearer token",
        r"A{20}(?<![A-Za-z0-9_+/%-].{20})[A-Za-z0-9%]{80,104}(?![A-Za-z0-9_+/=%-])",
        LIKELY,
        is_strewn,
        "A" * 20,
    ),
    token("typeform", "Typeform token", "tfp_", r"[A-Za-z0-9_.=-]{59}"),
    token("yandex", "Yandex Cloud key", "AQVN", r"[A-Za-z0-9_-]{35,38}", LIKELY, is_strewn),
    token("yandex", "Yandex Cloud token", "t1.", r"[A-Za-z0-9_-]{20,}={0,2}\.[A-Za-z0-9_-]{86}={0,2}"),
)
