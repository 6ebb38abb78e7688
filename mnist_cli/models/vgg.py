"""A small network of 3x3 convolutions with batch normalisation, in the manner of VGG."""

from torch import nn

from mnist_cli.config.schema import VggModel
from mnist_cli.models.shapes import Shape, refuse_small

LEAST = 24  # pixels along each axis: of fewer, the last convolution leaves none


class Vgg(nn.Sequential):
    """Five 3x3 convolutions, max-pooling after the second and the fourth, and one linear layer.

    After Simonyan and Zisserman, 2015: small kernels, and twice as many channels after each
    pooling. As is usual now, each convolution is followed by batch normalisation (Ioffe and
    Szegedy, 2015), and there is a single linear layer. Convolutions have no margin.

    Raises:
        UsageError: the images are too small.
    """

    def __init__(self, config: VggModel, shape: Shape, classes: int) -> None:
        channels, height, width = shape
        refuse_small("vgg", shape, LEAST, "its five convolutions")
        first, second, third = (config.width << stage for stage in range(3))
        rows, columns = (((size - 4) // 2 - 4) // 2 - 2 for size in (height, width))
        super().__init__(
            *_convolution(channels, first),  # (batch, width, 26, 26) for MNIST
            *_convolution(first, first),
            nn.MaxPool2d(2),  # (batch, width, 12, 12)
            *_convolution(first, second),
            *_convolution(second, second),
            nn.MaxPool2d(2),  # (batch, 2 * width, 4, 4)
            *_convolution(second, third),  # (batch, 4 * width, 2, 2)
            nn.Flatten(),
            nn.Linear(third * rows * columns, classes),
        )


def _convolution(inputs: int, outputs: int) -> list[nn.Module]:
    # Normalisation has the bias.
    return [nn.Conv2d(inputs, outputs, 3, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
