"""A checkpoint is read tensor by tensor: while it is loaded, little more is in memory than its files and what is kept."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import Llama4ForCausalLM, Llama4TextConfig, LlamaConfig, LlamaForCausalLM

from ringfence.model.loading import KEPT, KEPT_DRAWN
from ringfence.model.memory import count_weights

STATUS = Path("/proc/self/status")
SMALL = {"vocab_size": 1000, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "head_dim": 64}
LARGE = SMALL | {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12}
KINDS = {
    "llama": (LlamaConfig, LlamaForCausalLM, LARGE),
    "llama4": (Llama4TextConfig, Llama4ForCausalLM, LARGE | {"intermediate_size": 1024, "num_hidden_layers": 4}),
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Of each kind one of fifty million weights in several files, and a tiny one."""
    path = tmp_path_factory.mktemp("checkpoints")
    heads = {"num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 256}
    more = {"llama": heads, "llama4": heads | {"num_local_experts": 8, "pad_token_id": None}}
    for kind, (config, network, large) in KINDS.items():
        for name, sizes in (("tiny", SMALL), ("large", large)):
            made = network(config(**sizes | more[kind])).bfloat16()
            made.save_pretrained(path / kind / name, max_shard_size="20MB")
    return path


READ = """
import sys
from pathlib import Path
import torch
from ringfence.model.checkpoint import read_shape
from ringfence.model.loading import read

def told(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))

torch.set_num_threads(1)
tiny, large = (read_shape(Path(path)) for path in sys.argv[1:3])
read(Path(sys.argv[1]), tiny, int(sys.argv[3]), 1)  # libraries load what they need at first use
before = told("VmRSS")
kept = read(Path(sys.argv[2]), large, int(sys.argv[3]), 1)
print(told("VmHWM") - before)
"""


@pytest.mark.skipif(not STATUS.exists(), reason="the system does not tell what a process had in memory at most")
@pytest.mark.parametrize(("kind", "bits"), [("llama", 4), ("llama", 8), ("llama", 16), ("llama4", 4), ("llama4", 8)])
def test_loading_takes_little_more_than_the_files_and_what_is_kept(kind, bits, checkpoints):
    """All of it in float32 first would take twice the files more."""
    large = checkpoints / kind / "large"
    files = [file.stat().st_size for file in large.glob("*.safetensors")]
    assert len(files) > 3
    command = [sys.executable, "-c", READ, str(checkpoints / kind / "tiny"), str(large), str(bits)]
    # What is freed is given back at once, and not counted twice.
    how = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | how)
    kept = count_weights(large) * (KEPT_DRAWN if (kind, bits) == ("llama", 8) else KEPT)[bits] // 8
    assert kept / 2 < int(done.stdout) < 2 * sum(files) + kept
