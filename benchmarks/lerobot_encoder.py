"""Train the pretrained parts of a small multi_task_dit offline: a CLIP folder whose images say where things are.

    python benchmarks/lerobot_encoder.py runs/episodes/all datasets/see runs/clip

LeRobot's multi_task_dit loads a pretrained CLIP from the Hub. Where that cannot be reached, this makes a small stand-in
in CLIP's format: the vision tower learns to tell hand, objects and goal of the episodes' states from their images in
the dataset; the text tower stays random, which tells sentences apart. Needs the environment with LeRobot.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

from world_model.data.columns_config import ColumnsConfig
from world_model.data.episodes import EpisodeStore
from world_model.data.lerobot import cameras_of, import_lerobot

SIZE, PATCH, WIDTH = 64, 16, 128
N_STEPS, BATCH_SIZE = 2000, 64
SPECIAL = ("<pad>", "<unk>", "<bos>", "<eos>")


def main(episodes: str, dataset: str, folder: str) -> None:
    """Train on all frames of a dataset and the states of the episodes that it was made of; write `folder`."""
    torch.manual_seed(0)
    images, targets = _frames(episodes, dataset)
    mean, std = targets.mean(0), targets.std(0).clamp(min=1e-3)
    model = CLIPModel(_config())
    head = nn.Linear(WIDTH, targets.shape[1])
    parameters = [*model.vision_model.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, N_STEPS)
    begun, seen = time.monotonic(), []
    for step in range(N_STEPS):
        index = torch.randint(len(images), (BATCH_SIZE,))
        pooled = model.vision_model(pixel_values=_pixels(images[index])).last_hidden_state[:, 0]
        loss = (head(pooled) - (targets[index] - mean) / std).square().mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        seen.append(float(loss.detach()))
        if step % 250 == 249:
            print(f"step {step + 1}: loss {sum(seen[-250:]) / 250:.4f}, {time.monotonic() - begun:.0f} s", flush=True)
    model.save_pretrained(folder)
    _tokenizer().save_pretrained(folder)


def _frames(episodes: str, dataset: str) -> tuple[Tensor, Tensor]:
    """Return images (n, 64, 64, 3) and the positions in the state (n, d) of the same frames."""
    states = {(e.task, e.seed): e.state for e in EpisodeStore(episodes).load()}
    found, _ = import_lerobot(dataset, ColumnsConfig(images=cameras_of(dataset)))
    images = torch.cat([e.obs["images.front"][e.rows_of("images.front")] for e in found])
    return images, torch.cat([states[e.task, e.seed] for e in found])


def _pixels(images: Tensor) -> Tensor:
    """Return images as the preprocessor of LeRobot would normalise them, about mean 0 and deviation 1."""
    return (images.movedim(-1, 1).float() / 255 - 0.45) / 0.2


def _config() -> CLIPConfig:
    size = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_hidden_layers": 4, "num_attention_heads": 4}
    text = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    tokens = {"vocab_size": len(SPECIAL) + 256, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
    return CLIPConfig(
        text_config={**text, **tokens, "max_position_embeddings": 77},
        vision_config={**size, "image_size": SIZE, "patch_size": PATCH},
        projection_dim=64,
    )


def _tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token a byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate((*SPECIAL, *alphabet))}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(list(SPECIAL))
    ends = [("<bos>", vocab["<bos>"]), ("<eos>", vocab["<eos>"])]
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A <eos>", special_tokens=ends)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<bos>",
        eos_token="<eos>",
    )


if __name__ == "__main__":
    main(*map(str, map(Path, sys.argv[1:4])))
