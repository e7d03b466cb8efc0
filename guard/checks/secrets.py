"""Finds credentials by their form: provider keys, tokens, private keys, passwords in assignments and addresses.

It knows forms; it asks no provider whether a key works, and takes what is plainly a placeholder for none.

Scores say how sure the form alone makes it:
    0.99  a form that nothing else has (a provider's prefix with its exact length, a PEM block)
    0.9   a prefix that other things could share, with a tail that looks random
    0.8   no form of its own: a random-looking value right after a name such as `api_key` or `Bearer`
"""

from collections.abc import Sequence

from ringfence.guard.check import Findable, Finding, Passage
from ringfence.guard.checks.disguise import in_every_spelling
from ringfence.guard.checks.formats import Table, find_formats
from ringfence.guard.checks.secret_forms import FORMS
from ringfence.guard.checks.secret_places import PLACES

# First row first: an assignment of a key that a provider's row knows is the provider's.
FORMATS = Table((*FORMS, *PLACES))


class SecretsCheck:
    """Reports `secret.*`, one category for each provider or form; see `FORMATS`."""

    name = "secrets"
    categories = frozenset({"secret"})
    finds = tuple(Findable(name, 0.99) for name in sorted({row.category for row in FORMATS.rows}))

    def find(self, passage: Passage) -> Sequence[Finding]:
        """Return every stretch of the passage that has one of the forms, in whatever spelling; time is linear."""
        return in_every_spelling(self._find_as_it_is, passage)

    def _find_as_it_is(self, passage: Passage) -> Sequence[Finding]:
        return find_formats(self.name, FORMATS.possible(passage.text), passage)
