"""Images from a folder of classes."""

import builtins

import numpy as np
import pytest
import torch

from propkit.data import image_folder, load

Image = pytest.importorskip("PIL.Image")


def write(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def colours(seed, height=4, width=4):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_split_by_the_folder(tmp_path):
    written = {}
    for part, count in (("train", 3), ("test", 2)):
        for label, name in enumerate(("cat", "dog")):
            for i in range(count):
                pixels = colours(100 * count + 10 * label + i)
                write(tmp_path / part / name / f"{i}.png", pixels)
                written[part, label, i] = pixels
    (tmp_path / "train" / "notes.txt").write_text("no image")
    (tmp_path / "train" / "cat" / "notes.txt").write_text("no image")
    data = load(str(tmp_path))
    assert data.train_labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.test_labels.tolist() == [0, 0, 1, 1]
    assert data.train_images.dtype == torch.uint8
    for i in range(6):
        expected = written["train", i // 3, i % 3].transpose(2, 0, 1)
        np.testing.assert_array_equal(data.train_images[i].numpy(), expected)
    np.testing.assert_array_equal(
        data.test_images[3].numpy(), written["test", 1, 1].transpose(2, 0, 1)
    )
    assert (data.name, data.num_classes, data.flip) == (tmp_path.name, 2, True)


def test_a_fifth_is_for_the_test_where_there_is_no_split(tmp_path):
    for name, level in (("a", 10), ("b", 200)):
        for i in range(10):
            write(tmp_path / name / f"{i}.png", np.full((3, 5), level + i, np.uint8))
    data, again, other = (image_folder(tmp_path, split_seed=seed) for seed in (0, 0, 1))
    assert data.train_images.shape == (16, 1, 3, 5)  # grey
    assert data.test_images.shape == (4, 1, 3, 5)
    levels = torch.cat([data.train_images, data.test_images])[:, 0, 0, 0].tolist()
    assert sorted(levels) == [*range(10, 20), *range(200, 210)]
    assert ((data.train_images[:, 0, 0, 0] >= 200).long() == data.train_labels).all()
    assert torch.equal(data.test_images, again.test_images)
    assert not torch.equal(data.test_images, other.test_images)


def test_images_of_many_sizes_are_scaled_when_asked(tmp_path):
    write(tmp_path / "a" / "0.png", colours(0, 8, 8))
    write(tmp_path / "a" / "1.png", colours(1, 8, 8))
    write(tmp_path / "b" / "0.png", np.repeat(colours(2, 1, 1), 16, 0).repeat(12, 1))
    write(tmp_path / "b" / "1.png", np.repeat(colours(2, 1, 1), 16, 0).repeat(12, 1))
    with pytest.raises(ValueError, match=r"found \d+x\d+ \(.*\) and \d+x\d+ .*--image-size"):
        load(str(tmp_path))
    data = load(str(tmp_path), size=6)
    assert data.shape == (3, 6, 6)
    b = data.train_images[data.train_labels == 1][0]
    assert torch.equal(b, torch.from_numpy(colours(2, 1, 1))[0, 0, :, None, None].expand(3, 6, 6))


def test_folders_that_do_not_fit(tmp_path):
    with pytest.raises(
        FileNotFoundError, match="no such folder; an image folder has one sub-folder"
    ):
        image_folder(tmp_path / "nowhere")
    with pytest.raises(
        FileNotFoundError, match=r"no images in sub-folders.* Or the binary version"
    ):
        load(str(tmp_path))
    write(tmp_path / "a" / "0.png", colours(0))
    with pytest.raises(FileNotFoundError, match="no images to test on"):
        image_folder(tmp_path)
    write(tmp_path / "train" / "a" / "0.png", colours(0))
    write(tmp_path / "val" / "c" / "0.png", colours(0))
    with pytest.raises(ValueError, match="class 'c' is not in"):
        image_folder(tmp_path)
    (tmp_path / "train" / "a" / "1.png").write_text("text")
    write(tmp_path / "val" / "a" / "0.png", colours(0))
    (tmp_path / "val" / "c" / "0.png").unlink()
    with pytest.raises(ValueError, match=r"1\.png is no image"):
        image_folder(tmp_path)
    with pytest.raises(ValueError, match="size must be at least 1"):
        image_folder(tmp_path, 0)


def test_without_pillow(tmp_path, monkeypatch):
    real = builtins.__import__

    def refuse(name, *arguments, **keywords):
        if name.partition(".")[0] == "PIL":
            raise ImportError(name)
        return real(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match=r"needs Pillow: pip install 'propkit\[images\]'"):
        image_folder(tmp_path)
