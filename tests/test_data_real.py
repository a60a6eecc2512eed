"""The real inputs are the published ones, bit for bit; skipped where they are not there."""

import hashlib

import numpy as np
import pytest

from mnlib.lab import data


@pytest.fixture(autouse=True)
def _real_tier(monkeypatch):
    monkeypatch.delenv("MNLIB_TIER", raising=False)


def needs(name):
    there = any(row["name"] == name and row["where"] for row in data.status())
    return pytest.mark.skipif(not there, reason=f"{name} is not in the data folders")


def md5(content):
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


@needs("cifar10")
def test_cifar10_has_the_checksums_of_the_official_binary_batches():
    def batches(split):
        images, labels = data.load("cifar10", split)
        planes = images.transpose(0, 3, 1, 2).reshape(len(labels), -1)
        records = np.column_stack([labels.astype(np.uint8), planes])
        return [md5(records[i : i + 10_000].tobytes()) for i in range(0, len(records), 10_000)]

    assert batches("train") + batches("test") == [
        "5dd7e06a14cb22eb9f671a540d1b7c25",
        "5ea93a67294ea407fff1d09f752e9692",
        "942cd6a4bcdd0dd3c604fbe906cb4421",
        "ae636b3ba5c66a11e91e8cb52e771fcb",
        "53f37980c15c3d472c316c40844f3f0d",
        "803d5f7f4d78ea53de84dbe85f74fb6d",
    ]


@needs("mnist")
def test_mnist_has_the_checksums_of_the_official_idx_files():
    def files(split):
        images, labels = data.load("mnist", split)
        count = np.array(len(labels), ">u4").tobytes()
        shape = count + np.array([28, 28], ">u4").tobytes()
        yield md5(b"\0\0\x08\x03" + shape + images.tobytes())
        yield md5(b"\0\0\x08\x01" + count + labels.astype(np.uint8).tobytes())

    assert [*files("train"), *files("test")] == [
        "6bbc9ace898e44ae57da46a324031adb",
        "a25bea736e30d166cdddb491f175f624",
        "2646ac647ad5339dbf082846283269ea",
        "27ae3e4e09519cfbb04c329615203637",
    ]


@needs("tf_flowers")
def test_tf_flowers_has_its_3670_photographs():
    photographs, labels = data.load("tf_flowers")
    assert np.bincount(labels).tolist() == [633, 898, 641, 699, 799]
    assert photographs.files[0] == "daisy/100080576_f52e8ee070_n.jpg"
    assert photographs[0].shape == (263, 320, 3)


@needs("vgg19")
def test_vgg19_has_as_many_slices_as_the_slides_count():
    weights = [w for key, w in data.load("vgg19").items() if key.endswith("weight")]
    assert sum(w.shape[1] for w in weights) == 4995
    assert sum(w.shape[0] for w in weights) == 5504
