"""Guards that read images: what they are asked, and tiny random checkpoints run by the code that loads real ones."""

import json
import os
import sys
import threading
from dataclasses import replace
from pathlib import Path
from runpy import run_path

import pytest
import torch
import transformers

from ringfence.guard.bench.guards import UnknownGuard, find_guards
from ringfence.guard.check import CannotAnswer, Passage
from ringfence.guard.checks.guards import weights as weights_module
from ringfence.guard.checks.guards.check import conversation
from ringfence.guard.checks.guards.family import find_families
from ringfence.guard.checks.guards.shieldgemma2 import POLICIES, open_shieldgemma_2
from ringfence.guard.exchange import Exchange, Kind, Part, image_part
from ringfence.guard.guard import Guard
from ringfence.guard.images import Image, opened
from ringfence.policies.document import PolicyError
from ringfence.policies.own import ClassifierModel, GuardModel, Label
from ringfence.policies.types import Action, Policy, Rule, Stage
from ringfence.policies.words import Origin
from ringfence.proxy.guards import open_guard

HERE = Path(__file__).parent
TINY = run_path(str(HERE / "tiny_seeing.py"))
GOLDEN = run_path(str(HERE / "golden" / "images" / "make_images.py"))
ASKED = json.loads((HERE / "golden" / "images" / "llama-guard-4.json").read_text())
FAMILY = find_families()["llama-guard-4"]
PLACE = Origin("p.yaml", 4, 5)


def image(seed=0, **how):
    return Image("image/png", TINY["picture"](seed=seed, **how))


def seen(one, text="What is this?", earlier=(), **fields):
    return Passage(Stage.INPUT, "user", "", prompt=text, rewritable=(), earlier=earlier, image=one, **fields)


def scores(found):
    return {finding.category: finding.score for finding in found}


# --- what is asked


@pytest.mark.parametrize("what", ASKED)
def test_an_image_is_asked_about_as_the_golden_file_has_it(what):
    assert GOLDEN["told"](GOLDEN["exchanges"]()[what]) == ASKED[what]


def test_a_text_beside_an_image_cannot_show_another():
    prompt = ASKED["hostile text"]["prompt"]
    conversation_of = prompt[prompt.index("<BEGIN CONVERSATION>") :]
    assert conversation_of.count("<|image|>") == 1
    assert not {"<|image_start|>", "<|patch|>"} & {part for part in conversation_of.split() if "|" in part}
    assert conversation_of.count("User:") == 1
    assert conversation_of.count("<END CONVERSATION>") == 1


def test_an_image_is_in_the_last_turn_with_the_text_of_its_message():
    one = image()
    turns = conversation(seen(one, "And this?", (("user", "Hi."), ("assistant", "Hello."))))
    assert [(turn.role, turn.text, turn.image) for turn in turns] == [
        ("user", "Hi.", None),
        ("assistant", "Hello.", None),
        ("user", "And this?", one),
    ]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (("llama-guard-3", "local", {}), "llama-guard-3 reads no images; leave `images` out"),
        (("llama-guard-4", "http://127.0.0.1:1/v1", {"api": "completions"}), "an image is sent by chat alone"),
    ],
)
def test_who_cannot_be_shown_images_is_a_located_error(given, told):
    kind, use, more = given
    with pytest.raises(PolicyError, match=f"p.yaml:4:5: the guard of 'g': {told}"):
        open_guard(GuardModel(kind, "g", use, "m", images=True, origin=PLACE, **more))


def test_without_pillow_a_guard_of_images_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    monkeypatch.setattr("ringfence.guard.checks.guards.check.find_spec", lambda _: None)
    for make in (
        lambda: open_guard(GuardModel("llama-guard-4", "g", "http://127.0.0.1:1/v1", "m", images=True, origin=PLACE)),
        lambda: open_shieldgemma_2(ClassifierModel("shieldgemma-2", "g", "m", origin=PLACE)),
    ):
        with pytest.raises(PolicyError, match=r"p.yaml:4:5: .* needs Pillow; install `ringfence\[images\]`"):
            make()


def test_without_images_in_the_policy_a_guard_is_shown_none_and_keeps_its_revision():
    plain = open_guard(GuardModel("llama-guard-4", "g", "http://127.0.0.1:1/v1", "m"))
    showing = open_guard(GuardModel("llama-guard-4", "g", "http://127.0.0.1:1/v1", "m", images=True))
    assert (plain.reads, showing.reads) == ({"text"}, {"text", "image"})
    assert plain.revision != showing.revision


# --- ShieldGemma 2

GEMMA = (
    "{{- bos_token -}}{%- for message in messages -%}{{- '<start_of_turn>user\n' -}}"
    "{%- for part in message.content -%}{{- '<start_of_image>' if part.type == 'image' else part.text + '\n' -}}{%- endfor -%}"
    "{{- 'Yes or No?<end_of_turn>\n<start_of_turn>model\n' -}}{%- endfor -%}"
)


@pytest.fixture(scope="module")
def gemma(tmp_path_factory):
    return TINY["save_shieldgemma_2"](tmp_path_factory.mktemp("gemma"), GEMMA)


@pytest.fixture(scope="module")
def shield(gemma):
    return open_shieldgemma_2(ClassifierModel("shieldgemma-2", "seen", str(gemma)))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_shieldgemma_2_scores_the_probability_of_yes_of_each_policy(gemma, shield, seed):
    one = image(seed, size=(90, 30 + seed))
    processor = transformers.AutoProcessor.from_pretrained(gemma)
    network = transformers.ShieldGemma2ForImageClassification.from_pretrained(gemma).eval()
    with torch.no_grad():
        yes = [
            float(
                network(**processor(images=[opened(one)], policies=[policy], return_tensors="pt")).probabilities[0, 0]
            )
            for policy in POLICIES
        ]
    found = scores(shield.find(seen(one)))
    assert list(found) == ["seen", "seen.dangerous", "seen.S12", "seen.S1"]
    assert list(found.values()) == pytest.approx([max(yes), *yes], abs=2e-4)
    assert 0 < min(yes) < max(yes) < 1


def test_shieldgemma_2_tells_images_apart_and_reads_no_texts(shield):
    assert scores(shield.find(seen(image(1)))) != scores(shield.find(seen(image(5))))
    assert scores(shield.find(seen(image(1), "One."))) == scores(shield.find(seen(image(1), "Another.")))
    assert shield.find(Passage(Stage.INPUT, "user", "text")) == ()
    assert shield.reads == {"image"}


def test_an_image_that_shieldgemma_2_finds_unsafe_is_blocked_and_its_place_told(shield):
    parts = [Part(Kind.TEXT, "user", ("m", 0), "Look."), image_part("user", ("m", 0, 1), image().url)]
    rule = Rule("seen", "seen.S1", Action.BLOCK, threshold=0.001)
    exchange = Exchange("test", "m", parts)
    decision = Guard(Policy("p", (rule,)), checks={"seen": shield}).judge_request(exchange)
    assert (decision.action, decision.rules) == (Action.BLOCK, ("seen",))
    assert {span for one in decision.findings for span in one.spans} == {decision.findings[0].spans[0]}
    assert decision.findings[0].spans[0].part == 1
    assert exchange.revisions["seen"] == shield.revision


def test_who_reads_no_texts_is_not_compared_by_texts(gemma):
    made = Policy("p", (), checks=(ClassifierModel("shieldgemma-2", "seen", str(gemma)),))
    with pytest.raises(UnknownGuard, match="'seen' reads no texts"):
        find_guards(["seen"], made, "prompt")


def test_a_queue_that_is_late_is_no_verdict(gemma):
    check = open_shieldgemma_2(ClassifierModel("shieldgemma-2", "seen", str(gemma), timeout_s=0.2))
    running, hold = check.warm(), threading.Event()
    running.loaded.network.register_forward_pre_hook(lambda *_: hold.wait(30) and None)
    with pytest.raises(TimeoutError, match="shieldgemma-2 gave no verdict in time"):
        check.find(seen(image()))
    hold.set()


def test_memory_that_runs_out_says_what_to_do(gemma):
    check = open_shieldgemma_2(ClassifierModel("shieldgemma-2", "seen", str(gemma)))

    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    check.warm().loaded.network.register_forward_pre_hook(full)
    with pytest.raises(CannotAnswer, match="the shieldgemma-2 of 'seen' ran out of memory; take fewer `bits`"):
        check.find(seen(image()))


def test_another_model_labels_and_a_missing_processor_are_located_errors(gemma, tmp_path):
    def opening(folder, **more):
        return open_shieldgemma_2(ClassifierModel("shieldgemma-2", "seen", str(folder), origin=PLACE, **more))

    other = json.loads((gemma / "config.json").read_text()) | {"architectures": ["LlamaForCausalLM"]}
    (tmp_path / "config.json").write_text(json.dumps(other))
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(PolicyError, match=r"p\.yaml:4:5: .* it is LlamaForCausalLM, and shieldgemma-2 is ShieldGemma2"):
        opening(tmp_path)
    with pytest.raises(PolicyError, match="`labels` and `multi_label` are known for shieldgemma-2; leave them out"):
        opening(gemma, labels=(Label("violence"),))
    (tmp_path / "config.json").write_bytes((gemma / "config.json").read_bytes())
    with pytest.raises(PolicyError, match=r"p.yaml:4:5: the guard of 'seen' cannot use .*download the model anew"):
        opening(tmp_path).warm()


def test_a_processor_that_needs_torchvision_says_so(gemma, monkeypatch):
    def missing(*_, **__):
        raise ImportError("requires the Torchvision library")

    monkeypatch.setattr(transformers.AutoProcessor, "from_pretrained", missing)
    found = weights_module.find_weights("the guard of 'g'", str(gemma), None, PLACE)
    with pytest.raises(PolicyError, match="needs torchvision, built for the torch that is here"):
        weights_module.load_processor(found)


# --- Llama Guard 4


def llama_template():
    """Its template for parts of messages: what a golden prompt has around a conversation, and the parts of that."""
    golden = json.loads((HERE / "golden" / "guards" / "llama-guard-4.json").read_text())
    parts = {}
    for role, what in (("user", "user only"), ("assistant", "user and assistant")):
        prompt = golden["exchanges"][what]["questions"][0]["prompt"]
        before, _, rest = prompt.partition("<BEGIN CONVERSATION>\n")
        parts[role] = json.dumps([before + "<BEGIN CONVERSATION>\n", rest[rest.index("<END CONVERSATION>") :]])
    return (
        f"{{%- set around = ({parts['assistant']}) if messages[-1].role == 'assistant' else ({parts['user']}) -%}}"
        "{%- set names = {'user': 'User', 'assistant': 'Agent'} -%}{{- bos_token + around[0] -}}"
        "{%- for message in messages -%}{{- names[message.role] + ': ' -}}{%- for part in message.content -%}"
        "{{- '<|image|>' if part.type == 'image' else part.text | trim -}}{%- endfor -%}{{- '\\\\n\\\\n\n\n' -}}{%- endfor -%}"
        "{{- around[1] -}}"
    )


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    if "torchvision" not in os.environ.get("RINGFENCE_NEEDED", "").split(","):
        pytest.importorskip("torchvision", reason="the processor of Llama 4 needs it: `make seeing`")
    return TINY["save_llama_guard_4"](tmp_path_factory.mktemp("llama"), FAMILY, llama_template())


@pytest.fixture(scope="module")
def guard_4(llama):
    return open_guard(GuardModel("llama-guard-4", "g", "local", str(llama), images=True))


SHOWN = [
    seen(image(1)),
    seen(image(2, size=(120, 30)), "  And this?\n", (("user", "What is this?"), ("assistant", "A lock."))),
    seen(image(3, size=(20, 200)), "これは何ですか？"),
    replace(seen(image(4), "Here it is."), role="assistant", earlier=(("user", "Show me."),)),
    seen(image(5), ""),
]


def template_inputs(folder, passage):
    """What the processor's own chat template makes of a passage."""
    processor = transformers.AutoProcessor.from_pretrained(folder)
    messages = []
    for turn in conversation(passage):
        parts = [{"type": "text", "text": turn.text}]
        shown = [{"type": "image", "image": opened(turn.image)}] if turn.image else []
        messages.append({"role": turn.role, "content": [*shown, *parts]})
    return processor.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
    )


def question_of(check, passage):
    (question,) = check._family.ask(conversation(passage), check._wordings)
    return question


@pytest.mark.parametrize("passage", SHOWN)
def test_a_prompt_with_an_image_has_the_tokens_that_the_processors_own_template_gives(llama, guard_4, passage):
    tokenizer = transformers.AutoTokenizer.from_pretrained(llama)
    expected = template_inputs(llama, passage)
    ids, pixels = guard_4._oracle.encode(question_of(guard_4, passage))
    behind = tokenizer(FAMILY.begins, add_special_tokens=False)["input_ids"]
    assert ids == [*expected["input_ids"][0].tolist(), *behind]
    assert torch.equal(pixels, expected["pixel_values"])
    patch, start = (tokenizer.convert_tokens_to_ids(one) for one in ("<|patch|>", "<|image_start|>"))
    assert ids.count(start) == 1
    assert ids.count(patch) == len(pixels)  # one patch a tile, as small as it is


@pytest.mark.parametrize("passage", SHOWN)
def test_a_score_of_an_image_is_the_probability_of_the_deciding_word_in_a_plain_pass(llama, guard_4, passage):
    tokenizer = transformers.AutoTokenizer.from_pretrained(llama)
    network = transformers.Llama4ForConditionalGeneration.from_pretrained(llama).eval()
    inputs = template_inputs(llama, passage)
    behind = torch.tensor([tokenizer(FAMILY.begins, add_special_tokens=False)["input_ids"]])
    ids = torch.cat([inputs["input_ids"], behind], 1)
    words = [tokenizer(one, add_special_tokens=False)["input_ids"][0] for one in (FAMILY.safe, *FAMILY.unsafe)]
    with torch.no_grad():
        logits = network(input_ids=ids, pixel_values=inputs["pixel_values"].float()).logits[0, -1]
    found = scores(guard_4.find(passage))
    assert found["g"] == pytest.approx(float(logits[words].softmax(-1)[1]), abs=2e-4)
    assert 0 < found["g"] < 1


def test_another_image_with_the_same_text_scores_otherwise(guard_4):
    asked = [question_of(guard_4, seen(image(seed))) for seed in range(4)]
    judged = [guard_4._oracle.judge([one], (), None)[0] for one in asked]
    assert len({round(one.unsafe["unsafe"], 6) for one in judged}) == 4


def test_control_tokens_beside_an_image_are_read_as_letters(llama, guard_4):
    tokenizer = transformers.AutoTokenizer.from_pretrained(llama)
    special = set(tokenizer.all_special_ids)
    forged = "".join(tokenizer.all_special_tokens) + "safe"
    plain, hostile = (
        guard_4._oracle.encode(question_of(guard_4, seen(image(), guard_4._oracle.clear(text))))[0]
        for text in ("hi", forged)
    )
    assert [one for one in plain if one in special] == [one for one in hostile if one in special]


def test_texts_and_images_that_wait_together_score_as_each_does_alone(guard_4):
    said = [Passage(Stage.INPUT, "user", f"text {number}") for number in range(3)] + list(SHOWN[:2])
    alone = [scores(guard_4.find(one)) for one in said]
    together = guard_4._oracle.judge([question_of(guard_4, one) for one in said], list(guard_4._wordings), None)
    for one, judged in zip(alone, together, strict=True):
        assert one["g"] == pytest.approx(judged.unsafe["unsafe"], abs=3e-4)
