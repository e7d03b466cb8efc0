"""Teaches a network what the corpus says, and, where there is one, what a teacher says of it. Seeded, resumable.

Knows nothing of calibration and export.
"""

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from ringfence.guard.classifier.checkpoint import mark_of, restore, save
from ringfence.guard.classifier.corpus import style_weights
from ringfence.guard.classifier.encoder import feed
from ringfence.guard.classifier.examples import DOUBTFUL, Example
from ringfence.guard.classifier.heads import HAZARDS, HEADS, TASKS
from ringfence.guard.classifier.network import Network
from ringfence.guard.classifier.plan import Plan
from ringfence.guard.classifier.tokens import Window
from ringfence.guard.classifier.views import arrange

HEAD_WEIGHTS = {"prompt_harm": 1.0, "response_harm": 1.5, "attack": 1.0, "refusal": 0.4, "toxicity": 0.5}

HAZARD_WEIGHT = 0.3

HARMLESS_WEIGHT = 0.03
"""Weight of each hazard in a text that does no harm, and is no hazard either. A policy goes by harm times hazard, so
what the heads say of such texts matters as well."""

UNLABELLED = 0.5
"""Weight of what the teacher says of a head that an example is not labelled for, beside that of a label."""

OWN_WEIGHT = 1.5
"""The project's own rows say exactly what the heads mean; each counts as so many."""

ASKING = "asking the teacher"
"""The part of the work between its training and that of its pupil."""

PARTS = 4
"""Pieces of one batch that a CPU computes apart: twice the cores of a small machine, so that none waits long."""


@dataclass(frozen=True, slots=True)
class Step:
    """How far a part of the work is: `done` of `total` steps, and the running loss where there is one."""

    part: str
    done: int
    total: int
    loss: float = math.nan


@dataclass(frozen=True, slots=True)
class Batch:
    """Tensors of one step: ids, kinds, mask (B, T); labels and weights (B, heads)."""

    ids: Tensor
    kinds: Tensor
    mask: Tensor
    labels: Tensor
    weights: Tensor


def fit(
    network: Network,
    examples: Sequence[Example],
    views: Sequence[Sequence[Window]],
    plan: Plan,
    checkpoint: Path,
    device: torch.device,
    *,
    soft: Sequence[Tensor] = (),
    resume: bool = False,
) -> Iterator[Step]:
    """Train in place; once exhausted, the network holds the averaged weights.

    Args:
        views: of every example a window, as often as there are views; epochs take them in turns.
        checkpoint: written every `plan.checkpoint_every` steps; read first where `resume` is set and it is there.
        soft: for each view the probabilities (examples, heads) that a teacher gives.

    Raises:
        ValueError: the checkpoint to resume from is another training's.
    """
    torch.manual_seed(plan.seed)
    network.to(device).train()
    network.words.weight.requires_grad_(False)  # rare words keep what pre-training taught; a tenth of a step saved
    optimizer = torch.optim.AdamW(parameter_groups(network, plan), weight_decay=plan.weight_decay, fused=True)
    average = {name: value.detach().clone() for name, value in network.state_dict().items()}
    worker = deepcopy(network).to(torch.bfloat16)
    targets = Targets.of(examples, plan)
    epochs = [arrange(views[epoch % len(views)], plan, epoch) for epoch in range(plan.epochs)]
    total = sum(len(batches) for batches in epochs)
    mark = mark_of(plan, views, (targets.labels, targets.weights, *soft))
    done = restore(checkpoint, mark, network, optimizer, average) if resume and checkpoint.exists() else 0
    running = 0.0
    order = chain.from_iterable([(epoch, chosen) for chosen in batches] for epoch, batches in enumerate(epochs))
    with one_core_each() as pool:
        for step, (epoch, chosen) in islice(enumerate(order), done, None):
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * pace(step / total, plan.warmup)
            view = epoch % len(views)
            batch = collate(chosen, views[view], targets, soft[view] if soft else None, plan, device)
            loss = backward(network, worker, batch, pool)
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            keep = min(plan.average, (step + 1) / (step + 10))
            for name, value in network.state_dict().items():
                average[name].lerp_(value, 1 - keep)
            running = 0.98 * running + 0.02 * loss if running else loss
            if (step + 1) % plan.checkpoint_every == 0 or step + 1 == total:
                save(checkpoint, mark, network, optimizer, average, step + 1)
            yield Step("training", step + 1, total, running)
    network.load_state_dict(average)
    network.eval()


def predict(
    network: Network, windows: Sequence[Window], out: Tensor, plan: Plan, device: torch.device
) -> Iterator[Step]:
    """Write the probabilities that a trained network gives each window into `out` (windows, heads)."""
    worker = deepcopy(network).to(device, torch.bfloat16).eval()
    batches = arrange(windows, plan, 0)

    def answer(chosen: Sequence[int]) -> None:
        ids, kinds, mask = pad([windows[index] for index in chosen], device)
        with torch.inference_mode():
            out[torch.tensor(chosen)] = worker(ids, kinds, mask).float().sigmoid().cpu()

    with one_core_each() as pool:
        for done, _ in enumerate(pool.map(answer, batches), 1):
            yield Step(ASKING, done, len(batches))


@contextmanager
def one_core_each() -> Iterator[ThreadPoolExecutor]:
    """Run as many threads as there are cores, each of which computes by itself.

    Threads that share every operator wait for the slowest each time, which costs half the speed on a busy machine.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            yield pool
    finally:
        torch.set_num_threads(threads)


def backward(network: Network, worker: Network, batch: Batch, pool: ThreadPoolExecutor) -> float:
    """Set the gradients of a batch; return its loss.

    The worker, a copy in bfloat16, computes them: three times as fast on a CPU as casting operator by operator. On a
    CPU the batch is cut into parts, always as many, which are added in order: seeded training gives the same weights
    however many threads there are and however they fall.
    """
    pairs = [pair for pair in zip(network.parameters(), worker.parameters(), strict=True) if pair[0].requires_grad]
    with torch.no_grad():
        for own, copy in pairs:
            copy.copy_(own)
    parts = [batch] if batch.ids.is_cuda else split(batch, PARTS)

    def differentiate(part: Batch) -> tuple[float, Sequence[Tensor]]:
        logits = worker(part.ids, part.kinds, part.mask)
        loss = masked_loss(logits.float(), part) * (len(part.ids) / len(batch.ids))
        return loss.item(), torch.autograd.grad(loss, [copy for _, copy in pairs])

    losses, gradients = zip(*pool.map(differentiate, parts), strict=True)
    for (own, _), *shares in zip(pairs, *gradients, strict=True):
        own.grad = torch.stack(shares).float().sum(0)
    return float(sum(losses))


def split(batch: Batch, parts: int) -> list[Batch]:
    """Cut a batch into parts of like size."""
    size = -(-len(batch.ids) // parts)
    fields = (batch.ids, batch.kinds, batch.mask, batch.labels, batch.weights)
    return [Batch(*cuts) for cuts in zip(*(torch.split(field, size) for field in fields), strict=True)]


def parameter_groups(network: Network, plan: Plan) -> list[dict[str, object]]:
    """Group parameters by depth: the lower a layer, the slower it learns (Howard & Ruder 2018)."""
    groups: list[dict[str, object]] = []
    top = network.shape.layers
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        depth = int(name.split(".")[1]) + 1 if name.startswith("layers.") else 0
        rate = plan.head_rate if name.startswith("heads.") else plan.rate * plan.decay ** (top - depth)
        groups.append({"params": [parameter], "lr": rate, "peak": rate})
    return groups


def pace(progress: float, warmup: float) -> float:
    """Scale the learning rate: up in a line, then down along a cosine to a fiftieth."""
    if progress < warmup:
        return progress / warmup
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


def masked_loss(logits: Tensor, batch: Batch) -> Tensor:
    """Return the mean over examples of the cross-entropy of the heads that each is labelled for."""
    losses = functional.binary_cross_entropy_with_logits(logits, batch.labels, reduction="none")
    return (losses * batch.weights).sum() / len(logits)


@dataclass(frozen=True, slots=True)
class Targets:
    """What the examples say of each head: labels and weights (examples, heads), weight 0 where a head is not labelled.

    Attributes:
        asked: whether a teacher's word on a head counts: a prompt is no refusal, a response no harmful prompt, and
            what does no harm no hazard.
    """

    labels: Tensor
    weights: Tensor
    asked: Tensor

    @classmethod
    def of(cls, examples: Sequence[Example], plan: Plan) -> "Targets":
        """Read labels, smoothed, and weigh them by head, doubt, style and whose rows they are."""
        by_style = {head: style_weights(examples, head) for head in ("prompt_harm", "response_harm", "attack")}
        weights = torch.zeros(len(examples), len(HEADS))
        labels = torch.zeros(len(examples), len(HEADS))
        asked = torch.ones(len(examples), len(HEADS))
        for index, example in enumerate(examples):
            own = OWN_WEIGHT if example.family.startswith("own_") else 1.0
            for at, head in enumerate(HEADS):
                if head in example.labels:
                    labels[index, at] = example.labels[head]
                    weights[index, at] = own * HEAD_WEIGHTS.get(head, HAZARD_WEIGHT)
                    weights[index, at] *= DOUBTFUL if head in example.doubt else 1.0
                    weights[index, at] *= by_style[head][index] if head in by_style else 1.0
            harm = "prompt_harm" if example.prompt is None else "response_harm"
            if example.labels.get(harm, 1.0) == 0 and harm not in example.doubt:
                for at, head in enumerate(HEADS):
                    if head in HAZARDS and head not in example.labels:
                        weights[index, at], asked[index, at] = own * HARMLESS_WEIGHT, 0.0
            for head in ("response_harm", "refusal") if example.prompt is None else ("prompt_harm",):
                asked[index, HEADS.index(head)] = 0.0
        return cls(labels * (1 - 2 * plan.smoothing) + plan.smoothing, weights, asked)


def collate(
    chosen: Sequence[int],
    windows: Sequence[Window],
    targets: Targets,
    soft: Tensor | None,
    plan: Plan,
    device: torch.device,
) -> Batch:
    """Put the chosen windows on the device with what is to be learnt of them."""
    rows = torch.tensor(chosen)
    labels, weights = targets.labels[rows], targets.weights[rows]
    if soft is not None:
        labelled, taught, asked = weights > 0, soft[rows], targets.asked[rows]
        labels = torch.where(labelled, labels + plan.trust * asked * (taught - labels), taught)
        weights = torch.where(labelled, weights, UNLABELLED * teacher_weights(taught, asked))
    return Batch(*pad([windows[index] for index in chosen], device), labels.to(device), weights.to(device))


def teacher_weights(taught: Tensor, asked: Tensor) -> Tensor:
    """Weigh the heads of probabilities (B, heads). A hazard is answered given harm, so it counts as harm is likely."""
    harm = (taught * asked)[:, [HEADS.index("prompt_harm"), HEADS.index("response_harm")]].amax(1, keepdim=True)
    tasks = torch.tensor([[HEAD_WEIGHTS[task] for task in TASKS]]).expand(len(taught), -1)
    return asked * torch.cat([tasks, HAZARD_WEIGHT * harm.expand(-1, len(HEADS) - len(TASKS))], 1)


def pad(windows: Sequence[Window], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return ids, kinds and mask (B, T), padded to the longest window."""
    fed = feed(windows)
    ids, kinds, mask = (torch.from_numpy(fed[name]).to(device) for name in ("ids", "kinds", "mask"))
    return ids, kinds, mask
