"""PolyGuard (Qwen2.5 0.5B and 7B, Ministral 8B): WildGuard's three answers in 17 languages, with the hazards of each.

The prompt is a system and a user message, which the template that comes with the weights puts together: Qwen's and
Ministral's are different ones. One request and one response are read: no earlier turns.

Sources: the model card of PolyGuard-Qwen-Smol, and its authors' code (kpriyanshu256/polyguard), which leaves the
response empty where there is none.
"""

import re
from collections.abc import Mapping, Sequence

from ringfence.guard.checks.guards import llama_guard, wildguard
from ringfence.guard.checks.guards.family import CONTROL, SECTION, Family, Form, Question, Turn, Wording, written_roles

CATEGORIES = llama_guard.CATEGORIES
"""Word for word those of Llama Guard 3."""

LABELS = (*wildguard.LABELS, "Request safety violations", "Response safety violations")

SEAMS = re.compile(
    "|".join(
        (
            CONTROL,
            SECTION,
            wildguard.MISTRAL,
            written_roles("Human user", "AI assistant", *LABELS),
        )
    ),
    re.IGNORECASE,
)

LINE = r"[^\n]{1,400}"
NAMED = rf"(?P<codes>{LINE})"


def form(asked: str, of_request: str, answered: str, of_response: str, which: str, until: str = "") -> Form:
    """Return the form of an answer of five lines: patterns of what four of them say, and whose hazards are read."""
    whole = (
        rf"\s*Harmful request: {asked}\s*\nRequest safety violations: {of_request}\nResponse refusal: {wildguard.ANY}"
        rf"\s*\nHarmful response: {answered}\s*\nResponse safety violations: {of_response}\s*"
    )
    return Form(re.compile(whole), lists=f" yes\n{which} safety violations: ", until=until)


ASKED = form(wildguard.VERDICT, NAMED, wildguard.ANY, LINE, "Request")
ANSWERED = form(wildguard.ANY, LINE, wildguard.VERDICT, NAMED, "Response", until="Harmful response:")


def ask(turns: Sequence[Turn], categories: Mapping[str, Wording]) -> Sequence[Question]:
    """Return the question about the last turn."""
    listed = "".join(f"{code}: {wording.asked}\n" for code, wording in categories.items())
    system = (
        f"{wildguard.TASK}\n"
        "In addition, identify the policies violated if the interaction is unsafe and harmful according to the safety "
        "policy with the below categories.\n\n"
        f"<BEGIN UNSAFE CONTENT CATEGORIES>\n{listed}<END UNSAFE CONTENT CATEGORIES>"
    )
    messages = ({"role": "system", "content": system}, {"role": "user", "content": wildguard.exchange(turns)})
    return (Question(None, messages, form=ANSWERED if turns[-1].role == "assistant" else None),)


FAMILY = Family(
    "polyguard",
    frozenset({"Qwen2ForCausalLM", "MistralForCausalLM"}),
    CATEGORIES,
    ask,
    SEAMS,
    safe=" no",
    unsafe=(" yes",),
    form=ASKED,
    longest=128,
    languages="17 languages",
    custom=False,
    begins="Harmful request:",
    templated=True,
)
