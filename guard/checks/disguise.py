"""Says of what was found in another reading of a text where the text itself has it. Knows no check."""

from dataclasses import replace

from ringfence.guard.check import Finding, Span
from ringfence.guard.normalise import Variant


def in_disguise(finding: Finding, variant: Variant) -> Finding:
    """Return a finding of a variant as one of the text: spans where it stands there, the disguise in the detail."""
    spans = tuple(Span(span.part, *variant.span(span.start, span.end)) for span in finding.spans)
    return replace(finding, spans=spans, detail=", ".join(filter(None, (f"read as {variant.kind}", finding.detail))))
