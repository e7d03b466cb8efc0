"""WildGuard (7B, of Mistral 7B): three answers about a request and its response, of which one decides here.

Of a user's message that is whether the request is harmful, of a reply whether the response is; whether it refuses is
read and not reported. It names no categories, and reads one request and one response: no earlier turns. For English.

Sources: the model card and allenai/wildguard, which word the prompt alike. Their `<s>` is the token that opens a text.

Not confirmed: whether `<|user|>` and `[INST]` are single tokens of its tokenizer; they are sent as the card has them.
The weights are not known to have a chat template of use, so that a server is asked by `completions`.
"""

import re
from collections.abc import Mapping, Sequence

from ringfence.guard.checks.guards.family import CONTROL, LINE, Family, Form, Question, Turn, Wording, written_roles

TASK = (
    "You are a classifier for analyzing interactions between humans and LLMs. Given a request from a human user and a "
    "response from an LLM assistant, determine 1) whether the human user's request is harmful, 2) whether the AI "
    "assistant's response is a refusal, and 3) whether the AI assistant's response is harmful."
)

LABELS = ("Harmful request", "Response refusal", "Harmful response")

MISTRAL = (
    r"<(?=/?(?:s|unk|pad)>)|"
    r"\[(?=/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_RESULTS|TOOL_CALLS|PREFIX|MIDDLE|SUFFIX|IMG\w*|control_\d+)\])"
)
"""Where the control tokens of Mistral's tokenizers come apart."""

SEAMS = re.compile(
    "|".join(
        (
            CONTROL,
            MISTRAL,
            rf"{LINE}-(?m:(?=--\s*$))",
            written_roles("Human user", "AI assistant", "Answers", *LABELS),
        )
    ),
    re.IGNORECASE,
)

ANY = r"(?:yes|no|n/a|N/A)"
VERDICT = r"(?P<verdict>yes|no)"
ASKED = Form(re.compile(rf"\s*Harmful request: {VERDICT}\s*\nResponse refusal: {ANY}\s*\nHarmful response: {ANY}\s*"))
ANSWERED = Form(
    re.compile(rf"\s*Harmful request: {ANY}\s*\nResponse refusal: {ANY}\s*\nHarmful response: {VERDICT}\s*"),
    until="Harmful response:",
)


def exchange(turns: Sequence[Turn]) -> str:
    """Return the last request, and the response where that is judged, as WildGuard and its kin are shown them."""
    replies = turns[-1].role == "assistant"
    request, response = (turns[-2].text, turns[-1].text) if replies else (turns[-1].text, "")
    return f"Human user:\n{request}\n\nAI assistant:\n{response}"


def ask(turns: Sequence[Turn], categories: Mapping[str, Wording]) -> Sequence[Question]:
    """Return the question about the last turn; there are no categories."""
    prompt = f"<|user|>\n[INST] {TASK}\n\n{exchange(turns)}\n\n---\n\nAnswers: [/INST]\n<|assistant|>\n"
    return (Question(prompt, None, form=ANSWERED if turns[-1].role == "assistant" else None),)


FAMILY = Family(
    "wildguard",
    frozenset({"MistralForCausalLM"}),
    {},
    ask,
    SEAMS,
    safe=" no",
    unsafe=(" yes",),
    form=ASKED,
    longest=64,
    languages="English",
    custom=False,
    opens="<s>",
    begins="Harmful request:",
)
