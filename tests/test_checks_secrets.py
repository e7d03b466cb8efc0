import random
import string
from base64 import b64encode

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
    ("openai_key", "sk-" + "or-v1-" + drawn(64, HEX)),
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


NAMED = drawn(40)
HOOK = "T0AB12CD3/" + "B0AB12CD3/" + drawn(24)


@pytest.mark.parametrize(
    ("text", "category", "value"),
    [
        (f"aws_secret_access_key = {NAMED}", "aws_secret", NAMED),
        (f"AWS Secret Access Key is {NAMED}", "aws_secret", NAMED),
        (f"AccountKey={drawn(86)}==;", "azure", drawn(86) + "=="),
        (f"https://x.blob/y?sv=1&sig={drawn(43)}%3D&se=2", "azure", drawn(43) + "%3D"),
        (f"https://hooks.slack.com/services/{HOOK}", "slack", HOOK),
        (f'api_key = "{NAMED}"', "api_key", NAMED),
        (f'{{"apiKey": "{NAMED}"}}', "api_key", NAMED),
        (f"client_secret: {NAMED}", "api_key", NAMED),
        (f"my API key is {NAMED}.", "api_key", NAMED),
        (f"https://x.io/reset?token={NAMED}", "api_key", NAMED),
        (f"Authorization: Bearer {NAMED}", "bearer", NAMED),
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
        # Beside or within what has a form.
        (f'("AC{drawn(32, HEX)}", "{drawn(32, HEX, 8)}")', "twilio", drawn(32, HEX, 8)),
        (f"https://discord.com/api/webhooks/{'7' * 18}/{drawn(68)}", "discord", f"{'7' * 18}/{drawn(68)}"),
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
        "hf_hub_download(repo_id) npm_config_cache gsk_" + "a" * 10,
        "",
    ],
)
def test_what_only_looks_like_a_secret_is_left_alone(text):
    assert seen(text) == []


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
    found = {category for category, _ in KEYS} | {"aws_secret", "password", "bearer", "basic_auth", "api_key"}
    assert {row.category.removeprefix("secret.") for row in FORMATS} == found


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
        *("bearer ", "bearer a.", "basic a", "AccountKey=", "key ", "my key for a a a ", 'token="', "token=a", "pass"),
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
    ],
)
def test_time_grows_with_the_length_and_no_faster(unit, grows_with_its_length):
    assert grows_with_its_length(find, unit)
