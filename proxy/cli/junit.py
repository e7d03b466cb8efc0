"""Writes what came of cases as JUnit XML, which CI systems show. Knows results; knows nothing of policies."""

from collections.abc import Iterable, Sequence

from junitparser import Error, Failure, JUnitXml, Skipped, TestCase, TestSuite

from ringfence.policies.cases import Outcome, Result
from ringfence.proxy.review.visible import visible

KINDS = {Outcome.FAIL: Failure, Outcome.ERROR: Error, Outcome.KNOWN: Skipped}


def junit_of(runs: Iterable[Sequence[Result]]) -> JUnitXml:
    """Return a test suite for each run that has results: the cases of one file, named after it.

    Each case has its seconds; one that did not pass says how, after `FILE:LINE:COLUMN`. Control characters, which XML
    cannot hold, are spelt out.

    Source: the JUnit schema of Jenkins' xUnit plugin, which GitHub's and GitLab's readers follow.
    """
    report = JUnitXml("ringfence policy test")
    for results in runs:
        if results:
            suite = TestSuite(results[0].case.origin.file)
            suite.add_testcases(list(map(_test_case, results)))
            report.add_testsuite(suite)
    return report


def _test_case(result: Result) -> TestCase:
    origin, text = result.case.origin, visible(" ".join(result.case.text.split()))
    # With the line in it, a name is unique within its file, which is what readers tell cases apart by.
    case = TestCase(f"{origin.line}: {text[:80]}", classname=origin.file, time=result.seconds)
    if kind := KINDS.get(result.outcome):
        told = kind(visible(result.difference))
        told.text = f"{origin}: {visible(result.difference)}"
        case.result = [told]
    return case
