"""Trains what makes a mixture of experts of a dense Llama: the router, and what each expert adds. Seeded, resumable.

The parent itself is never changed. The result is a `Delta` of some megabytes, and beside it a report: loss on held-out
conversations by source, parent and result measured alike, and what each expert took. Knows no command line, no clock.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import accumulate, groupby, islice
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ringfence.model.assemble import Take
from ringfence.model.chat import Chat
from ringfence.model.checkpoint import CheckpointDamaged, opened, read_shape
from ringfence.model.config import Config
from ringfence.model.conversations import OWN, ConversationsUnusable, Corpus, Example
from ringfence.model.delta import ROUTER, Delta
from ringfence.model.loading import end_tokens
from ringfence.model.routing import directions, preferred, shares
from ringfence.model.trainable import Parent, hear, surprise
from ringfence.model.upcycle import busiest, start
from ringfence.model.weights import revision

MOMENTS = ("exp_avg", "exp_avg_sq")
"""What AdamW remembers of each parameter beside the number of steps."""


CHECKPOINT = "checkpoint.safetensors"
"""What is kept of a training, in its folder for work."""


class OtherTraining(ValueError):
    """The checkpoint to resume from is of another training."""


class DeviceMissing(ValueError):
    """The device to train on is not there."""


class Diverged(ValueError):
    """The loss is no number any more; what was learnt up to the last checkpoint is kept."""


class Stopped(RuntimeError):
    """Training was asked to stop, and has kept what it had done."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How to train.

    Attributes:
        tokens: to learn from in all, padding included; conversations come again in another order until then.
        interleave: one layer in so many is a mixture: as Maverick has it every other one, which costs half the time.
        rate, router_rate: highest learning rates, of what experts add and of routers.
        warmup: share of the steps in which the rates rise.
        balance: weight of the loss that keeps experts in use.
        spread: standard deviation of the routers' logits at the start.
        length: tokens after which a conversation is cut off.
        part_tokens, parts: padded tokens of a part, and parts of a step; two cores compute two parts at once.
        reading: tokens from which the start is found: which neurons are shared, and along what routers part inputs.
        checkpoint_every: steps; two minutes or so on two cores.
    """

    seed: int = 13
    tokens: int = 300_000
    experts: int = 8
    rank: int = 8
    interleave: int = 2
    rate: float = 2e-3
    router_rate: float = 1e-4
    warmup: float = 0.05
    balance: float = 0.01
    spread: float = 0.05
    length: int = 512
    part_tokens: int = 512
    parts: int = 4
    reading: int = 4096
    checkpoint_every: int = 40


@dataclass(frozen=True, slots=True)
class Order:
    """What to make.

    Attributes:
        parent: a dense Llama's checkpoint folder.
        pool: folder of conversations, as `conversations` describes it.
        out: file for the delta; the report goes beside it, its name ending in `.json`.
        work: where the checkpoint is kept.
        own: the project's own conversations.
        device: `cpu`, `cuda`, or `auto` for the fastest there is.
    """

    parent: Path
    pool: Path
    out: Path
    work: Path
    own: Path = OWN
    plan: Plan = field(default_factory=Plan)
    device: str = "auto"
    resume: bool = False


@dataclass(frozen=True, slots=True)
class Step:
    """How far a part of the work is.

    Attributes:
        tokens: that this step read, padding included.
        loss: nats a token of this step, where it learnt.
        imbalance: 1 where experts are used alike.
    """

    part: str
    done: int
    total: int
    tokens: int = 0
    loss: float = math.nan
    imbalance: float = math.nan


def make(order: Order, stop: Callable[[], bool] = lambda: False) -> Iterator[Step]:
    """Train, write the delta, measure it, write the report; yield each step as it is done.

    Args:
        stop: asked after each step; where it says so, work is kept for `resume`.

    Raises:
        ConversationsUnusable, WeightsMissing, TemplateRefused, UnknownArchitecture: there is nothing to train on, or
            nothing that can be trained.
        CheckpointDamaged: the parent or the checkpoint to resume from cannot be read.
        OtherTraining: the checkpoint is another training's.
        DeviceMissing: as it says.
        Diverged: the loss is no number any more.
        OSError: the result cannot be written, or not there.
        Stopped: `stop` said so.
    """
    plan, config, chat = order.plan, read_shape(order.parent), Chat.load(order.parent)
    corpus = Corpus.load(order.pool, order.own, chat, end_tokens(order.parent), plan.length)
    if not corpus.train or not corpus.held:
        raise ConversationsUnusable("there are too few conversations to learn from some and be measured on others")
    of_parent = revision(order.parent)
    device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if order.device == "auto" else order.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise DeviceMissing("there is no GPU that PyTorch can use; leave the device out, or say cpu")
    saved = Saved(order.work / CHECKPOINT, _mark(plan, of_parent, corpus))
    if order.out.is_dir() or order.out.suffix == ".json" or order.out.absolute() == saved.file.absolute():
        raise OSError(f"{order.out}: name another file for what is learnt; the report or the checkpoint would be there")
    order.out.parent.mkdir(parents=True, exist_ok=True)
    with opened(order.parent) as take, _one_core_each(device) as pool:
        if order.resume and saved.file.exists():
            training = saved.read(plan, device)
            parent = Parent.read(config, take, training.fixed, torch.bfloat16, device)
        else:
            saved.file.unlink(missing_ok=True)  # of another training, which a later --resume must not take up
            begun = begin(config, take, of_parent, plan, corpus.train)
            parent = Parent.read(config, take, begun.tensors, torch.bfloat16, device)
            before = Measured.of_nothing(parent, plan)
            yield from _until(stop, measure("measuring the parent", parent, begun, corpus.held, plan, before, pool))
            training = Training.of(with_routers(parent, begun, plan, corpus.train), plan, device)
            training.parent_nats |= before.nats
            saved.write(training)
        for step in fit(parent, training, corpus.train, plan, pool):
            halt = stop()
            if halt or step.done % plan.checkpoint_every == 0 or step.done == step.total:
                saved.write(training)
            yield step
            if halt:
                raise Stopped(f"stopped after step {step.done} of {step.total}")
        Delta(of_parent, plan.experts, plan.rank, training.rounded(), plan.interleave).save(order.out)
        after = Measured.of_nothing(parent, plan)
        delta = Delta.load(order.out)
        yield from _until(stop, measure("measuring the result", parent, delta, corpus.held, plan, after, pool))
    report = describe(order, of_parent, corpus, training.parent_nats, after, chat)
    order.out.with_suffix(".json").write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


# The start


def begin(config: Config, take: Take, of_parent: str, plan: Plan, examples: Sequence[Example]) -> Delta:
    """Return a delta that adds nothing, whose shared neurons are the busiest on some of the examples."""
    texts = [example.ids for example in _reading(examples, plan)]
    generator = torch.Generator().manual_seed(plan.seed)
    busy = busiest(config, take, texts)
    return start(config, take, of_parent, plan.experts, plan.rank, generator, busy, plan.interleave)


def with_routers(parent: Parent, begun: Delta, plan: Plan, examples: Sequence[Example]) -> Mapping[str, Tensor]:
    """Return a delta's tensors with routers that part what the layers are given on some of the examples."""
    given: dict[int, list[Tensor]] = {}
    tensors = _ready(begun.tensors, parent)
    for example in _reading(examples, plan):
        batch = Batch.of([example], parent.words.device)

        def listen(layer: int, x: Tensor, counted: Tensor = batch.counted) -> None:
            given.setdefault(layer, []).append(x[counted].cpu())

        with torch.inference_mode():
            hear(parent, tensors, batch.ids, batch.counted, listen)
    if (found := sum(map(len, given[parent.mixtures[0]]))) < plan.experts:
        raise ConversationsUnusable(f"{found} tokens are too few to part into {plan.experts} kinds")
    generator = torch.Generator().manual_seed(plan.seed)
    routers = {
        f"model.layers.{layer}.{ROUTER}": directions(torch.cat(rows), plan.experts, plan.spread, generator)
        for layer, rows in sorted(given.items())
    }
    return {**begun.tensors, **routers}


def _reading(examples: Sequence[Example], plan: Plan) -> list[Example]:
    """Choose examples of so many tokens in all, at least one."""
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(plan.seed)).tolist()
    ends = accumulate(len(examples[at].ids) for at in order)
    return [examples[at] for at, end in zip(order, ends, strict=True) if at == order[0] or end <= plan.reading]


# The loop


@dataclass(slots=True)
class Training:
    """What a training has come to.

    Attributes:
        learnt: what is trained, float32, named as a `Delta`'s tensors; changed in place.
        fixed: which neurons are shared.
        optimizer: of `learnt`.
        parent_nats: what the parent lost on each held-out source.
        done: steps.
    """

    learnt: dict[str, Tensor]
    fixed: dict[str, Tensor]
    optimizer: torch.optim.AdamW
    parent_nats: dict[str, float]
    done: int = 0

    @classmethod
    def of(cls, delta: Mapping[str, Tensor], plan: Plan, device: torch.device) -> Self:
        """Begin with a delta's tensors, in the order of their names: that of a file, so that norms add up alike."""
        learnt = {
            name: one.to(device, torch.float32, copy=True)
            for name, one in sorted(delta.items())
            if one.is_floating_point()
        }
        routers = [name for name in learnt if name.endswith(ROUTER)]
        groups = [
            {"params": [learnt[name] for name in learnt if name not in routers], "peak": plan.rate},
            {"params": [learnt[name] for name in routers], "peak": plan.router_rate},
        ]
        optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
        return cls(learnt, {name: one for name, one in delta.items() if name not in learnt}, optimizer, {})

    def rounded(self) -> dict[str, Tensor]:
        """Return a delta's tensors, what was learnt in bfloat16."""
        learnt = {name: one.to("cpu", torch.bfloat16) for name, one in self.learnt.items()}
        return dict(sorted({**learnt, **self.fixed}.items()))


def fit(
    parent: Parent, training: Training, examples: Sequence[Example], plan: Plan, pool: ThreadPoolExecutor
) -> Iterator[Step]:
    """Train in place, from the step on that the training has come to."""
    steps = arrange(examples, plan)
    for parts in islice(steps, training.done, None):
        for group in training.optimizer.param_groups:
            group["lr"] = group["peak"] * pace(training.done / len(steps), plan.warmup)
        batches = [Batch.of([examples[at] for at in part], parent.words.device) for part in parts]
        loss, imbalance = backward(parent, training.learnt, batches, plan, pool)
        if not math.isfinite(loss):
            raise Diverged(f"the loss is {loss} at step {training.done + 1}; take a lower rate")
        torch.nn.utils.clip_grad_norm_(training.learnt.values(), 1.0)
        training.optimizer.step()
        training.done += 1
        yield Step("training", training.done, len(steps), sum(batch.ids.numel() for batch in batches), loss, imbalance)


def arrange(examples: Sequence[Example], plan: Plan) -> list[list[list[int]]]:
    """Cut as many epochs as the plan has tokens for into steps of parts of examples of like length.

    Steps mix lengths, parts do not: little is padded, and no step is of one kind of conversation only.
    """
    generator = torch.Generator().manual_seed(plan.seed)
    epoch = [at for at, example in enumerate(examples) for _ in range(example.times)]
    parts: list[list[int]] = []
    left = plan.tokens
    while left > 0:
        shuffled = [epoch[at] for at in torch.randperm(len(epoch), generator=generator).tolist()]
        cut = parts_of(sorted(shuffled, key=lambda at: len(examples[at].ids)), examples, plan.part_tokens)
        for at in torch.randperm(len(cut), generator=generator).tolist():
            if left > 0:
                parts.append(cut[at])
                left -= len(cut[at]) * max(len(examples[one].ids) for one in cut[at])
    return [parts[at : at + plan.parts] for at in range(0, len(parts), plan.parts)]


def parts_of(order: Sequence[int], examples: Sequence[Example], tokens: int) -> list[list[int]]:
    """Cut examples, shortest first, into parts of at most so many tokens, padding included, or of one example."""
    parts: list[list[int]] = []
    for at in order:
        if parts and (len(parts[-1]) + 1) * len(examples[at].ids) <= tokens:
            parts[-1].append(at)
        else:
            parts.append([at])
    return parts


@dataclass(frozen=True, slots=True)
class Batch:
    """Examples side by side (B, T): tokens, which of them experts should share, and which the assistant said."""

    ids: Tensor
    counted: Tensor
    spoken: Tensor

    @classmethod
    def of(cls, examples: Sequence[Example], device: torch.device) -> Self:
        """Pad on the right to the longest; where nothing looks ahead, nothing sees what is padded."""
        longest = max(len(example.ids) for example in examples)
        ids = torch.zeros(len(examples), longest, dtype=torch.long)
        counted, spoken = torch.zeros_like(ids, dtype=torch.bool), torch.zeros_like(ids, dtype=torch.bool)
        for row, example in enumerate(examples):
            ids[row, : len(example.ids)] = torch.tensor(example.ids)
            counted[row, example.usual : len(example.ids)] = True
            spoken[row, : len(example.ids)] = torch.tensor(example.spoken)
        return cls(ids.to(device), counted.to(device), spoken.to(device))

    @property
    def labelled(self) -> int:
        """How many tokens are learnt."""
        return int(self.spoken[:, 1:].sum())

    def nats(self, parent: Parent, hidden: Tensor) -> Tensor:
        """Return how surprising what the assistant said is to given last hidden states (B, T, width), summed."""
        learnt = self.spoken[:, 1:]
        return surprise(parent, hidden[:, :-1][learnt], self.ids[:, 1:][learnt])


def backward(
    parent: Parent, learnt: Mapping[str, Tensor], batches: Sequence[Batch], plan: Plan, pool: ThreadPoolExecutor
) -> tuple[float, float]:
    """Set the gradients of a step; return its loss in nats a token, and how unevenly it used experts.

    Parts are added in order: a seed gives the same bytes however threads fall.
    """
    copies = {name: one.detach().requires_grad_() for name, one in _ready(learnt, parent).items()}
    labelled = sum(batch.labelled for batch in batches)

    def differentiate(batch: Batch) -> tuple[float, float, Sequence[Tensor]]:
        heard = hear(parent, copies, batch.ids, batch.counted)
        nats = batch.nats(parent, heard.hidden)
        loss = nats / labelled + plan.balance * heard.imbalance / len(batches)
        return nats.item(), heard.imbalance.item(), torch.autograd.grad(loss, list(copies.values()))

    nats, imbalances, gradients = zip(*pool.map(differentiate, batches), strict=True)
    for one, *own in zip(learnt.values(), *gradients, strict=True):
        one.grad = torch.stack([part.float() for part in own]).sum(0)
    return sum(nats) / labelled, sum(imbalances) / len(batches)


def _ready(delta: Mapping[str, Tensor], parent: Parent) -> dict[str, Tensor]:
    """Copy a delta to where the parent is and into its dtype; routers to float32: no choice should turn on rounding."""
    device, dtype = parent.words.device, parent.words.dtype
    return {
        name: one.to(device, torch.float32 if name.endswith(ROUTER) else dtype, copy=True)
        for name, one in delta.items()
    }


def pace(progress: float, warmup: float) -> float:
    """Scale a learning rate: up in a line, never from nothing, then down along a cosine to a fiftieth."""
    if progress < warmup:
        return 0.02 + 0.98 * progress / warmup
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


@contextmanager
def _one_core_each(device: torch.device) -> Iterator[ThreadPoolExecutor]:
    """Compute parts on threads of their own, each on one core; a GPU takes one after the other.

    Threads that share every product wait for the slowest in each: beside one other busy process, two of them take nine
    times as long for a feed-forward as one alone.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    pool = ThreadPoolExecutor(threads if device.type == "cpu" else 1)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)


# Work that can be taken up again


@dataclass(frozen=True, slots=True)
class Saved:
    """A checkpoint on disk, written whole or not at all.

    Attributes:
        mark: names what is learnt, from what and how, so that no other training takes it up.
    """

    file: Path
    mark: str

    def write(self, training: Training) -> None:
        """Put a training in the place of what was there."""
        tensors = {**training.learnt, **training.fixed}
        for name, one in training.learnt.items():
            for moment in MOMENTS if one in training.optimizer.state else ():
                tensors[f"{moment}:{name}"] = training.optimizer.state[one][moment]
        said = {"mark": self.mark, "done": str(training.done), "parent_nats": json.dumps(training.parent_nats)}
        self.file.parent.mkdir(parents=True, exist_ok=True)
        partial = self.file.with_suffix(".part")
        save_file({name: one.contiguous() for name, one in tensors.items()}, partial, metadata=said)
        partial.replace(self.file)

    def read(self, plan: Plan, device: torch.device) -> Training:
        """Take a training up where it was.

        Raises:
            CheckpointDamaged: the file is cut short, or something else.
            OtherTraining: it is of another training.
        """
        try:
            with safe_open(self.file, framework="pt") as source:
                said: Mapping[str, str] = source.metadata() or {}
                tensors = {name: source.get_tensor(name) for name in source.keys()}  # noqa: SIM118 - it is no dict
            if said["mark"] != self.mark:
                raise OtherTraining(
                    f"{self.file} is of another training (conversations, parent or plan); delete it, or do not resume"
                )
            training = Training.of({name: one for name, one in tensors.items() if ":" not in name}, plan, device)
            training.done, training.parent_nats = int(said["done"]), json.loads(said["parent_nats"])
            for name, one in training.learnt.items() if training.done else ():
                moments = {moment: tensors[f"{moment}:{name}"].to(device) for moment in MOMENTS}
                training.optimizer.state[one] = {"step": torch.tensor(float(training.done)), **moments}
        except (OSError, SafetensorError, KeyError, json.JSONDecodeError) as error:
            raise CheckpointDamaged(f"{self.file} cannot be read: {error}; delete it, or do not resume") from error
        return training


def _mark(plan: Plan, of_parent: str, corpus: Corpus) -> str:
    digest = hashlib.sha256(repr((plan, of_parent)).encode())
    for example in (*corpus.train, *corpus.held):
        digest.update(repr(example).encode())
    return digest.hexdigest()


# What came of it


@dataclass(frozen=True, slots=True)
class Measured:
    """What a network does on held-out conversations.

    Attributes:
        nats: by source, summed over what the assistant said.
        given: by layer, how many tokens each expert was given (experts,).
        took: of some layers, how often each expert was given each token (experts, vocabulary).
    """

    nats: dict[str, float]
    given: Mapping[int, Tensor]
    took: Mapping[int, Tensor]

    @classmethod
    def of_nothing(cls, parent: Parent, plan: Plan) -> Self:
        """Begin to count; the mixtures looked at closely are the first, the middle and the last."""
        layers = parent.mixtures
        close = {layers[0], layers[len(layers) // 2], layers[-1]}
        took = {layer: torch.zeros(plan.experts, parent.config.vocabulary) for layer in close}
        return cls({}, {layer: torch.zeros(plan.experts) for layer in layers}, took)


def measure(
    part: str,
    parent: Parent,
    delta: Delta,
    held: Sequence[Example],
    plan: Plan,
    into: Measured,
    pool: ThreadPoolExecutor,
) -> Iterator[Step]:
    """Let the parent and a delta read held-out conversations; a delta that adds nothing is the parent alone."""
    tensors = _ready(delta.tensors, parent)
    order = sorted(range(len(held)), key=lambda at: (held[at].source, len(held[at].ids)))
    groups = [
        (source, ats)
        for source, of_source in groupby(order, key=lambda at: held[at].source)
        for ats in parts_of(list(of_source), held, plan.part_tokens)
    ]

    def read(group: tuple[str, list[int]]) -> tuple[str, float, Tensor, Tensor]:
        batch = Batch.of([held[at] for at in group[1]], parent.words.device)
        with torch.inference_mode():
            heard = hear(parent, tensors, batch.ids, batch.counted)
            nats = batch.nats(parent, heard.hidden).item()
            return group[0], nats, batch.ids[batch.counted].cpu(), heard.chosen[:, batch.counted].cpu()

    for done, (source, nats, ids, chosen) in enumerate(pool.map(read, groups), 1):
        into.nats[source] = into.nats.get(source, 0.0) + nats
        for layer, experts in zip(parent.mixtures, chosen, strict=True):
            into.given[layer].add_(torch.bincount(experts, minlength=plan.experts))
            if layer in into.took:
                into.took[layer].index_put_((experts, ids), torch.ones(len(ids)), accumulate=True)
        yield Step(part, done, len(groups), len(ids))


def describe(
    order: Order, of_parent: str, corpus: Corpus, before: Mapping[str, float], after: Measured, chat: Chat
) -> Mapping[str, Any]:
    """Return the report: what was trained on what, the loss before and after, and what experts were given."""
    learnt = {source: sum(one.source == source for one in corpus.train) for source in sorted(before)}
    spoken = {source: sum(sum(one.spoken[1:]) for one in corpus.held if one.source == source) for source in learnt}
    total = sum(spoken.values())

    def row(source: str) -> Mapping[str, float]:
        return {
            "learnt": learnt[source],
            "held": sum(one.source == source for one in corpus.held),
            "tokens": spoken[source],
            "parent": round(before[source] / spoken[source], 4),
            "grown": round(after.nats[source] / spoken[source], 4),
        }

    return {
        "parent": of_parent,
        "plan": asdict(order.plan),
        "loss": {
            "parent": round(sum(before.values()) / total, 4),
            "grown": round(sum(after.nats.values()) / total, 4),
            "sources": {source: row(source) for source in learnt},
        },
        "routing": {str(layer): shares(counts) for layer, counts in after.given.items()},
        "took": {
            str(layer): preferred(counts, lambda id: chat.tokenizer.decode([id], skip_special_tokens=False))
            for layer, counts in sorted(after.took.items())
        },
    }


def _until(stop: Callable[[], bool], steps: Iterator[Step]) -> Iterator[Step]:
    for step in steps:
        yield step
        if stop():
            raise Stopped(f"stopped while {step.part}")
