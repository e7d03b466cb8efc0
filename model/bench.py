"""How fast the engine is on this machine, beside transformers, and llama.cpp where it is installed, in the same run.

What is compared runs in turns in one process, on as many threads. And what each form of its weights loses on
conversations. Knows nothing of HTTP or safety.
"""

import ctypes
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, DynamicCache, Llama4ForCausalLM, Llama4TextConfig

from ringfence.model.assemble import assemble
from ringfence.model.cache import Cache, Held
from ringfence.model.chat import Chat
from ringfence.model.checkpoint import read_shape
from ringfence.model.config import Config, read_config
from ringfence.model.conversations import ConversationsUnusable, Example, encode, read_file
from ringfence.model.draft import Draft
from ringfence.model.engine import Engine
from ringfence.model.graph import Both
from ringfence.model.linear import Int4, Int8, Linear, Plain
from ringfence.model.llama4 import Decoder, Experts, FeedForward, Grown, Network
from ringfence.model.loading import FORMS, Bits, end_tokens, experts_of, read, read_draft
from ringfence.model.sampler import Sampling
from ringfence.model.upcycle import upcycle
from ringfence.model.weights import DELTA, WeightsDamaged

TURNS = 5
"""How often each side is timed; the median counts."""

TOKENS = 48
"""Tokens of a reply that is timed."""

PROMPT = 512
"""Tokens of a prompt whose reading is timed."""

TOGETHER = 8
"""Requests at once."""

QUESTION = "What should I know before I bake bread for the first time?"
"""What a reply that is drafted answers: of numbers in a row, a draft guesses otherwise than of words."""

BLOCK = 1 << 30
"""Bytes that are read to see how fast memory is: more than any cache holds."""

MAVERICK = Llama4TextConfig(
    vocab_size=2048,
    hidden_size=320,
    intermediate_size=512,
    intermediate_size_mlp=1024,
    num_hidden_layers=4,
    num_attention_heads=10,
    num_key_value_heads=2,
    head_dim=32,
    num_local_experts=128,
    interleave_moe_layer_step=2,
    max_position_embeddings=4096,
    pad_token_id=0,
)
"""Llama 4 Maverick in small: 128 experts in every other layer; widths are a sixteenth, heads a quarter as many and as
wide."""


@dataclass(frozen=True, slots=True)
class Pace:
    """One measurement.

    Attributes:
        ours, theirs: in the unit. theirs is None where nobody is compared with.
        bar: how many times theirs it is to be at least; None where nothing was promised.
    """

    what: str
    unit: str
    ours: float
    peer: str = ""
    theirs: float | None = None
    bar: float | None = None

    @property
    def better(self) -> float | None:
        """How many times theirs it is."""
        return self.ours / self.theirs if self.theirs else None


def measure_engine(
    path: Path, bits: Bits, threads: int, gguf: Path | None = None, draft: Path | None = None
) -> Iterator[Pace]:
    """Measure a dense or sparse checkpoint that our own network computes, in one form of its weights.

    Args:
        path: the checkpoint's folder.
        gguf: the same weights for llama.cpp, where that is installed; it is timed with them as they are, and, where
            ours are kept in eight bits, in as many.
        draft: the folder of a smaller one that guesses what it says.

    Raises:
        WeightsDamaged: it does not start in a process of its own.
    """
    torch.set_num_threads(threads)
    own = Own.of(path, bits, threads)
    with written_out(path) as same:
        stock = Stock.of(same)
    prompt = [1 + index * 7 % 900 for index in range(36)]
    long = [1 + index * index * 7 % 900 for index in range(PROMPT)]
    speed = "tokens/s"
    yield Pace("one reply", speed, *alternate(own.decode, "transformers", stock.decode, prompt), bar=5)
    weight = per_token(own.network)
    reading = alternate(own.decode, "reading the weights", lambda _: read_speed() / weight, prompt)
    yield Pace("one reply", speed, *reading, bar=0.5)
    yield Pace(f"a prompt of {PROMPT}", speed, *alternate(own.read, "transformers", stock.read, long))
    yield Pace(f"{TOGETHER} replies", speed, *alternate(own.decode_together, "one reply", own.decode, prompt), bar=3)
    if draft is not None:
        yield measure_draft(own, path, draft, bits)
    if gguf is not None:
        yield from measure_beside_llamacpp(own, path, bits, threads, gguf, prompt, long)
    yield measure_experts()
    yield from measure_start(path, bits, threads)


def measure_beside_llamacpp(
    own: "Own", path: Path, bits: Bits, threads: int, gguf: Path, short: Sequence[int], long: Sequence[int]
) -> Iterator[Pace]:
    """Compare with llama.cpp: on as many bits, and on its file as it is.

    Args:
        short, long: tokens of prompts.
    """
    speed, sides = "tokens/s", {"llama.cpp": Llamacpp(gguf, threads)}
    if bits == 8:
        with TemporaryDirectory(prefix="ringfence-") as beside:
            sides = {"llama.cpp, Q8_0": Llamacpp(in_eight_bits(gguf, Path(beside)), threads), **sides}
    same = next(iter(sides))
    for peer, llama in sides.items():
        yield Pace(
            "one reply", speed, *alternate(own.decode, peer, llama.decode, short), bar=1 if peer == same else None
        )
        yield Pace(f"a prompt of {PROMPT}", speed, *alternate(own.read, peer, llama.read, long), bar=2)
    if experts_of(path) is not None:  # llama.cpp has none
        with without_experts(path) as dense:
            parent = Own.of(dense, bits, threads)
        pace = alternate(parent.decode, same, sides[same].decode, short)
        yield Pace("one reply, no experts", speed, *pace, bar=1)


@contextmanager
def written_out(path: Path) -> Iterator[Path]:
    """Give a checkpoint as transformers can read it: one whose experts lie beside their parent is written out."""
    delta = experts_of(path)
    if delta is None:
        yield path
        return
    with TemporaryDirectory(prefix="ringfence-") as beside:
        upcycle(path, Path(beside) / "checkpoint", delta.experts, delta)
        yield Path(beside) / "checkpoint"


@contextmanager
def without_experts(path: Path) -> Iterator[Path]:
    """Give a checkpoint's dense parent."""
    with TemporaryDirectory(prefix="ringfence-") as beside:
        for file in path.iterdir():
            if file.name != DELTA:
                (Path(beside) / file.name).symlink_to(file.absolute())
        yield Path(beside)


def alternate(
    ours: Callable[[Sequence[int]], float], peer: str, theirs: Callable[[Sequence[int]], float], ids: Sequence[int]
) -> tuple[float, str, float]:
    """Time two sides in turns on the same tokens; return our median, the peer's name, and the peer's median."""
    pairs = [(ours(ids), theirs(ids)) for _ in range(TURNS + 1)][1:]  # the first turn does not count
    return statistics.median(one for one, _ in pairs), peer, statistics.median(other for _, other in pairs)


class Own:
    """Our engine."""

    def __init__(self, network: Network, dtype: torch.dtype) -> None:
        self.network = network
        self.dtype = dtype

    @classmethod
    def of(cls, path: Path, bits: Bits, threads: int) -> "Own":
        """Read a checkpoint."""
        network, cache = read(path, read_shape(path), bits, threads)
        return cls(network, cache.keys.dtype)

    def decode(self, prompt: Sequence[int]) -> float:
        """Return tokens a second of one reply, without guesses."""
        return self._say([prompt])

    def decode_together(self, prompt: Sequence[int]) -> float:
        """Return tokens a second of several replies at once, all together."""
        return self._say([[index + 1, *prompt] for index in range(TOGETHER)])

    def decode_guessing(self, prompt: Sequence[int], draft: Network | None = None) -> float:
        """Return tokens a second of one reply, with guesses: by another network where nothing stood before."""
        return self._say([prompt], 1, Draft(draft, Cache(draft.config, 4096, self.dtype)) if draft else None)

    def read(self, prompt: Sequence[int]) -> float:
        """Return tokens a second of a prompt."""
        cache, held = Cache(self.network.config, len(prompt), self.dtype), Held()
        cache.make_room(held, len(prompt))
        with torch.inference_mode():
            started = time.perf_counter()
            self.network.compute([(held, prompt)], cache, [1])
            return len(prompt) / (time.perf_counter() - started)

    def _say(self, prompts: Sequence[Sequence[int]], guessers: int = 0, draft: Draft | None = None) -> float:
        cache = Cache(self.network.config, 4096, self.dtype)
        engine = Engine(self.network, cache, frozenset(), guessers, draft)
        for prompt in prompts:
            engine.add(prompt, Sampling(temperature=0, max_tokens=TOKENS))
        engine.step()  # reads the prompts
        started, said = time.perf_counter(), 0
        while engine.busy:
            said += sum(len(advance.chosen) for advance in engine.step())
        return said / (time.perf_counter() - started)


class Stock:
    """transformers, with the same weights."""

    def __init__(self, model: Any) -> None:
        self._model = model

    @classmethod
    def of(cls, path: Path) -> "Stock":
        """Read a checkpoint in bfloat16."""
        return cls(AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16, local_files_only=True))

    def decode(self, prompt: Sequence[int]) -> float:
        """Return tokens a second of one reply, its prompt read beforehand."""
        ids, cache = torch.tensor([prompt]), DynamicCache()
        settings = {"past_key_values": cache, "do_sample": False, "use_cache": True, "pad_token_id": 0}
        with torch.inference_mode():
            self._model(input_ids=ids[:, :-1], past_key_values=cache, use_cache=True)
            started = time.perf_counter()
            self._model.generate(
                ids, min_new_tokens=TOKENS, max_new_tokens=TOKENS, attention_mask=torch.ones_like(ids), **settings
            )
            return TOKENS / (time.perf_counter() - started)

    def read(self, prompt: Sequence[int]) -> float:
        """Return tokens a second of a prompt."""
        with torch.inference_mode():
            started = time.perf_counter()
            self._model(input_ids=torch.tensor([prompt]), logits_to_keep=1)
            return len(prompt) / (time.perf_counter() - started)


class Llamacpp:
    """llama.cpp, by way of llama-cpp-python."""

    def __init__(self, gguf: Path, threads: int) -> None:
        from llama_cpp import Llama  # type: ignore[import-not-found, unused-ignore]

        self._model: Any = Llama(
            str(gguf), n_ctx=2048, n_batch=PROMPT, n_threads=threads, n_threads_batch=threads, verbose=False
        )

    def decode(self, prompt: Sequence[int]) -> float:
        """Return tokens a second of one reply, its prompt read beforehand."""
        self._model.reset()
        self._model.eval(list(prompt))
        started = time.perf_counter()
        for _ in range(TOKENS):
            self._model.eval([self._model.sample(temp=0.0)])
        return TOKENS / (time.perf_counter() - started)

    def read(self, prompt: Sequence[int]) -> float:
        """Return tokens a second of a prompt."""
        self._model.reset()
        started = time.perf_counter()
        self._model.eval(list(prompt))
        return len(prompt) / (time.perf_counter() - started)


def in_eight_bits(gguf: Path, folder: Path) -> Path:
    """Let llama.cpp write a checkpoint with eight bits a weight (Q8_0), which loses next to nothing of fewer.

    Raises:
        WeightsDamaged: it cannot.
    """
    import llama_cpp  # type: ignore[import-not-found, unused-ignore]

    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype, settings.allow_requantize = llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0, True
    written = folder / "eight.gguf"
    if llama_cpp.llama_model_quantize(bytes(gguf), bytes(written), ctypes.byref(settings)):
        raise WeightsDamaged(f"llama.cpp cannot write {gguf} in eight bits")
    return written


def per_token(network: Network) -> int:
    """Return the bytes of weights that one token of one sequence reads."""
    if isinstance(network, Both):
        return network.graph.size
    assert isinstance(network, Decoder)
    return _per_token(network)


def _per_token(decoder: Decoder) -> int:
    parts: list[Linear] = [decoder.head]
    for block in decoder.blocks:
        parts += [block.attention.qkv, block.attention.out]
        match block.feed_forward:
            case FeedForward(gate_up=gate_up, down=down):
                parts += [gate_up, down]
            case Experts(top_k=top_k, shared=shared, routed=routed):
                parts += [part for one in (shared, *routed[:top_k]) for part in (one.gate_up, one.down)]
            case Grown(parent=parent, into=into, out=out, into_down=into_down, out_down=out_down):
                parts += [parent.gate_up, parent.down, into, out, into_down, out_down]
    return sum(map(size, parts))


def size(product: Linear) -> int:
    """Return the bytes that a product of one token reads."""
    match product:
        case Int4(packed=packed, scales=scales):
            return packed.nbytes + scales.nbytes
        case Int8(weight=weight) | Plain(weight=weight):
            return weight.nbytes
    raise TypeError(f"a product of another form: {product!r}")


def read_speed() -> float:
    """Return how many bytes a second can be read from memory, by summing up a block of it."""
    block = torch.ones(BLOCK // 4, dtype=torch.float32)
    times = []
    for _ in range(3):
        started = time.perf_counter()
        block.sum()
        times.append(time.perf_counter() - started)
    return block.nbytes / min(times)


def measure_draft(own: Own, path: Path, draft: Path, bits: Bits) -> Pace:
    """Compare a reply that a smaller network drafts with one that guesses only what stood before.

    Raises:
        DraftDiffers: it cannot draft for this one.
        TemplateRefused: the checkpoint cannot be asked.
    """
    network, _ = read_draft(draft, path, bits, torch.get_num_threads())
    asked = Chat.load(path).render([("user", QUESTION)])
    drafted = partial(own.decode_guessing, draft=network)
    return Pace("one reply, drafted", "tokens/s", *alternate(drafted, "without a draft", own.decode_guessing, asked))


def measure_experts() -> Pace:
    """Compare reading a prompt through many experts with transformers, which gives every token to each of them."""
    torch.manual_seed(0)
    model = Llama4ForCausalLM(MAVERICK)
    config: Config = read_config(MAVERICK.to_dict())
    own = Own(assemble(config, model.state_dict().__getitem__), torch.float32)
    ids = [1 + index * 7 % 2000 for index in range(PROMPT)]  # no token twice: nearly all experts are in use
    what = f"a prompt of {PROMPT}, 128 experts"
    return Pace(what, "tokens/s", *alternate(own.read, "transformers", Stock(model).read, ids), bar=20)


def measure_start(path: Path, bits: Bits, threads: int) -> Iterator[Pace]:
    """Start a process of its own, and say how long it took and how much memory.

    Raises:
        WeightsDamaged: it ended before its first token.
    """
    code = (
        "import sys, time; started = time.perf_counter();"
        "from pathlib import Path; from ringfence.model.loading import load;"
        "from ringfence.model.sampler import Sampling;"
        "service = load(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]));"
        "next(service.generate([1, 2, 3], Sampling(max_tokens=1)));"
        "seconds = time.perf_counter() - started;"
        # not getrusage: that is at least what the process was that started this one
        "print(seconds, next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    )
    command = [sys.executable, "-c", code, str(path), str(bits), str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own code
    if done.returncode:
        raise WeightsDamaged(f"the engine did not start in a process of its own ({done.returncode}):\n{done.stderr}")
    seconds, kib = map(float, done.stdout.split())
    stored = sum(file.stat().st_size for file in path.glob("*.safetensors"))
    yield Pace("from start to the first token", "s", seconds)
    yield Pace("memory at most", "MB", kib * 1024 / 1e6, "the checkpoint", stored / 1e6)


# What is lost


def measure_loss(path: Path, file: Path, threads: int) -> Iterator[Pace]:
    """Measure how surprising what the assistant says in conversations is to a checkpoint, in each form of its weights.

    Where a graph computes it, in four bits and eight, they are read as at work: what the assistant says a token at a
    time, in groups, and what it is told at once, in eight bits a row. In the other forms all is read at once.

    Args:
        file: JSON lines, as `read_file` has them; of each conversation the first `PROMPT` tokens count.

    Raises:
        ConversationsUnusable, TemplateRefused: they cannot be read, or not with this checkpoint's template.
    """
    torch.set_num_threads(threads)
    config, chat, ends = read_shape(path), Chat.load(path), end_tokens(path)
    conversations = read_file(file, file.name)
    examples = [encode(one, chat, ends, min(PROMPT, config.context)) for one in conversations]
    if not any(any(example.spoken[1:]) for example in examples):
        raise ConversationsUnusable(f"{file}: there is no conversation in which the assistant speaks")
    exact = None
    for bits in sorted(FORMS, reverse=True):
        # One form at a time is in memory.
        network, cache = read(path, config, bits, threads)
        lost = loss(network, cache, examples, singly=isinstance(network, Both))
        yield Pace(f"loss at {bits} bits", "nats/token", lost, "at 32 bits" if exact else "", exact)
        exact = exact or lost


@torch.inference_mode()
def loss(network: Network, cache: Cache, examples: Sequence[Example], singly: bool) -> float:
    """Return the nats a token of what the assistant says.

    Args:
        singly: read that a token at a time.
    """
    nats, count = 0.0, 0
    for example in examples:
        held, length = Held(), len(example.ids)
        cache.make_room(held, length)
        spoken = [at for at in range(length) if singly and example.spoken[at]]
        for start, end in pairwise(sorted({0, length, *spoken, *(at + 1 for at in spoken)})):
            ((_, logits),) = network.compute([(held, example.ids[start:end])], cache, [end - start])
            learnt = torch.tensor(example.spoken[start + 1 : end + 1], dtype=torch.bool)
            said = torch.tensor(example.ids[start + 1 : end + 1], dtype=torch.long)
            nats += cross_entropy(logits[: len(said)][learnt], said[learnt], reduction="sum").item()
            count += int(learnt.sum())
        cache.cut(held, 0)
    return nats / count
