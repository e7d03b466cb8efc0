"""The pytest plugin, in runs of pytest of its own."""

import pytest

pytest_plugins = ["pytester"]

POLICY = """
version: 1
name: words
checks:
  - { kind: keywords, category: bomb, words: [bomb] }
  - { kind: keywords, category: pin, words: [pin] }
rules:
  - { id: no-bombs, category: bomb, action: block }
  - { id: no-pins, category: pin, action: rewrite }
"""


@pytest.fixture
def run(pytester: pytest.Pytester) -> pytest.Pytester:
    pytester.makefile(".yaml", policy=POLICY)
    return pytester


def outcome(pytester: pytest.Pytester, body: str, *options: str) -> pytest.RunResult:
    pytester.makepyfile(body)
    # A process of its own: this one has loaded what the plugin must not load.
    return pytester.runpytest_subprocess("-p", "no:cacheprovider", *options)


def test_assertions_that_hold_pass(run: pytest.Pytester) -> None:
    body = """
        def test_one(assert_safe, assert_blocked):
            assert_safe("all is well")
            assert_safe("all is well", stage="input")
            assert_blocked("a bomb")
            assert_blocked("a bomb", rule="no-bombs", stage="output", prompt="what is it?")
    """
    outcome(run, body, "--ringfence-policy", "policy.yaml").assert_outcomes(passed=1)


def test_failure_shows_rule_score_and_place(run: pytest.Pytester) -> None:
    body = """
        def test_blocked(assert_safe):
            assert_safe("here is a bomb for you")
        def test_rewritten(assert_safe):
            assert_safe("the pin is blue")
        def test_not_blocked(assert_blocked):
            assert_blocked("all is well", rule="no-bombs")
        def test_other_rule(assert_blocked):
            assert_blocked("a bomb", rule="no-pins")
        def test_no_such_rule(assert_blocked):
            assert_blocked("a bomb", rule="no-boms")
        def test_no_such_stage(assert_blocked):
            assert_blocked("a bomb", stage="sideways")
        def test_no_text(assert_safe):
            assert_safe(5)
    """
    result = outcome(run, body, "--ringfence-policy", "policy.yaml")
    result.assert_outcomes(failed=7)
    result.stdout.fnmatch_lines(
        [
            "expected the output to pass, but the policy would block it",
            "  by rules: no-bombs",
            "  bomb 1 (bomb): [[]10:14[]] 'here is a ' >>> 'bomb' <<< ' for you'",
            "expected the output to pass, but the policy would rewrite it",
            "expected the input to be blocked by 'no-bombs'",
            "  decision: allow",
            "expected the input to be blocked by 'no-pins'",
            "the policy has no rule 'no-boms'; it has: no-bombs, no-pins",
            "there is no stage 'sideways'; there are: input, output",
            "E * TypeError: 'text' must be a string, got int",
        ]
    )


@pytest.mark.parametrize("on_error", ["ALLOW", "BLOCK"])
def test_check_that_cannot_answer_makes_a_text_neither_safe_nor_blocked(run: pytest.Pytester, on_error: str) -> None:
    body = """
        import pytest
        from ringfence import Action, Guard, Policy, Rule
        class Broken:
            name, categories = "broken", frozenset({"broken"})
            def find(self, passage):
                raise RuntimeError
        @pytest.fixture
        def ringfence_guard():
            rule = Rule("fragile", "broken", Action.BLOCK, on_error=Action.ALLOW)
            return Guard(Policy(name="p", rules=(rule,)), checks={"broken": Broken()})
        def test_other(assert_blocked):
            assert_blocked("all is well")
        def test_one(assert_safe):
            assert_safe("all is well")
    """
    result = outcome(run, body.replace("Action.ALLOW", f"Action.{on_error}"))
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(["*nobody knows whether the text passes*", "  failed: *broken*"])


def test_wrong_policy_is_named_with_its_line(run: pytest.Pytester) -> None:
    run.makefile(".yaml", policy="rulez: []\n")
    result = outcome(run, "def test_one(assert_safe): ...", "--ringfence-policy", "policy.yaml")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*policy.yaml:1:*"])


def test_run_that_asks_for_nothing_loads_nothing(run: pytest.Pytester) -> None:
    body = """
        import sys
        def test_one():
            loaded = [name for name in sys.modules if name.startswith("ringfence")]
            assert set(loaded) == {"ringfence", "ringfence.guard", "ringfence.guard.hooks", "ringfence.guard.hooks.pytest"}
            assert not {"torch", "numpy", "pydantic"} & set(sys.modules)
    """
    outcome(run, body, "-p", "no:langsmith_plugin").assert_outcomes(passed=1)
