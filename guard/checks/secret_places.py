"""The credentials that one knows by what stands before them: a name, a header, an address, the option of a command.

The value has no form of its own, so what it must look like depends on how much its place says: after `password = "` a
digit is enough, after "the password" and nothing else it must look like no word, number or name of a method.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ringfence.guard.checks.formats import Format, by_word
from ringfence.guard.checks.secret_forms import EXACT, LIKELY, NAMED, secret
from ringfence.guard.checks.secret_values import (
    is_basic,
    is_lettered_password,
    is_meant,
    is_passphrase,
    is_password,
    is_password_in_prose,
    is_strewn,
)


@dataclass(frozen=True, slots=True)
class Name:
    """What a secret is called.

    Attributes:
        words: one of them stands at the start of the pattern.
        pattern: may look behind itself. It ends with what is named: `password_hash` is a hash, `token_url` an address.
    """

    words: tuple[str, ...]
    pattern: str


def called(*words: str) -> Name:
    """Return the name that is one of these words."""
    return Name(words, f"(?:{'|'.join(words)})")


PASSWORD = Name(
    (
        *(
            "passwor",
            "passwd",
            "pwd",
            "pass",
            "kennwort",
            "contrase",
            "mot de passe",
            "senha",
            "wachtwoord",
            "lösenord",
        ),
        *("hasło", "пароль", "şifre", "密码", "密碼", "パスワード", "비밀번호"),
    ),
    r"(?:passwor[dt]|passwd|pwd|pass[ _-]?phrase|kennwort|contrase[nñ]a|mot de passe|senha|wachtwoord|lösenord|hasło"
    r"|пароль|şifre|密码|密碼|パスワード|비밀번호)",
)
# Short names begin a word, or a hump of one (`dbPass`). `PASS: TestLogin2` is what a test runner prints.
SHORT_PASSWORD = Name(
    ("pw", "mdp", "storepass", "keypass", "pass"),
    r"(?:(?<![A-Za-z])(?:pw|mdp|storepass|keypass|(?-i:pass|Pass|PASS(?!:[ \t]))|(?<=[_.-])pass)"
    r"|(?-i:(?<=[a-z])P(?:ass|w)))",
)
KINDS_OF_KEY = (
    *("access", "account", "admin", "api", "app", "application", "auth", "client", "consumer", "deploy", "encryption"),
    *("hmac", "integration", "jwt", "master", "private", "secret", "service", "session", "shared", "signing"),
    *("storage", "subscription", "webhook"),
    *(f"{whose} " for whose in ("my", "our", "mein", "meine", "mi")),
)
# Tokens of this kind say where a list goes on, or what a tokenizer puts in, or whose an assembly is; they open nothing.
HARMLESS_TOKENS = (
    *("page", "paging", "pagination", "continuation", "next", "sync", "resume", "cursor"),
    *("pad", "mask", "publickey"),
)
_KIND = "|".join(rf"(?<={kind})|(?<={kind}[_ -])" for kind in KINDS_OF_KEY)
_HARMLESS = "".join(rf"(?<!{kind})(?<!{kind}[_ -])" for kind in HARMLESS_TOKENS)
KEY = Name(
    ("key", "schlüssel", "clave", "token", "secret"),
    rf"(?:(?:{_KIND})(?:key|schlüssel|clave)|{_HARMLESS}token|secret)",
)
AWS_SECRET = Name(("secret", "aws"), r"(?:secret[_ -]?access[_ -]?key|aws[_ -]?secret[_ -]?key)")
AZURE_KEY = Name(("account", "storage"), r"(?:account[_ -]?key|storage[_ -]?(?:account[_ -]?)?key)")


def after(
    name: Name,
    category: str,
    what: str,
    place: str,
    valid: Callable[[str], bool],
    score: float = NAMED,
) -> Format:
    """Return the row of `secret.CATEGORY` that stands after a name, in any case."""
    find = by_word(name.words, name.pattern + place, score, valid, re.IGNORECASE)
    return Format(f"secret.{category}", what, find)


# What stands between a name and its value: `name = "`, `"name": "`, also inside a JSON string, `name["x"] = "`,
# `name: type = "`, `name for the new laptop is `. A value does not stand on the next line, but after a word.
_FOR = r"(?: (?:for|to|of|on|at|del?|du|für|zum|vom)(?: [\w'-]{1,20}){1,5}?)?"
_TYPE = r"(?::[ \t]?[\w.]{1,24}(?:\[[\w, ]{1,24}\])?[ \t]?=)"
_IS = (
    rf"""\\?["'`]?\]?{_FOR}(?:[ \t]{{0,4}}(?:{_TYPE}|:?=>?|[:：])(?!=)[ \t]{{0,4}}"""
    r"""|\s(?:is|ist|es|est|é|è|lautet)\s{1,4}|\s?[是は]\s?(?=[!-~]{6}))"""
)
_OPEN = r"""(?:[brBR@]?\\?["'`])?"""
# `<add key="name" value="`, `variable "name" { … default = "`, `setenv("name", "`
_ELSEWHERE = (
    r"""["'](?:\s{1,8}(?:\w{1,12}:)?value\s{0,2}=|\s{0,4}\{[^{}]{0,200}?\bdefault\s{0,8}=|[ \t]?,)\s{0,4}["']"""
)
# Between an option's name and its value, or in a list of credentials such as `.netrc`.
_SPACE = r"""[ \t]{1,4}["'`]?(?!-)"""
_QUOTED = r"""\\?["'`]([^\s"'`\\]{6,128})\\?["'`]"""
_ON = r"(?![;&,]\w{1,40}=)"
# Half of a password is most of one: what ends a sentence is left out, what ends a pair of a list of pairs too.
_BARE = rf"""((?:{_ON}[^\s"'`<>]){{5,127}}{_ON}[^\s"'`<>,;:.?)}}\]\\])"""
_KEY = r"([\w.~+/=-]{15,4095}[\w+/=-])"
# Whatever the scheme is called: `Bearer`, `Token`, `ApiKey`, or nothing.
_SCHEME = r"(?:[a-z][a-z-]{1,19} {1,4})?"

# The options by which a command takes a password. `{}` is where the password stands.
_USER = r"""["']?[^\s:"']{1,64}:{}"""
_DASH_P = r"""-p ?["']?{}"""
COMMANDS = (
    (("curl",), r"(?:-u|-U|--user|--proxy-user)[ =]?" + _USER),
    (("http", "https"), r"(?:-a|--auth)[ =]" + _USER),
    (("mysql", "mysqldump", "mysqladmin", "mariadb", "mariadb-dump", "7z", "rar"), r"""-p["']?{}"""),
    (("sshpass", "mongo", "mongosh", "mongodump", "docker login", "podman login", "twine upload"), _DASH_P),
    (("redis-cli",), r"""(?:-a|--pass) ["']?{}"""),
    (("zip", "unzip"), r"""-P ?["']?{}"""),
    (("ldapsearch", "ldapmodify", "ldapadd", "ldapdelete", "ldappasswd", "ldapwhoami"), r"""-w ["']?{}"""),
    (("net use",), r"""/user:\S{1,64} ["']?{}"""),
    (("smbclient", "rpcclient"), r"""-U ["']?[^\s%"']{1,64}%{}"""),
    (("ConvertTo-SecureString",), r"""(?:-String )?["']{}"""),
)
_ARGUMENT = r"""(?!-)([^\s"'`|<>]{5,127}[^\s"'`|<>,;])"""
_OPTIONS = r"[ \t](?:(?:[^\n|;]|\\\n){0,200}?[ \t])??"


def on_command_line(commands: Sequence[str], option: str) -> Format:
    """Return the row of a password that some commands take by an option; see `COMMANDS`."""
    pattern = rf"(?<![\w.-])(?:{'|'.join(commands)}){_OPTIONS}{option.replace('{}', _ARGUMENT)}"
    words = tuple(command.lower() for command in commands)
    return Format("secret.password", "password on a command line", by_word(words, pattern, NAMED, is_lettered_password))


PLACES = (
    after(
        AWS_SECRET,
        "aws_secret",
        "AWS secret access key",
        rf"(?:{_IS}|[ \t]){_OPEN}([A-Za-z0-9/+]{{40}})(?![A-Za-z0-9/+=])",
        is_meant,
        EXACT,
    ),
    after(
        AZURE_KEY,
        "azure",
        "Azure storage key",
        rf"(?:{_IS}|[ \t]){_OPEN}([A-Za-z0-9+/]{{86}}==)",
        is_meant,
        EXACT,
    ),
    secret(
        "password",
        "password in an address",
        r"://[^\s:/@\"']{0,64}:([^\s/@\"']{3,128})@[\w\[]",
        LIKELY,
        is_password,
        "://",
    ),
    after(called("bearer"), "bearer", "bearer token", r"\s{1,4}" + _KEY, is_strewn),
    after(called("basic"), "basic_auth", "basic credentials", r"\s{1,4}([\w+/-]{8,1023}=*)", is_basic),
    after(
        KEY,
        "api_key",
        "key or token in quotes",
        rf"""(?:{_IS}[brBR@]?\\?["'`]|{_ELSEWHERE})([!#-&(-\[\]-_a-~]{{16,512}})(?=["'`])""",
        is_strewn,
    ),
    after(
        called("authorization"),
        "api_key",
        "key or token in a header",
        rf"(?:{_IS}{_OPEN}|{_ELSEWHERE}){_SCHEME}{_KEY}",
        is_strewn,
    ),
    after(KEY, "api_key", "key or token in an assignment", _IS + _OPEN + _KEY, is_strewn),
    after(KEY, "api_key", "key or token after its name", _SPACE + r"(?=\S{20})" + _KEY, is_strewn),
    *(
        after(name, "password", f"password in {where}", place, valid)
        for name, valid in ((PASSWORD, is_password), (SHORT_PASSWORD, is_lettered_password))
        for where, place in (
            ("quotes", rf"(?:{_IS}[brBR@]?{_QUOTED}|{_ELSEWHERE}([^\s\"']{{6,128}})[\"'])"),
            ("an assignment", _IS + _OPEN + _BARE),
        )
    ),
    *(
        after(name, "password", "password in prose", _SPACE + _BARE, is_password_in_prose)
        for name in (PASSWORD, SHORT_PASSWORD)
    ),
    after(Name(("pass",), "pass[ _-]?phrase"), "password", "passphrase", rf'{_IS}"([\w -]{{12,60}})"', is_passphrase),
    secret(
        "password",
        "password in an element",
        rf"""<(?:[\w:.-]{{0,40}}|\w{{1,20}} (?:name|key)=["'][\w:.-]{{0,80}}){PASSWORD.pattern}["']?>"""
        r"([^\s<>]{6,128})</",
        NAMED,
        is_password,
        "</",
        re.IGNORECASE,
    ),
    secret(
        "password",
        "password in an option",
        rf"(?<!\S)--?(?:[a-z]{{1,20}}-){{0,3}}(?:{PASSWORD.pattern}|{SHORT_PASSWORD.pattern}){_SPACE}{_BARE}",
        NAMED,
        is_password,
        " -",
        re.IGNORECASE,
    ),
    *(on_command_line(commands, option) for commands, option in COMMANDS),
    secret(
        "password",
        "password into a pipe",
        r"""\becho (?:-n )?["']?([^\s"'|]{6,128})["']? ?\| ?(?:sudo -S|chpasswd|passwd --stdin|docker login)""",
        NAMED,
        is_lettered_password,
        "echo ",
    ),
    secret(
        "password",
        "password in .pgpass",
        r"^[\w.*-]{1,80}:(?:[0-9]{4,5}|\*):[\w*-]{1,64}:[\w*.-]{1,64}:([^\s:]{8,128})$",
        NAMED,
        is_lettered_password,
        flags=re.MULTILINE,
    ),
)
