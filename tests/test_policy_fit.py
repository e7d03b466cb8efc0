"""Targets: that the fitted threshold keeps its promise, that too little data is refused, that a lock is never stale."""

import json
import re
import sys
from dataclasses import replace
from datetime import date
from hashlib import sha256
from math import inf

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta, binom
from typer.testing import CliRunner

from ringfence.guard.check import Finding
from ringfence.guard.classifier.rows import RowError
from ringfence.guard.labelled import digest, label_of, read_labelled, refuse_unread, score
from ringfence.guard.pipeline import Pipeline
from ringfence.policies.fit import (
    CannotPromise,
    Scored,
    curve,
    errors_allowed,
    fit,
    interval,
    refuse_verdicts,
    rows_needed,
    share,
    upper_bound,
)
from ringfence.policies.load import PolicyError, canonical, load_draft, load_policy, loads_policy
from ringfence.policies.lock import LockFile, dumps_lock, entry_of, lock_beside
from ringfence.policies.types import Action, Condition, Fitted, Rule, Sample, Span, Stage, Target
from ringfence.proxy.cli import policy as cli

HEAD = "version: 1\nname: tiny\n"
FEW_ALARMS = Target(max_false_positive_rate=0.05)
MOST_FOUND = Target(min_recall=0.9)

rates = st.floats(0.001, 0.5)
scores = st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.7312, 0.9999, 1.0, float("-inf")]) | st.floats(0, 1)


# The maths


@given(st.integers(1, 3000), rates)
def test_allowed_errors_are_the_most_whose_exact_bound_keeps_the_rate(rows, rate):
    allowed = errors_allowed(rows, rate)
    if allowed >= 0:
        assert binom.cdf(allowed, rows, rate) <= 0.05 + 1e-9
        assert upper_bound(allowed, rows) <= rate + 1e-9
    assert binom.cdf(allowed + 1, rows, rate) > 0.05 - 1e-9


@given(st.integers(1, 500), st.data())
def test_bound_is_the_quantile_of_clopper_and_pearson(rows, data):
    errors = data.draw(st.integers(0, rows - 1))
    assert upper_bound(errors, rows) == pytest.approx(beta.ppf(0.95, errors + 1, rows - errors))
    low, high = interval(errors, rows)
    assert low <= errors / rows <= high
    assert upper_bound(errors, rows) < upper_bound(errors + 1, rows)
    assert upper_bound(errors, rows + 1) < upper_bound(errors, rows)


@given(rates)
def test_rows_needed_are_the_fewest_that_can_promise(rate):
    needed = rows_needed(rate)
    assert errors_allowed(needed, rate) >= 0
    assert errors_allowed(needed - 1, rate) == -1


def test_half_a_per_cent_takes_598_rows():
    assert rows_needed(0.005) == 598


def missed(target, draw, rate_at, rng, times=4000):
    """How often, of many samples, the threshold that was fitted does not keep the target on the population."""
    broken = 0
    for _ in range(times):
        drawn = tuple(draw(rng))
        one = Scored(negatives=drawn) if target.min_recall is None else Scored(positives=drawn)
        threshold, _ = fit(target, {Stage.INPUT: one})
        broken += rate_at(threshold)
    return broken / times


def test_promise_of_few_false_positives_is_kept_by_nineteen_samples_of_twenty_and_hardly_more():
    rng = np.random.default_rng(7)
    # Uniform scores: a share of 1 - t of the population lies at or above t.
    share_broken = missed(FEW_ALARMS, lambda r: r.random(200).tolist(), lambda t: 1 - t > 0.05, rng)
    allowed = errors_allowed(200, 0.05)
    # Exact at either end of the gap that the threshold lies in; what is lost to whole errors is not lost.
    fewest, most = (binom.cdf(errors, 200, 0.05) for errors in (allowed - 1, allowed))
    assert fewest - 0.01 <= share_broken <= most + 0.01
    assert share_broken <= 0.05 + 0.01


def test_promise_of_recall_is_kept_by_nineteen_samples_of_twenty_and_hardly_more():
    rng = np.random.default_rng(8)
    share_broken = missed(MOST_FOUND, lambda r: r.random(150).tolist(), lambda t: 1 - t < 0.9, rng)
    allowed = errors_allowed(150, 0.1)
    fewest, most = (binom.cdf(errors, 150, 0.1) for errors in (allowed - 1, allowed))
    assert fewest - 0.01 <= share_broken <= most + 0.01


def test_promise_holds_where_scores_are_coarse_and_tied():
    rng = np.random.default_rng(9)
    values, weights = [0.1, 0.5, 0.8, 0.9], [0.7, 0.2, 0.06, 0.04]

    def fires(threshold):
        return sum(weight for value, weight in zip(values, weights, strict=True) if value >= threshold)

    drawn = missed(FEW_ALARMS, lambda r: r.choice(values, 200, p=weights).tolist(), lambda t: fires(t) > 0.05, rng)
    assert drawn <= 0.05 + 0.01


@given(st.lists(scores, min_size=60, max_size=120), rates)
def test_threshold_lets_no_more_false_positives_pass_than_were_allowed(negatives, rate):
    target, allowed = Target(max_false_positive_rate=rate), errors_allowed(len(negatives), rate)
    try:
        threshold, samples = fit(target, {Stage.INPUT: Scored(tuple(negatives))})
    except CannotPromise:
        assert allowed < 0 or sum(one >= 1 for one in negatives) > allowed
        return
    assert 0 < threshold <= 1
    assert sum(one >= threshold for one in negatives) <= allowed
    assert samples[Stage.INPUT].bound <= rate + 1e-9
    edge = max(0.0, sorted(negatives, reverse=True)[allowed])
    after = min([1.0, *(one for one in negatives if one > edge)])
    assert edge < threshold
    assert abs(threshold - (edge + after) / 2) <= 0.0001
    assert threshold <= after or after - edge < 0.0001  # no row is lost but where the gap has no step


@given(st.lists(scores, min_size=60, max_size=120), st.floats(0.5, 0.95))
def test_threshold_misses_no_more_than_were_allowed(positives, recall):
    target, allowed = Target(min_recall=recall), errors_allowed(len(positives), 1 - recall)
    try:
        threshold, samples = fit(target, {Stage.INPUT: Scored(positives=tuple(positives))})
    except CannotPromise:
        assert allowed < 0 or sum(one < 0 for one in positives) > allowed
        return
    assert sum(one < threshold for one in positives) <= allowed
    assert samples[Stage.INPUT].bound >= recall - 1e-9
    edge = sorted(positives)[allowed]
    before = max([0.0, *(one for one in positives if one < edge)])
    assert threshold <= edge
    assert abs(threshold - (before + edge) / 2) <= 0.0001
    assert threshold > before or edge - before < 0.0001


def test_rows_that_part_well_are_parted_in_the_middle():
    apart = {Stage.INPUT: Scored((float("-inf"),) * 100, (0.95,) * 100)}
    assert fit(FEW_ALARMS, apart)[0] == fit(MOST_FOUND, apart)[0] == 0.475
    near = {Stage.INPUT: Scored((0.8012,) * 100, (0.8015,) * 100)}
    assert fit(FEW_ALARMS, near)[0] == fit(MOST_FOUND, near)[0] == 0.8014


def test_gap_without_a_step_is_left_on_the_side_of_the_promise():
    close = {Stage.INPUT: Scored((0.50001,) * 100, (0.50003,) * 100)}
    assert fit(FEW_ALARMS, close)[0] == 0.5001
    assert fit(MOST_FOUND, close)[0] == 0.5


def test_gap_ends_at_the_rows_of_every_stage():
    wide, narrow = Scored((0.2,) * 100, (0.9,) * 100), Scored((0.1,) * 100, (0.3,) * 100)
    threshold, samples = fit(FEW_ALARMS, {Stage.INPUT: wide, Stage.OUTPUT: narrow})
    assert threshold == 0.25
    assert samples[Stage.OUTPUT].recall == 1.0


def test_measured_rates_have_their_intervals_and_the_promised_one_ends_at_its_bound():
    apart = {Stage.INPUT: Scored((0.1,) * 97 + (0.9,) * 3, (0.8,) * 60)}
    (sample,) = fit(Target(max_false_positive_rate=0.1), apart)[1].values()
    assert sample.false_positive_interval == (interval(3, 100)[0], sample.bound)
    assert sample.recall_interval == interval(60, 60)
    (sample,) = fit(MOST_FOUND, apart)[1].values()
    assert sample.false_positive_interval == interval(3, 100)
    assert sample.recall_interval == (sample.bound, 1.0)
    (sample,) = fit(FEW_ALARMS, {Stage.INPUT: Scored((0.1,) * 100)})[1].values()
    assert (sample.recall, sample.recall_interval) == (None, None)


@given(st.lists(scores, min_size=100, max_size=150), st.floats(0.05, 0.4), st.floats(0.05, 0.4))
def test_stricter_target_never_gives_a_lower_threshold(negatives, one, other):
    def at(rate):
        try:
            return fit(Target(max_false_positive_rate=rate), {Stage.INPUT: Scored(tuple(negatives))})[0]
        except CannotPromise:
            return float("inf")

    assert at(min(one, other)) >= at(max(one, other))


def test_too_few_rows_are_refused_with_the_number_that_it_takes():
    given_rows = {Stage.INPUT: Scored(negatives=(0.1,) * 597), Stage.OUTPUT: Scored(positives=(0.9,) * 10)}
    with pytest.raises(CannotPromise) as caught:
        fit(Target(max_false_positive_rate=0.005), given_rows)
    first, second = str(caught.value).splitlines()
    assert first.startswith("input: 597 rows without the category cannot promise max_false_positive_rate 0.005")
    assert first.endswith("at least 598")
    assert second.startswith("output: 0 rows")
    with pytest.raises(CannotPromise, match=r"10 rows with the category .* at least 29$"):
        fit(MOST_FOUND, {Stage.OUTPUT: Scored(positives=(0.9,) * 10)})


def test_scores_that_no_threshold_parts_are_refused():
    with pytest.raises(CannotPromise, match="score 1 or above"):
        fit(FEW_ALARMS, {Stage.INPUT: Scored(negatives=(1.0,) * 5 + (0.1,) * 95)})
    with pytest.raises(CannotPromise, match="nothing was found"):
        fit(MOST_FOUND, {Stage.INPUT: Scored(positives=(float("-inf"),) * 20 + (0.9,) * 80)})


def test_verdicts_are_refused_and_words_that_are_found_or_not_are_none():
    said, found = Scored((0.0,) * 9 + (1.0,), (1.0,)), Scored((float("-inf"),) * 9, (1.0,))
    with pytest.raises(CannotPromise, match="output: every score is 0 or 1"):
        refuse_verdicts({Stage.INPUT: found, Stage.OUTPUT: said})
    refuse_verdicts({Stage.INPUT: found, Stage.OUTPUT: Scored((0.0, 0.0001), (1.0,))})


def test_score_that_is_no_number_counts_as_one_that_fires():
    with pytest.raises(CannotPromise, match="no threshold"):
        fit(FEW_ALARMS, {Stage.INPUT: Scored(negatives=(float("inf"),) * 60)})


def test_promise_holds_at_each_stage_so_the_stricter_threshold_wins():
    low, high = Scored((0.2,) * 100, (0.9,) * 100), Scored((0.6,) * 100, (0.7,) * 100)
    both = {Stage.INPUT: low, Stage.OUTPUT: high}
    assert fit(FEW_ALARMS, both)[0] == 0.65
    threshold, samples = fit(MOST_FOUND, both)
    assert threshold == 0.65
    assert (samples[Stage.OUTPUT].recall, samples[Stage.OUTPUT].false_positive_rate) == (1.0, 0.0)
    assert (samples[Stage.INPUT].rows, samples[Stage.INPUT].positives) == (200, 100)


def test_curve_falls_from_threshold_to_threshold():
    points = curve(Scored((0.1, 0.4, 0.6), (0.5, 0.9)), [0.0, 0.5, 0.95])
    assert [point.recall for point in points] == [1.0, 1.0, 0.0]
    assert [point.false_positive_rate for point in points] == [1.0, pytest.approx(1 / 3), 0.0]
    assert share((), 0.5) is None


# Rows


class Scale:
    """Finds harm as sure as the number in the text says; cannot answer of what holds none."""

    name = "classifier"
    categories = frozenset({"harm", "attack"})
    revision = "aaaa"

    def find(self, passage):
        number = passage.text.split()[-1]
        if number == "nothing":
            return []
        span = (Span(0, 0, len(passage.text)),)
        if not number.replace(".", "").isdigit():
            return [Finding(self.name, "harm", 0.0, error="no number")]
        return [Finding(self.name, "harm", float(number), span), Finding(self.name, "harm.S9", float(number) / 2, span)]


@pytest.mark.parametrize(
    ("row", "category", "stage", "expected"),
    [
        ({"prompt_label": 1}, "harm", Stage.INPUT, 1),
        ({"prompt_label": 1}, "harm", Stage.OUTPUT, None),
        ({"response_label": "0"}, "harm", Stage.OUTPUT, 0),
        ({"prompt_label": 1, "categories": ["S1", "S9"]}, "harm.S9", Stage.INPUT, 1),
        ({"prompt_label": 1, "category": "S1"}, "harm.S9", Stage.INPUT, 0),
        ({"prompt_label": 1, "categories": []}, "harm.S9", Stage.INPUT, None),
        ({"prompt_label": 0}, "harm.S9", Stage.INPUT, 0),
        ({"attack": 1}, "attack", Stage.INPUT, 1),
        ({"attack": "none"}, "attack", Stage.INPUT, 0),
        ({"attack": "injection"}, "attack", Stage.INPUT, 1),
        ({"attack": 1}, "attack", Stage.OUTPUT, None),
        ({"refusal": 1}, "refusal", Stage.OUTPUT, 1),
        ({"pii.email": 1, "response_pii.email": 0}, "pii.email", Stage.INPUT, 1),
        ({"pii.email": 1, "response_pii.email": 0}, "pii.email", Stage.OUTPUT, 0),
    ],
)
def test_label_speaks_of_the_category_and_the_stage(row, category, stage, expected):
    assert label_of(row, category, stage) == expected


@pytest.fixture
def rows(tmp_path):
    def write(*given_rows):
        path = tmp_path / "labelled.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in given_rows))
        return path

    return write


def test_rows_become_the_highest_scores_that_the_rule_looks_at(rows):
    harm, hazard = Rule("harm", "harm", Action.BLOCK), Rule("arms", "harm.S9", Action.LOG, stages=(Stage.INPUT,))
    path = rows(
        {"text": "say 0.8", "prompt_label": 1, "category": "S9", "response": "said 0.2", "response_label": 0},
        {"text": "say nothing", "prompt_label": 0},
        {"text": "what?", "prompt_label": 0},
        {"text": "unlabelled 0.1"},
        {"text": "say 0.8", "prompt_label": 1, "category": "S9"},  # counts once
    )
    scored = score([harm, hazard], read_labelled(path, [harm, hazard]), Scale().find)
    assert scored["harm"][Stage.INPUT] == Scored((float("-inf"),), (0.8,), unanswered=1)
    assert scored["harm"][Stage.OUTPUT] == Scored((0.2,), ())
    assert scored["arms"] == {Stage.INPUT: Scored((float("-inf"),), (0.4,), unanswered=1)}


def test_rows_that_contradict_each_other_or_are_none_are_refused_with_their_place(rows):
    harm = Rule("harm", "harm", Action.BLOCK)
    twice = rows({"text": "a 0.1", "prompt_label": 0}, {"text": "a 0.1", "prompt_label": 1})
    with pytest.raises(RowError, match=r"labelled\.jsonl:2: the same text is labelled otherwise"):
        read_labelled(twice, [harm])
    with pytest.raises(RowError, match=r"labelled\.jsonl:1: prompt_label must be 0, 1 or null"):
        read_labelled(rows({"text": "a", "prompt_label": 2}), [harm])
    with pytest.raises(RowError, match=r"labelled\.jsonl:1: text must be a string"):
        read_labelled(rows({"prompt_label": 1}), [harm])


def test_text_in_which_the_condition_does_not_hold_never_makes_the_rule_fire_whatever_it_scores(rows):
    surely = Condition(category="harm", threshold=0.6)
    rule = Rule("arms", "harm.S9", Action.BLOCK, stages=(Stage.INPUT,), when=surely)
    but = replace(rule, id="but", when=Condition(not_=surely))
    path = rows(*({"text": f"say {at}", "prompt_label": 1, "category": "S9"} for at in (0.8, 0.4, "nothing", "what?")))
    scored = score([rule, but], read_labelled(path, [rule, but]), Scale().find)
    found, never = Scored(positives=(0.4, -inf, -inf), unanswered=1), Scored(positives=(-inf, 0.2, -inf), unanswered=1)
    assert (scored["arms"][Stage.INPUT], scored["but"][Stage.INPUT]) == (found, never)


def test_check_behind_a_condition_that_could_not_answer_leaves_open_only_texts_in_which_it_matters(rows):
    def find(passage):
        failed = Finding("other", "minors", 0.0, error="down")
        return [*Scale().find(passage), failed]

    rule = Rule("harm", "harm", Action.LOG, stages=(Stage.INPUT,), when=Condition(category="minors"))
    path = rows({"text": "say 0.1", "prompt_label": 1}, {"text": "say nothing", "prompt_label": 1})
    scored = score([rule], read_labelled(path, [rule]), find)["harm"][Stage.INPUT]
    assert scored == Scored(positives=(-inf,), unanswered=1)


def test_text_that_the_rule_does_not_hear_is_no_row_for_it(rows):
    heard = Rule("heard", "harm", Action.BLOCK, roles=("user", "assistant"))
    half = replace(heard, id="half", roles=("user",))
    path = rows({"text": "say 0.8", "prompt_label": 1, "response": "said 0.2", "response_label": 0})
    scored = score([heard, half], read_labelled(path, [heard, half]), Scale().find)
    assert scored["heard"] == {Stage.INPUT: Scored(positives=(0.8,)), Stage.OUTPUT: Scored((0.2,))}
    assert scored["half"] == {Stage.INPUT: Scored(positives=(0.8,)), Stage.OUTPUT: Scored()}
    refuse_unread([heard, replace(half, stages=(Stage.INPUT,))])
    with pytest.raises(
        PolicyError, match=r"rule 'half' has a 'target', and on the output stage rows have text of assi"
    ):
        refuse_unread([heard, half])


def test_digest_of_a_file_is_its_sha256_and_that_of_a_folder_changes_with_any_file(rows, tmp_path):
    path = rows({"text": "a"})
    assert digest(path) == sha256(path.read_bytes()).hexdigest()
    before = digest(tmp_path)
    rows({"text": "b"})
    assert digest(tmp_path) != before


# The policy and its lock file


TARGETED = "rules:\n  - {id: harm, category: harm, stages: [input], action: block, target: {min_recall: 0.9}}\n"


def fitted(**changes):
    sample = Sample(
        rows=100,
        positives=60,
        unanswered=0,
        false_positive_rate=0.0,
        false_positive_interval=(0.0, 0.07),
        recall=0.95,
        recall_interval=(0.91, 0.98),
        bound=0.91,
    )
    one = Fitted(
        0.4321, MOST_FOUND, "harm", {Stage.INPUT: sample}, "ab" * 32, {"harm": "aaaa"}, date(2026, 11, 21), (), None
    )
    return entry_of(replace(one, **changes))


@pytest.fixture
def policy(tmp_path):
    def write(text=TARGETED, lock=None):
        path = tmp_path / "policy.yaml"
        path.write_text(HEAD + text)
        if lock is not None:
            lock_beside(path).write_text(dumps_lock(LockFile(rules={"harm": lock})))
        return path

    return write


def test_target_becomes_the_threshold_of_the_lock_file(policy):
    (rule,) = load_policy(policy(lock=fitted())).rules
    assert (rule.threshold, rule.target, rule.fitted) == (0.4321, MOST_FOUND, fitted())


def test_effective_policy_holds_the_threshold_and_reads_back_without_a_lock(policy):
    path = policy(lock=fitted())
    loaded = load_policy(path)
    plain = loads_policy(HEAD + TARGETED.replace("target: {min_recall: 0.9}", "threshold: 0.4321"))
    again = loads_policy(yaml.safe_dump(canonical(loaded)))
    assert again == loaded == plain
    assert again.revision == loaded.revision == plain.revision
    policy(lock=fitted(threshold=0.5))
    assert load_policy(path).revision != loaded.revision


@pytest.mark.parametrize(
    ("lock", "what"),
    [
        (None, "has a target (min_recall 0.9) that no threshold was fitted to"),
        (fitted(target=Target(min_recall=0.8)), "from min_recall 0.8 · harm · input to min_recall 0.9 · harm · input"),
        (fitted(target=FEW_ALARMS), "from max_false_positive_rate 0.05 · harm · input to"),
        (fitted(category="harm.S9"), "from min_recall 0.9 · harm.S9 · input to"),
        (fitted(roles=("tool",)), "from min_recall 0.9 · harm · input of tool to min_recall 0.9 · harm · input"),
        (
            fitted(when=Condition(not_=Condition(category="attack"))),
            'harm · input when {"not":{"category":"attack"}} to min_recall 0.9 · harm · input',
        ),
        (fitted(samples={Stage.OUTPUT: fitted().samples[Stage.INPUT]}), "from min_recall 0.9 · harm · output to"),
    ],
)
def test_target_without_a_threshold_of_its_own_is_an_error_that_says_what_to_run(policy, lock, what):
    path = policy(lock=lock)
    with pytest.raises(PolicyError) as caught:
        load_policy(path)
    assert str(caught.value).startswith(f"{path}:4:64: rule 'harm' ")
    assert what in str(caught.value)
    assert str(caught.value).endswith(f"; run: ringfence policy fit {path} --data LABELLED.jsonl")


def test_lock_file_of_the_policy_extended_does_not_count_and_the_error_says_so(policy, tmp_path):
    base = policy(lock=fitted())
    (tmp_path / "mine.yaml").write_text("version: 1\nname: mine\nextends: ./policy.yaml\n")
    what = f"to for this policy ({lock_beside(base)} counts only for the policy beside it); run: ringfence policy fit "
    with pytest.raises(PolicyError, match=re.escape(f"{what}{tmp_path / 'mine.yaml'} --data")):
        load_policy(tmp_path / "mine.yaml")
    lock_beside(base).write_text("rules")
    with pytest.raises(PolicyError, match="that no threshold was fitted to; run"):
        load_policy(tmp_path / "mine.yaml")


def test_broken_lock_file_is_told_with_its_place(policy):
    path = policy(lock=fitted())
    lock_beside(path).write_text(lock_beside(path).read_text().replace("0.4321", "4.321"))
    with pytest.raises(PolicyError, match=r"policy\.lock\.yaml:5:5: 'threshold' must be at most 1, got 4\.321"):
        load_policy(path)


@pytest.mark.parametrize(
    ("written", "edited"),
    [
        ("threshold: 0.4321", "threshold: 0.0"),
        ("bound: 0.91", "bound: 0.99"),
        ("- 0.07", "- 0.01"),
        ("2026-11-21", "2026-11-22"),
        ("harm: aaaa", "harm: bbbb"),
    ],
)
def test_edited_lock_file_is_refused_with_its_place_and_what_to_run(policy, written, edited):
    path = policy(lock=fitted())
    lock = lock_beside(path)
    text = lock.read_text()
    assert written in text
    lock.write_text(text.replace(written, edited))
    with pytest.raises(PolicyError) as caught:
        load_policy(path)
    assert str(caught.value).startswith(f"{lock}:4:3: the entry of rule 'harm' was edited since it was fitted")
    assert str(caught.value).endswith(f"; run: ringfence policy fit {path} --data LABELLED.jsonl")
    assert run("lint", path).exit_code == run("show", path).exit_code == 2


def test_lock_file_in_other_order_and_with_comments_is_the_same(policy):
    path = policy(lock=fitted())
    lock = yaml.safe_load(lock_beside(path).read_text())
    lock["rules"]["harm"] = dict(reversed(lock["rules"]["harm"].items()))
    lock_beside(path).write_text("# ours\n" + yaml.safe_dump(lock, sort_keys=False, default_flow_style=True))
    assert load_policy(path).rules[0].fitted == fitted()


def test_lock_file_of_an_older_version_is_refused_with_what_to_run(policy):
    path = policy(lock=fitted())
    lock = yaml.safe_load(lock_beside(path).read_text())
    del lock["rules"]["harm"]["sha256"], lock["rules"]["harm"]["samples"]["input"]["recall_interval"]
    lock_beside(path).write_text(yaml.safe_dump(lock | {"version": 2}))
    with pytest.raises(PolicyError) as caught:
        load_policy(path)
    told = str(caught.value).splitlines()
    assert any("'version' cannot be 2" in line for line in told)
    assert any("'sha256' is missing here" in line for line in told)
    assert all(line.endswith(f"; run: ringfence policy fit {path} --data LABELLED.jsonl") for line in told)


def test_lock_file_reads_back_as_it_was_written(policy):
    path = policy(lock=fitted())
    assert load_policy(path).rules[0].fitted == fitted()
    assert lock_beside(path).name == "policy.lock.yaml"


def test_text_without_a_file_can_have_no_target():
    with pytest.raises(PolicyError, match="write a 'threshold'"):
        loads_policy(HEAD + TARGETED)


@pytest.mark.parametrize("revision", ["bbbb", None])
def test_threshold_fitted_on_another_guard_is_refused_where_the_policy_is_put_to_use(policy, revision):
    loaded = load_policy(policy(lock=fitted(revisions={"harm": revision})))
    with pytest.raises(
        PolicyError, match=r"policy\.yaml:4:5: the threshold of rule 'harm' was fitted to .* aaaa is in"
    ):
        Pipeline(loaded, {"classifier": Scale()})
    Pipeline(load_policy(policy(lock=fitted())), {"classifier": Scale()})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (TARGETED.replace("0.9}", "0.9}, threshold: 0.5"), "a rule has a 'threshold' or a 'target', not both"),
        (TARGETED.replace("{min_recall: 0.9}", "{}"), "'target': give one of"),
        (TARGETED.replace("0.9}", "0.9, max_false_positive_rate: 0.1}"), "'target': give one of"),
        (TARGETED.replace("0.9}", "1}"), "'min_recall' must be less than 1, got 1"),
        (TARGETED.replace("0.9}", "0}"), "'min_recall' must be more than 0, got 0"),
        (TARGETED.replace("min_recall", "min_recal"), "unknown key 'min_recal'; did you mean 'min_recall'?"),
        (TARGETED.replace("}}", "}, fitted: {}}"), "unknown key 'fitted'"),
        (
            TARGETED.replace("0.9}", "0.9}, when: {not: {category: unjudged.media}}"),
            "rule 'harm' has a 'target' and looks at 'unjudged.media', which no labelled text shows; write a 'threshold'",
        ),
        (TARGETED.replace("category: harm", "category: count"), "rule 'harm' has a 'target' and looks at 'count'"),
        (
            "packs: [injection]\noverride: {attack: {threshold: 0.5, target: {min_recall: 0.9}}}\n",
            "a rule has a 'threshold' or a 'target', not both",
        ),
    ],
)
def test_malformed_target_is_told_with_its_place(text, expected):
    with pytest.raises(PolicyError) as caught:
        loads_policy(HEAD + text, "p.yaml")
    assert str(caught.value).startswith("p.yaml:4:")
    assert expected in str(caught.value)


def test_override_puts_a_target_in_place_of_a_threshold_and_the_other_way_round(policy, tmp_path):
    path = policy("packs: [injection]\noverride: {attack: {target: {min_recall: 0.9}}}\n")
    assert load_draft(path).rules[0].target == MOST_FOUND
    (tmp_path / "ours.yaml").write_text(HEAD + TARGETED)
    back = load_policy(policy("packs: [./ours.yaml]\noverride: {harm: {threshold: 0.7}}\n"))
    assert (back.rules[0].threshold, back.rules[0].target) == (0.7, None)


# The command


@pytest.fixture(autouse=True)
def installed(monkeypatch):
    monkeypatch.setattr(cli, "load_checks", lambda: {"classifier": Scale()})


def run(*arguments):
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def sample_of(positives):
    found = [{"text": f"bad {number} 0.{number:03d}", "prompt_label": 1} for number in range(300, 300 + positives)]
    return [*found, *({"text": f"good {number} 0.1", "prompt_label": 0} for number in range(20))]


def test_fit_writes_a_lock_file_that_the_policy_loads_with(policy, rows):
    path, data = policy(), rows(*sample_of(100))
    assert run("lint", path).exit_code == 2
    result = run("fit", path, "--data", data, "--date", "2026-11-21")
    assert result.exit_code == 0, result.output
    assert f"wrote {lock_beside(path)}" in result.stdout
    (rule,) = load_policy(path).rules
    # Of a hundred, four misses may be promised to be ten per cent at most; the fifth-lowest score is 0.304, the fourth 0.303.
    assert (errors_allowed(100, 0.1), rule.threshold) == (4, 0.3035)
    sample = rule.fitted.samples[Stage.INPUT]
    assert rule.fitted == entry_of(
        Fitted(
            0.3035,
            MOST_FOUND,
            "harm",
            {Stage.INPUT: sample},
            digest(data),
            {"harm": "aaaa"},
            date(2026, 11, 21),
            (),
            None,
        )
    )
    assert (sample.rows, sample.positives, sample.unanswered) == (120, 100, 0)
    assert (sample.false_positive_rate, sample.recall) == (0.0, 0.96)
    assert sample.bound == pytest.approx(beta.ppf(0.05, 96, 5))  # Clopper-Pearson, 96 of 100
    (low, high), (none, few) = sample.recall_interval, sample.false_positive_interval
    assert f"fires on 96.00% of positives ({low:.2%} to {high:.2%}); at least {sample.bound:.2%}" in result.stdout
    assert f"fires on 0.00% of others ({none:.2%} to {few:.2%})" in result.stdout
    assert run("lint", path).exit_code == 0
    assert "0.3035 (min_recall 0.9)" in run("show", path).stdout


def test_recall_is_promised_only_as_far_as_the_condition_lets_the_rule_fire(policy, rows):
    narrow = TARGETED.replace("action", "when: {category: harm.S9, threshold: 0.2}, action")
    path, data = policy(narrow), rows(*sample_of(200))
    result = run("fit", path, "--data", data)
    assert result.exit_code == 1, "harm.S9 scores half of harm: a hundred of the two hundred do not meet the condition"
    assert f"{path}:4:107: rule 'harm', input: in more than" in result.stderr
    assert "of 200 rows with the category nothing was found" in result.stderr
    path = policy(narrow.replace("0.2", "0.151"))
    assert run("fit", path, "--data", data).exit_code == 0
    (rule,) = load_policy(path).rules
    assert rule.fitted.samples[Stage.INPUT].recall <= 198 / 200
    policy(narrow.replace("0.2", "0.19"))
    with pytest.raises(PolicyError, match="has changed since its threshold was fitted"):
        load_policy(path)


def test_rule_that_hears_nobody_of_the_rows_is_refused_with_its_place(policy, rows):
    path = policy(TARGETED.replace("action", "roles: [tool], action"))
    result = run("fit", path, "--data", rows(*sample_of(100)))
    assert result.exit_code == 2
    assert result.stderr.startswith(
        f"{path}:4:49: rule 'harm' has a 'target', and on the input stage rows have text of"
    )
    assert "narrow 'stages', or write a 'threshold'" in result.stderr


def test_fit_as_json_is_the_lock_file(policy, rows):
    path = policy()
    told = json.loads(run("fit", path, "--data", rows(*sample_of(100)), "--json", "--date", "2026-11-21").stdout)
    assert told == yaml.safe_load(lock_beside(path).read_text())


def test_fit_refuses_a_small_sample_says_how_many_rows_it_takes_and_writes_nothing(policy, rows):
    path = policy()
    result = run("fit", path, "--data", rows(*sample_of(28)))
    assert result.exit_code == 1
    assert f"{path}:4:64: rule 'harm', input: 28 rows with the category cannot promise min_recall 0.9" in result.stderr
    assert "it takes at least 29" in result.stderr
    assert result.stderr.endswith("nothing was written\n")
    assert not lock_beside(path).exists()


def test_fit_without_a_target_or_without_readable_rows_exits_2(policy, rows, tmp_path):
    plain = policy(TARGETED.replace("target: {min_recall: 0.9}", "threshold: 0.5"))
    assert "no rule has a 'target'" in run("fit", plain, "--data", rows()).stderr
    broken = run("fit", policy(), "--data", rows({"text": 3}))
    assert (broken.exit_code, "labelled.jsonl:1: text must be" in broken.stderr) == (2, True)
    missing = run("fit", policy(), "--data", tmp_path / "none.jsonl")
    assert missing.exit_code == 2
    assert missing.stderr.endswith("none.jsonl: cannot read the file: No such file or directory\n")


def test_fit_on_rows_that_say_nothing_of_the_rule_names_the_field_that_was_looked_for(policy, rows):
    data = rows({"text": "bad", "label": 1})
    result = run("fit", policy(), "--data", data)
    told = f"{data}: no row has 'prompt_label', which rule 'harm' goes by on the input stage; label the rows"
    assert (result.exit_code, told in result.stderr) == (2, True)
    of_a_hazard = run("fit", policy(TARGETED.replace("category: harm", "category: harm.S9")), "--data", data)
    assert "no row has 'prompt_label' with 'category' or 'categories' where it is 1," in of_a_hazard.stderr
    nothing = run("fit", policy(), "--data", rows())
    assert (nothing.exit_code, nothing.stderr.strip()) == (2, f"{data}: there is no row in it")


def test_fit_on_rows_of_one_side_says_that_the_other_figure_is_not_known(policy, rows):
    positives = sample_of(100)[:100]
    result = run("fit", policy(), "--data", rows(*positives))
    assert result.exit_code == 0
    assert "warning: how often it fires on others is not known: no row is one of them" in result.stdout
    assert "warning" not in run("fit", policy(), "--data", rows(*sample_of(100))).stdout


WORDS = "checks: [{kind: keywords, category: k, words: [bad, worse]}]\n"


@pytest.mark.parametrize(
    ("then", "now"), [("bad, worse", "bad"), ("keywords, category: k, words", "regex, category: k, patterns")]
)
def test_threshold_fitted_with_other_words_of_the_policys_own_is_refused(policy, rows, then, now):
    checked = TARGETED.replace("action", "when: {category: k}, action") + WORDS
    path = policy(checked)
    assert run("fit", path, "--data", rows(*sample_of(100))).exit_code == 0
    policy(checked.replace("words:", "why: ours, words:"))
    assert run("lint", path).exit_code == 0
    policy(checked.replace(then, now))
    told = run("lint", path)
    assert told.exit_code == 2
    assert "the check behind 'k', and revision" in told.stderr
    assert "fit anew with `ringfence policy fit`" in told.stderr
    assert run("fit", path, "--data", rows(*sample_of(100))).exit_code == 0
    assert run("lint", path).exit_code == 0


def test_picture_without_matplotlib_is_refused_before_anything_is_judged(policy, rows, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = run("fit", policy(), "--data", rows(*sample_of(100)), "--png", tmp_path / "curve.png")
    assert (result.exit_code, "pip install 'ringfence[plots]'" in result.stderr) == (2, True)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("none/x.png", "the file cannot be written (No such file or directory); name a file in a folder that is there"),
        ("x.bmp", "the name must end in .png, .svg, .pdf"),
    ],
)
def test_picture_that_cannot_be_written_is_refused_before_anything_is_fitted(policy, rows, tmp_path, name, told):
    path = policy()
    result = run("fit", path, "--data", rows(*sample_of(100)), "--png", tmp_path / name)
    assert (result.exit_code, f"--png {tmp_path / name}: {told}" in result.stderr) == (2, True)
    assert not lock_beside(path).exists()


def test_no_picture_is_left_where_nothing_could_be_fitted(policy, rows, tmp_path):
    result = run("fit", policy(), "--data", rows(*sample_of(2)), "--png", tmp_path / "curve.png")
    assert (result.exit_code, (tmp_path / "curve.png").exists()) == (1, False)


def test_picture_is_drawn(policy, rows, tmp_path):
    result = run("fit", policy(), "--data", rows(*sample_of(100)), "--png", tmp_path / "curve.png")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
