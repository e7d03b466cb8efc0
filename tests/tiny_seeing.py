"""Tiny random checkpoints of guards that read images, with their processors, as transformers saves them."""

import io
from pathlib import Path
from runpy import run_path

import torch
import transformers
from PIL import Image
from transformers import (
    Gemma3ImageProcessorPil,
    Gemma3TextConfig,
    Llama4Config,
    Llama4ForConditionalGeneration,
    ShieldGemma2Config,
    ShieldGemma2ForImageClassification,
    ShieldGemma2Processor,
    SiglipVisionConfig,
)

from ringfence.guard.checks.guards.family import Family

TINY = run_path(str(Path(__file__).parent / "tiny_guards.py"))
SMALL, SPECIALS, tokenizer_of = TINY["SMALL"], TINY["SPECIALS"], TINY["tokenizer_of"]

LLAMA_4 = (
    "<|image|>",
    "<|image_start|>",
    "<|image_end|>",
    "<|patch|>",
    "<|tile_x_separator|>",
    "<|tile_y_separator|>",
)
"""What stands for an image in a prompt of Llama 4."""

GEMMA_3 = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
"""The same of Gemma 3."""

SIDE = 28


def picture(kind: str = "PNG", size: tuple[int, int] = (40, 24), seed: int = 0, **options: object) -> bytes:
    """Return the file of a small image that differs by its seed."""
    plain = Image.new("RGB", size, (60 * seed % 256, 255 - 40 * seed % 256, 90))
    made = Image.blend(Image.radial_gradient("L").resize(size).convert("RGB"), plain, 0.5)
    file = io.BytesIO()
    made.save(file, kind, **options)
    return file.getvalue()


def save_llama_guard_4(folder: Path, family: Family, template: str) -> Path:
    """Save a Llama 4 with vision, whose processor has a chat template. Needs torchvision."""
    words = (family.safe, *family.unsafe, *family.categories)
    tokenizer = tokenizer_of((*SPECIALS[family.name], *LLAMA_4), words)
    ids = tokenizer.convert_tokens_to_ids
    processor = transformers.Llama4Processor(
        transformers.Llama4ImageProcessor(size={"height": SIDE, "width": SIDE}, max_patches=4),
        tokenizer,
        chat_template=template,
    )
    processor.save_pretrained(folder)
    vision = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    vision |= {"image_size": SIDE, "patch_size": 14, "vision_output_dim": 16, "projector_input_dim": 16}
    vision |= {"projector_output_dim": 16}
    text = {
        **SMALL,
        "vocab_size": len(tokenizer),
        "intermediate_size_mlp": 64,
        "num_local_experts": 1,
        "moe_layers": [],
    }
    config = Llama4Config(
        vision_config=vision,
        text_config=text,
        boi_token_index=ids("<|image_start|>"),
        eoi_token_index=ids("<|image_end|>"),
        image_token_index=ids("<|patch|>"),
    )
    network = _random(Llama4ForConditionalGeneration(config))
    with torch.no_grad():
        TINY["decide"](network, tokenizer, family, steady=8, likelier=6)
    network.save_pretrained(folder)
    return folder


def save_shieldgemma_2(folder: Path, template: str) -> Path:
    """Save a ShieldGemma 2 with its processor."""
    plain = tokenizer_of((*SPECIALS["shieldgemma"], *GEMMA_3.values()), ("Yes", "No", "policy", "image"))
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=plain.backend_tokenizer,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<bos>",
        model_specific_special_tokens=GEMMA_3,
    )
    processor = ShieldGemma2Processor(
        Gemma3ImageProcessorPil(size={"height": SIDE, "width": SIDE}),
        tokenizer,
        chat_template=template,
        image_seq_length=4,
    )
    processor.save_pretrained(folder)
    vision = SiglipVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=SIDE, patch_size=7
    )
    ids = tokenizer.convert_tokens_to_ids
    config = ShieldGemma2Config(
        text_config=Gemma3TextConfig(**{**SMALL, "vocab_size": len(tokenizer), "sliding_window": 512}),
        vision_config=vision,
        mm_tokens_per_image=4,
        boi_token_index=ids("<start_of_image>"),
        eoi_token_index=ids("<end_of_image>"),
        image_token_index=ids("<image_soft_token>"),
    )
    config.yes_token_index, config.no_token_index = (tokenizer(one)["input_ids"][-1] for one in ("Yes", "No"))
    _random(ShieldGemma2ForImageClassification(config)).save_pretrained(folder)
    return folder


def _random(network: torch.nn.Module) -> torch.nn.Module:
    torch.manual_seed(0)
    # Wider than a random start has them, so that probabilities differ from image to image.
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.3)
    return network
