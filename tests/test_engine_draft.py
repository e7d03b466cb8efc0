"""A smaller network drafts: fewer steps where it is right, and the same tokens whether it is right or not."""

import json
from collections import Counter, defaultdict
from dataclasses import replace
from functools import cache
from pathlib import Path
from random import Random
from runpy import run_path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

from ringfence.model import memory
from ringfence.model.assemble import assemble
from ringfence.model.cache import PAGE, Cache, Held
from ringfence.model.config import read_config
from ringfence.model.draft import READ, Draft, DraftDiffers
from ringfence.model.engine import SEATS, Engine
from ringfence.model.loading import load
from ringfence.model.sampler import Sampling
from ringfence.model.sequence import GUESSES
from ringfence.model.weights import NotEnoughMemory, WeightsMissing

save_speaker = run_path(str(Path(__file__).parent / "tiny_speaker.py"))["save_speaker"]

VOCABULARY, CONTEXT = 89, 12 * PAGE
GREEDY = Sampling(temperature=0, max_tokens=24)
WILD = Sampling(temperature=1, top_p=1, max_tokens=24)
MIXED = Sampling(
    temperature=0.8, top_p=0.9, top_k=40, min_p=0.01, repetition_penalty=1.2, frequency_penalty=0.5, max_tokens=24
)


@cache
def network(seed, noise=0.0, vocabulary=VOCABULARY, context=CONTEXT):
    """A small random network; with noise, one that says nearly the same."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        initializer_range=0.3,  # wide enough that replies wander instead of repeating one token
    )
    model = LlamaForCausalLM(config)
    tensors = {name: tensor + noise * 0.3 * torch.randn_like(tensor) for name, tensor in model.state_dict().items()}
    return assemble(read_config(config.to_dict()), tensors.__getitem__)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Products as small as these take less time than several threads take to meet."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


DRAFTS = {"itself": (0,), "good": (0, 0.03), "useless": (5,)}


def kept(network, pages):
    return Cache(network.config, pages * PAGE, torch.float32)


def engine(draft=None, pages=64, drafted=64, **more):
    """An engine on the first network, and one that drafts for it."""
    one = network(0, vocabulary=draft.config.vocabulary if draft else VOCABULARY)
    return Engine(
        one, kept(one, pages), frozenset(), draft=Draft(draft, kept(draft, drafted)) if draft else None, **more
    )


def text(seed, length):
    return Random(seed).choices(range(1, VOCABULARY), k=length)


def replies(one):
    """Step until all is said; return the tokens of each sequence, and how many it said in each step that guessed."""
    said, guessed = defaultdict(list), defaultdict(list)
    while one.busy:
        for advance in one.step():
            said[advance.id] += [chosen.token for chosen in advance.chosen]
            if 1 < len(advance.hidden) <= 1 + GUESSES and advance.chosen:
                guessed[advance.id].append((len(advance.chosen), len(advance.hidden)))
    return dict(said), dict(guessed)


def say(prompt, sampling, draft=None, **more):
    one = engine(draft, **more)
    one.add(prompt, sampling)
    said, guessed = replies(one)
    return said[1], guessed.get(1, [])


@pytest.mark.parametrize("draft", DRAFTS)
@pytest.mark.parametrize("sampling", [GREEDY, WILD, MIXED], ids=["greedy", "wild", "mixed"])
def test_reply_is_the_one_without_a_draft(draft, sampling):
    taken = Counter()
    for seed in range(8):
        seeded, prompt = replace(sampling, seed=seed), text(seed, 5 + 9 * seed)
        said, guessed = say(prompt, seeded, network(*DRAFTS[draft]))
        assert said == say(prompt, seeded, None, guessers=0)[0]
        taken["right"] += sum(chosen - 1 for chosen, _ in guessed)
        taken["guessed"] += sum(computed - 1 for _, computed in guessed)
    share = taken["right"] / taken["guessed"]
    assert {"itself": share > 0.95, "good": 0.3 < share < 0.95, "useless": share < 0.3}[draft], taken


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=1, top_p=1, seed=4, max_tokens=24)])
def test_network_that_drafts_for_itself_is_right_about_every_token(sampling):
    said, guessed = say(text(3, 20), sampling, network(0))
    assert guessed[:5] == [(1 + GUESSES, 1 + GUESSES)] * 5
    assert all(chosen == computed for chosen, computed in guessed)
    assert len(said) == 24


@pytest.mark.parametrize("draft", ["good", "useless"])
def test_replies_come_as_often_as_the_network_says(draft):
    """Replies of three tokens, the second and third of them guessed; a seed each, so that it always comes out alike."""
    small, target, count = 6, network(0, vocabulary=6), 1500
    prompt = [2, 4]
    shares = {(): 1.0}
    for _ in range(3):
        shares = {
            (*said, token): share * float(chance)
            for said, share in shares.items()
            for token, chance in enumerate(probabilities(target, [*prompt, *said]))
        }
    assert sum(shares.values()) == pytest.approx(1, abs=1e-4)
    one, drawn = engine(network(*DRAFTS[draft], vocabulary=small), guessers=SEATS), Counter()
    ids = [one.add(prompt, Sampling(temperature=1, top_p=1, seed=seed, max_tokens=3)) for seed in range(count)]
    said, guessed = replies(one)
    assert len(guessed) > count / 2
    drawn.update(tuple(said[id]) for id in ids)
    common = [reply for reply, share in shares.items() if share * count >= 8]
    expected = np.array([*(shares[reply] for reply in common), 1 - sum(shares[reply] for reply in common)]) * count
    counts = [*(drawn[reply] for reply in common), count - sum(drawn[reply] for reply in common)]
    assert len(counts) > 8
    assert chisquare(counts, expected / expected.sum() * count).pvalue > 1e-3


@torch.inference_mode()
def probabilities(network, ids):
    pages, held = kept(network, 1), Held()
    pages.make_room(held, len(ids))
    return network.logits(network([(held, ids)], pages)[-1:]).softmax(-1)[0]


MOVES = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(0, 3), st.sampled_from([1, 5, PAGE, 2 * PAGE + 3])),
        st.tuples(st.just("abort"), st.integers(0, 9)),
        st.tuples(st.just("rewind"), st.integers(0, 9), st.integers(0, 24)),
        st.tuples(st.just("step"), st.integers(1, 8)),
        st.tuples(st.just("step"), st.integers(1, 8)),
    ),
    max_size=14,
)


@cache
def said_alone(which, length):
    return say(text(which, length), GREEDY, None, guessers=0)[0]


@settings(max_examples=100)
@given(MOVES, st.sampled_from(sorted(DRAFTS)), st.sampled_from([4, 9, 64]), st.sampled_from([4, 64]))
def test_whoever_joins_leaves_or_is_cut_back_says_what_he_would_have_said_and_no_page_is_lost(
    moves, draft, pages, drafted
):
    one = engine(network(*DRAFTS[draft]), pages, drafted)
    prompts, said, under_way = {}, defaultdict(list), set()

    def step():
        for advance in one.step():
            said[advance.id] += [chosen.token for chosen in advance.chosen]
            if advance.end:
                under_way.discard(advance.id)

    for move in moves:
        match move:
            case "add", which, length:
                prompts[id := one.add(text(which, length), GREEDY)] = (which, length)
                under_way.add(id)
            case "abort", which if which < len(prompts):
                one.abort(id := sorted(prompts)[which])
                under_way.discard(id)
            case "rewind", which, length if which < len(prompts) and (id := sorted(prompts)[which]) in under_way:
                length = min(length, len(said[id]))
                one.rewind(id, prompts[id][1] + length)
                del said[id][length:]
            case "step", count:
                for _ in range(count):
                    step()
    going = set(under_way)
    while one.busy:
        step()
    for id, prompt in prompts.items():
        assert said[id] == said_alone(*prompt)[: len(said[id])]
        assert len(said[id]) == GREEDY.max_tokens or id not in going
    assert (one.free, one._draft.free) == (pages, drafted)


def test_draft_is_cut_back_with_its_sequence_and_goes_on_being_right():
    one = engine(network(0))
    prompt, said = text(9, 30), []
    id = one.add(prompt, replace(WILD, seed=1))
    while len(said) < 12:
        [advance] = one.step()
        said += [chosen.token for chosen in advance.chosen]
    one.rewind(id, len(prompt) + 3)
    again, guessed = replies(one)
    assert again[id][0] != said[3]  # randomness goes on, so what the draft had read is of no use
    assert guessed[id][:3] == [(1 + GUESSES, 1 + GUESSES)] * 3


def test_hidden_states_are_the_networks_own_and_told_once_in_order():
    one, told = engine(network(*DRAFTS["good"])), []
    ids = text(3, 40)
    one.add(ids, GREEDY)
    while one.busy:
        [advance] = one.step()
        del told[advance.start :]  # a guess that was wrong is told, too
        told.extend(advance.hidden)
        ids += [chosen.token for chosen in advance.chosen]
    pages, held = kept(network(0), 4), Held()
    pages.make_room(held, len(ids))
    with torch.inference_mode():
        expected = network(0)([(held, ids)], pages)
    assert (torch.stack(told[: len(ids) - 1]) - expected[:-1]).abs().max() < 1e-4


def test_draft_reads_a_long_text_in_parts_and_guesses_once_it_has():
    prompt = text(1, READ + 40)
    said, guessed = say(prompt, GREEDY, network(0))
    assert said == say(prompt, GREEDY, None, guessers=0)[0]
    assert (1 + GUESSES, 1 + GUESSES) in guessed


def test_draft_whose_context_or_pages_end_guesses_no_more():
    prompt, sampling = text(2, 50), Sampling(temperature=0, max_tokens=40)
    expected = say(prompt, sampling, None, guessers=0)[0]
    for draft, pages in ((network(0, context=70), 64), (network(0), 1)):
        said, guessed = say(prompt, sampling, draft, drafted=pages)
        assert said == expected
        assert sum(chosen for chosen, _ in guessed) <= 20
        assert pages == 1 or guessed


class Mute:
    """A network whose weights were damaged."""

    def __init__(self, network):
        self.config = network.config
        self._network = network

    def compute(self, new, cache, asked):
        return [(hidden, logits * float("nan")) for hidden, logits in self._network.compute(new, cache, asked)]


def test_draft_whose_logits_are_no_numbers_guesses_nothing():
    one, draft = network(0), Draft(Mute(network(0)), kept(network(0), 64))
    here = Engine(one, kept(one, 64), frozenset(), draft=draft)
    here.add(text(1, 9), GREEDY)
    said, guessed = replies(here)
    assert (said[1], guessed) == (say(text(1, 9), GREEDY, None, guessers=0)[0], {})
    assert draft.free == 64


def test_draft_of_another_vocabulary_is_refused():
    other, one = network(0, vocabulary=VOCABULARY + 1), network(0)
    with pytest.raises(DraftDiffers, match=f"vocabulary of {VOCABULARY + 1} tokens, the network {VOCABULARY}"):
        Engine(one, kept(one, 4), frozenset(), draft=Draft(other, kept(other, 4)))


WORDS = [one + two for one in "bdfgklmnprst" for two in "aeiou"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Checkpoints: two of the same words, one of others, one that transformers computes."""
    path = tmp_path_factory.mktemp("speakers")
    for name, words in (("large", WORDS), ("small", WORDS), ("other", WORDS[::-1])):
        save_speaker(path / name, words)
    sizes = json.loads((path / "large" / "config.json").read_text())
    torch.manual_seed(8)
    keys = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    shape = {key: sizes[key] for key in keys}
    LlamaForCausalLM(LlamaConfig(**shape | {"num_hidden_layers": 1})).save_pretrained(path / "small")
    MixtralForCausalLM(MixtralConfig(**shape, num_key_value_heads=2, num_local_experts=2)).save_pretrained(path / "mix")
    (path / "mix" / "tokenizer.json").write_bytes((path / "large" / "tokenizer.json").read_bytes())
    return path


def tokens(service, prompt, sampling):
    return [one.token for advance in service.generate(prompt, sampling) for one in advance.chosen]


@pytest.mark.parametrize("bits", [4, 32])
def test_checkpoint_with_a_draft_says_what_it_says_without(folders, bits):
    plain, helped = (load(folders / "large", bits, 1, draft) for draft in (None, folders / "small"))
    for sampling in (GREEDY, Sampling(temperature=1, top_p=1, seed=3, max_tokens=24)):
        for prompt in ([1, 2, 3], [7] * 80):
            assert tokens(helped, prompt, sampling) == tokens(plain, prompt, sampling)
    plain.close()
    helped.close()


@pytest.mark.parametrize(
    ("path", "draft", "says"),
    [
        ("large", "other", r"other has other tokens than .*large: 1 is 'tu', not 'ba'"),
        ("mix", "small", "mix takes no draft, which only ringfence's own engine does"),
        ("large", "mix", "mix cannot draft, which only ringfence's own engine does"),
    ],
)
def test_network_that_cannot_draft_for_another_is_refused_by_name(folders, path, draft, says):
    with pytest.raises(DraftDiffers, match=says):
        load(folders / path, draft=folders / draft)


def test_draft_that_is_not_there_is_told(folders):
    with pytest.raises(WeightsMissing, match=r"no checkpoint at .*nowhere"):
        load(folders / "large", draft=folders / "nowhere")


def test_what_the_draft_takes_is_not_free_for_the_network(folders, monkeypatch):
    monkeypatch.setattr(memory, "available", lambda: 100 << 20)
    load(folders / "large", draft=None).close()
    with pytest.raises(NotEnoughMemory, match="large at 4 bits beside its draft takes about"):
        load(folders / "large", draft=folders / "small")
