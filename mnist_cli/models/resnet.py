"""A small residual network with batch normalisation, for images of 28x28 or 32x32 pixels."""

import torch.nn.functional as F
from torch import Tensor, nn

from mnist_cli.config.schema import ResnetModel
from mnist_cli.models.shapes import Shape, refuse_small

LEAST = 4  # pixels along each axis: two of the three stages halve them


class ResNet(nn.Module):
    """Residual network of `depth` = 6n + 2 layers (He, Zhang, Ren and Sun 2016, section 4.2).

    A convolution, three stages of n blocks, and one linear layer on the means of the last maps. The
    second and the third stage have half as many rows and columns, and twice as many channels.
    Where a block changes the shape, its shortcut is a 1x1 convolution (the paper's option B).

    Raises:
        UsageError: the images are too small.
    """

    def __init__(self, config: ResnetModel, shape: Shape, classes: int) -> None:
        super().__init__()
        refuse_small("resnet", shape, LEAST, "its three stages")
        width = config.width
        self.stem = _convolution(shape[0], width)
        self.norm = nn.BatchNorm2d(width)
        blocks: list[nn.Module] = []
        inputs = width
        for stage in range(3):
            for number in range((config.depth - 2) // 6):
                stride = 2 if stage > 0 and number == 0 else 1
                blocks.append(Block(inputs, width << stage, stride))
                inputs = width << stage
        self.blocks = nn.Sequential(*blocks)
        self.linear = nn.Linear(inputs, classes)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):  # He et al. 2015
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Images (batch, channels, height, width) to logits (batch, classes)."""
        x = F.relu(self.norm(self.stem(images)))  # (batch, width, 28, 28) for MNIST
        x = self.blocks(x)  # (batch, 4 * width, 7, 7)
        logits: Tensor = self.linear(x.mean(dim=(2, 3)))
        return logits


class Block(nn.Module):
    """Two 3x3 convolutions, and a shortcut past both: y = relu(x + f(x))."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _convolution(inputs, outputs, stride=stride)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = _convolution(outputs, outputs)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            projection = _convolution(inputs, outputs, kernel_size=1, stride=stride)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, inputs, height, width) to (batch, outputs, height / stride, width / stride)."""
        y = F.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        return F.relu(y + self.shortcut(x))


def _convolution(inputs: int, outputs: int, kernel_size: int = 3, stride: int = 1) -> nn.Conv2d:
    """A convolution that keeps the size but for its stride; normalisation has the bias."""
    padding = kernel_size // 2
    return nn.Conv2d(inputs, outputs, kernel_size, stride, padding, bias=False)
