"""LeNet-5, the network that read cheques."""

from torch import Tensor, nn

from mnist_cli.config.schema import LenetModel
from mnist_cli.models.shapes import Shape, refuse_small

LEAST = 12  # pixels along each axis: of fewer, the second pooling leaves none for a linear layer


class LeNet5(nn.Module):
    """LeNet-5 (LeCun, Bottou, Bengio and Haffner 1998): 61,706 parameters for MNIST.

    As is usual it differs from the published network in four things: every map of the second
    convolution reads all of the first's, where there six of sixteen did; pooling is the mean, and
    has no coefficients of its own; tanh is not scaled; and the output is linear, for a softmax,
    where there it was the distance to a drawing of each digit. `variant: modern` has ReLU and
    max-pooling.

    Raises:
        UsageError: the images are too small.
    """

    def __init__(self, config: LenetModel, shape: Shape, classes: int) -> None:
        super().__init__()
        channels, height, width = shape
        refuse_small("lenet", shape, LEAST, "its two convolutions")
        modern = config.variant == "modern"
        # The published network reads 32x32 pixels, MNIST's with a margin of two.
        padding = (2 if height < 32 else 0, 2 if width < 32 else 0)
        rows, columns = (
            ((size + 2 * margin - 4) // 2 - 4) // 2
            for size, margin in zip((height, width), padding, strict=True)
        )
        self.conv1 = nn.Conv2d(channels, 6, kernel_size=5, padding=padding)
        self.conv2 = nn.Conv2d(6, 16, kernel_size=5)
        self.pool = nn.MaxPool2d(2) if modern else nn.AvgPool2d(2)
        self.activation = nn.ReLU() if modern else nn.Tanh()
        self.linear1 = nn.Linear(16 * rows * columns, 120)
        self.linear2 = nn.Linear(120, 84)
        self.linear3 = nn.Linear(84, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Images (batch, channels, height, width) to logits (batch, classes)."""
        x = self.pool(self.activation(self.conv1(images)))  # (batch, 6, 14, 14) for MNIST
        x = self.pool(self.activation(self.conv2(x)))  # (batch, 16, 5, 5)
        x = self.activation(self.linear1(x.flatten(1)))  # (batch, 120)
        x = self.activation(self.linear2(x))  # (batch, 84)
        logits: Tensor = self.linear3(x)
        return logits
