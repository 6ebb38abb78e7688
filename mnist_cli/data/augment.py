"""Augmentation: every image of a training batch changed in its own way, on the device.

What happens to an image is a function of the run's seed, the number of the step and the image's
index in the training split, and of nothing else. `draws` turns these into a row of numbers, and
`Augmentation` makes all images of a batch from their rows at once: one affine map and one elastic
displacement, sampled once, and a rectangle erased. What comes from outside an image is black (0).
"""

import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mnist_cli.config.schema import AugmentConfig
from mnist_cli.data.seeds import derive, random_bits

NUMBERS = 12  # drawn for each image
ROW = 11  # six of the affine map, four of the erased rectangle, one that the displacement is of
IMAGES_AT_ONCE = 4096  # a small call costs more than what it computes
ASPECT = 3.3  # an erased rectangle's sides have a ratio from 1/ASPECT to ASPECT


def draws(
    config: AugmentConfig,
    seeds: Sequence[int],
    size: tuple[int, int],
    step: int,
    batches: Sequence[Tensor],
) -> Iterator[Tensor]:
    """What happens to each image of each batch.

    Args:
        config: the transforms.
        seeds: of the runs, one for each of G groups that share their batches.
        size: height and width of an image.
        step: of the first batch, counted from 0.
        batches: the index of each image in the training split, shape (G, batch).

    Yields:
        For each batch float32 of shape (G, batch, ROW): the 2x3 matrix that takes the place of a
        pixel to where it comes from; top, bottom, left and right of the erased rectangle; and an
        even number from -2^30 to 2^30. Places are in units of half an image from its centre.
    """
    device = batches[0].device
    keys = torch.tensor([derive(seed, "augment") for seed in seeds], device=device)[:, None]
    numbers = torch.arange(NUMBERS, device=device)[:, None, None]
    at_once = max(1, IMAGES_AT_ONCE // batches[0].numel())
    for first in range(0, len(batches), at_once):
        some = batches[first : first + at_once]
        sizes = [batch.shape[1] for batch in some]
        steps = torch.arange(step + first, step + first + len(some)).to(device)
        steps = steps.repeat_interleave(torch.tensor(sizes, device=device), output_size=sum(sizes))
        positions = torch.cat([*some], dim=1) * NUMBERS + numbers  # (NUMBERS, G, images)
        bits = random_bits(positions, keys)(steps)
        # 24 bits are all that float32 holds: so the numbers are below 1.
        rows = change(config, (bits >> 8).float() / 2**24 + 0.5, size)
        yield from rows.split(sizes, dim=1)


def change(config: AugmentConfig, uniform: Tensor, size: tuple[int, int]) -> Tensor:
    """What numbers mean.

    Args:
        config: the transforms.
        uniform: NUMBERS numbers for each image, in [0, 1), shape (NUMBERS, ...).
        size: height and width of an image.

    Returns:
        Rows as `draws` yields them, shape (..., ROW).
    """
    u = uniform.unbind()
    height, width = size
    angle = math.radians(config.rotate) * (2 * u[0] - 1)
    tangent = (math.radians(config.shear) * (2 * u[1] - 1)).tan()
    low, high = config.scale
    factor = low + (high - low) * u[2]
    # The inverse of rotation times scale times shear along x, as torchvision's `affine` has it.
    cos, sin = angle.cos() / factor, angle.sin() / factor
    flipped = 1 - 2 * (u[3] < config.flip).float()
    xx, xy = flipped * (cos - sin * tangent), flipped * (cos * tangent + sin)
    yx, yy = -sin, cos
    # Whole pixels, so that what is only shifted is not blurred.
    dx, dy = (((2 * config.translate + 1) * v).floor() - config.translate for v in u[4:6])
    x0, y0 = -(xx * dx + xy * dy) * (2 / width), -(yx * dx + yy * dy) * (2 / height)
    matrix = [xx, xy * (height / width), x0, yx * (width / height), yy, y0]

    least, most = config.erase_area
    area = (least + (most - least) * u[7]) * height * width
    ratio = (math.log(ASPECT) * (2 * u[8] - 1)).exp()
    erased = u[6] < config.erase
    tall = (area * ratio).sqrt().round().clamp_max(height) * erased
    wide = (area / ratio).sqrt().round().clamp_max(width) * erased
    top, left = (u[9] * (height - tall + 1)).floor(), (u[10] * (width - wide + 1)).floor()
    vertical = [edge * (2 / height) - 1 for edge in (top, top + tall)]
    horizontal = [edge * (2 / width) - 1 for edge in (left, left + wide)]
    return torch.stack([*matrix, *vertical, *horizontal, (u[11] - 0.5) * 2**31], -1)


def _middles(side: int) -> Tensor:
    return (torch.arange(side, dtype=torch.float64) * 2 + 1) / side - 1


class Augmentation:
    """Makes a batch from images and their rows, for batches of one shape; its memory is kept.

    Nothing in it waits for the device or depends on values: a CUDA graph can capture it.

    Args:
        config: the transforms.
        scale: what a pixel is divided by.
        images: where the batch is wanted, floating-point, shape (n, channels, height, width).

    Attributes:
        pixels: where the images are put, uint8, of that shape.
        rows: where the rows of a batch are put, shape (n, ROW).
        places: x and y of where each pixel comes from, shape (n, 2, height, width).
    """

    def __init__(self, config: AugmentConfig, scale: float, images: Tensor) -> None:
        n, _, height, width = images.shape
        self._config, self._images = config, images
        self._scale = torch.tensor(1 / scale, dtype=torch.float64)
        self.pixels = torch.zeros_like(images, dtype=torch.uint8)
        # Places are needed more exactly than bfloat16 has them.
        new = images.new_zeros(0, dtype=torch.promote_types(images.dtype, torch.float32))
        self._source = new.new_zeros(images.shape)
        self.rows = new.new_zeros(n, ROW)
        self._y, self._x = _middles(height).to(new)[:, None], _middles(width).to(new)
        own = torch.stack(torch.broadcast_tensors(self._x, self._y, new.new_ones(())))
        self._own = own.flatten(1)  # x, y and 1 of each pixel
        self.places = new.new_zeros(n, 2, height, width)
        if config.elastic:
            zero = torch.zeros((), dtype=torch.int64)
            numbers = torch.arange(2 * height * width, device=images.device)
            self._pattern = random_bits(numbers, zero)(zero).view(2, height, width)
            self._bits = self._pattern.new_empty(self.places.shape)
            self._noise, self._rough = torch.empty_like(self.places), torch.empty_like(self.places)
            # From bits to (-1, 1), times alpha / size: in units of half an image, as torchvision's.
            units = [config.elastic / 2**31 / side for side in (width, height)]
            self._unit = torch.tensor(units, dtype=torch.float64).view(2, 1, 1).to(self.places)
            sigma = config.elastic_sigma
            down, self._across = (_blur(side, sigma).to(new) for side in (height, width))
            self._down = down.expand(2 * n, height, height)

    def __call__(self) -> None:
        """Makes the batch."""
        self._source.copy_(self.pixels)
        self._place()
        grid = self.places.permute(0, 2, 3, 1)
        sampled = F.grid_sample(self._source, grid, "bilinear", "zeros", align_corners=False)
        torch.mul(sampled, self._scale, out=self._images)
        if self._config.erase:
            top, bottom, left, right = self.rows[:, 6:10, None, None, None].unbind(1)
            high = ((self._y > top) & (self._y < bottom)).to(self._images)
            wide = ((self._x > left) & (self._x < right)).to(self._images)
            self._images.addcmul_(self._images * high, wide, value=-1)

    def _place(self) -> None:
        """Finds where each pixel comes from."""
        matrices = self.rows[:, :6].reshape(-1, 3)
        torch.mm(matrices, self._own, out=self.places.view(len(matrices), -1))
        if self._config.elastic:
            # A random pattern times an odd number, modulo 2^32: other noise for every number.
            odd = self.rows[:, 10].int() + 1
            torch.mul(self._pattern, odd.view(-1, 1, 1, 1), out=self._bits)
            torch.mul(self._bits, self._unit, out=self._rough)
            # Gaussian blur, along rows and along columns.
            torch.mm(self._rough.flatten(0, 2), self._across.mT, out=self._noise.flatten(0, 2))
            self.places.flatten(0, 1).baddbmm_(self._down, self._noise.flatten(0, 1))


def preview(config: AugmentConfig, pixels: Tensor, seed: int, steps: int) -> Tensor:
    """The first images of a split, each before what the first steps of a run would make of it.

    Args:
        config: the transforms.
        pixels: uint8, shape (n, channels, height, width).
        seed: of the run.
        steps: how many.

    Returns:
        uint8, shape (n, 1 + steps, channels, height, width).
    """
    height, width = pixels.shape[2:]
    images = torch.zeros(pixels.shape)
    augmentation = Augmentation(config, 1, images)
    augmentation.pixels.copy_(pixels)
    made, batches = [pixels], [torch.arange(len(pixels))[None]] * steps
    for rows in draws(config, [seed], (height, width), 0, batches):
        augmentation.rows.copy_(rows[0])
        augmentation()
        made.append(images.round().byte())
    return torch.stack(made, dim=1)


def _blur(side: int, sigma: float) -> Tensor:
    """A Gaussian blur as a matrix, edges reflected; its kernel is as wide as torchvision's."""
    half = min(int(8 * sigma + 1) // 2, side - 1)
    kernel = (-0.5 * (torch.arange(-half, half + 1, dtype=torch.float64) / sigma) ** 2).exp()
    mirrored = F.pad(torch.eye(side, dtype=torch.float64), (half, half), mode="reflect")
    return (mirrored.unfold(1, 2 * half + 1, 1) @ (kernel / kernel.sum())).mT
