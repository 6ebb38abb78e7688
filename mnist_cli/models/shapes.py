"""The shape of an image, and of which size a model needs it."""

from mnist_cli.errors import UsageError

Shape = tuple[int, int, int]  # (channels, height, width) of one image


def refuse_small(name: str, shape: Shape, least: int, layers: str) -> None:
    """Sees to it that images are large enough for a model.

    Args:
        name: the model's.
        shape: of an image.
        least: pixels that it must have along each axis.
        layers: what needs them.

    Raises:
        UsageError: they are too small.
    """
    _, height, width = shape
    if min(height, width) < least:
        raise UsageError(
            f"model {name}: images of {height}x{width} pixels are too small for {layers}; "
            f"they must have at least {least}x{least}"
        )
