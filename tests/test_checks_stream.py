"""The pattern checks under the hold-back window: what stands in a stream is found as it is found in the whole text."""

from hypothesis import given, settings
from hypothesis import strategies as st

from ringfence.guard.actions import rewrite
from ringfence.guard.check import Passage
from ringfence.guard.checks.exfiltration import ExfiltrationCheck
from ringfence.guard.checks.hidden import HiddenCheck
from ringfence.guard.checks.pii import PiiCheck
from ringfence.guard.checks.secrets import SecretsCheck
from ringfence.guard.pipeline import Pipeline
from ringfence.guard.stream import StreamGuard
from ringfence.policies.cases import read_cases
from ringfence.policies.load import PACKS, loads_policy
from ringfence.policies.types import Stage

POLICY = loads_policy("version: 1\nname: patterns\npacks: [pii, secrets]\n")
PIPELINE = Pipeline(POLICY, {"pii": PiiCheck(), "secrets": SecretsCheck()})

PEM = "PRIVATE KEY-----"
BODY = "MIIEowIBAAKCAQEA4fKq9ZtWm2Xv7LbN0cRs8Yd3HgJu6PeA1oTi5BnQ2wE7rK9x"
PIECES = [
    *("hello world ", "\n", ". ", "12 345 ", "1 2 3 4 ", "version ", "the order number is ", BODY + " "),
    *("call me at ", "415-555-2671 ", "(415) 555-2671 ", "4155552671 ", "+44 20 7946 0958 ", "jane@example.com "),
    *("card ", "4111 1111 1111 1111 ", "4111111111111111 ", "DE89 3704 0044 0532 0130 00 ", "93.184.216.34 "),
    *("my ssn is ", "536-90-4399 ", "536 90 4399 ", "password is ", "hunter2 ", "postgres://u:s3cr3tPw@h/db "),
    *("ghp" + "_" + BODY[:36] + " ", "api_key = ", "bearer ", "sk-" + BODY[:40] + " "),
    *("-----BEGIN RSA " + PEM + "\n" + BODY + "\n-----END RSA " + PEM + "\n", "-----BEGIN " + PEM + " is a header "),
]


def judge(pipeline, text):
    return pipeline.judge(Stage.OUTPUT, [Passage(Stage.OUTPUT, "assistant", text)])


def streamed(pipeline, text, chunk):
    """What comes out of a stream that the text goes into in chunks."""
    stream, released = StreamGuard(pipeline.policy.stream), ""
    for start in range(0, len(text) + 1, chunk):
        stream.feed(text[start : start + chunk])
        if start + chunk > len(text):
            stream.close()
        while window := stream.window():
            released += stream.settle(window, judge(pipeline, window.text))
    return released


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(PIECES), min_size=10, max_size=60).map("".join), st.integers(1, 50))
def test_stream_is_rewritten_as_the_whole_text_is(text, chunk):
    assert streamed(PIPELINE, text, chunk) == rewrite(text, judge(PIPELINE, text).rewrites)


WAYS_OUT = Pipeline(
    loads_policy("version: 1\nname: ways-out\npacks: [hidden, exfiltration]\n"),
    {"hidden": HiddenCheck(), "exfiltration": ExfiltrationCheck()},
)
LINES = [case.text for pack in ("hidden", "exfiltration") for case in read_cases(PACKS / f"{pack}.cases.yaml")]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(LINES), min_size=3, max_size=25).map("\n".join), st.integers(1, 50))
def test_stream_with_hidden_text_and_ways_out_is_rewritten_as_the_whole_text_is(text, chunk):
    assert streamed(WAYS_OUT, text, chunk) == rewrite(text, judge(WAYS_OUT, text).rewrites)
