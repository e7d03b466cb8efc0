import random
import re
import string
from base64 import b64encode
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringfence.guard.check import Passage
from ringfence.guard.checks.secrets import FORMATS, SecretsCheck
from ringfence.policies.types import Stage

CHECK = SecretsCheck()
WORD = string.ascii_letters + string.digits
HEX = "0123456789abcdef"
UPPER = string.ascii_uppercase + string.digits
LOWER = string.ascii_lowercase + string.digits
SAFE = WORD + "-_"
PEM = "PRIVATE KEY-----"


def drawn(length, alphabet=WORD, seed=7):
    """A value that looks random and is the same in every run; written out, it would alarm scanners of repositories."""
    return "".join(random.Random(seed).choices(alphabet, k=length))


def find(text):
    return CHECK.find(Passage(Stage.INPUT, "user", text))


def seen(text):
    return [(f.category.removeprefix("secret."), text[f.spans[0].start : f.spans[0].end]) for f in find(text)]


KEYS = [
    ("openai_key", "sk-" + "proj-" + drawn(48)),
    ("openai_key", "sk-" + drawn(20) + "T3Blbk" + "FJ" + drawn(20)),
    ("anthropic", "sk-" + "ant-api03-" + drawn(93) + "-AA"),
    ("aws_access_key", "AKIA" + drawn(16, string.ascii_uppercase)),
    ("github", "ghp" + "_" + drawn(36)),
    ("github", "github" + "_pat_" + drawn(22) + "_" + drawn(59)),
    ("gitlab", "glpat" + "-" + drawn(20)),
    ("google_api_key", "AIza" + drawn(35)),
    ("google_oauth", "GOCSPX" + "-" + drawn(28)),
    ("google_oauth", "ya29" + "." + drawn(60)),
    ("slack", "xoxb" + "-123456789012-" + drawn(24)),
    ("slack", "xapp" + "-1-A0123-" + drawn(24)),
    ("stripe", "sk" + "_live_" + drawn(24)),
    ("stripe", "rk" + "_test_" + drawn(24)),
    ("stripe", "whsec" + "_" + drawn(32)),
    ("huggingface", "hf" + "_" + drawn(34)),
    ("npm", "npm" + "_" + drawn(36)),
    ("pypi", "pypi" + "-AgEIcHlwaS5vcmc" + drawn(60)),
    ("sendgrid", "SG" + "." + drawn(22) + "." + drawn(43)),
    ("telegram", "123456789:" + "AA" + drawn(33)),
    ("digitalocean", "dop" + "_v1_" + drawn(64, HEX)),
    ("shopify", "shpat" + "_" + drawn(32, HEX)),
    ("databricks", "dapi" + drawn(32, HEX)),
    ("groq", "gsk" + "_" + drawn(52)),
    ("xai", "xai" + "-" + drawn(80)),
    ("vault", "hvs" + "." + drawn(24)),
    ("docker", "dckr" + "_pat_" + drawn(27)),
    ("discord", "MT" + drawn(24) + "." + drawn(6) + "." + drawn(38)),
    ("twilio", "SK" + drawn(32, HEX)),
    ("mailgun", "key" + "-" + drawn(32, HEX)),
    ("mailgun", drawn(32, HEX) + "-" + drawn(8, HEX) + "-" + drawn(8, HEX)),
    ("notion", "ntn" + "_12345678901" + drawn(35)),
    ("notion", "secret" + "_" + drawn(43)),
    ("doppler", "dp" + ".pt." + drawn(43)),
    ("grafana", "glsa" + "_" + drawn(32) + "_" + drawn(8, HEX)),
    ("linear", "lin" + "_api_" + drawn(40)),
    ("perplexity", "pplx" + "-" + drawn(48)),
    ("postman", "PMAK" + "-" + drawn(24, HEX) + "-" + drawn(34, HEX)),
    ("new_relic", "NRAK" + "-" + drawn(27, UPPER)),
    ("sentry", "sntryu" + "_" + drawn(64, HEX)),
    ("deepl", "-".join(drawn(n, HEX) for n in (8, 4, 4, 4, 12)) + ":fx"),
    ("onepassword", "-".join(["A3", *(drawn(n, UPPER) for n in (6, 11, 5, 5, 5))])),
    ("private_key", b64encode(("-----BEGIN RSA " + PEM + "\n" + drawn(200)).encode()).decode()),
    ("age", "AGE-SECRET-" + "KEY-1" + drawn(58, string.ascii_uppercase)),
    ("jwt", "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9" + ".eyJzdWIiOiI0MiJ9." + drawn(43)),
    ("azure", drawn(3) + "8Q~" + drawn(34)),
    ("private_key", "-----BEGIN " + PEM + "\n" + drawn(64) + "\n-----END " + PEM),
    ("private_key", "-----BEGIN OPENSSH " + PEM + "\n" + drawn(64) + "\n-----END OPENSSH " + PEM),
    ("private_key", "-----BEGIN RSA " + PEM + "\nProc-Type: 4,ENCRYPTED\n\n" + drawn(64) + "\n-----END RSA " + PEM),
    ("private_key", "-----BEGIN EC " + PEM + "\\n" + drawn(64) + "\\n-----END EC " + PEM),
]


@pytest.mark.parametrize(("category", "key"), KEYS)
@pytest.mark.parametrize(
    "around", ["{}", "key: {}.", "'{}'", "a={} b", "\n{}\n", "🙂{}🙂", "({})", "https://x.io/?k={}"]
)
def test_key_is_found_to_the_character_wherever_it_stands(category, key, around):
    assert (category, key) in seen(around.format(key))


OF_ONE_LENGTH = [
    ("adafruit", "aio" + "_" + drawn(28)),
    ("adobe", "p8" + "e-" + drawn(32)),
    ("airtable", "pat" + drawn(14) + "." + drawn(64, HEX)),
    ("artifactory", "AKCp" + drawn(69)),
    ("artifactory", "cmVmd" + "Gtu" + drawn(56)),
    ("atlassian", "ATATT3" + "xFfGF0" + drawn(171, SAFE) + "=" + drawn(8, UPPER)),
    ("atlassian", "ATCTT3" + "xFfGN0" + drawn(171, SAFE) + "=" + drawn(8, UPPER)),
    ("brevo", "xkeysib" + "-" + drawn(64, HEX) + "-" + drawn(16)),
    ("buildkite", "bkua" + "_" + drawn(40, HEX)),
    ("clickhouse", "4b" + "1d" + drawn(38)),
    ("clojars", "CLOJARS" + "_" + drawn(60, HEX)),
    ("cloudflare", "v1.0" + "-" + drawn(24, HEX) + "-" + drawn(146, HEX)),
    ("contentful", "CFPAT" + "-" + drawn(43, SAFE)),
    ("defined_networking", "dnkey" + "-" + drawn(26, UPPER) + "-" + drawn(52, UPPER)),
    ("duffel", "duffel" + "_live_" + drawn(43, SAFE)),
    ("dynatrace", "dt0" + "c01." + drawn(24, UPPER) + "." + drawn(64, UPPER)),
    ("easypost", "EZAK" + drawn(54)),
    ("easypost", "EZTK" + drawn(54)),
    ("flutterwave", "FLWSECK" + "-" + drawn(32, LOWER) + "-X"),
    ("flutterwave", "FLWSECK" + "_TEST-" + drawn(32, LOWER) + "-X"),
    ("flutterwave", "FLWSECK" + "_TEST-" + drawn(12, LOWER)),
    ("fly", "fo1" + "_" + drawn(43, SAFE)),
    ("frameio", "fio-u" + "-" + drawn(64, SAFE)),
    ("gitlab", "GR1348941" + drawn(20)),
    ("harness", "pat" + "." + drawn(22, SAFE) + "." + drawn(24) + "." + drawn(20)),
    ("heroku", "HRKU" + "-AA" + drawn(58, SAFE)),
    ("huggingface", "api" + "_org_" + drawn(34)),
    ("infracost", "ico" + "-" + drawn(32)),
    ("intra42", "s-s4t2ud" + "-" + drawn(64, HEX)),
    ("langsmith", "lsv2" + "_pt_" + drawn(32, HEX) + "_" + drawn(10, HEX)),
    ("linear", "lin" + "_oauth_" + drawn(64, HEX)),
    ("mapbox", "sk" + ".eyJ" + drawn(70) + "." + drawn(22, SAFE)),
    ("maxmind", drawn(6) + "_" + drawn(29) + "_mmk"),
    ("new_relic", "NRII" + "-" + drawn(32, SAFE)),
    ("nuget", "oy" + "2" + drawn(43, LOWER)),
    ("octopus", "API" + "-" + drawn(26, UPPER)),
    ("openshift", "sha256" + "~" + drawn(43, SAFE)),
    ("pinecone", "pcsk" + "_" + drawn(6) + "_" + drawn(63)),
    ("plaid", "access" + "-sandbox-" + "-".join(drawn(n, HEX) for n in (8, 4, 4, 4, 12))),
    ("prefect", "pnu" + "_" + drawn(36)),
    ("pulumi", "pul" + "-" + drawn(40, HEX)),
    ("readme", "rdme" + "_" + drawn(70, LOWER)),
    ("replicate", "r8" + "_" + drawn(37)),
    ("rubygems", "rubygems" + "_" + drawn(48, HEX)),
    ("scalingo", "tk-us" + "-" + drawn(48, SAFE)),
    ("sentry", "sntrys" + "_eyJ" + drawn(120) + "=_" + drawn(43)),
    ("settlemint", "sm" + "_aat_" + drawn(16)),
    ("shippo", "shippo" + "_test_" + drawn(40, HEX)),
    ("sonarqube", "squ" + "_" + drawn(40, HEX)),
    ("sonarqube", "sqp" + "_" + drawn(40, HEX)),
    ("sourcegraph", "sgp" + "_" + drawn(16, HEX) + "_" + drawn(40, HEX)),
    ("sourcegraph", "sgp" + "_local_" + drawn(40, HEX)),
    ("sourcegraph", "sgp" + "_" + drawn(40, HEX)),
    ("square", "sq0atp" + "-" + drawn(22, SAFE)),
    ("square", "sq0csp" + "-" + drawn(43, SAFE)),
    ("square", "EAAA" + drawn(60)),
    ("supabase", "sbp" + "_" + drawn(40, HEX)),
    ("supabase", "sbp" + "_oauth_" + drawn(40, HEX)),
    ("tencent", "AK" + "ID" + drawn(32)),
    ("typeform", "tfp" + "_" + drawn(59, SAFE)),
    ("yandex", "t1" + "." + drawn(60, SAFE) + "." + drawn(86, SAFE)),
]
OF_ANY_LENGTH = [
    ("openrouter", "sk-" + "or-v1-" + drawn(64, HEX)),
    ("alibaba", "LTAI" + drawn(20)),
    (
        "authress",
        "sc" + "_" + drawn(10, LOWER) + "." + drawn(5, LOWER) + ".acc_" + drawn(12, LOWER) + "." + drawn(44, SAFE),
    ),
    ("aws_bedrock", "ABSK" + b64encode(("BedrockAPIKey-x:" + drawn(70)).encode()).decode()),
    (
        "aws_bedrock",
        "bedrock" + "-api-key-" + b64encode(("bedrock.amazonaws.com/?Action=" + drawn(90)).encode()).decode(),
    ),
    ("dropbox", "sl" + "." + drawn(137, SAFE)),
    ("dropbox", "sl" + ".u." + drawn(300, SAFE)),
    ("facebook", "EAAC" + drawn(180)),
    ("figma", "figd" + "_" + drawn(40, SAFE)),
    ("fireworks", "fw" + "_" + drawn(24)),
    ("fly", "fm2" + "_" + drawn(400) + "=="),
    ("gitlab", "gloas" + "-" + drawn(64, HEX)),
    ("gitlab", "glpat" + "-" + drawn(32) + ".01.0w" + drawn(7, LOWER)),
    ("grafana", "glc" + "_eyJ" + drawn(120) + "="),
    ("grafana", "eyJr" + "Ijoi" + drawn(84) + "="),
    ("mailchimp", drawn(32, HEX) + "-us12"),
    ("onepassword", "ops" + "_eyJ" + drawn(600)),
    ("netlify", "nfp" + "_" + drawn(36)),
    ("netlify", "nfp" + "_" + drawn(40)),
    ("planetscale", "pscale" + "_tkn_" + drawn(43)),
    ("planetscale", "pscale" + "_pw_" + drawn(43)),
    ("posthog", "phx" + "_" + drawn(43)),
    ("posthog", "phs" + "_" + drawn(48)),
    ("slack", "xoxe" + ".xoxp-1-" + drawn(164)),
    ("slack", "xoxc" + "-2541715624-2536568458-2560197464-" + drawn(64, HEX)),
    ("slack", "xoxd" + "-" + drawn(120) + "%2B" + drawn(40)),
    ("snyk", "snyk" + "_uat." + drawn(8, HEX) + "." + drawn(40) + "." + drawn(40)),
    ("supabase", "sb" + "_secret_" + drawn(31)),
    ("tailscale", "tskey" + "-auth-" + drawn(12) + "CNTRL-" + drawn(32)),
    ("tailscale", "tskey" + "-" + drawn(12) + "-" + drawn(22)),
    ("terraform", drawn(14) + ".atlas" + "v1." + drawn(66)),
    ("twitter", "A" * 21 + drawn(18) + "%2B" + drawn(22) + "%3D" + drawn(48)),
    ("yandex", "AQVN" + drawn(36)),
]


@pytest.mark.parametrize(("category", "key"), [*OF_ONE_LENGTH, *OF_ANY_LENGTH])
@pytest.mark.parametrize("around", ["{}", "key: {}.", "'{}'", "a={} b", "\n{}\n", "🙂{}🙂", "https://x.io/?k={}"])
def test_key_of_a_smaller_provider_is_found_to_the_character(category, key, around):
    assert (category, key) in seen(around.format(key))


@pytest.mark.parametrize(("category", "key"), OF_ONE_LENGTH)
def test_what_is_too_short_or_too_long_for_a_key_or_joined_to_a_word_is_none(category, key):
    assert [found for found, _ in seen(f"{key[:-1]} {key}0 x{key}")] == []


NAMED = drawn(40)
SHORT = drawn(16, LOWER)
LETTERED = [drawn(length, string.ascii_letters, seed) for length in (16, 20, 24, 32, 40) for seed in (1, 2)]
HOOK = "T0AB12CD3/" + "B0AB12CD3/" + drawn(24)
DISCORD = f"https://discord.com/api/webhooks/{'7' * 18}/{drawn(68)}"
UUIDS = ["-".join(drawn(n, HEX, seed) for n in (8, 4, 4, 4, 12)) for seed in (1, 2, 3)]
TEAMS = "https://acme.webhook.office.com/webhookb2/{}@{}/IncomingWebhook/{}/{}/V2{}".format(
    *UUIDS[:2], drawn(32, HEX), UUIDS[2], drawn(43, SAFE)
)
FLOW = "T0AB12CD3/" + "A0AB12CD3/442660231806210747/" + drawn(24)


@pytest.mark.parametrize(
    ("text", "category", "value"),
    [
        (f"aws_secret_access_key = {NAMED}", "aws_secret", NAMED),
        (f"AWS Secret Access Key is {NAMED}", "aws_secret", NAMED),
        (f"AccountKey={drawn(86)}==;", "azure", drawn(86) + "=="),
        (f"https://x.blob/y?sv=1&sig={drawn(43)}%3D&se=2", "azure", drawn(43) + "%3D"),
        (f"post to https://hooks.slack.com/services/{HOOK}.", "slack", f"https://hooks.slack.com/services/{HOOK}"),
        (f'api_key = "{NAMED}"', "api_key", NAMED),
        (f'{{"apiKey": "{NAMED}"}}', "api_key", NAMED),
        (f"client_secret: {NAMED}", "api_key", NAMED),
        (f"my API key is {NAMED}.", "api_key", NAMED),
        (f"https://x.io/reset?token={NAMED}", "api_key", NAMED),
        (f"Authorization: Bearer {NAMED}", "bearer", NAMED),
        (f"Authorization: Bearer {SHORT}", "bearer", SHORT),
        (f"Authorization: {SHORT}", "api_key", SHORT),
        (f'"authorization": "Klaviyo-API-Key {SHORT}"', "api_key", SHORT),
        (f".header('Authorization', '{SHORT}')", "api_key", SHORT),
        ("Authorization: Basic YWxhZGRpbjpvcGVuc2VzYW1l", "basic_auth", "YWxhZGRpbjpvcGVuc2VzYW1l"),
        ("postgres://admin:s3cr3tPw@db.example.com:5432/x", "password", "s3cr3tPw"),
        ("redis://:hunter2hunter2@10.0.0.1", "password", "hunter2hunter2"),
        ('password = "tr0ub4dor&3"', "password", "tr0ub4dor&3"),
        ("Server=db;Pwd=tr0ub4dor3;", "password", "tr0ub4dor3"),
        ("my password is hunter2", "password", "hunter2"),
        # Other names, other languages, words between.
        ("DB_PASS=Tw1light+Barn", "password", "Tw1light+Barn"),
        ('{"user": "a", "pass": "n0rthern-Elm"}', "password", "n0rthern-Elm"),
        ('dbPass = "n0rthern-Elm"', "password", "n0rthern-Elm"),
        ("user root, pw: n0rthern-Elm", "password", "n0rthern-Elm"),
        ("Das Kennwort lautet Apfel!Baum9.", "password", "Apfel!Baum9"),
        ("Le mot de passe est s0leil_levant", "password", "s0leil_levant"),
        ("senha: Praia*Azul7", "password", "Praia*Azul7"),
        ("密码：Praia*Azul7", "password", "Praia*Azul7"),
        ("the password for the staging box is Praia*Azul7", "password", "Praia*Azul7"),
        # Letters alone, and what ends a password or a sentence.
        ("MYSQL_PASSWORD=qTzKbWmRxLvNcH", "password", "qTzKbWmRxLvNcH"),
        ("my password is Praia*Azul! and it fails", "password", "Praia*Azul!"),
        ("password: 'Praia*Azul7.;'", "password", "Praia*Azul7.;"),
        ("Server=db;Password=Praia*Azul7;Encrypt=yes", "password", "Praia*Azul7"),
        ("jdbc:x://h/d?password=Praia*Azul7&ssl=true", "password", "Praia*Azul7"),
        ("PASSWORD: str = 'Praia*Azul7'", "password", "Praia*Azul7"),
        ('The passphrase is "violet kettle 9 meadow".', "password", "violet kettle 9 meadow"),
        # Nothing between, elements, a default.
        ("machine h.example login ci password Praia*Azul7", "password", "Praia*Azul7"),
        ("sign in with the password Praia*Azul7, then", "password", "Praia*Azul7"),
        ("<db:password>Praia*Azul7</db:password>", "password", "Praia*Azul7"),
        ('<entry key="smtp.password">Praia*Azul7</entry>', "password", "Praia*Azul7"),
        ('variable "pg_password" {\n  default = "Praia*Azul7"\n}', "password", "Praia*Azul7"),
        ("define('DB_PASSWORD', 'Praia*Azul7');", "password", "Praia*Azul7"),
        (f'setenv("API_KEY", "{NAMED}")', "api_key", NAMED),
        ("new laptop pw Praia*Azul7", "password", "Praia*Azul7"),
        # Command lines.
        ("curl -s -u admin:Praia*Azul7 https://h.example", "password", "Praia*Azul7"),
        ("curl -X PUT \\\n  --user 'admin:Praia*Azul7' x", "password", "Praia*Azul7"),
        ("mysqldump -u root -pPraia*Azul7 shop", "password", "Praia*Azul7"),
        ("sshpass -p Praia*Azul7 ssh h", "password", "Praia*Azul7"),
        ("redis-cli -a Praia*Azul7 ping", "password", "Praia*Azul7"),
        ("tool --db-password Praia*Azul7 --force", "password", "Praia*Azul7"),
        ("keytool -storepass Praia*Azul7", "password", "Praia*Azul7"),
        ("echo Praia*Azul7 | sudo -S reboot", "password", "Praia*Azul7"),
        ("db.example:5432:app:me:Praia*Azul7", "password", "Praia*Azul7"),
        # More names of keys.
        *((f"{name} = '{NAMED}'", "api_key", NAMED) for name in ("SECRET_KEY", "encryption_key", "CONSUMER_KEY")),
        *((f"{name}: {NAMED}", "api_key", NAMED) for name in ("subscription-key", "RAILS_MASTER_KEY", "signingKey")),
        (f'{{"a": "{{\\"X-Api-Key\\": \\"{NAMED}\\"}}"}}', "api_key", NAMED),
        (f'h["apikey"] = "{NAMED}"', "api_key", NAMED),
        (f'<add key="MailSecret" value="{NAMED}" />', "api_key", NAMED),
        (f"Authorization: Token {NAMED}", "api_key", NAMED),
        (f"my key for the weather service is {NAMED}", "api_key", NAMED),
        (f"aws configure set aws_secret_access_key {NAMED}", "aws_secret", NAMED),
        (f"--account-key {drawn(86)}==", "azure", drawn(86) + "=="),
        # Few digits or none: only the letters say that it was drawn.
        *((f"API_KEY={key}", "api_key", key) for key in LETTERED),
        *((f'auth_token: "{key[:9]}7{key[9:]}"', "api_key", f"{key[:9]}7{key[9:]}") for key in LETTERED),
        # Beside or within what has a form.
        (f'("AC{drawn(32, HEX)}", "{drawn(32, HEX, 8)}")', "twilio", drawn(32, HEX, 8)),
        (f"Authorization: SSWS 00{NAMED}", "okta", f"00{NAMED}"),
        (f"hooks.slack.com/workflows/{FLOW}", "slack", f"hooks.slack.com/workflows/{FLOW}"),
        (f"hook: {DISCORD}", "discord", DISCORD),
        (f"url = '{TEAMS}'", "teams", TEAMS),
        ('{"h": {"auth": "YWxhZGRpbjpvcGVuc2VzYW1l"}}', "docker", "YWxhZGRpbjpvcGVuc2VzYW1l"),
        (f"/bot123456789:AA{drawn(33)}/getMe", "telegram", f"123456789:AA{drawn(33)}"),
        (f"Private-Lines: 1\n{drawn(44)}\nPrivate-MAC: 0", "private_key", drawn(44)),
    ],
)
def test_value_after_a_telling_name_is_found(text, category, value):
    assert seen(text) == [(category, value)]


@pytest.mark.parametrize(
    "text",
    [
        # Prefixes without their keys, and before what is something else.
        "ATATT3xFfGF0... is how Atlassian's begin, sq0atp- Square's, pul- Pulumi's; pscale_tkn_, rubygems_, sntrys_eyJ…",
        f"ico-{drawn(32, HEX)}.png favicon-{drawn(32, HEX)} ico-chevron-down-large-variant-outlined-24px",
        f"image:{drawn(32, HEX)}-us1.cdn.example en-us12 {drawn(32, HEX)}-user",
        "API-REFERENCEFORDEVELOPERSOFAPPS API-" + "A" * 26,
        "fw_update_status_of_the_device_2024 fw_versionNumberOfTheFirmware r8_unorm_texture_format_of_the_second_image",
        f"https://x.example/v1.0-{drawn(40, HEX)} sha256~latest sha256:{drawn(64, HEX)} sat.{drawn(22)} compat.h",
        "AIO_PIPELINE_CONFIGURATION_NAME_2 aio_read_from_the_descriptor t1.micro t1.small.{} hunt1.txt",
        f"{drawn(30)}+EAAA{drawn(60)} {drawn(30)}/EAAA{drawn(180)}",
        f"data:font/woff2;base64,EAAA{drawn(24)}AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
        f'mapboxgl.accessToken = "{"pk" + ".eyJ" + drawn(70) + "." + drawn(22)}"',
        "FLWPUBK" + "_TEST-" + drawn(32, LOWER) + "-X",
        "sb" + "_publishable_" + drawn(31),
        "SSWS tokens begin with 00; Authorization: SSWS ${OKTA_TOKEN}",
        "pscale_tkn_your_token_goes_here_0123456789abcdef rdme_" + "x" * 70,
        f"commit {drawn(40, HEX)} sha256 {drawn(64, HEX)} md5 {drawn(32, HEX)}",
        "550e8400-e29b-41d4-a716-446655440000",
        f"data:image/png;base64,iVBORw0KGgo{drawn(400)}",
        "sk-" + "x" * 40,
        "sk-your-key-goes-here-1234567890ab",
        "API_KEY=YOUR_API_KEY_12345678 token=<insert-token-here-123456>",
        "export TOKEN=${GITHUB_TOKEN_1234567890} key={{ api_key_1234567890 }}",
        'api_key = os.environ["API_KEY"]; password = config.password; pwd = getpass()',
        "ghp_" + "x" * 36,
        "sk-circle-fade-dot sk-learn-contrib-examples-v12-notes task-1234567890abcdef1234567890",
        "postgres://user:password@localhost/db postgres://${U}:${P}@h/db http://h:8080/@me wss://a.b:443/x@y",
        "The password is required and case-sensitive; the secret is out; a token is half a word.",
        "Password: must have at least eight characters. passwd: files systemd",
        "def login(password: str, token: Optional[str] = None)",
        "-----BEGIN PUBLIC KEY-----\n" + drawn(64) + "\n-----END PUBLIC KEY-----",
        "-----BEGIN CERTIFICATE-----\n" + drawn(64),
        "It opens with -----BEGIN " + PEM + " and what follows is base64.",
        '{"max_tokens": 1024, "next_page_token": "CAUQAA", "tokens": 123456789012345678}',
        f"pk_live_{drawn(24)}",
        "basic knowledge, bearer of good news",
        "password = var.db_password; x = random_password.main.result; pwd = data.vault_secret.db.secret_string",
        "password=new_password2 password: form.password2 PASSWORD=DB_PASSWORD_1 password = self.cfg.pass2",
        "password: ${DB_PASSWORD_2} password: %DB_PASS2% password = @Password1 PWD=/home/jane/src2",
        f'{{"next_page_token": "{NAMED}", "continuationToken": "{NAMED}"}}',
        "AKIA" + "IOSFODNN7EXAMPLE aws_secret_access_key=wJalrXUtnFEMI" + "/K7MDENG/bPxRfiCYEXAMPLEKEY",
        "a bearer responsibilities1234567890abc; bearer specification-2024-revision-17",
        "Authorization: Bearer <token> Authorization: Bearer YOUR_TOKEN_2024_HERE Authorization: Bearer $TOKEN",
        "Authorization: Bearer abcdef1234567890 Bearer {{token_2024_q1}} Authorization: ${API_TOKEN_V2}, Bearer token",
        "Authorization: my-secret-token-123 Authorization: Token process.env.API_TOKEN_2 Authorization: YOUR_API_KEY_12",
        "Authorization: AWS4-HMAC-SHA256 X; apiVersion: rbac.authorization.k8s.io/v1beta1; authorization: OAuth2-Bearer",
        "DB_PASSWORD=\nDB_HOST2=localhost_5432",
        "DB_PASSWORD=file:/run/secrets/db_pw2 password: ssm:/prod/db/pw1 password: op://infra/db-2/password",
        '["password", "password_2", "Password2", "token", "refresh_token_v2_2024"]',
        "'password' => 'required|min:8|confirmed'",
        "--- PASS: TestLogin_2 (0.01s)\nPASS: TestLogin_2\npass: 100.0% bypass=on_2",
        "if password == confirm_password2: pass",
        "the password RFC2617-Digest, password PBKDF2-SHA256, password OAuth2.0, password Encoder2",
        'secret: "a_long_name_of_something_2024_v2"; cache_key = "' + NAMED + '"; publicKeyToken="1fc8b3b9a1e18e3b"',
        "curl -u $USER:$PASS2 x; curl -u user: x; mysql -u root -p shop; mysql --port=33060; sshpass -e ssh h2",
        "tool --password-stdin --password --force2 --password $PASS_2 -p 22022; ssh -p 2222 h; zip -r a2.zip b_1",
        '<a href="/password">Reset2FA</a> <label for="pwd">Password1!</label>',
        "www-data:x:33:33:www-data2 main.go:1234:15: undefined_2",
        "Passwort: mindestens 8 Zeichen. パスワードは8文字以上で、数字を1つ以上",
        'The passphrase is "a word that you must keep for the day".',
        # Names of things in place of a value: humps, abbreviations, words joined, in other languages too.
        "token = nextPageTokenCursorIdentifier; secret: NSUserDefaultsSecretKey, api_key = XMLHttpRequestTokenHeader",
        "apiKey: kSecAttrAccessibleWhenUnlockedThisDeviceOnly, authToken = getOAuthTokenFromSessionContext",
        "client_secret = CKEditorUploadTokenUrlProvider; session_key: AbstractSingletonProxyFactoryBean",
        "token: Rechtsschutzversicherungsgesellschaften secret=wszystkich-szczegolow-przyszlosci",
        f"api_key_hash md5 {drawn(32, HEX)} token_id urn:uuid:{UUIDS[0]} secret-santa-gift-exchange-generator",
        # The beginnings of keys, and what else begins so.
        f"patience.{drawn(64, HEX)} spat{drawn(14)}.{drawn(64, HEX)} oy2 4b1d{drawn(36, HEX)} 4b1d{drawn(60, HEX)}",
        f"{drawn(30)}/ABSK{drawn(200)} data:font/woff2;base64,{'A' * 40}{drawn(120)} AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
        "access-sandbox-of-the-plaid-account access-production-environment-settings tskey-auth-<your key here>",
        "phx_ is PostHog's, phc_" + drawn(43) + " is public; nfp_ Netlify's, figd_… Figma's, sl. Dropbox's",
        "sgp_1 sm_aat_ sl.wikipedia.org/wiki/" + "a" * 140 + " webhook.office.com/webhookb2/ CFPAT-xxxxxxxxxxxx",
        "hf_hub_download(repo_id) npm_config_cache gsk_" + "a" * 10,
        "",
    ],
)
def test_what_only_looks_like_a_secret_is_left_alone(text):
    assert seen(text) == []


@pytest.mark.parametrize(
    ("category", "key", "secret"),
    [("alibaba", "LTAI" + drawn(20), drawn(30, seed=8)), ("tencent", "AKID" + drawn(32), drawn(32, seed=8))],
)
def test_secret_beside_its_id_is_found_with_it(category, key, secret):
    assert seen(f"{key},{secret}") == [(category, key), (category, secret)]


def test_private_key_without_an_end_runs_to_the_end_of_the_text():
    key = "-----BEGIN " + PEM + "\n" + drawn(64) + "\nand then some"
    assert seen("Mine: " + key) == [("private_key", key)]


def test_private_key_is_known_from_its_header_on_however_little_has_come():
    header = "-----BEGIN RSA " + PEM
    text = header + "\n" + drawn(64) + "\n" + drawn(30)
    for end in range(len(header), len(text) + 1):
        assert seen(text[:end]) == [("private_key", text[:end])]


def test_provider_keeps_a_key_that_also_stands_in_an_assignment():
    key = "ghp" + "_" + drawn(36)
    assert seen(f'token = "{key}"') == [("github", key)]


def test_every_row_finds_something():
    keys = {category for category, _ in (*KEYS, *OF_ONE_LENGTH, *OF_ANY_LENGTH)}
    found = keys | {"aws_secret", "password", "bearer", "basic_auth", "api_key", "okta", "teams"}
    assert {row.category.removeprefix("secret.") for row in FORMATS.rows} == found


def test_the_page_names_every_provider():
    page = Path(__file__).parents[1].joinpath("docs", "checks.md").read_text(encoding="utf-8")
    listed = page.partition("### Secrets\n")[2].partition("\n### ")[0]
    named = re.findall(r"`secret\.([a-z0-9_]+)`", listed)
    assert named == sorted({row.category.removeprefix("secret.") for row in FORMATS.rows})


def test_detail_never_holds_the_secret():
    key = "ghp" + "_" + drawn(36)
    (finding,) = find(key)
    assert finding.detail == "GitHub token"


@given(st.text(max_size=60), st.text(max_size=60))
def test_key_is_found_whatever_stands_around_it(before, after):
    key = "ghp" + "_" + drawn(36)
    text = f"{before} {key} {after}"
    start = len(before) + 1
    assert any(f.spans[0].start <= start and f.spans[0].end >= start + len(key) for f in find(text))


@pytest.mark.parametrize(
    "unit",
    [
        *("a", "\n", "-----", "\"'", "eyJ", "-eyJ", "eyJabcdefgh.", "eyJabcdefgh.a", "sk-", "sk-a", "sk-ant-"),
        *("sk-aaaaaaaaaaaaaaaaaaaaaaaa ", "ghp_", "glpat-", "xoxb-", "ya29.", "hvs.", "pypi-AgE", "SG.", "AKIA"),
        *("-----BEGIN " + PEM, "-----BEGIN " + PEM + drawn(24), "-----BEGIN A A ", "123456789:AA", "1Q~", "?sig="),
        *("://", "://a:b", "://a", "password=", "password = ", "api_key=", "api_key   ", "secret ", "token is "),
        *(
            "bearer ",
            "bearer a.",
            "authorization: ",
            'authorization", "a',
            "authorization is for a a a ",
            "basic a",
            "AccountKey=",
            "key ",
            "my key for a a a ",
            'token="',
            "token=a",
            "pass",
        ),
        *(
            'password" { ',
            "--a-a-a",
            " -password ",
            "<password",
            '<a name="password',
            "curl ",
            "curl -u a:",
            "mysql -p",
        ),
        *("echo ", "AKIAAAAAAAAAAAAAAAAA ", "AC" + "0" * 32, "LS0tLS1CRUdJTi", "Private-Lines: 1\n" + "a" * 20 + "\n"),
        *(
            "M.",
            "Mabc-",
            "a:5432:b:c:",
            "secret_",
            "dp.pt.",
            "0-0-",
            'passphrase is "a ',
            "password: a[",
            "\u0130",
            ";a",
        ),
        *("EAA", " EAA", "/fm2_", "/glc_", "eyJrIjoi", "sntrys_eyJa", "sntrys_eyJaaaaaaaaaa", "ops_eyJ", "/ops_eyJ"),
        *("t1.a", "t1.aaaaaaaaaaaaaaaaaaaaaa.", "sk.eyJ", "snyk_uat.", "snyk_uat.aaaaaaaa.", "ATATT3", "-ATATT3"),
        *("pscale_tkn_", ".pscale_tkn_", "a.atlasv1.", "aaaaaa_mmk", "-us1", "xoxd-", "xoxd-a%", "LTAI", "SSWS 00"),
        *("hooks.slack.com/workflows/TAAAAAA/", "glpat-aaaaaaaaaaaaaaaaaaaa.0", "dt0c01.", "pat."),
        *(
            "A",
            "%A",
            "ABSK",
            "/ABSK",
            "bedrock-api-key-YmVkcm9jay5hbWF6b25hd3MuY29t",
            "sl.",
            "sl.u.a",
            "figd_",
            "-figd_a",
        ),
        *("pat", "sc_aaaaa.aaaa.acc_", "a.webhook.office.com/webhookb2/", "-a.webhook.office.com/webhookb2/", "tskey-"),
    ],
)
def test_time_grows_with_the_length_and_no_faster(unit, grows_with_its_length):
    assert grows_with_its_length(find, unit)
