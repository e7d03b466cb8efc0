"""Writes a GGUF file as a checkpoint folder: safetensors, config.json, tokenizer and chat template.

Not with transformers' own GGUF loader: it needs a further package (accelerate), and splits text otherwise than the
checkpoints do that these files were made from. Knows nothing of where files come from or where folders belong.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from gguf import TokenType
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from tokenizers.pre_tokenizers import ByteLevel, Digits, PreTokenizer, Split

from ringfence.model.gguf import Gguf, read
from ringfence.model.weights import Progress, Step, quiet

if TYPE_CHECKING:
    from torch import Tensor

SHARD = 4 << 30
"""Bytes of one file of tensors: as much is in memory at a time, beside the tensor that is read."""


class UnknownTokenizer(ValueError):
    """A file's tokenizer cannot be made exactly; the message says what it is."""


def unpack(file: Path, into: Path, progress: Progress = quiet) -> None:
    """Write a GGUF file of a dense Llama or of Llama 4 as a folder that everything else takes.

    The folder appears whole or not at all.

    Raises:
        FileExistsError: there is something at `into`.
        UnknownArchitecture, UnknownTokenizer: the file is of a kind that cannot be written.
        CheckpointDamaged: the file cannot be read.
    """
    if into.exists():
        raise FileExistsError(f"{into} is there already; name a folder that is not")
    source = read(file)
    tokenizer, named = tokenizer_of(source), _named(source)  # before the tensors, which take a while
    into.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{into.name}.", dir=into.parent) as beside:
        work = Path(beside) / "checkpoint"
        work.mkdir()
        _write_tensors(source, work, progress)
        told = {**source.settings, **_ends(source), "torch_dtype": "bfloat16"}
        _write_json(work / "config.json", told)
        tokenizer.save(str(work / "tokenizer.json"))
        _write_json(work / "tokenizer_config.json", named)
        # safetensors writes files that only their owner may read; a folder may be shared, as the umask says.
        for tensors in work.glob("*.safetensors"):
            tensors.chmod((work / "config.json").stat().st_mode)
        work.rename(into)


def _write_json(file: Path, content: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


# Tensors


def _write_tensors(source: Gguf, into: Path, progress: Progress) -> None:
    """Write tensors in bfloat16: half of float32's disk and memory, and all that computing with them keeps."""
    from safetensors.torch import save_file

    names: dict[str, str] = {}
    for number, shard in enumerate(_shards(source, progress), 1):
        file = f"model-{number:05}.safetensors"
        save_file(shard, into / file, metadata={"format": "pt"})
        names |= dict.fromkeys(shard, file)
        shard.clear()  # the next is filled while this loop still holds it
    if len(files := set(names.values())) == 1:
        (into / files.pop()).rename(into / "model.safetensors")
    else:
        _write_json(into / "model.safetensors.index.json", {"metadata": {}, "weight_map": names})
    progress(Step("converting", len(source.tensors), len(source.tensors), "tensors"))


def _shards(source: Gguf, progress: Progress) -> Iterator[dict[str, "Tensor"]]:
    """Yield tensors by the file's worth."""
    import torch

    shard: dict[str, Tensor] = {}
    size = 0
    for index, name in enumerate(source.tensors):
        progress(Step("converting", index, len(source.tensors), "tensors"))
        tensor = source(name).to(torch.bfloat16).contiguous()
        if shard and size + tensor.nbytes > SHARD:
            yield shard
            shard, size = {}, 0
        shard[name] = tensor
        size += tensor.nbytes
    yield shard


# Tokenizer

LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA_4 = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _split(pattern: str) -> list[PreTokenizer]:
    return [Split(Regex(pattern), "isolated"), ByteLevel(add_prefix_space=False, use_regex=False)]


SCHEMES: Mapping[str, tuple[bool, list[PreTokenizer]]] = {
    "gpt-2": (False, [ByteLevel(add_prefix_space=False)]),
    "smollm": (False, [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]),
    "llama-bpe": (True, _split(LLAMA_3)),
    "llama4": (True, _split(LLAMA_4)),
}
"""Of each way to split text that a file may name: whether a piece that is a token is taken whole, whatever the merges
say, and how pieces are made. `qwen2` is none of them: a file does not say whether text is normalised first."""


def scheme_of(source: Gguf) -> str:
    """Return by what scheme a file's tokenizer splits text; raises UnknownTokenizer for one that cannot be made."""
    kind, scheme = _field(source, "tokenizer.ggml.model"), _field(source, "tokenizer.ggml.pre")
    if kind != "gpt2":
        raise UnknownTokenizer(
            f"the GGUF file's tokenizer is of kind {kind!r}; only byte-level BPE ('gpt2') can be converted"
        )
    if scheme not in SCHEMES:
        raise UnknownTokenizer(
            f"the GGUF file splits text by the scheme {scheme!r}; those that can be converted are {', '.join(SCHEMES)}"
        )
    return str(scheme)


def tokenizer_of(source: Gguf) -> Tokenizer:
    """Make a file's tokenizer.

    Raises:
        UnknownTokenizer: it is of another kind, or is not all there.
    """
    whole, steps = SCHEMES[scheme_of(source)]
    tokens, kinds = _field(source, "tokenizer.ggml.tokens"), _field(source, "tokenizer.ggml.token_type")
    vocabulary = {token: id for id, token in enumerate(tokens)}
    try:
        merges = [(left, right) for left, right in (m.split(" ") for m in _field(source, "tokenizer.ggml.merges"))]
        tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=whole))
        by_kind = list(zip(tokens, kinds, strict=True))
    except UnknownTokenizer:
        raise
    except Exception as error:
        raise UnknownTokenizer(f"the GGUF file's tokenizer contradicts itself: {error}") from error
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    for wanted in (TokenType.CONTROL, TokenType.USER_DEFINED):
        special = wanted is TokenType.CONTROL
        added = [AddedToken(token, special=special, normalized=False) for token, kind in by_kind if kind == wanted]
        tokenizer.add_special_tokens(added) if special else tokenizer.add_tokens(added)
    return tokenizer


def _named(source: Gguf) -> dict[str, Any]:
    """Return tokenizer_config.json: who makes the tokenizer, special tokens, the chat template where there is one."""
    named: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    tokens = _field(source, "tokenizer.ggml.tokens")
    for role in ("bos", "eos"):
        id = source.field(f"tokenizer.ggml.{role}_token_id")
        if id is not None and id >= len(tokens):
            raise UnknownTokenizer(f"the GGUF file's {role} token is number {id} of {len(tokens)}")
        if id is not None:
            named[f"{role}_token"] = tokens[id]
    if template := source.field("tokenizer.chat_template"):
        named["chat_template"] = template
    return named


def _ends(source: Gguf) -> dict[str, Any]:
    """Return what ends a reply, where that is more than one token: of a text, of a turn, of a message."""
    told = [source.field(f"tokenizer.ggml.{role}_token_id") for role in ("eos", "eot", "eom")]
    ends = list(dict.fromkeys(id for id in told if id is not None))
    return {"eos_token_id": ends} if len(ends) > 1 else {}


def _field(source: Gguf, key: str) -> Any:
    if (found := source.field(key)) is None:
        raise UnknownTokenizer(f"the GGUF file has no field {key}; its tokenizer cannot be converted")
    return found
