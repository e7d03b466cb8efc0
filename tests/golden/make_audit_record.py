"""Writes audit_record_v1.json: the exact bytes of one record, sealed. Run it only when the record's version changes.

python tests/golden/make_audit_record.py
"""

from datetime import UTC, datetime
from pathlib import Path

from ringfence.guard.audit.record import Sealed, record_of, seal
from ringfence.guard.exchange import Coverage, Exchange, Judged, Kind, Part, Subject
from ringfence.policies.types import Action, Decision, Finding, Rewrite, Span, Stage


def exchange() -> Exchange:
    asked = "Mail the invoice to jo@example.org. 😀"
    said = "Done: ¿algo más?"
    system, question = ("messages", 0, "content"), ("messages", 1, "content")
    answer = ("choices", 0, "message", "content")
    return Exchange(
        id="01KAK3V8Q0000000000000GLDN",
        received_at=datetime(2026, 11, 21, 9, 30, 15, 250_000, UTC),
        dialect="openai.chat",
        model="ringfence-small",
        subject=Subject("acme", "key-7"),
        request=[Part(Kind.TEXT, "system", system, "Be brief."), Part(Kind.TEXT, "user", question, asked)],
        reply=[Part(Kind.TEXT, "assistant", answer, said)],
        coverage=[
            Coverage("messages[0].content", Judged.EXEMPT, "our own words"),
            Coverage("messages[1].content", Judged.JUDGED),
            Coverage("choices[0].message.content", Judged.JUDGED),
        ],
        decisions=[
            Decision(
                Stage.INPUT,
                Action.REWRITE,
                rules=("mask-email",),
                logged=("watch-finance",),
                shadow={"try-stricter": Action.BLOCK},
                findings=(
                    Finding("pii", "pii.email", 1.0, (Span(1, 20, 34),), "an e-mail address"),
                    Finding("classifier", "harm.S2", 0.375, (Span(1, 0, 37),)),
                ),
                rewrites=(Rewrite(Span(1, 20, 34), "[PII_EMAIL]", "mask-email"),),
                revision="5f" * 32,
            ),
            Decision(Stage.OUTPUT, Action.ALLOW, revision="5f" * 32),
        ],
        timings={"input_s": 0.0125, "upstream_first_s": 0.31, "output_s": 0.02, "total_s": 1.5},
        revisions={"guard": "a1b2c3", "engine": "d4e5f6"},
    )


def sealed() -> Sealed:
    return seal(record_of(exchange(), text="masked"), seq=7, prev="ab" * 32)


if __name__ == "__main__":
    Path(__file__).with_name("audit_record_v1.json").write_bytes(sealed().canonical)
    print(sealed().hash)
