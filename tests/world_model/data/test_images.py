"""Images of recordings: crops and averages by hand, and limits of memory."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from rewards.errors import UserError
from world_model.data import images
from world_model.data.images import (
    ImageBlocks,
    count_levels,
    decode_image,
    encode_png,
    level_stats,
    read_images,
    square,
)


def test_the_middle_square_is_averaged() -> None:
    image = np.zeros((2, 6, 3), np.uint8)
    image[:, 2:4, 0] = [[10, 20], [30, 41]]  # the square; the sides stay 0
    image[:, :2] = image[:, 4:] = 255
    assert square(image, 1, "here").tolist() == [[[25, 0, 0]]]  # 101 / 4 = 25.25
    assert torch.equal(square(image, 2, "here"), torch.from_numpy(image[:, 2:4]))
    with pytest.raises(UserError, match=r"here: an image of 2 x 6 pixels .* cannot be scaled up to 3 x 3; choose"):
        square(image, 3, "here")


def test_png_is_exact_and_jpeg_nearly() -> None:
    image = torch.randint(256, (9, 7, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    assert np.array_equal(decode_image(encode_png(image), "here"), image.numpy())
    file = io.BytesIO()
    grey = np.full((16, 16), 77, np.uint8)
    Image.fromarray(grey).save(file, "JPEG")
    found = decode_image(file.getvalue(), "here")
    assert found.shape == (16, 16, 3) and abs(int(found.mean()) - 77) <= 1
    file = io.BytesIO()
    Image.fromarray(np.full((4, 4), 50_000, np.uint16)).save(file, "PNG")
    with pytest.raises(UserError, match=r"here: an image of mode I;16, expected 8 bits"):
        decode_image(file.getvalue(), "here")


def test_statistics_of_levels() -> None:
    pixels = torch.tensor([[0, 51, 255], [51, 51, 255], [102, 51, 255], [255, 51, 0]], dtype=torch.uint8)
    stats = level_stats(count_levels(pixels.view(1, 2, 2, 3)), 1)
    assert stats["min"] == [[[0.0]], [[0.2]], [[0.0]]] and stats["max"] == [[[1.0]], [[0.2]], [[1.0]]]
    np.testing.assert_allclose(np.ravel(stats["mean"]), [0.4, 0.2, 0.75])  # (0 + 0.2 + 0.4 + 1) / 4
    np.testing.assert_allclose(np.ravel(stats["std"]), [0.14**0.5, 0, 0.1875**0.5], atol=1e-12)
    np.testing.assert_allclose(np.ravel(stats["q50"]), [0.2, 0.2, 1.0])
    assert stats["count"] == [1]


def write(folder: Path, pngs: list[bytes]) -> None:
    (folder / "data" / "chunk-000").mkdir(parents=True, exist_ok=True)
    table = pa.table({"images.a": pa.array([{"bytes": png, "path": None} for png in pngs])})
    pq.write_table(table, folder / "data" / "chunk-000" / "file-000.parquet")


def test_equal_images_in_consecutive_rows_are_stored_once(tmp_path: Path) -> None:
    pngs = [encode_png(torch.full((4, 4, 3), level, dtype=torch.uint8)) for level in (1, 1, 2, 1)]
    write(tmp_path, pngs)
    blocks = ImageBlocks(height=4, width=4, crops=False)
    numbers = read_images(tmp_path, "data", "images.a", blocks)
    assert numbers.tolist() == [0, 0, 1, 2] and blocks.n_images == 3
    assert blocks.rows(numbers.tolist(), "here")[:, 0, 0, 0].tolist() == [1, 1, 2, 1]


def test_a_small_file_does_not_make_many_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "FREE_BYTES", 48 * 5)
    monkeypatch.setattr(images, "EXPANSION", 0)
    write(tmp_path, [encode_png(torch.full((4, 4, 3), level, dtype=torch.uint8)) for level in range(6)])
    with pytest.raises(UserError, match=r"row 5 of images\.a: it makes more than 5 images of 4 x 4 pixels"):
        read_images(tmp_path, "data", "images.a", ImageBlocks(height=4, width=4, crops=False))
    # One image that many frames repeat is small in the file, and large in the episodes.
    write(tmp_path, [encode_png(torch.zeros(4, 4, 3, dtype=torch.uint8))] * 6)
    blocks = ImageBlocks(height=4, width=4, crops=False)
    numbers = read_images(tmp_path, "data", "images.a", blocks).tolist()
    assert len(blocks.rows(numbers[:4], "here")) == 4
    with pytest.raises(UserError, match=r"here: it makes more than 5 images"):
        blocks.rows(numbers[4:], "here")
    monkeypatch.setattr(images, "FREE_PIXELS", 15)
    monkeypatch.setattr(images, "PIXELS_PER_BYTE", 0)
    with pytest.raises(UserError, match=r"row 0 of images\.a: more pixels than a file of this size has"):
        read_images(tmp_path, "data", "images.a", ImageBlocks(height=4, width=4, crops=False))
