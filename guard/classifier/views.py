"""From examples to the windows that a network is shown: tokenized, cut, put into other texts, grouped by length."""

from collections.abc import Sequence
from dataclasses import replace
from random import Random

from tokenizers import Tokenizer

from ringfence.guard.classifier.examples import Example
from ringfence.guard.classifier.heads import TASKS
from ringfence.guard.classifier.plan import Plan
from ringfence.guard.classifier.tokens import END, PROMPT_TOKENS, START, Window, frame
from ringfence.guard.unicode import whole


def look(examples: Sequence[Example], tokenizer: Tokenizer, plan: Plan, number: int) -> list[Window]:
    """Tokenize one view of every example, cut to `plan.length`."""
    random = Random(f"{plan.seed}/{number}")  # noqa: S311
    examples = [replace(one, text=whole(one.text), prompt=one.prompt and whole(one.prompt)) for one in examples]
    fillers = [one.text for one in examples if one.prompt is None and one.labels.get("prompt_harm") == 0]
    texts = [view(example, random, fillers, plan.length) for example in examples]
    bodies = tokenizer.encode_batch_fast([text for text, _ in texts], add_special_tokens=False)
    # what was put into another text must not be cut off with its end
    uncut = [
        (example.text, prompt) if example.prompt is None and len(body.ids) > plan.length - 2 else (text, prompt)
        for example, (text, prompt), body in zip(examples, texts, bodies, strict=True)
    ]
    bodies = tokenizer.encode_batch_fast([text for text, _ in uncut], add_special_tokens=False)
    prompts = tokenizer.encode_batch_fast([prompt or "" for _, prompt in texts], add_special_tokens=False)
    windows = []
    for index, example in enumerate(examples):
        response = example.prompt is not None
        head = [START, *(prompts[index].ids[-PROMPT_TOKENS // 2 :] if response else []), *([END] if response else [])]
        body = bodies[index].ids
        room = plan.length - len(head) - 1
        harmless = not any(example.labels.get(task) for task in TASKS)
        at = random.randrange(len(body) - room + 1) if harmless and len(body) > room and random.random() < 0.5 else 0
        windows.append(frame(head, body[at : at + room], response, 0, 0))
    return windows


def arrange(windows: Sequence[Window], plan: Plan, epoch: int) -> list[list[int]]:
    """Group windows of like length into batches, by index, and shuffle these."""
    random = Random(f"{plan.seed}/order/{epoch}")  # noqa: S311
    order = sorted(range(len(windows)), key=lambda index: len(windows[index].ids) * random.uniform(0.9, 1.1))
    batches: list[list[int]] = [[]]
    longest = 0
    for index in order:
        longest = max(longest, len(windows[index].ids))
        if longest * (len(batches[-1]) + 1) > plan.batch_tokens:
            batches.append([])
            longest = len(windows[index].ids)
        batches[-1].append(index)
    random.shuffle(batches)
    return batches


def view(example: Example, random: Random, fillers: Sequence[str] = (), length: int = 0) -> tuple[str, str | None]:
    """Show an example as it may be met.

    A prompt may stand within harmless text: what is harmful stays so, or it could be hidden there. Of a response a
    stream often shows a part only. A part of a harmless one is harmless; a part of a harmful one is taken to be harmful
    only where it is long. At times the prompt is not known.
    """
    text, prompt = example.text, example.prompt
    if prompt is None:
        return (
            embed(text, random, random.choice(fillers), length) if fillers and random.random() < 0.3 else text
        ), None
    harmful = bool(example.labels.get("response_harm"))
    least = 400 if harmful else 30
    chance = random.random()
    if chance < 0.45 and len(text) > least:
        text = text[: random.randint(least, len(text))]
    elif chance < 0.6 and len(text) > least * 2 and not example.labels.get("refusal"):
        start = random.randint(0, len(text) - least)
        text = text[start:] if harmful else text[start : start + random.randint(least, 900)]
    if random.random() < 0.1:
        prompt = ""
    return text, prompt


def embed(text: str, random: Random, filler: str, length: int) -> str:
    """Put a text before, after or amid the words of another, so that about `length` tokens hold both."""
    words = filler.split()
    room = int(0.7 * length) - len(text.split())  # 0.7: words a token, with some to spare
    if room < 8 or not words:
        return text
    around = (words * (room // len(words) + 1))[: random.randint(8, room)]
    at = random.choice((0, len(around), random.randint(0, len(around))))
    gap = random.choice((" ", "\n", "\n\n"))
    return gap.join(part for part in (" ".join(around[:at]), text, " ".join(around[at:])) if part)
