"""Tokens come as often as a slow twin says they should: chosen one by one, or by checking a draft, with every setting."""

import math
import subprocess
import sys
from collections import Counter
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from ringfence.model.sampler import Chosen, Sampler, Sampling, SamplingError, cut

PLAIN = Sampling(temperature=1, top_p=1)
GREEDY = Sampling(temperature=0)


# A slow twin: the probability of each token, in the words of `Sampling`


def likelihood(logits, sampling, prompt=(), said=(), allowed=None):
    left = []
    for token, logit in enumerate(logits):
        if token in prompt or token in said:
            logit = logit / sampling.repetition_penalty if logit > 0 else logit * sampling.repetition_penalty
        logit -= sampling.presence_penalty * (token in said) + sampling.frequency_penalty * list(said).count(token)
        bias = sampling.logit_bias.get(token, 0)
        left.append(logit + bias if bias != -100 and (allowed is None or allowed[token]) else -math.inf)
    best = max(left)
    if sampling.temperature == 0:
        return [float(token == left.index(best)) for token in range(len(left))]
    weights = {token: math.exp((logit - best) / sampling.temperature) for token, logit in enumerate(left)}
    kept = sorted(weights, key=weights.get, reverse=True)[: sampling.top_k if sampling.top_k > 0 else None]
    total = sum(weights[token] for token in kept)
    nucleus, mass = [], 0.0
    for token in kept:
        nucleus.append(token)
        mass += weights[token]
        if sampling.top_p < 1 and mass >= sampling.top_p * total:
            break
    nucleus = {token: weights[token] for token in nucleus if weights[token] >= sampling.min_p}
    return [nucleus.get(token, 0.0) / sum(nucleus.values()) for token in range(len(left))]


class Restless:
    """A constraint: no token comes twice in a row, and the end, token 0, only after two others."""

    def __init__(self, vocabulary):
        self.vocabulary = vocabulary
        self.said = []

    @property
    def done(self):
        return 0 in self.said

    def mask(self):
        assert not self.done
        allowed = np.ones(self.vocabulary, bool)
        allowed[self.said[-1:]] = False
        allowed[0] = len(self.said) >= 2
        return allowed

    def advance(self, token):
        assert self.mask()[token]
        self.said.append(token)

    def rewind(self, count):
        assert count <= len(self.said)
        del self.said[len(self.said) - count :]

    def copy(self):
        other = Restless(self.vocabulary)
        other.said = [*self.said]
        return other


VOCABULARY, LENGTH = 5, 4
NETWORK = torch.randn(VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(3))
"""What follows each token."""
PROMPT = (2, 4)


def sequences(sampling, constrained):
    """Every reply of some tokens, and its probability."""
    found = {(): 1.0}
    for _ in range(LENGTH):
        longer = {}
        for said, so_far in found.items():
            allowed = None
            if constrained:
                constraint = Restless(VOCABULARY)
                for token in said:
                    constraint.advance(token)
                if constraint.done:
                    longer[said] = so_far
                    continue
                allowed = constraint.mask()
            logits = NETWORK[(*PROMPT, *said)[-1]].tolist()
            for token, share in enumerate(likelihood(logits, sampling, PROMPT, said, allowed)):
                if share:
                    longer[(*said, token)] = so_far * share
        found = longer
    return found


def one_by_one(sampler, said):
    return [sampler.choose(NETWORK[(*PROMPT, *said)[-1]])]


def looked_up(sampler, said, random):
    """Check guesses that are anything."""
    guesses = [random.integers(VOCABULARY) for _ in range(random.integers(4))]
    return sampler.verify(NETWORK[[(*PROMPT, *said)[-1], *guesses]], guesses)


def drafted(network):
    """Check what a sampler chooses ahead from another network."""

    def choose(sampler, said, random):
        last = [(*PROMPT, *said)[-1]]
        with sampler.ahead(), suppress(SamplingError):  # nothing follows the end of a constraint
            for _ in range(random.integers(1, 4)):
                last.append(sampler.choose(network[last[-1]]).token)
        return sampler.verify(NETWORK[last], last[1:])

    return choose


POOR, GOOD = NETWORK.flip(1), NETWORK.flip(1) * 0.2 + NETWORK
"""Networks that draft."""

WAYS = {
    "one by one": lambda sampler, said, random: one_by_one(sampler, said),
    "lookup": looked_up,
    "poor draft": drafted(POOR),
    "good draft": drafted(GOOD),
}

SETTINGS = {
    "plain": PLAIN,
    "cold": replace(PLAIN, temperature=0.6),
    "top-p": Sampling(temperature=1.2, top_p=0.75),
    "top-k and min-p": Sampling(temperature=1, top_p=0.95, top_k=4, min_p=0.08),
    "penalties": Sampling(
        temperature=1, top_p=1, repetition_penalty=1.6, presence_penalty=1.0, frequency_penalty=0.7, logit_bias={1: 0.9}
    ),
    "all": Sampling(
        temperature=0.9,
        top_p=0.9,
        top_k=4,
        min_p=0.02,
        repetition_penalty=0.7,
        frequency_penalty=1.5,
        logit_bias={3: -100},
    ),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("setting", "constrained"), [*((setting, False) for setting in SETTINGS), ("plain", True), ("all", True)]
)
def test_replies_come_as_often_as_the_definition_says(way, setting, constrained):
    sampling = SETTINGS[setting]
    expected = sequences(sampling, constrained)
    random, drawn, count = np.random.default_rng(11), Counter(), 2000
    for seed in range(count):
        sampler = Sampler(
            replace(sampling, seed=seed), VOCABULARY, PROMPT, Restless(VOCABULARY) if constrained else None
        )
        said = ()
        while len(said) < LENGTH and not (constrained and 0 in said):
            said += tuple(one.token for one in WAYS[way](sampler, said, random))
        drawn[said[:LENGTH]] += 1
    assert set(drawn) <= set(expected)
    # Rare replies are counted together: chi-square wants some of each.
    common = [reply for reply, share in expected.items() if share * count >= 8]
    counts, shares = [drawn[reply] for reply in common], [expected[reply] for reply in common]
    rest = 1 - sum(shares)
    if rest * count >= 1:
        counts, shares = [*counts, count - sum(counts)], [*shares, rest]
    assert len(counts) > 8
    assert chisquare(counts, np.array(shares) / sum(shares) * sum(counts)).pvalue > 1e-4


def random_logits(seed, size=VOCABULARY):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=size).astype(np.float32) * 3)


samplings = st.builds(
    Sampling,
    temperature=st.sampled_from([0, 1e-6, 0.3, 1, 2.5]),
    top_p=st.sampled_from([0, 0.1, 0.5, 0.93, 1]),
    top_k=st.sampled_from([-1, 0, 1, 3, 1000]),
    min_p=st.sampled_from([0, 0.05, 0.4, 1]),
    seed=st.integers(0, 99),
    repetition_penalty=st.sampled_from([1, 0.5, 1.3]),
    presence_penalty=st.sampled_from([0, -2, 1.5]),
    frequency_penalty=st.sampled_from([0, 0.4, -0.3]),
    logit_bias=st.dictionaries(st.integers(0, VOCABULARY - 1), st.sampled_from([-100, -1.5, 0.5, 100]), max_size=3),
)
tokens = st.integers(0, VOCABULARY - 1)


@settings(max_examples=300)
@given(samplings, st.integers(0, 999), st.sampled_from([1, 2, 7, 300, 3000]))
def test_cuts_leave_the_tokens_and_proportions_of_the_definition(sampling, seed, size):
    sampling = replace(sampling, temperature=sampling.temperature or 1)
    logits = random_logits(seed, size)
    plain = replace(sampling, repetition_penalty=1, presence_penalty=0, frequency_penalty=0, logit_bias={})
    ids, weights = cut(logits.numpy(), plain)
    shares = np.zeros(size)
    shares[ids] = weights / weights.sum()
    np.testing.assert_allclose(shares, likelihood(logits.tolist(), plain), atol=2e-5)


@given(samplings, st.lists(tokens, min_size=1, max_size=8), st.integers(0, 99))
def test_guesses_change_no_token_for_the_same_seed(sampling, guesses, seed):
    alone, helped = Sampler(sampling, VOCABULARY, PROMPT), Sampler(sampling, VOCABULARY, PROMPT)
    random, said = np.random.default_rng(seed), ()
    while len(said) < 12:
        draft = [guesses[random.integers(len(guesses))] for _ in range(random.integers(4))]
        chosen = helped.verify(NETWORK[[(*PROMPT, *said)[-1], *draft]], draft)
        assert [one.token for one in chosen[:-1]] == draft[: len(chosen) - 1]
        assert len(chosen) == len(draft) + 1 or chosen[-1].token != draft[len(chosen) - 1]
        for one in chosen:
            assert one_by_one(alone, said) == [one]
            said += (one.token,)


@given(samplings, st.sampled_from([POOR, GOOD]), st.booleans(), st.integers(0, 99))
def test_drafts_change_no_token_for_the_same_seed(sampling, network, constrained, seed):
    sampling = replace(sampling, logit_bias={})
    alone, helped = (Sampler(sampling, VOCABULARY, PROMPT, Restless(VOCABULARY) if constrained else None) for _ in "ab")
    random, said = np.random.default_rng(seed), ()
    while len(said) < 12 and not (constrained and 0 in said):
        for one in drafted(network)(helped, said, random):
            assert one_by_one(alone, said) == [one]
            said += (one.token,)


@given(samplings, st.booleans())
def test_network_that_drafts_for_itself_is_right_about_every_token(sampling, constrained):
    constraint = Restless(VOCABULARY) if constrained else None
    sampler, said = Sampler(replace(sampling, logit_bias={}), VOCABULARY, PROMPT, constraint), ()
    while len(said) < 12 and not (constrained and 0 in said):
        last = [(*PROMPT, *said)[-1]]
        with sampler.ahead(), suppress(SamplingError):
            for _ in range(3):
                last.append(sampler.choose(NETWORK[last[-1]]).token)
        chosen = [one.token for one in sampler.verify(NETWORK[last], last[1:])]
        assert chosen[: len(last) - 1] == last[1:]
        said += tuple(chosen)


@given(samplings, st.integers(0, 10), st.integers(0, 10), st.booleans())
def test_rewound_sampler_goes_on_as_if_the_rest_had_never_been(sampling, kept, undone, constrained):
    def start():
        constraint = Restless(VOCABULARY) if constrained else None
        return Sampler(replace(sampling, temperature=0, logit_bias={}), VOCABULARY, PROMPT, constraint)

    def go(sampler, said, count):
        for _ in range(count):
            if constrained and 0 in said:
                break
            said = (*said, *(one.token for one in one_by_one(sampler, said)))
        return said

    straight, back = start(), start()
    said = go(straight, (), kept)
    assert go(back, (), kept) == said
    # Something else is said and taken back.
    other = 0
    while other < undone and not (constrained and 0 in said):
        try:
            back.choose(-NETWORK[other % VOCABULARY])
        except SamplingError:
            break
        other += 1
    back.rewind(other)
    assert go(back, said, 5) == go(straight, said, 5)


def test_more_than_was_chosen_cannot_be_undone():
    sampler = Sampler(GREEDY, VOCABULARY, PROMPT)
    sampler.choose(NETWORK[0])
    with pytest.raises(ValueError, match="2 tokens cannot be undone, 1 were chosen"):
        sampler.rewind(2)
    with pytest.raises(ValueError, match="cannot be undone"):
        sampler.rewind(-1)


def test_nothing_is_checked_beyond_the_end_that_a_constraint_knows():
    logits = torch.zeros(5, VOCABULARY)
    sampler = Sampler(replace(GREEDY, logit_bias={1: 1, 2: 2, 0: 3}), VOCABULARY, (), Restless(VOCABULARY))
    assert [one.token for one in sampler.verify(logits, [2, 1, 0, 1])] == [2, 1, 0]
    with pytest.raises(SamplingError, match="nothing follow the end"):
        sampler.choose(logits[0])
    sampler.rewind(2)
    assert sampler.choose(logits[0]).token == 1


@given(st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=12))
@example([5.0] * 4)
def test_settings_that_leave_one_token_leave_the_likeliest(values):
    logits = torch.tensor(values)
    for sampling in (
        GREEDY,
        replace(PLAIN, temperature=1e-30),
        replace(PLAIN, temperature=1e-320),
        replace(PLAIN, top_k=1),
        replace(PLAIN, top_p=0),
        replace(PLAIN, min_p=1),
    ):
        chosen = Sampler(sampling, len(values), ()).choose(logits).token
        assert values[chosen] == pytest.approx(max(values))
    if len(set(values)) == len(values):
        assert (
            values[Sampler(replace(PLAIN, temperature=1e-6), len(values), ()).choose(logits).token]
            >= max(values) - 1e-4
        )


def test_equal_logits_give_every_token_alike_and_the_first_when_cold():
    logits = torch.full((50,), -3.25)
    sampler = Sampler(replace(PLAIN, seed=1), 50, ())
    drawn = Counter(sampler.choose(logits).token for _ in range(5000))
    assert chisquare([drawn[token] for token in range(50)]).pvalue > 1e-3
    assert Sampler(GREEDY, 50, ()).choose(logits).token == 0
    ids, _ = cut(logits.numpy(), replace(PLAIN, top_p=0.5))
    assert len(ids) == 25


def test_same_seed_gives_the_same_tokens_and_another_others():
    def said(seed):
        sampler = Sampler(Sampling(temperature=1, top_p=0.99, seed=seed), 1000, ())
        return [sampler.choose(random_logits(step, 1000)).token for step in range(20)]

    assert said(5) == said(5)
    assert len({tuple(said(seed)) for seed in (5, -5, 6, None, None, (1 << 63) - 1, -(1 << 63))}) == 7


def test_randomness_of_the_process_and_the_logits_given_are_left_alone():
    before, theirs, logits = torch.get_rng_state(), np.random.get_state()[1].copy(), random_logits(0)
    kept = logits.clone()
    sampling = SETTINGS["penalties"]
    with torch.inference_mode():
        sampler = Sampler(sampling, VOCABULARY, PROMPT)
    for _ in range(3):
        sampler.choose(logits)
    assert torch.equal(logits, kept)
    assert torch.equal(before, torch.get_rng_state())
    assert np.array_equal(theirs, np.random.get_state()[1])


def greedy(logits, prompt=(), **given):
    return Sampler(Sampling(temperature=0, **given), len(logits), prompt).choose(torch.tensor(logits)).token


def test_repetition_penalty_counts_the_prompt_on_both_sides_of_zero():
    assert greedy([3.0, 2.0], repetition_penalty=2) == 0
    assert greedy([3.0, 2.0], prompt=(0,), repetition_penalty=2) == 1
    assert greedy([-1.0, -1.5], prompt=(0,), repetition_penalty=2) == 1


def test_presence_counts_once_and_frequency_each_time_and_neither_the_prompt():
    logits = torch.tensor([1.0, 0.0])

    def said(**given):
        sampler = Sampler(Sampling(temperature=0, **given), 2, (0, 0, 0))
        return [sampler.choose(logits).token for _ in range(5)]

    assert said(presence_penalty=0.9) == [0, 0, 0, 0, 0]
    assert said(presence_penalty=1.5) == [0, 1, 0, 0, 0]
    assert said(frequency_penalty=0.4) == [0, 0, 0, 1, 0]


def test_bias_of_minus_100_bans_whatever_the_network_says():
    assert greedy([1e6, 0.0, -5.0], logit_bias={0: -99}) == 0
    assert greedy([1e6, 0.0, -5.0], logit_bias={0: -100}) == 1
    assert greedy([1e6, 0.0, -5.0], logit_bias={0: -100, 2: 6}) == 2
    sampler = Sampler(replace(PLAIN, temperature=100, logit_bias={0: -100}), 3, ())
    assert {sampler.choose(torch.tensor([9.0, 0.0, 0.0])).token for _ in range(50)} == {1, 2}


def test_bias_that_leaves_nothing_or_names_no_token_is_refused_at_the_start():
    with pytest.raises(ValueError, match="bans every token"):
        Sampler(Sampling(logit_bias={0: -100, 1: -100}), 2, ())
    for token in (2, -1):
        with pytest.raises(ValueError, match=f"token {token} is outside the vocabulary of 2"):
            Sampler(Sampling(logit_bias={token: 1}), 2, ())


def test_bias_that_leaves_nothing_of_what_a_constraint_allows_is_told():
    sampler = Sampler(Sampling(logit_bias={1: -100, 2: -100, 3: -100, 4: -100}), VOCABULARY, (), Restless(VOCABULARY))
    with pytest.raises(SamplingError, match="leave no token"):
        sampler.choose(NETWORK[0])


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(), SETTINGS["penalties"]])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_no_numbers_are_told(sampling, bad):
    for logits in (torch.tensor([0.0, bad, 1.0]), torch.full((3,), bad), torch.full((3,), -math.inf)):
        with pytest.raises(SamplingError, match="no numbers"):
            Sampler(sampling, 3, ()).choose(logits)


def test_penalty_that_carries_a_logit_beyond_all_numbers_is_told():
    with pytest.raises(SamplingError, match="leave no token"):
        Sampler(Sampling(repetition_penalty=0.01), 2, (0,)).choose(torch.tensor([1e37, 0.0]))


def test_tokens_that_the_network_itself_rules_out_are_never_drawn():
    logits = torch.tensor([-math.inf, 0.0, -math.inf, 0.0, -math.inf])
    for sampling in (replace(PLAIN, temperature=100), SETTINGS["penalties"], SETTINGS["top-p"]):
        sampler = Sampler(sampling, 5, ())
        assert {sampler.choose(logits).token for _ in range(60)} <= {1, 3}


@given(samplings, st.integers(0, 99), st.integers(0, 20), st.sampled_from([3, 40]))
def test_logprobs_are_the_networks_own_whatever_the_settings(sampling, seed, count, size):
    logits = random_logits(seed, size)
    bias = {token: value for token, value in sampling.logit_bias.items() if token < size - 1}
    sampler = Sampler(replace(sampling, logprobs=count, logit_bias=bias), size, (0,))
    expected = logits.double().log_softmax(-1)
    for _ in range(2):
        chosen = sampler.choose(logits)
        assert chosen.logprob == pytest.approx(float(expected[chosen.token]), abs=1e-5)
        best, ids = expected.topk(min(count, size))
        assert [token for token, _ in chosen.top] == ids.tolist()
        assert [logprob for _, logprob in chosen.top] == pytest.approx(best.tolist(), abs=1e-5)


def test_logprobs_are_told_only_when_asked_for_and_for_every_token_of_a_draft():
    assert Sampler(GREEDY, VOCABULARY, ()).choose(NETWORK[0]) == Chosen(int(NETWORK[0].argmax()))
    draft = [int(NETWORK[0].argmax())]
    chosen = Sampler(replace(GREEDY, logprobs=0), VOCABULARY, ()).verify(NETWORK[[0, draft[0]]], draft)
    assert [one.logprob for one in chosen] == pytest.approx(
        [float(NETWORK[row].log_softmax(-1).max()) for row in (0, draft[0])], abs=1e-5
    )
    assert [one.top for one in chosen] == [(), ()]


def test_draft_of_another_length_than_its_logits_is_refused():
    sampler = Sampler(PLAIN, VOCABULARY, ())
    with pytest.raises(ValueError, match="a draft of 3 tokens"):
        sampler.verify(NETWORK[:3], [0, 1, 2])
    with pytest.raises(ValueError, match="a draft of 1 tokens"):
        sampler.verify(NETWORK[:3], [0])


def test_logits_of_another_precision_are_read_too():
    for kind in (torch.bfloat16, torch.float16, torch.float64):
        assert (
            Sampler(Sampling(temperature=0, logprobs=1), 5, ()).choose(NETWORK[1].to(kind)).token == NETWORK[1].argmax()
        )


@pytest.mark.parametrize(
    ("field", "value", "bounds"),
    [
        ("temperature", -1, "between 0 and 100"),
        ("temperature", math.nan, "between 0 and 100"),
        ("temperature", math.inf, "between 0 and 100"),
        ("top_p", 1.1, "between 0 and 1"),
        ("top_p", math.nan, "between 0 and 1"),
        ("top_k", -2, "at least -1"),
        ("min_p", 1.5, "between 0 and 1"),
        ("max_tokens", 0, "at least 1"),
        ("repetition_penalty", 0, "between 0.01 and 100"),
        ("presence_penalty", 2.1, "between -2 and 2"),
        ("frequency_penalty", -3, "between -2 and 2"),
        ("seed", 1 << 63, "between "),
        ("logprobs", 21, "between 0 and 20"),
    ],
)
def test_sampling_out_of_bounds_is_refused_by_name(field, value, bounds):
    with pytest.raises(ValueError, match=f"{field} must be {bounds}"):
        Sampling(**{field: value})


@pytest.mark.parametrize("field", ["top_k", "max_tokens", "seed", "logprobs"])
@pytest.mark.parametrize("value", [1.5, math.nan, math.inf])
def test_numbers_that_are_not_whole_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=f"{field} must be a whole number"):
        Sampling(**{field: value})


@pytest.mark.parametrize("bias", [-100.1, 101, math.nan])
def test_bias_out_of_bounds_is_refused_by_token(bias):
    with pytest.raises(ValueError, match="logit_bias of token 7 must be between -100 and 100"):
        Sampling(logit_bias={3: 1, 7: bias})


def test_importing_the_sampler_loads_no_torch():
    code = "import sys, ringfence.model.sampler; print({'torch', 'transformers', 'llguidance'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
