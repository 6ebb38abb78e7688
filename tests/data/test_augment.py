"""Augmentation against torchvision's transforms, and what an image's change depends on."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as oracle

from mnist_cli.config import AugmentConfig
from mnist_cli.data.augment import NUMBERS, Augmentation, change, draws

SIZES = [(1, 28, 28), (3, 32, 24)]


def pixels_of(shape: tuple[int, ...]) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.manual_seed(0))


def augment(
    config: AugmentConfig, pixels: Tensor, rows: Tensor, dtype: torch.dtype = torch.float64
) -> Tensor:
    images = torch.empty(pixels.shape, dtype=dtype)
    augmentation = Augmentation(config, 255, images)
    augmentation.pixels.copy_(pixels)
    augmentation.rows.copy_(rows)
    augmentation()
    return images


def rows_of(config: AugmentConfig, numbers: dict[int, float], shape: tuple[int, ...]) -> Tensor:
    """The row of one image for which these of the numbers were drawn, and 0.5 for all others."""
    drawn = torch.full((NUMBERS, 1, 1), 0.5, dtype=torch.float64)
    for place, number in numbers.items():
        drawn[place] = number
    return change(config, drawn, (shape[-2], shape[-1])).flatten(0, 1)


def config_of(**settings: Any) -> AugmentConfig:
    return AugmentConfig.model_validate(settings)


# ------------------------------------------------------------------------------------- torchvision


@pytest.mark.parametrize("shape", SIZES, ids=str)
@pytest.mark.parametrize(
    ("settings", "numbers", "affine", "flip"),
    [
        ({"rotate": 30.0}, {0: 1.0}, {"angle": 30}, False),
        ({"rotate": 30.0}, {0: 0.25}, {"angle": -15}, False),
        ({"shear": 20.0}, {1: 1.0}, {"shear": [20, 0]}, False),
        ({"scale": [0.5, 1.5]}, {2: 0.75}, {"scale": 1.25}, False),
        ({"flip": 0.3}, {3: 0.29}, {}, True),
        ({"flip": 0.3}, {3: 0.3}, {}, False),
        ({"translate": 3}, {4: 0.99, 5: 0.01}, {"translate": [3, -3]}, False),
        ({"translate": 3}, {4: 0.5, 5: 0.6}, {"translate": [0, 1]}, False),
        (
            {"rotate": 40.0, "shear": 10.0, "scale": [0.8, 1.2], "translate": 4, "flip": 1.0},
            {0: 0.0, 1: 0.9, 2: 0.1, 4: 0.0, 5: 0.8},
            {"angle": -40, "shear": [8, 0], "scale": 0.84, "translate": [-4, 3]},
            True,
        ),
    ],
)
def test_each_affine_map_is_torchvisions(
    settings: dict[str, Any],
    numbers: dict[int, float],
    affine: dict[str, Any],
    flip: bool,
    shape: tuple[int, ...],
) -> None:
    config, pixels = config_of(**settings), pixels_of((1, *shape))
    found = augment(config, pixels, rows_of(config, numbers, shape))
    image = pixels[0].double() / 255
    if flip:
        image = oracle.horizontal_flip(image)
    none = {"angle": 0, "translate": [0, 0], "scale": 1.0, "shear": [0, 0]}
    wanted = oracle.affine(image, **none | affine, interpolation=InterpolationMode.BILINEAR)
    torch.testing.assert_close(found[0], wanted, rtol=1e-9, atol=1e-9)
    if affine or flip:
        assert not torch.allclose(found[0], pixels[0].double() / 255)


@pytest.mark.parametrize("shape", SIZES, ids=str)
def test_erasing_is_torchvisions(shape: tuple[int, ...]) -> None:
    config, pixels = config_of(erase=0.5, erase_area=[0.1, 0.3]), pixels_of((1, *shape))
    found = augment(config, pixels, rows_of(config, {6: 0.49, 7: 0.5, 9: 0.999, 10: 0.0}, shape))
    side = round((0.2 * shape[1] * shape[2]) ** 0.5)
    wanted = oracle.erase(pixels[0] / 255, shape[1] - side, 0, side, side, torch.tensor(0))
    torch.testing.assert_close(found[0], wanted.double(), atol=1e-6, rtol=0)
    kept = augment(config, pixels, rows_of(config, {6: 0.5}, shape))
    torch.testing.assert_close(kept, pixels.double() / 255)


@pytest.mark.parametrize("shape", SIZES, ids=str)
@pytest.mark.parametrize("sigma", [1.0, 2.6])
def test_the_elastic_deformation_is_torchvisions(sigma: float, shape: tuple[int, ...]) -> None:
    _, height, width = shape
    pixels = pixels_of((1, *shape))
    rows = rows_of(config_of(), {11: 0.3}, shape)

    def places(config: AugmentConfig) -> Tensor:
        augmentation = Augmentation(config, 255, torch.empty(1, *shape, dtype=torch.float64))
        augmentation.rows.copy_(rows)
        augmentation()
        return augmentation.places

    noise = places(config_of(elastic=1.0, elastic_sigma=1e-3)) - places(config_of())
    noise *= torch.tensor([width, height])[:, None, None]
    assert noise.abs().max() <= 1
    # Over 784 numbers or more, within five standard deviations.
    assert noise.mean().item() == pytest.approx(0, abs=5 * (3 * noise.numel()) ** -0.5)
    assert noise.std().item() == pytest.approx(3**-0.5, rel=0.1)

    kernel = int(8 * sigma + 1) // 2 * 2 + 1
    smooth = oracle.gaussian_blur(noise, [kernel, kernel], [sigma, sigma])
    displacement = smooth * 30 / torch.tensor([width, height])[:, None, None]
    wanted = oracle.elastic(pixels[0].double() / 255, displacement.permute(0, 2, 3, 1))
    found = augment(config_of(elastic=30.0, elastic_sigma=sigma), pixels, rows)
    torch.testing.assert_close(found[0], wanted, rtol=0, atol=1e-6)
    assert not torch.allclose(found, pixels.double() / 255, atol=0.1)


def test_a_blur_wider_than_the_image_is_no_error() -> None:
    found = augment(
        config_of(elastic=30.0, elastic_sigma=100.0),
        pixels_of((1, 1, 4, 4)),
        rows_of(config_of(), {}, (4, 4)),
    )
    assert found.isfinite().all()


def test_whole_pixels_of_shift_do_not_blur() -> None:
    pixels = pixels_of((200, 1, 28, 28))
    config = config_of(translate=2, flip=0.5)
    (rows,) = draws(config, [3], (28, 28), 5, [torch.arange(200)[None]])
    found = augment(config, pixels, rows[0], torch.float32) * 255
    torch.testing.assert_close(found, found.round(), atol=1e-2, rtol=0)


# ------------------------------------------------------------------------------ what is drawn

EVERYTHING = {
    "translate": 3, "rotate": 20.0, "scale": [0.8, 1.3], "shear": 10.0, "flip": 0.3,
    "erase": 0.6, "erase_area": [0.1, 0.2], "elastic": 30.0, "elastic_sigma": 4.0,
}  # fmt: skip
SIZE = (28, 28)


def drawn(config: AugmentConfig, images: int, seed: int = 0, step: int = 0) -> Tensor:
    (rows,) = draws(config, [seed], SIZE, step, [torch.arange(images)[None]])
    return rows[0].double()


def test_what_is_drawn_has_the_distribution_that_was_asked_for() -> None:
    n = 20_000
    near = 5 / n**0.5  # five standard deviations of a mean of numbers of deviation 1

    def uniform(values: Tensor, low: float, high: float) -> None:
        place = (values - low) / (high - low)
        assert place.min() > -1e-3
        assert place.max() < 1 + 1e-3
        assert place.mean().item() == pytest.approx(0.5, abs=near)
        assert place.var().item() == pytest.approx(1 / 12, abs=near)

    def matrices(**settings: Any) -> tuple[Tensor, ...]:
        return drawn(config_of(**settings), n)[:, :6].unbind(1)

    xx, xy, _, yx, yy, _ = matrices(rotate=20.0)
    uniform(torch.atan2(xy, xx).rad2deg(), -20, 20)
    torch.testing.assert_close((xx * yy - xy * yx), torch.ones(n).double())
    uniform(1 / matrices(scale=[0.8, 1.3])[0], 0.8, 1.3)
    uniform(matrices(shear=10.0)[1].atan().rad2deg(), -10, 10)
    assert (matrices(flip=0.3)[0] < 0).double().mean().item() == pytest.approx(0.3, abs=near)
    for shift in (2, 5):
        counts = (matrices(translate=3)[shift] * 14).round().int().unique(return_counts=True)
        assert counts[0].tolist() == [*range(-3, 4)]
        assert (counts[1] / n - 1 / 7).abs().max() < near
    top, bottom, left, right = drawn(config_of(erase=0.6, erase_area=[0.1, 0.2]), n)[:, 6:10].T
    area = (bottom - top) * (right - left) / 4
    assert (area > 0).double().mean().item() == pytest.approx(0.6, abs=near)
    assert area[area > 0].mean().item() == pytest.approx(0.15, abs=0.005)
    ratio = ((bottom - top) / (right - left))[area > 0]
    assert 1 / 4 < ratio.min() < 0.4
    assert 2.5 < ratio.max() < 4
    for low, high in ((top, bottom), (left, right)):
        assert low[area > 0].min() == -1
        assert high[area > 0].max() == 1
        assert (low + high)[area > 0].mean().item() == pytest.approx(0, abs=near)


def test_seeds_steps_and_images_are_independent() -> None:
    config, n = config_of(**EVERYTHING), 5000
    base = drawn(config, n)[:, [0, 1, 2, 4, 6, 10]]
    others = {
        "seed": drawn(config, n, seed=1),
        "step": drawn(config, n, step=1),
        "image": drawn(config, n + 1)[1:],
    }
    for about, other in others.items():
        both = torch.cat([base, other[:, [0, 1, 2, 4, 6, 10]]], 1)
        correlations = torch.corrcoef(both.T)[:6, 6:]
        assert correlations.abs().max() < 5 / n**0.5, about


def test_noise_of_two_images_is_independent() -> None:
    n = 300
    images = torch.empty(n, 1, *SIZE)
    augmentation = Augmentation(config_of(elastic=1.0, elastic_sigma=1e-3), 255, images)
    augmentation.rows.copy_(drawn(config_of(), n))
    augmentation.rows[:, :6] = 0
    augmentation()
    correlations = torch.corrcoef(augmentation.places.flatten(1)) - torch.eye(n)
    spread = augmentation.places[0].numel() ** -0.5
    assert correlations.std().item() == pytest.approx(spread, rel=0.03)
    assert correlations.abs().max() < 6 * spread


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_does_not_depend_on_its_batch(dtype: torch.dtype, channels: int) -> None:
    config, (height, width) = config_of(**EVERYTHING), SIZE
    split = pixels_of((200, channels, height, width))
    order = torch.randperm(200, generator=torch.manual_seed(1))

    def batches(sizes: list[int], seeds: list[int]) -> Tensor:
        index = [part.expand(len(seeds), -1) for part in order.split(sizes)]
        made = [
            augment(config, split[i.flatten()], rows.flatten(0, 1), dtype).unflatten(0, i.shape)
            for i, rows in zip(index, steps(index, seeds), strict=True)
        ]
        return torch.cat(made, 1).double()

    def steps(index: list[Tensor], seeds: list[int]) -> list[Tensor]:
        return [next(draws(config, seeds, SIZE, 9, [part])) for part in index]  # all of one step

    alone = batches([200], [7])
    assert torch.equal(alone, batches([200], [7]))
    stacked = batches([1, 63, 64, 70, 2], [8, 7, 8])
    near = {torch.float64: 1e-12, torch.float32: 1e-4, torch.bfloat16: 2**-7}[dtype]
    torch.testing.assert_close(stacked[1], alone[0], rtol=0, atol=near)
    torch.testing.assert_close(stacked[0], stacked[2], rtol=0, atol=near)
    assert (stacked[0] - stacked[1]).abs().mean() > 0.1


def test_batches_drawn_together_are_those_drawn_one_by_one() -> None:
    config = config_of(**EVERYTHING)
    index = [torch.arange(i, i + 100).view(2, 50) for i in range(100)]
    together = list(draws(config, [4, 5], SIZE, 10, index))
    assert len(together) == 100
    for i, rows in enumerate(together):
        torch.testing.assert_close(rows, next(draws(config, [4, 5], SIZE, 10 + i, [index[i]])))
