"""Teaches the network what the corpus says. Seeded, resumable; knows nothing of calibration, export or files."""

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from random import Random

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from ringfence.guard.classifier.corpus import DOUBTFUL, Example, style_weights
from ringfence.guard.classifier.heads import HEADS, TASKS
from ringfence.guard.classifier.network import Network
from ringfence.guard.classifier.tokens import PROMPT_TOKENS, Window, frame

HEAD_WEIGHTS = {"prompt_harm": 1.0, "response_harm": 1.0, "attack": 1.0, "refusal": 0.4, "toxicity": 0.5}
HAZARD_WEIGHT = 0.3
OWN_WEIGHT = 2.5
"""The project's own rows are few and say exactly what the heads mean; each counts as so many."""


PARTS = 4
"""Pieces of one batch that a CPU computes apart: twice the cores of a small machine, so that none waits long."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How to train.

    Attributes:
        rate: learning rate of the top layer; each layer below learns `decay` times as fast.
        head_rate: learning rate of the fresh heads.
        batch_tokens: padded tokens of one step.
        length: tokens of one example, markers included.
        average: decay of the running average of the weights, which is what training returns.
    """

    seed: int = 13
    epochs: int = 2
    rate: float = 1.2e-4
    head_rate: float = 1e-3
    decay: float = 0.85
    weight_decay: float = 0.01
    warmup: float = 0.06
    batch_tokens: int = 3072
    length: int = 160
    smoothing: float = 0.02
    average: float = 0.998
    checkpoint_every: int = 200


@dataclass(frozen=True, slots=True)
class Step:
    """How far training is: `done` of `total` steps, and the running loss."""

    done: int
    total: int
    loss: float


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
    tokenizer: Tokenizer,
    examples: Sequence[Example],
    plan: Plan,
    checkpoint: Path,
    device: torch.device,
    *,
    resume: bool = False,
) -> Iterator[Step]:
    """Train in place; once exhausted, the network holds the averaged weights.

    Args:
        checkpoint: written every `plan.checkpoint_every` steps; read first where `resume` is set and it is there.
    """
    torch.manual_seed(plan.seed)
    network.to(device).train()
    network.words.weight.requires_grad_(False)  # rare words keep what pre-training taught; a tenth of a step saved
    optimizer = torch.optim.AdamW(parameter_groups(network, plan), weight_decay=plan.weight_decay, fused=True)
    average = {name: value.detach().clone() for name, value in network.state_dict().items()}
    weights = example_weights(examples)
    epochs = [arrange(examples, tokenizer, plan, epoch) for epoch in range(plan.epochs)]
    total = sum(len(batches) for batches in epochs)
    done = restore(checkpoint, network, optimizer, average) if resume and checkpoint.exists() else 0
    running = 0.0
    batches = islice(enumerate(chain.from_iterable(epochs)), done, None)
    with one_core_each() as pool:
        for step, batch in batches:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * pace(step / total, plan.warmup)
            loss = backward(network, collate(batch, examples, weights, plan, device), pool)
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            keep = min(plan.average, (step + 1) / (step + 10))
            for name, value in network.state_dict().items():
                average[name].lerp_(value, 1 - keep)
            running = 0.98 * running + 0.02 * loss if running else loss
            if (step + 1) % plan.checkpoint_every == 0 or step + 1 == total:
                save(checkpoint, network, optimizer, average, step + 1)
            yield Step(step + 1, total, running)
    network.load_state_dict(average)
    network.eval()


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


def backward(network: Network, batch: Batch, pool: ThreadPoolExecutor) -> float:
    """Set the gradients of a batch; return its loss.

    On a CPU the batch is cut into parts, always as many, which are added in order: seeded training gives the same
    weights however many threads there are and however they fall.
    """
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    parts = [batch] if batch.ids.is_cuda else split(batch, PARTS)

    def differentiate(part: Batch) -> tuple[float, Sequence[Tensor]]:
        with torch.autocast(part.ids.device.type, torch.bfloat16):
            logits = network(part.ids, part.kinds, part.mask)
        loss = masked_loss(logits.float(), part) * (len(part.ids) / len(batch.ids))
        return loss.item(), torch.autograd.grad(loss, parameters)

    losses, gradients = zip(*pool.map(differentiate, parts), strict=True)
    for parameter, *shares in zip(parameters, *gradients, strict=True):
        parameter.grad = torch.stack(shares).sum(0) if len(shares) > 1 else shares[0]
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


def example_weights(examples: Sequence[Example]) -> list[tuple[float, ...]]:
    """Weigh every head of every example: 0 where it is not labelled."""
    by_style = {head: style_weights(examples, head) for head in ("prompt_harm", "response_harm", "attack")}
    rows = []
    for index, example in enumerate(examples):
        own = OWN_WEIGHT if example.family.startswith("own_") else 1.0
        rows.append(
            tuple(
                HEAD_WEIGHTS.get(head, HAZARD_WEIGHT)
                * own
                * (DOUBTFUL if head in example.doubt else 1.0)
                * (by_style[head][index] if head in by_style else 1.0)
                if head in example.labels
                else 0.0
                for head in HEADS
            )
        )
    return rows


def arrange(
    examples: Sequence[Example], tokenizer: Tokenizer, plan: Plan, epoch: int
) -> list[list[tuple[int, Window]]]:
    """Tokenize one epoch's view of every example and group views of like length into batches, shuffled."""
    random = Random(f"{plan.seed}/{epoch}")  # noqa: S311
    fillers = [one.text for one in examples if one.prompt is None and one.labels.get("prompt_harm") == 0]
    texts = [view(example, random, fillers, plan.length) for example in examples]
    bodies = tokenizer.encode_batch_fast([text for text, _ in texts], add_special_tokens=False)
    prompts = tokenizer.encode_batch_fast([prompt or "" for _, prompt in texts], add_special_tokens=False)
    windows = []
    for index, example in enumerate(examples):
        response = example.prompt is not None
        head = [101, *(prompts[index].ids[-PROMPT_TOKENS // 2 :] if response else []), *([102] if response else [])]
        body = bodies[index].ids
        room = plan.length - len(head) - 1
        harmless = not any(example.labels.get(task) for task in TASKS)
        at = random.randrange(len(body) - room + 1) if harmless and len(body) > room and random.random() < 0.5 else 0
        windows.append((index, frame(head, body[at : at + room], response, 0, 0)))
    windows.sort(key=lambda one: len(one[1].ids) * random.uniform(0.9, 1.1))
    batches: list[list[tuple[int, Window]]] = [[]]
    longest = 0
    for one in windows:
        longest = max(longest, len(one[1].ids))
        if longest * (len(batches[-1]) + 1) > plan.batch_tokens:
            batches.append([])
            longest = len(one[1].ids)
        batches[-1].append(one)
    random.shuffle(batches)
    return batches


def view(example: Example, random: Random, fillers: Sequence[str] = (), length: int = 0) -> tuple[str, str | None]:
    """Show an example as it may be met.

    A prompt may stand within harmless text: what is harmful stays so, or it could be hidden there. Of a response a
    stream often shows a part only. A part of a harmless one is harmless; a part of a harmful one is taken to be harmful
    only where it is long. At times the prompt is not known.
    """
    text, prompt = example.text, example.prompt
    if prompt is None:
        return (
            embed(text, random, random.choice(fillers), length) if fillers and random.random() < 0.3 else text
        ), None
    harmful = bool(example.labels.get("response_harm"))
    least = 400 if harmful else 30
    chance = random.random()
    if chance < 0.45 and len(text) > least:
        text = text[: random.randint(least, len(text))]
    elif chance < 0.6 and len(text) > least * 2 and not example.labels.get("refusal"):
        start = random.randint(0, len(text) - least)
        text = text[start:] if harmful else text[start : start + random.randint(least, 900)]
    if random.random() < 0.1:
        prompt = ""
    return text, prompt


def embed(text: str, random: Random, filler: str, length: int) -> str:
    """Put a text before, after or amid the words of another, so that about `length` tokens hold both."""
    words = filler.split()
    room = int(0.7 * length) - len(text.split())  # 0.7: words a token, with some to spare
    if room < 8 or not words:
        return text
    around = (words * (room // len(words) + 1))[: random.randint(8, room)]
    at = random.choice((0, len(around), random.randint(0, len(around))))
    gap = random.choice((" ", "\n", "\n\n"))
    return gap.join(part for part in (" ".join(around[:at]), text, " ".join(around[at:])) if part)


def collate(
    batch: Sequence[tuple[int, Window]],
    examples: Sequence[Example],
    weights: Sequence[tuple[float, ...]],
    plan: Plan,
    device: torch.device,
) -> Batch:
    """Pad windows to the longest and put them on the device with their labels."""
    longest = max(len(window.ids) for _, window in batch)
    pad = [(0,) * (longest - len(window.ids)) for _, window in batch]
    labels = torch.tensor([[examples[index].labels.get(head, 0.0) for head in HEADS] for index, _ in batch])
    return Batch(
        ids=torch.tensor([window.ids + rest for (_, window), rest in zip(batch, pad, strict=True)], device=device),
        kinds=torch.tensor([window.kinds + rest for (_, window), rest in zip(batch, pad, strict=True)], device=device),
        mask=torch.tensor([(1,) * len(window.ids) + rest for (_, window), rest in zip(batch, pad, strict=True)]).to(
            device
        ),
        labels=(labels * (1 - 2 * plan.smoothing) + plan.smoothing).to(device),
        weights=torch.tensor([weights[index] for index, _ in batch], device=device),
    )


def save(path: Path, network: Network, optimizer: torch.optim.Optimizer, average: dict[str, Tensor], done: int) -> None:
    """Write a checkpoint beside the last one, then put it in its place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {
        "network": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "average": average,
        "done": done,
    }
    partial = path.with_suffix(".part")
    torch.save(state, partial)
    partial.replace(path)


def restore(path: Path, network: Network, optimizer: torch.optim.Optimizer, average: dict[str, Tensor]) -> int:
    """Read a checkpoint back; return how many steps it had done."""
    state = torch.load(path, weights_only=True)
    network.load_state_dict(state["network"])
    optimizer.load_state_dict(state["optimizer"])
    for name, value in state["average"].items():
        average[name].copy_(value)
    return int(state["done"])
