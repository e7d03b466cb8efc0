"""What the labels of each source mean. Each reader names the heads that a row teaches, and no others.

The same `prompt_label` says "harmful request" in one source, "attack" in the next and "hateful statement" in a third,
so `SOURCES` says for each what it means, under which licence it comes and what it is for.
"""

import csv
import re
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import MappingProxyType

from ringfence.guard.classifier.examples import Example, Source, Use
from ringfence.guard.classifier.heads import HAZARDS, TASKS
from ringfence.guard.classifier.rows import Row
from ringfence.guard.labelled import read_label

Reader = Callable[[Row], Iterable[Example]]

OWN_LABELS = Path(__file__).parent / "data" / "labels"

ANNOTATED = {"response_harm": "harm", "refusal": "refusal"}
"""Columns of our annotation of responses, by head."""

LABELS = {"prompt_harm": "prompt_label", "response_harm": "response_label"}
"""Fields of a row of ours that are not called as their head is."""


def requests(row: Row, *, attack: float | None = 0.0, doubt: Iterable[str] = ()) -> Iterable[Example]:
    """Read `prompt_label` as: the request is harmful."""
    harm = row["prompt_label"]
    if harm is None or not row["text"].strip():
        return
    labels = {"prompt_harm": float(harm)}
    if attack is not None:
        labels["attack"] = attack
    if not harm:
        labels["toxicity"] = 0.0
    else:
        labels |= hazard_labels(hazards_of(row))
    yield Example(row["text"], labels, "", doubt=frozenset(doubt))


def mixed_requests(row: Row) -> Iterable[Example]:
    """Read a harm label on a source that mixes plain and adversarial requests without saying which."""
    return requests(row, attack=None)


def jailbroken_requests(row: Row) -> Iterable[Example]:
    """Read harmful requests, each in a jailbreak's dress."""
    return requests(row, attack=1.0)


def chat_labels(row: Row) -> Iterable[Example]:
    """Read human labels of real chats: harm of the prompt, and whether it is a jailbreak."""
    return requests(row, attack=float(row["attack"] is not None))


def attacks(row: Row) -> Iterable[Example]:
    """Read `prompt_label` as: the text is an attack. What it asks for may be harmless, so positives teach no harm."""
    attack = float(row["prompt_label"])
    yield Example(row["text"], {"attack": attack} | ({} if attack else {"prompt_harm": 0.0}), "")


def statements(row: Row) -> Iterable[Example]:
    """Read `prompt_label` as: the statement is toxic."""
    if row["prompt_label"] is None:
        return
    toxic = float(row["prompt_label"])
    labels = {"toxicity": toxic, "attack": 0.0} | ({} if toxic else {"prompt_harm": 0.0})
    yield Example(row["text"], labels, "", doubt=frozenset({"prompt_harm"}))


def hate_statements(row: Row) -> Iterable[Example]:
    """Read `prompt_label` as: the statement is hateful, which a guard calls harm too, though nothing is asked."""
    for example in statements(row):
        hateful = {"prompt_harm": 1.0, **hazard_labels(["S10"])} if example.labels["toxicity"] else {}
        yield replace(example, labels={**example.labels, **hateful}, doubt=example.doubt | set(hateful))


def toxic_only(row: Row) -> Iterable[Example]:
    """Read a set whose non-toxic rows were merely left unmarked."""
    return (example for example in statements(row) if example.labels["toxicity"])


def responses(row: Row) -> Iterable[Example]:
    """Read `response_label` as: the response does harm; and `refusal` where it stands."""
    labels: dict[str, float] = {}
    if row["response_label"] is not None:
        labels["response_harm"] = float(row["response_label"])
    if row["refusal"] is not None:
        labels["refusal"] = float(row["refusal"])
    if row["response"] and labels:
        yield Example(row["response"], labels, "", prompt=row["text"])


def read_anew(name: str) -> Reader:
    """Read responses with our own label of each, of the annotation of that name; those without one are passed over."""

    def read(row: Row) -> Iterable[Example]:
        label = own_labels(name).get(row["id"])
        if not (label and row["response"]):
            return
        labels = {head: float(label[column]) for head, column in ANNOTATED.items() if label[column]}
        if labels == {"response_harm": 1.0, "refusal": 1.0}:  # the harm lies in its insults: what refuses does none
            labels.pop("response_harm")
        if labels:
            yield Example(row["response"], labels, "", prompt=row["text"])

    return read


def answered_requests(row: Row) -> Iterable[Example]:
    """Read harmless instructions with a harmless answer: the prompt alone, and the pair."""
    yield from requests(row)
    for example in responses(row):
        yield replace(example, labels={**example.labels, "toxicity": 0.0, "attack": 0.0})


def chat_turns(row: Row) -> Iterable[Example]:
    """Read harmless conversations `{"messages": [...]}`: the first prompt and its answer."""
    said = [message["content"] for message in row["messages"] if message["role"] in ("user", "assistant")]
    if said and said[0].strip():
        yield Example(said[0], {"prompt_harm": 0.0, "attack": 0.0, "toxicity": 0.0}, "")
    if len(said) > 1 and said[1].strip():
        harmless = {"response_harm": 0.0, "refusal": 0.0, "toxicity": 0.0, "attack": 0.0}
        yield Example(said[1], harmless, "", prompt=said[0])


def annotated_dialogues(row: Row) -> Iterable[Example]:
    """Read dialogues that came unlabelled, with our own annotation: what the human first and last said, each answer.

    Each dialogue comes twice, with either of two last answers; what stands before them is read once.
    """
    _, number, answer = row["id"].split("-")
    label = own_labels("hh_rlhf").get(number)
    if label is None:
        return
    if answer == "chosen":
        human = [TURN.split(turn)[0] for turn in re.split(r"(?:^|\n\n)Human: ", row["text"]) if turn.strip()]
        for said, harm in ((human[0], label["first"]), (human[-1], label["last"])):
            yield from _annotated(said, {"prompt_harm": harm}, label["hazards"])
        for index, turn in enumerate(re.finditer(r"\n\nAssistant: ", row["text"])):
            own = own_labels("hh_rlhf_turns").get(f"{number}-{index}")
            if own:
                said, before = TURN.split(row["text"][turn.end() :])[0], row["text"][: turn.start()]
                labels = {"response_harm": own["harm"], "refusal": own["refusal"]}
                yield from _annotated(said, labels, own["hazards"], before)
    labels = {"response_harm": label[f"{answer}_harm"], "refusal": label[f"{answer}_refusal"]}
    yield from _annotated(row["response"], labels, label["hazards"], row["text"])


TURN = re.compile(r"\n\n(?:Human|Assistant): ")


def _annotated(text: str | None, told: Mapping[str, str], hazards: str, prompt: str | None = None) -> Iterable[Example]:
    """Read what was said as it was labelled, the harm of it first: "1", "0", or nothing where none could tell."""
    harm = next(iter(told.values()))
    if text and text.strip() and harm in ("0", "1"):
        labels = {head: float(says) for head, says in told.items() if says in ("0", "1")} | {"attack": 0.0}
        labels |= hazard_labels(hazards.split()) if harm == "1" else {"toxicity": 0.0}
        yield Example(text, labels, "", prompt=prompt, doubt=frozenset({"toxicity", *HAZARDS}))


def annotated_requests(row: Row) -> Iterable[Example]:
    """Read requests that came labelled as a set, with our own label of each; those without one are passed over."""
    label = own_labels("red_instruct").get(row["id"])
    if label and label["harm"]:
        harm = float(label["harm"])
        labels = {"prompt_harm": harm, "attack": 0.0}
        labels |= hazard_labels(label["hazards"].split()) if harm else {"toxicity": 0.0}
        yield Example(row["text"], labels, "")


@cache
def own_labels(name: str) -> Mapping[str, Mapping[str, str]]:
    """Read our annotation of a source, by row: a column for each thing that was asked, empty where none could tell."""
    with (OWN_LABELS / f"{name}.csv").open(newline="", encoding="utf-8") as lines:
        return {line["id"]: line for line in csv.DictReader(lines)}


def own_rows(row: Row) -> Iterable[Example]:
    """Read the project's own rows, in which each label means what its name says.

    `attack` is "none", "jailbreak" or "injection"; `categories` lists MLCommons hazards of the harmful text.
    """
    read = {head: read_label(row, LABELS.get(head, head)) for head in TASKS}
    told = {head: float(label) for head, label in read.items() if label is not None}
    hazards = hazard_labels(row.get("categories") or ())
    alone: dict[str, float] = {head: told[head] for head in ("prompt_harm", "attack") if head in told}
    if "prompt_harm" in told:
        alone |= hazards if told["prompt_harm"] else {"toxicity": 0.0}
    if alone and row["text"].strip():
        yield Example(row["text"], alone, "")
    if row.get("response"):
        answer = {"attack": 0.0}  # an answer says what it says; it gives no orders
        answer |= {head: told[head] for head in ("response_harm", "refusal") if head in told}
        answer |= hazards if told.get("response_harm") else {"toxicity": 0.0}
        yield Example(row["response"], answer, "", prompt=row["text"], doubt=frozenset({"attack", "toxicity"}))


def hazard_labels(present: Iterable[str]) -> dict[str, float]:
    """Label every hazard, given those that are present; nothing where none is known."""
    found = {name for name in present if name in HAZARDS}
    return {name: float(name in found) for name in HAZARDS} if found else {}


def hazards_of(row: Row) -> list[str]:
    """Translate a source's own topic into MLCommons hazards; one names them itself, before a bar."""
    topic = str(row.get("category") or "")
    return [topic.split("|")[0], *(hazard for pattern, hazard in TOPICS if re.search(pattern, topic))]


TOPICS = (
    (
        r"terrorism|^violence$|Violence & incitement|Terrorism|Assault|Physical abuse|Human Trafficking|Gender-based",
        "S1",
    ),
    (r"^fraud$|Fraud|Theft|theft|scam|Scam|Counterfeit|Phishing|Illegal Activity\|(Drug|Cyber|Weapon)|Economic", "S2"),
    (r"Substance abuse|Property crime|Animal abuse|Cyberbullying|Bullying|False advertising|Malware", "S2"),
    (r"Sexual exploitation & human", "S3"),
    (r"pornography_sexual_minors|Child Abuse\|(Content|Online)|Child abuse", "S4"),
    (r"Tailored Financial|Unsafe practices", "S6"),
    (r"Privacy Violation|Soliciting personally|Identity theft", "S7"),
    (r"Intellectual property", "S8"),
    (r"Weapon making|Hazardous material|^\['Weapons", "S9"),
    (r"^race$|^religion$|Racial|Religious intol|Hate speech|Discrimination", "S10"),
    (r"^suicide$|[Ss]elf-harm", "S11"),
    (r"Adult [Cc]ontent", "S12"),
    (r"^politics$|Political misinformation|Election advertising", "S13"),
    (r"Malware", "S14"),
)


def english_requests(row: Row) -> Iterable[Example]:
    """Read the English rows only: the other languages come without one harmless row, and would all become harmful."""
    return requests(row, doubt=HAZARDS) if row["lang"] == "en" else ()


def parted(read: Reader, key: Callable[[Row], str], of: int) -> tuple[Reader, Reader]:
    """Part a source: what trains, and the share, one in `of`, that calibrates. Rows with one key stay together."""

    def held_out(row: Row) -> bool:
        return zlib.crc32(key(row).encode()) % of == 0

    return (lambda row: () if held_out(row) else read(row)), (lambda row: read(row) if held_out(row) else ())


# of jailbroken answers two files ask the same hundred questions; a dialogue comes twice, with either of two answers
answers_to_train, answers_held_out = parted(read_anew("gptfuzz"), lambda row: row["text"], 5)
dialogues_to_train, dialogues_held_out = parted(annotated_dialogues, lambda row: row["id"].split("-")[1], 9)


CC_BY, CC_BY_SA, CC_BY_NC, CC_BY_NC_SA = "CC-BY-4.0", "CC-BY-SA-3.0", "CC-BY-NC-4.0", "CC-BY-NC-SA-4.0"

NONE = "none stated"


SOURCES = (
    # requests
    Source("wildguard_train_sample/train", mixed_requests, "ODC-BY", caps=(1600, 1800)),
    Source("advbench/train", requests, "MIT", caps=(300, 0)),
    Source("red_instruct/train", annotated_requests, "Apache-2.0; labels ours", caps=(1300, 400)),
    Source("multijail/train", english_requests, "MIT", caps=(300, 0)),
    Source("sap200/train", jailbroken_requests, "Apache-2.0", caps=(480, 0)),
    Source("wildjailbreak_eval/train", jailbroken_requests, "ODC-BY", caps=(1300, 0)),
    Source("dolly_3k/train", answered_requests, CC_BY_SA, caps=(0, 3600)),
    Source("chat/dolly_3k_plus", chat_turns, CC_BY_SA, caps=(0, 1000), family="dolly_3k"),
    Source("chat/self_instruct_human", chat_turns, "Apache-2.0", caps=(0, 800), family="self_instruct"),
    Source("chat/oasst_en_100", chat_turns, "Apache-2.0", caps=(0, 200), family="oasst"),
    Source("chat/gsm8k_train", chat_turns, "MIT", caps=(0, 200), family="gsm8k"),
    Source("cyberseceval/mitre_frr_train", requests, "MIT", caps=(0, 700)),
    Source("awesome_chatgpt_prompts/train", requests, "CC0-1.0", caps=(0, 700)),
    Source("aegis_train_sample/train", mixed_requests, CC_BY, use=Use.CALIBRATE),
    # attacks
    Source("inthewild_jailbreaks/train", attacks, "MIT", caps=(900, 0)),
    Source("bipia/train", attacks, "MIT; contexts CC-BY-SA", caps=(500, 300)),
    Source("cyberseceval/prompt_injection_train", attacks, "MIT", caps=(250, 0)),
    # half of it is German, and some of its injections are role play: it made the guard surer of attacks than it may be
    Source("deepset_injections/train", attacks, "Apache-2.0", use=Use.REPORT),
    Source("deepset_injections/dev", attacks, "Apache-2.0", use=Use.REPORT),
    # statements
    Source("davidson_hate/train", hate_statements, "MIT", caps=(500, 500)),
    Source("vicomtech_hate/train", hate_statements, CC_BY_SA, caps=(500, 500)),
    Source("hatemoji_build/train", hate_statements, CC_BY, caps=(700, 700)),
    Source("toxigen_seeds/train", hate_statements, "MIT"),
    Source("edos_sexism/train", statements, "CC0-1.0", caps=(400, 400)),
    Source("toxic_spans/train", toxic_only, "CC0-1.0", caps=(400, 0)),
    Source("wiki_context_toxicity/train", statements, "Apache-2.0; text CC-BY-SA", caps=(250, 500)),
    Source("wiki_toxicity_testset/train", statements, "Apache-2.0", use=Use.CALIBRATE, caps=(300, 400)),
    Source("surge_toxicity/train", statements, "MIT", use=Use.REPORT),
    Source("hatecheck/dev", hate_statements, CC_BY, use=Use.REPORT),
    # responses
    Source("gptfuzz_responses/train", answers_to_train, "MIT; labels ours", caps=(1000, 1000)),
    Source("gptfuzz_responses/train", answers_held_out, "MIT; labels ours", use=Use.CALIBRATE, caps=(400, 400)),
    Source("gptfuzz_responses/dev", answers_held_out, "MIT; labels ours", use=Use.CALIBRATE, caps=(200, 200)),
    Source("hh_rlhf_harmless/unlabelled", dialogues_to_train, "MIT; labels ours", caps=(5000, 7000)),
    Source("hh_rlhf_harmless/unlabelled", dialogues_held_out, "MIT; labels ours", use=Use.CALIBRATE),
    Source("dices/train", responses, CC_BY, use=Use.REPORT),
    Source("dices/dev", responses, CC_BY, use=Use.REPORT),
    # for the eye only: never learnt from, by either recipe
    Source("toxicchat/train", chat_labels, CC_BY_NC, free=False, use=Use.REPORT, caps=(300, 2200)),
    Source("beavertails_train_sample/train", requests, CC_BY_NC, free=False, use=Use.REPORT),
    Source("saferlhf_sample/train", responses, CC_BY_NC, free=False, use=Use.REPORT),
    Source("oktest/train", requests, NONE, free=False, use=Use.REPORT),
    Source("malicious_instruct/train", requests, NONE, free=False, use=Use.REPORT),
    # its prompts ask to translate or repeat harmful sentences, and are harmless by its own rule: only answers are read
    Source("orfuzz/user_study_train", responses, NONE, free=False, use=Use.REPORT),
    Source("promptshield/dev", attacks, NONE, free=False, use=Use.REPORT),
    Source("tensor_trust/train", attacks, NONE, free=False, use=Use.REPORT, caps=(500, 0)),
    Source("saferlhf_sample/train", read_anew("responses"), CC_BY_NC, free=False, use=Use.OURS),
    Source("orfuzz/user_study_train", read_anew("responses"), NONE, free=False, use=Use.OURS),
    Source("do_not_answer/train", read_anew("responses"), CC_BY_NC_SA, free=False, use=Use.OURS),
    # learnt from by the second recipe alone
    Source("do_not_answer/train", responses, CC_BY_NC_SA, free=False, caps=(400, 1200)),
    Source("safety_tuned_llamas/train", responses, CC_BY_NC, free=False, caps=(0, 1000)),
    Source("s_eval/base_train", requests, CC_BY_NC_SA, free=False, caps=(1000, 0)),
    Source("s_eval/attack_train", jailbroken_requests, CC_BY_NC_SA, free=False, caps=(800, 0)),
    Source("jailjudge/train", jailbroken_requests, NONE, free=False, caps=(800, 0)),
    Source("alpaca_prompts/train", requests, CC_BY_NC, free=False, caps=(0, 2500)),
    Source("qualifire_injections/train", attacks, CC_BY_NC, free=False, caps=(1200, 1200)),
    Source("tweeteval_offensive/test", statements, NONE, free=False),
    Source("ethos/train", hate_statements, "GPL-3.0", free=False),
    Source("fox_news_comments/train", statements, NONE, free=False),
)


CREDITS: Mapping[str, str] = MappingProxyType(
    {
        "guard/classifier/data": "the ringfence authors",
        "advbench": "AdvBench, Zou et al., arXiv:2307.15043",
        "aegis_train_sample": "Aegis AI Content Safety Dataset 1.0, NVIDIA (Ghosh et al., arXiv:2404.05993)",
        "alpaca_prompts": "Alpaca, Stanford (github.com/tatsu-lab/stanford_alpaca)",
        "awesome_chatgpt_prompts": "Awesome ChatGPT Prompts (github.com/f/awesome-chatgpt-prompts)",
        "bipia": "BIPIA, Microsoft (github.com/microsoft/BIPIA); contexts of WikiTableQuestions and Stack Exchange",
        "chat/dolly_3k_plus": "databricks-dolly-15k, Databricks, filtered (github.com/gpt4life/alpagasus)",
        "chat/gsm8k_train": "GSM8K, OpenAI (github.com/openai/grade-school-math)",
        "chat/oasst_en_100": "Open Assistant, LAION (github.com/LAION-AI/Open-Assistant)",
        "chat/self_instruct_human": "Self-Instruct, Wang et al. (github.com/yizhongw/self-instruct)",
        "cyberseceval": "CyberSecEval, Meta (github.com/meta-llama/PurpleLlama)",
        "davidson_hate": "Davidson et al. (github.com/t-davidson/hate-speech-and-offensive-language)",
        "do_not_answer": "Do-Not-Answer, Wang et al., arXiv:2308.13387",
        "dolly_3k": "databricks-dolly-15k, Databricks, filtered (github.com/gpt4life/alpagasus)",
        "edos_sexism": "EDOS, Rewire (github.com/rewire-online/edos)",
        "ethos": "ETHOS (github.com/intelligence-csd-auth-gr/Ethos-Hate-Speech-Dataset)",
        "fox_news_comments": "Fox News user comments (github.com/sjtuprog/fox-news-comments)",
        "gptfuzz_responses": "GPTFuzz (github.com/sherdencooper/GPTFuzz)",
        "hatemoji_build": "HatemojiBuild, Kirk et al. (github.com/HannahKirk/Hatemoji)",
        "hh_rlhf_harmless": "HH-RLHF, Anthropic (github.com/anthropics/hh-rlhf)",
        "inthewild_jailbreaks": "In-The-Wild Jailbreak Prompts (github.com/verazuo/jailbreak_llms)",
        "jailjudge": "JAILJUDGE (github.com/VulcanLab/VulcanForge-Adversarial-Dataset)",
        "multijail": "MultiJail, DAMO (github.com/DAMO-NLP-SG/multilingual-safety-for-LLMs)",
        "qualifire_injections": "prompt-injections-benchmark, Qualifire (huggingface.co/qualifire)",
        "red_instruct": "HarmfulQA, CatQA and DangerousQA, DeCLaRe Lab (github.com/declare-lab/red-instruct)",
        "s_eval": "S-Eval (github.com/IS2Lab/S-Eval)",
        "safety_tuned_llamas": "Safety-Tuned LLaMAs (github.com/vinid/safety-tuned-llamas)",
        "sap200": "SAP200 (github.com/Aatrox103/SAP)",
        "toxic_spans": "SemEval-2021 Toxic Spans (github.com/ipavlopoulos/toxic_spans)",
        "toxigen_seeds": "ToxiGen, Microsoft (github.com/microsoft/TOXIGEN)",
        "tweeteval_offensive": "TweetEval, Cardiff NLP (github.com/cardiffnlp/tweeteval)",
        "vicomtech_hate": "Hate speech dataset of a forum, Vicomtech (github.com/Vicomtech/hate-speech-dataset)",
        "wiki_context_toxicity": "CAT_LARGE (github.com/ipavlopoulos/context_toxicity); text of Wikipedia's authors",
        "wiki_toxicity_testset": "Jigsaw (github.com/conversationai/unintended-ml-bias-analysis)",
        "wildguard_train_sample": "WildGuardMix, Allen Institute for AI (Han et al., arXiv:2406.18495)",
        "wildjailbreak_eval": "WildJailbreak, Allen Institute for AI (huggingface.co/datasets/allenai/wildjailbreak)",
    }
)
"""Whose texts are learnt from: what their licences ask to be said. By file of the pool, or by folder."""


def credit_of(file: str) -> str:
    """Say whose the texts of a file of the pool are; nothing where that is not known here."""
    return CREDITS.get(file) or CREDITS.get(file.split("/")[0], "")
