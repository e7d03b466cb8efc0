"""Whatever a network says, a reply held to a grammar is of that grammar: with guesses, after rewinding, to the end."""

import asyncio
import json
import re
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import replace

import jsonschema
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ringfence.guard.exchange import Exchange
from ringfence.model import weights
from ringfence.model.grammar import SOURCE, Grammars
from ringfence.model.sampler import Sampler, Sampling, SamplingError
from ringfence.policies.types import UpstreamChoice
from ringfence.proxy.reply import Text
from ringfence.proxy.upstreams import open_upstream

WILD = Sampling(temperature=1, top_p=1)
LIMIT = 4000
"""Tokens that no reply here takes: those of a finite grammar end by themselves."""


def small():
    """A byte-level tokenizer of a few hundred tokens, two of which end a reply."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    texts = [
        '{"name": "Ada", "born": 1815, "tags": ["a", "b"]}',
        "true, false, null, true, false, null",
        "aé漢 aé漢 }]}]}]",
    ] * 4
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet, show_progress=False)
    )
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in ("<end>", "<over>", "<start>")])
    return tokenizer


def real():
    """The default checkpoint's: it has no tokens for some bytes."""
    return Tokenizer.from_file(str(weights.pull().path / "tokenizer.json"))


class Bench:
    """A tokenizer, what reads grammars for it, and a network that says anything."""

    def __init__(self, tokenizer, ends):
        self.tokenizer = tokenizer
        self.ends = [tokenizer.token_to_id(end) for end in ends]
        self.vocabulary = tokenizer.get_vocab_size() + 5  # a network may have more rows than there are tokens
        self.grammars = Grammars(tokenizer, self.ends, self.vocabulary)
        self.rows = np.random.default_rng(1).normal(size=(31, self.vocabulary)).astype(np.float32) * 2

    def ids(self, text):
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def logits(self, said, seed, love=()):
        """Random ones, the same after the same tokens."""
        logits = self.rows[hash((seed, *said)) % len(self.rows)].copy()
        logits[list(love)] += 20
        return torch.from_numpy(logits)

    def say(self, grammar, seed, love=(), guesses=(), drafts=0):
        """Say a reply, with guesses or with drafts of so many tokens; return its text and its tokens."""
        sampler = Sampler(replace(WILD, seed=seed), self.vocabulary, (), grammar)
        random, said = np.random.default_rng(seed), []
        while not grammar.done and len(said) < LIMIT:
            first = random.integers(len(guesses)) if len(guesses) else 0
            draft = list(guesses[first : first + random.integers(5)]) if len(guesses) else []
            with sampler.ahead(), suppress(SamplingError):  # nothing follows the end
                while len(draft) < drafts:
                    wrong = random.integers(5) == 0
                    draft.append(sampler.choose(self.logits([*said, *draft], seed + wrong, love)).token)
            rows = torch.stack([self.logits([*said, *draft[:count]], seed, love) for count in range(len(draft) + 1)])
            said += [one.token for one in sampler.verify(rows, draft)]
        assert grammar.done
        assert said[-1] in self.ends
        assert not set(said[:-1]) & set(self.tokenizer.get_added_tokens_decoder())
        assert max(said) < self.tokenizer.get_vocab_size()
        return self.tokenizer.decode(said[:-1], skip_special_tokens=False), said


@pytest.fixture(scope="module")
def tiny():
    return Bench(small(), ["<end>", "<over>"])


@pytest.fixture(scope="module")
def large():
    return Bench(real(), ["<|im_end|>", "<|endoftext|>"])


@pytest.fixture(scope="module", params=["small", "real"])
def bench(request, tiny, large):
    return {"small": tiny, "real": large}[request.param]


names = st.sampled_from(["a", "b", 'quo"te', "漢", "with space", ""])
leaves = st.one_of(
    st.builds(
        lambda low, more: {"type": "integer", "minimum": low, "maximum": low + more},
        st.integers(-99, 99),
        st.integers(0, 500),
    ),
    st.builds(
        lambda low, more: {"type": "string", "minLength": low, "maxLength": low + more},
        st.integers(0, 3),
        st.integers(0, 4),
    ),
    st.builds(
        lambda values: {"enum": values},
        st.lists(st.sampled_from([1, "x", None, True, [1, {}], "é\n"]), min_size=1, max_size=3),
    ),
    st.sampled_from(
        [
            {"type": "boolean"},
            {"type": "null"},
            {"const": {"k": [1, "v"]}},
            {"type": "string", "pattern": "^[a-c]{2,4}$"},
        ]
    ),
)


def lists(items):
    return st.builds(
        lambda item, low, more: {"type": "array", "items": item, "minItems": low, "maxItems": low + more},
        items,
        st.integers(0, 2),
        st.integers(0, 2),
    )


def objects(items):
    return st.builds(
        lambda properties, required: {
            "type": "object",
            "properties": properties,
            "required": [name for name in properties if name in required],
            "additionalProperties": False,
        },
        st.dictionaries(names, items, max_size=4),
        st.sets(names),
    )


def choices(items):
    return st.builds(lambda several: {"anyOf": several}, st.lists(items, min_size=1, max_size=3))


schemas = st.recursive(leaves, lambda items: lists(items) | objects(items) | choices(items), max_leaves=6)


@settings(max_examples=120)
@given(schemas, st.integers(0, 999))
def test_anything_said_under_a_schema_is_json_that_it_allows(tiny, schema, seed):
    text, _ = tiny.say(tiny.grammars.json_schema(schema), seed)
    jsonschema.validate(json.loads(text), schema)


PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "born": {"type": "integer", "minimum": 1000, "maximum": 2000},
        "tags": {"type": "array", "items": {"$ref": "#/$defs/tag"}, "maxItems": 3},
        "parent": {"anyOf": [{"type": "null"}, {"$ref": "#"}]},
    },
    "required": ["name", "born", "tags"],
    "additionalProperties": False,
    "$defs": {"tag": {"enum": ["math", "engine", "漢"]}},
}


@pytest.mark.parametrize("seed", range(3))
def test_guesses_change_nothing_of_what_is_said(bench, seed):
    guesses = bench.ids('{"name": "Ada", "born": 1815, "tags": ["math", "engine"]}')
    guesses[5:5] = bench.ends  # some of them wrong
    text, alone = bench.say(bench.grammars.json_schema(PERSON), seed)
    assert (text, alone) == bench.say(bench.grammars.json_schema(PERSON), seed, guesses=guesses)
    jsonschema.validate(json.loads(text), PERSON)


@pytest.mark.parametrize("seed", range(3))
def test_drafts_change_nothing_of_what_is_said(bench, seed):
    alone = bench.say(bench.grammars.json_schema(PERSON), seed)
    assert bench.say(bench.grammars.json_schema(PERSON), seed, drafts=4) == alone


def test_guesses_that_are_right_are_taken_and_end_where_the_reply_is_complete(bench):
    ids = [*bench.ids('{"name": "Ada", "born": 1815, "tags": []}'), bench.ends[1]]
    rows = torch.zeros(len(ids) + 3, bench.vocabulary)
    rows[torch.arange(len(ids)), torch.tensor(ids)] = 9
    sampler = Sampler(Sampling(temperature=0), bench.vocabulary, (), grammar := bench.grammars.json_schema(PERSON))
    assert [one.token for one in sampler.verify(rows, [*ids, 5, 5])] == ids
    assert grammar.done


@settings(max_examples=60)
@given(st.integers(0, 99), st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), max_size=6))
def test_rewound_grammar_allows_what_it_allowed_there(tiny, seed, moves):
    for grammars in (lambda: tiny.grammars.json_schema(PERSON), lambda: tiny.grammars.regex("(ab?|[0-9]{2,9})c*")):
        grammar, said = grammars(), []
        random = np.random.default_rng(seed)
        for steps, back in moves:
            for _ in range(steps):
                if grammar.done:
                    break
                said.append(int(random.choice(np.flatnonzero(grammar.mask()))))
                grammar.advance(said[-1])
            back = min(back, len(said))
            grammar.rewind(back)
            del said[len(said) - back :]
            fresh = grammars()
            for token in said:
                fresh.advance(token)
            assert grammar.done == fresh.done
            assert grammar.done or np.array_equal(grammar.mask(), fresh.mask())


def test_reply_that_ended_can_be_taken_up_again(bench):
    """Where nothing but the end may come, and where more might have."""
    (a,), (b,), end = bench.ids("a"), bench.ids("b"), bench.ends[0]
    for said, after in (([a, end], {b, *bench.ends}), ([a, b, end], set(bench.ends))):
        grammar = bench.grammars.regex("ab?")
        for token in said:
            assert grammar.mask()[token]
            grammar.advance(token)
        assert grammar.done
        grammar.rewind(1)
        assert not grammar.done
        assert set(np.flatnonzero(grammar.mask())) == after
        grammar.rewind(len(said) - 1)
        assert b not in np.flatnonzero(grammar.mask())


def test_mask_is_as_wide_as_the_network_and_allows_no_control_token_but_the_ends(bench):
    mask = bench.grammars.regex("(.|\n)*").mask()
    assert mask.shape == (bench.vocabulary,)
    assert mask.dtype == np.bool_
    control = set(bench.tokenizer.get_added_tokens_decoder())
    whole = {id for id in range(bench.vocabulary - 5) if "\ufffd" not in bench.tokenizer.decode([id])} - control
    assert set(np.flatnonzero(mask)) >= whole | set(bench.ends)
    assert not set(np.flatnonzero(mask)) & {*control, *range(bench.vocabulary - 5, bench.vocabulary)} - set(bench.ends)
    assert len(whole) > 150


@pytest.mark.parametrize("seed", range(5))
def test_any_json_object_is_one(bench, seed):
    closing = [id for text in ('"', "}", "]", ":", "1") for id in bench.ids(text)]  # else strings have no end
    text, _ = bench.say(bench.grammars.json_object(), seed, love=closing)
    assert isinstance(json.loads(text), dict)


@pytest.mark.parametrize(
    "pattern", [r"[A-Z]{2}-\d{3,5}", r"(yes|no|maybe)( please)?", r"a|b|(cd){1,20}", "[^a]{0,30}é", r"\p{Han}{1,3}"]
)
@pytest.mark.parametrize("seed", range(3))
def test_anything_said_under_a_regular_expression_matches_it(bench, pattern, seed):
    text, _ = bench.say(bench.grammars.regex(pattern), seed)
    assert re.fullmatch(pattern.replace(r"\p{Han}", "[\u2e80-\u9fff\U00020000-\U0003ffff\uf900-\ufaff]"), text)


SUM = """
start: term (("+" | "-") term)~0..4
term: NUMBER | "(" start ")"
NUMBER: /[1-9][0-9]{0,2}/
"""


@pytest.mark.parametrize("seed", range(5))
def test_anything_said_under_a_grammar_parses(bench, seed):
    text, _ = bench.say(bench.grammars.lark(SUM), seed, love=bench.ids("1")[:1])
    assert re.fullmatch(r"[-+()0-9]+", text)
    eval(compile(text, "sum", "eval"), {"__builtins__": {}})


def test_white_space_ends_however_much_a_network_loves_it(tiny):
    blank = [id for text in (" ", "\n", "\t", "  ") for id in tiny.ids(text)]
    schema = {"type": "array", "items": {"type": "boolean"}, "maxItems": 2}
    text, said = tiny.say(tiny.grammars.json_schema(schema), 1, love=blank)
    assert isinstance(json.loads(text), list)
    assert 60 < len(said) < 400


@pytest.mark.parametrize(
    ("schema", "told"),
    [
        ({"type": "object", "properties": {"a": {"type": "integr"}}}, "#/properties/a: Invalid type: integr"),
        (
            {"anyOf": [{"type": "null"}, {"items": {"uniqueItems": True}}]},
            '#/anyOf/1/items: Unimplemented keys: ["uniqueItems"]',
        ),
        (
            {"properties": {"a/b~c": {"format": "wombat", "type": "string"}}},
            "#/properties/a~1b~0c: Unknown format: wombat",
        ),
        ({"properties": {"not": {"type": "null"}, "b": {"not": {}}}}, '#/properties/b: Unimplemented keys: ["not"]'),
        ({"$ref": "#/$defs/x", "$defs": {"x": {"items": {"pattern": "(?=a)"}}}}, "#/$defs/x/items: regex parse error"),
        ({"items": {"$ref": "#/$defs/none"}}, "#/items: Pointer '/$defs/none' does not exist"),
        ({"items": {"$ref": "http://example.com/x"}}, "#/items: Resource 'http://example.com/x' is not present"),
        ({"type": "array", "items": {"enum": []}, "minItems": 1}, "#: Unsatisfiable schema"),
        (
            {"type": "integer", "minimum": 5, "maximum": 3},
            "#: Unsatisfiable schema: minimum (5) is greater than maximum (3)",
        ),
        ({"$ref": "#"}, "#: no text could ever match it"),
        ({"not": {}, "x-guidance": {"lenient": True}}, '#: Unimplemented keys: ["not"]'),
    ],
)
def test_schema_that_is_refused_says_what_is_wrong_and_where(tiny, schema, told):
    with pytest.raises(ValueError, match=re.escape(f"the JSON schema is refused at {told}")) as caught:
        tiny.grammars.json_schema(schema)
    assert "<" not in str(caught.value)


def nested(depth):
    return {"items": nested(depth - 1)} if depth else {}


@pytest.mark.parametrize(
    ("schema", "told"),
    [
        ([], "Expecting object"),
        (True, "Expecting object"),
        ({"minimum": float("nan")}, "not JSON compliant"),
        ({"minimum": 10**400}, "number out of range"),
        ({"const": "\ud800"}, "hex escape"),
        ({"enum": {1, 2}}, "not JSON serializable"),
        ({"const": "x" * SOURCE}, f"it has {SOURCE + 13} characters, {SOURCE} are allowed"),
        (nested(300), "recursion limit"),
    ],
)
def test_schema_that_is_no_json_or_too_large_is_told(tiny, schema, told):
    with pytest.raises(ValueError, match=f"the JSON schema cannot be read: .*{told}"):
        tiny.grammars.json_schema(schema)


def test_patterns_and_grammars_that_are_none_say_what_is_wrong(tiny):
    for pattern, told in (
        ("(a|b", "unclosed group"),
        ("(?=a)b", "look-around"),
        ("a\ud800", "surrogates"),
        ("a" * SOURCE + "b", "are allowed"),
    ):
        with pytest.raises(ValueError, match=f"(?s)the regular expression is refused: .*{told}"):
            tiny.grammars.regex(pattern)
    for grammar, told in (
        ("start: foo", 'unknown name: "foo"'),
        ("", "Empty"),
        ("start: start", "no text could"),
        ("a: (", "[Ee]xpected"),
    ):
        with pytest.raises(ValueError, match=f"(?s)the Lark grammar is refused: .*{told}"):
            tiny.grammars.lark(grammar)


CHAINS = """
import sys
sys.path.insert(0, sys.argv[1])
from test_grammar import SOURCE, Bench, small
bench = Bench(small(), ["<end>"])
steps = SOURCE // 75
links = {f"r{n}": {"anyOf": [{"allOf": [{"anyOf": [{"$ref": f"#/$defs/r{n + 1}"}]}]}]} for n in range(steps)}
schema = {"$defs": {**links, f"r{steps}": {"type": "null"}}, "$ref": "#/$defs/r0"}
steps = SOURCE // 18
rules = "\\n".join(["start: r0", *(f'r{n}: r{n + 1} "b"' for n in range(steps)), f'r{steps}: "a"'])
grammar = bench.grammars.lark(rules)
print(bench.say(bench.grammars.json_schema(schema), 1)[0].strip(), grammar.mask().sum())
"""


def test_definitions_that_lead_from_one_to_the_next_as_far_as_there_is_room_do_not_end_the_process(request):
    code = [sys.executable, "-c", CHAINS, str(request.path.parent)]
    done = subprocess.run(code, capture_output=True, text=True, check=False)
    assert done.stdout == "null 1\n", done.stderr


def test_grammar_that_becomes_too_much_to_follow_ends_this_reply_and_no_other(tiny):
    chain = "\n".join(['start: "xy" r0', *(f"r{n}: r{n + 1} r{n + 1}" for n in range(40)), 'r40: "a"'])
    grammar, other = tiny.grammars.lark(chain), tiny.grammars.regex("xy")
    with pytest.raises(SamplingError, match=r"the grammar cannot be followed: .*Too many items"):
        tiny.say(grammar, 3)
    assert tiny.say(other, 3)[0] == "xy"


def test_token_that_the_grammar_does_not_allow_is_not_passed_over(tiny):
    grammar = tiny.grammars.regex("ab")
    with pytest.raises(SamplingError, match="cannot be followed"):
        grammar.advance(tiny.ids("b")[0])
    with pytest.raises(SamplingError, match="cannot be followed"):
        grammar.mask()
    with pytest.raises(SamplingError, match="cannot be followed"):
        tiny.grammars.regex("ab").rewind(1)


def test_grammars_are_read_on_several_threads_at_once_and_each_place_is_its_own(tiny):
    texts = {}

    def read(seed):
        texts[seed] = tiny.say(tiny.grammars.json_schema(PERSON), seed)[0]

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(6)]
    threading.stack_size(0)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == {seed: tiny.say(tiny.grammars.json_schema(PERSON), seed)[0] for seed in range(6)}
    assert threading.stack_size() == 0


def test_checkpoint_without_an_end_can_be_held_to_nothing():
    with pytest.raises(ValueError, match="no end token"):
        Grammars(small(), [], 400)


def test_several_replies_to_one_request_are_each_held_to_a_schema_that_is_read_once(tmp_path, monkeypatch):
    tokenizer = small()
    torch.manual_seed(1)
    end, words = tokenizer.token_to_id("<end>"), tokenizer.get_vocab_size()
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=words, eos_token_id=end, bos_token_id=None, **sizes)).save_pretrained(
        tmp_path
    )
    speaker = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")
    speaker.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    speaker.save_pretrained(tmp_path)
    once, read, said = Grammars.json_schema, [], ["", "", ""]
    monkeypatch.setattr(Grammars, "json_schema", lambda self, schema: read.append(schema) or once(self, schema))
    schema = {"type": "array", "items": {"enum": [1, 2, "aé漢"]}, "minItems": 3, "maxItems": 9}
    body = {"model": tmp_path.name, "messages": [{"role": "user", "content": "true"}], "n": 3, "max_tokens": 400}
    body |= {"temperature": 1, "top_p": 1, "seed": 2, "response_format": {"type": "json_schema"}}
    body["response_format"]["json_schema"] = {"name": "list", "schema": schema}

    async def ask():
        upstream = open_upstream(UpstreamChoice(use=f"embedded:{tmp_path}"))
        async for event in upstream.stream(Exchange("openai.chat", tmp_path.name, [], body), {}):
            if isinstance(event, Text):
                said[event.choice] += event.text
        await upstream.aclose()

    asyncio.run(ask())
    for reply in said:
        jsonschema.validate(json.loads(reply), schema)
    assert len(set(said)) == 3
    assert len(read) == 1
