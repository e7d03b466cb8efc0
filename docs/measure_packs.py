"""Takes the figures of docs/packs.md anew: rewrites the rows of its tables, and prints what the prose around them says.

    python docs/measure_packs.py --pool DIR

DIR holds the labelled texts that the page names, a folder for each, as training reads them.
"""

import argparse
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

from ringfence.guard.bench.rules import Outcome, Rate, judge_texts, read_texts, report_on
from ringfence.guard.check import Passage
from ringfence.guard.guard import Guard
from ringfence.policies.load import PACKS, loads_policy
from ringfence.policies.types import Action, Policy, Stage
from ringfence.proxy.wire.openai_moderations import SOURCES, TAG

PAGE = Path(__file__).with_name("packs.md")
TEXTS = Path(__file__).parents[1] / "guard" / "bench" / "texts"

ACTIONS = (Action.BLOCK, Action.REWRITE, Action.LOG)

Sets = Mapping[str, tuple[Stage, str, Sequence[str]]]

SETS: Sets = {
    "everyday prompts": (
        Stage.INPUT,
        "user",
        ("alpaca_prompts/train", "promptshield/eval_benign_dolly", "toxicchat/train", "promptshield/dev"),
    ),
    "prompts chosen to look harmful": (Stage.INPUT, "user", ("oktest/train",)),
    "harmless answers to prompts that were often not": (
        Stage.OUTPUT,
        "user",
        ("dices/train", "dices/dev", "saferlhf_sample/train", "do_not_answer/train"),
    ),
    "ordinary system messages": (Stage.INPUT, "system", ("operators",)),
}
"""By the name that the tables have: stage, who says it, files of the pool or, without a slash, of our own."""

OPERATORS = {
    "ordinary system messages": "operators",
    "as ordinary, written once the thresholds stood": "operators_later",
}
"""Rows of the table of what operators say, and the file of our own behind each."""

LANGUAGES = {
    "the shipped policy": "enterprise-default",
    "`strict`": "strict",
    "`children`": "children",
    "`moderation`, `developer-tools`, each": "moderation",
}
"""Rows of the table of other languages, and the pack behind each."""

LIMIT = 500
"""Texts of one file."""


def policy_of(name: str, more: str = "") -> Policy:
    """Load one pack alone, or the policy that ships; with another line where one is given."""
    asked = f"extends: {name}" if name == "enterprise-default" else f"packs: [{name}]"
    return loads_policy(f"version: 1\nname: measured\n{asked}\n{more}\n")


def judged(guard: Guard, path: Path, stage: Stage, role: str) -> list[Outcome]:
    """Judge the harmless texts of a file."""
    texts = read_texts(path, guard.policy.rules, stage=stage, role=role, benign=True, limit=LIMIT)
    return list(judge_texts(guard.pipeline, texts.texts))


def measure(guard: Guard, pool: Path, name: str) -> dict[str, list[Outcome]]:
    """Judge one set of the page; return what came of it by file."""
    stage, role, files = SETS[name]
    paths = {file: pool / f"{file}.jsonl.gz" if "/" in file else TEXTS / f"{file}.jsonl" for file in files}
    return {file: judged(guard, path, stage, role) for file, path in paths.items()}


def cells(outcomes: Sequence[Outcome]) -> str:
    """Return the cells of a row: how many texts, and each action's share with its interval."""
    return " | ".join([f"{len(outcomes):,}", *(share(outcomes, action) for action in ACTIONS)])


def share(outcomes: Sequence[Outcome], action: Action) -> str:
    """Write how often an action was taken."""
    return percent(Rate(sum(one.action is action for one in outcomes), len(outcomes)))


def percent(rate: Rate, decimals: int = 1) -> str:
    """Write a share with its 95 % interval."""
    low, high = rate.ci95 or (0.0, 1.0)
    told = [f"{100 * one:.{decimals}f}" for one in (rate.n / rate.of, low, high)]
    return f"{told[0]} % ({told[1]}–{told[2]})"


def rewritten(page: str, section: str, row: str, figures: str) -> str:
    """Put figures into the row of a section that begins with `row`: the last, where an earlier table tells what it is.

    Raises:
        LookupError: there is no such row.
    """
    before, heading, rest = page.partition(f"\n## {section}\n")
    body, *after = re.split(r"(?=^## )", rest, maxsplit=1, flags=re.MULTILINE)
    *_, found = [None, *re.finditer(rf"^\| {re.escape(row)} \|[^\n]*$", body, re.MULTILINE)]
    if not found:
        raise LookupError(f"docs/packs.md: {section} has no row {row!r}")
    told = f"{body[: found.start()]}| {row} | {figures} |{body[found.end() :]}"
    return "".join([before, heading, told, *after])


def main() -> None:
    """Measure every pack and rewrite the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pool", type=Path, required=True)
    pool = parser.parse_args().pool
    packs = sorted({path.name.partition(".")[0] for path in PACKS.glob("*.yaml")})
    guards = {name: Guard(policy_of(name)) for name in [*packs, "enterprise-default"]}
    page = PAGE.read_text()
    for row, (stage, *_) in SETS.items():  # by set, so that what one pack had scored is remembered for the next
        for name, guard in guards.items():
            found = measure(guard, pool, row)
            outcomes = flat(found)
            page = rewritten(page, name, row, f"{stage} | {cells(outcomes)}")
            tell(name, row, found)
    for row, file in OPERATORS.items():
        path, shipped = TEXTS / f"{file}.jsonl", guards["enterprise-default"]
        said, as_users = (judged(shipped, path, Stage.INPUT, role) for role in ("system", "user"))
        figures = f"{cells(said)} | {share(as_users, Action.BLOCK)}"
        page = rewritten(page, "What operators say", row, figures)
    for row, name in LANGUAGES.items():
        outcomes = judged(guards[name], TEXTS / "languages.jsonl", Stage.INPUT, "user")
        page = rewritten(page, "Other languages", row, cells(outcomes))
        tell(name, row, {"languages": outcomes})
    for row, figures in moderation(guards["moderation"]).items():
        page = rewritten(page, "moderation", row, figures)
    PAGE.write_text(page)
    tell_prose(guards, pool)


def tell_prose(guards: Mapping[str, Guard], pool: Path) -> None:
    """Print what the page says of answers by themselves, of a higher threshold, without examples, and of bad orders."""
    answers = "harmless answers to prompts that were often not"
    blocked = [one for one in flat(measure(guards["mlcommons"], pool, answers)) if one.action is Action.BLOCK]
    alone = [replace(one.text, passage=replace(one.text.passage, prompt="")) for one in blocked]
    prompts = [
        replace(one.text, passage=Passage(Stage.INPUT, "user", one.text.passage.prompt, voice="user"))
        for one in blocked
    ]
    for what, texts in (("by themselves", alone), ("their prompts on the way in", prompts)):
        said = [one.action is Action.BLOCK for one in judge_texts(guards["mlcommons"].pipeline, texts)]
        print(f"blocked answers of mlcommons, {what}: {sum(said)} of {len(said)} blocked")
    surer = Guard(policy_of("mlcommons", "override: {harm: {threshold: 0.95}}"))
    print(f"mlcommons, harm from 0.95: {cells(flat(measure(surer, pool, answers)))}")
    rules = guards["moderation"].policy.rules
    five = [rule.id for rule in rules for tag in rule.tags if tag.startswith(TAG) and not SOURCES[tag[len(TAG) :]]]
    without = Guard(policy_of("moderation", f"remove: [{', '.join(five)}]"))
    for row in ("everyday prompts", "prompts chosen to look harmful"):
        print(f"moderation without the five, {row}: {cells(flat(measure(without, pool, row)))}")
    bad = [
        one
        for one in map(json.loads, (TEXTS / "operators.jsonl").open())
        if any(map(one.get, ("prompt_label", "attack")))
    ]
    for name in ("enterprise-default", "strict"):
        found = Counter(guards[name].check(one["text"], role="system").action.value for one in bad)
        print(f"{name}, bad orders by action: {dict(found)}")


def flat(found: Mapping[str, Sequence[Outcome]]) -> list[Outcome]:
    """Return what came of a set in one list."""
    return list(chain.from_iterable(found.values()))


def moderation(guard: Guard) -> dict[str, str]:
    """Return the cells of what examples tell, by OpenAI's category."""
    rules = guard.policy.rules
    texts = read_texts(TEXTS / "moderation.jsonl", rules).texts
    figures = {}
    for one in report_on(rules, list(judge_texts(guard.pipeline, texts))).rules:
        names = [tag.removeprefix(TAG) for tag in one.rule.tags if tag.startswith(TAG)]
        if one.precision and one.recall and names and not SOURCES[names[0]]:
            both = one.precision, one.recall
            counts, shares = [f"{rate.n} of {rate.of}" for rate in both], [percent(rate, 0) for rate in both]
            figures[names[0]] = " | ".join(counts + shares)
    return figures


def tell(name: str, row: str, found: Mapping[str, Sequence[Outcome]]) -> None:
    """Print a set by file, and which rules fired on what was blocked."""
    print(f"{name}, {row}")
    for file, outcomes in found.items():
        print(f"  {file}: {cells(outcomes)}")
    blocked = [one for outcomes in found.values() for one in outcomes if one.action is Action.BLOCK]
    print(f"  {len(blocked)} blocked:", dict(Counter(rule for one in blocked for rule in one.fired).most_common()))


if __name__ == "__main__":
    main()
