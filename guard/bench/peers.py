"""Other tools that look for personal data and secrets, where they are installed; each as it comes, in our words.

Neither is a dependency: `pip install 'ringfence[peers]'`. None may speak to the network: detect-secrets' verification,
which sends what it found to its provider, stays off, and Presidio loads a language model only where one is there.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple


class Scored(NamedTuple):
    """A finding: `[start, end)` in code points, its category in the words of the corpus, and how sure it is."""

    start: int
    end: int
    category: str
    score: float


@dataclass(frozen=True, slots=True)
class Peer:
    """One tool.

    Attributes:
        about: its version, and what is missing where it does not run as it was meant to.
        categories: of the corpus, those that it looks for.
        threshold: what its findings score at least where nobody sets anything.
        unmapped: what it reports that no category of the corpus stands for; left out of every figure.
    """

    name: str
    about: str
    categories: frozenset[str]
    find: Callable[[str], Sequence[Scored]]
    threshold: float = 0.0
    unmapped: tuple[str, ...] = ()


class NotInstalled(LookupError):
    """A tool is not there; the message says how to get it."""


ENTITIES = {
    "EMAIL_ADDRESS": "email",
    "PHONE_NUMBER": "phone",
    "CREDIT_CARD": "card",
    "IBAN_CODE": "iban",
    "IP_ADDRESS": "ip",
    "US_SSN": "ssn",
    "US_PASSPORT": "passport",
    "US_ITIN": "national_id",
    "US_DRIVER_LICENSE": "national_id",
    "UK_NHS": "national_id",
    "PERSON": "name",
}
"""Presidio's entities that a category of the corpus stands for; LOCATION is any town, DATE_TIME any date."""


def presidio() -> Peer:
    """Return Presidio's analyzer with its default recognizers, in English, the one language that it has by default.

    Raises:
        NotInstalled: it is not there.
    """
    try:
        spacy, tldextract = import_module("spacy"), import_module("tldextract")
        analyzer, engines = import_module("presidio_analyzer"), import_module("presidio_analyzer.nlp_engine")
    except ImportError:
        raise NotInstalled("presidio-analyzer is not installed: pip install 'ringfence[peers]'") from None
    logging.getLogger("presidio-analyzer").setLevel(logging.ERROR)
    model = next((name for name in sorted(spacy.util.get_installed_models()) if name.startswith("en_")), None)
    # It would fetch the list of top-level domains; one comes with it.
    tldextract.tldextract.TLD_EXTRACTOR = tldextract.TLDExtract(suffix_list_urls=())
    # Told no model that is there, it would fetch one.
    nlp = engines.SpacyNlpEngine(models=[{"lang_code": "en", "model_name": model or "none"}])
    nlp.nlp = {"en": spacy.load(model) if model else spacy.blank("en")}
    engine = analyzer.AnalyzerEngine(nlp_engine=nlp, supported_languages=["en"])
    supported = set(engine.get_supported_entities("en"))
    if not model:
        supported -= {"PERSON", "LOCATION", "NRP", "ORGANIZATION", "DATE_TIME"}
    without = "WITHOUT a language model, so crippled: no names, no lemmas of the words around"
    about = f"presidio-analyzer {version('presidio-analyzer')}, " + (
        f"{model} {nlp.nlp['en'].meta['version']}" if model else without
    )

    def find(text: str) -> list[Scored]:
        results = engine.analyze(text, language="en")
        return [Scored(r.start, r.end, ENTITIES[r.entity_type], r.score) for r in results if r.entity_type in ENTITIES]

    claimed = frozenset(ENTITIES[entity] for entity in supported & ENTITIES.keys())
    return Peer("presidio", about, claimed, find, 0.0, tuple(sorted(supported - ENTITIES.keys())))


NO_SECRETS = frozenset({"Public IP (ipv4)"})


def detect_secrets() -> Peer:
    """Return detect-secrets with all its plugins and its default filters; each text is a file of its own.

    Raises:
        NotInstalled: it is not there.
    """
    try:
        about = f"detect-secrets {version('detect-secrets')}, all plugins, verification off"
        scan, settings = import_module("detect_secrets.core.scan"), import_module("detect_secrets.settings")
    except (ImportError, PackageNotFoundError):
        raise NotInstalled("detect-secrets is not installed: pip install 'ringfence[peers]'") from None

    def find(text: str) -> list[Scored]:
        found = set()
        with TemporaryDirectory() as folder, settings.default_settings():
            path = Path(folder) / "text.txt"
            path.write_text(text, encoding="utf-8", newline="")
            for secret in scan.scan_file(str(path)):
                if secret.type not in NO_SECRETS and secret.secret_value:
                    found.update(places_of(text, secret.secret_value))
        return [Scored(start, end, "secret", 1.0) for start, end in sorted(found)]

    return Peer("detect-secrets", about, frozenset({"secret"}), find, 0.0, tuple(sorted(NO_SECRETS)))


def places_of(text: str, value: str) -> list[tuple[int, int]]:
    """Return every place of a value: the tool names its line, which is not always one of the text."""
    places, at = [], text.find(value)
    while at >= 0:
        places.append((at, at + len(value)))
        at = text.find(value, at + len(value))
    return places
