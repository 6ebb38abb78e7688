"""Picture files of the user's own, prepared as input of a model.

Grey pictures are prepared as their data set was. For MNIST: the digit is cut out, fitted into 20x20
pixels keeping its proportions, and placed on 28x28 with its centre of mass at the centre. What is
ink and what is paper is found from the picture: whichever of dark and light the border and most of
the picture are is the paper. A picture in colour is squared and scaled down.

A picture comes from anywhere, so only the formats below are tried, and sizes are bounded.
"""

import warnings
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter, ImageOps

from mnist_cli.errors import UsageError, in_words

# Not all that Pillow knows: for EPS, say, it would start another program.
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM")
MAX_BYTES = 64 << 20
WORKING_SIZE = 1024  # larger pictures are scaled down first: ink is found as well, much faster
SMALL_SIZE = 128  # at which dust cannot be seen, and ink can
MIN_CONTRAST = 24  # of 255: paper that a scanner or a camera saw is not of one grey either
FAINTEST = 0.15  # of the ink's darkness: what is less does not count when the ink is cut out
THIN, USUAL = 1.6, 2.4  # pixels: strokes of 1 in 20 of MNIST's digits, and of most

# How an image of each data set lies in its field: the box it was fitted into, of 28x28, and whether
# its centre of mass is at the centre, or that of the box.
BOXES = {"mnist": (20, True), "synthetic": (20, True), "fashion_mnist": (28, False)}
BOXES["kmnist"] = BOXES["fashion_mnist"]

BOX = Image.Resampling.BOX  # the mean of what a pixel covers
Grey = npt.NDArray[np.float64]
Bytes = npt.NDArray[np.uint8]


def prepare(path: Path, data: str, shape: tuple[int, int, int]) -> Bytes:
    """A picture file as an image of a data set.

    Args:
        path: the file.
        data: the name of the data set.
        shape: (channels, height, width) of its images.

    Returns:
        uint8 pixels of that shape.

    Raises:
        UsageError: the file cannot be read, or there is no ink in the picture.
    """
    picture = _read(path)
    if data in ("folder", "npz"):  # of which nothing is known
        return fitted(picture, shape[0], shape[1:])
    if shape[0] == 3:
        white = Image.new("RGBA", picture.size, "white")
        colour = Image.alpha_composite(white, picture).convert("RGB")
        square = ImageOps.fit(colour, (shape[2], shape[1]), Image.Resampling.BICUBIC)
        return np.ascontiguousarray(np.asarray(square).transpose(2, 0, 1))
    ink = _ink(_grey(picture))
    if ink is None:
        raise UsageError(f"{path}: nothing is drawn in it, or too faintly", "draw dark on light")
    box, by_mass = BOXES[data]
    return _placed(_fitted(ink, box), shape[1], by_mass)[None]


def fitted(picture: Image.Image, channels: int, size: tuple[int, int] | None) -> Bytes:
    """A picture as it is, in grey or in colour, resized if it shall be.

    Args:
        picture: of any mode; opacity is left out.
        channels: 1 or 3.
        size: (height, width) wanted, if not its own.

    Returns:
        uint8 pixels, shape (channels, height, width).

    Raises:
        ValueError: its pixels are not of 8 or 16 bits.
    """
    if picture.mode.startswith("I;16"):  # which Pillow would cut off at 255
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if picture.mode in ("I", "F"):
        raise ValueError("has pixels of 32 bits")
    plain = picture.convert("L" if channels == 1 else "RGB")
    if size:
        plain = plain.resize(size[::-1], Image.Resampling.BILINEAR)
    return np.asarray(plain).reshape(plain.height, plain.width, channels).transpose(2, 0, 1)


# -------------------------------------------------------------------------------- from the file


def _read(path: Path) -> Image.Image:
    """The first picture in a file, upright, in mode RGBA, no larger than it need be."""
    hint = f"formats: {', '.join(FORMATS)}"
    try:
        if not path.is_file() and path.exists():
            raise ValueError("not a regular file")
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"larger than {MAX_BYTES:,} bytes")
        # Pillow warns of oddities that do no harm here, and of one thing that does.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as picture:
                picture.draft(None, (WORKING_SIZE, WORKING_SIZE))  # a large JPEG is decoded smaller
                plain = _plain(ImageOps.exif_transpose(picture))
    except Exception as error:  # decoders raise anything on a damaged file
        reason = in_words(error).removeprefix(f"{path}: ")
        raise UsageError(f"{path}: cannot be read as a picture: {reason}", hint) from error
    plain.thumbnail((WORKING_SIZE, WORKING_SIZE), BOX)
    return plain


def _plain(picture: Image.Image) -> Image.Image:
    """The same picture in mode RGBA."""
    if picture.mode.startswith(("I", "F")):  # 16 or 32 bits of grey, of which 8 are enough
        values = np.asarray(picture, np.float64)
        values *= 255 / max(1.0, values.max())
        picture = Image.fromarray(values.clip(0, 255).astype(np.uint8))
    return picture.convert("RGBA")


def _grey(picture: Image.Image) -> Grey:
    """One number for each pixel, shape (height, width), 0..255, in which ink and paper differ most.

    That is the colour with the most contrast (yellow on white is hardly seen in grey, but in
    blue), or the opacity, where all that can be seen is of one colour.
    """
    colours = np.asarray(picture, np.float64)
    colours, alpha = colours[..., :3], colours[..., 3]
    seen = colours[alpha >= 128]
    if len(seen) == 0 or (alpha.min() < 128 and seen.std(0).max() < MIN_CONTRAST / 2):
        return alpha
    paper = np.median(seen, axis=0)
    colours = paper + (colours - paper) * alpha[..., None] / 255
    return colours[..., colours.std(axis=(0, 1)).argmax()]


# -------------------------------------------------------------------------------------- the ink


def _ink(grey: Grey) -> Image.Image | None:
    """How much ink is where, 0..1: paper 0, full ink 1, edges as grey as they were.

    Returns:
        In mode F, cut out so that ink touches every side; None if there is none.
    """
    # Light comes from one side, so paper is a plane and not level: first as the whole picture has
    # it, to tell ink from paper; then as the paper has it.
    flat = _flattened(grey, np.ones(grey.shape, bool))
    if np.ptp(flat) < MIN_CONTRAST:
        return None
    light = _above_threshold(flat)
    border = np.concatenate([light[0], light[-1], light[1:-1, 0], light[1:-1, -1]])
    if border.mean() + light.mean() > 1:
        grey, light = 255 - grey, ~light
    height = _flattened(grey, ~light)
    grain = 3 * 1.4826 * np.median(np.abs(height[~light]))  # three standard deviations
    full = np.percentile(height[light], 75) - grain
    if full < MIN_CONTRAST:
        return None
    ink = Image.fromarray(((height - grain) / full).clip(0, 1).astype(np.float32))
    # Dust is where nothing is to be seen of the ink when the picture is small.
    small = ink.copy()
    small.thumbnail((SMALL_SIZE, SMALL_SIZE), BOX)
    darkness = np.asarray(small)
    seen = Image.fromarray(darkness > FAINTEST * darkness.max()).convert("L")
    near = seen.filter(ImageFilter.MaxFilter(3)).resize(ink.size, Image.Resampling.NEAREST)
    ink = Image.composite(ink, Image.new("F", ink.size), near)
    return ink.crop(Image.fromarray(np.asarray(ink) > FAINTEST).getbbox())


def _flattened(grey: Grey, paper: npt.NDArray[np.bool_]) -> Grey:
    """How far each pixel is above the plane through the paper; half of the paper's are above it."""
    coordinates = np.stack([np.ones(grey.shape), *np.indices(grey.shape)], axis=-1)
    height: Grey = grey - coordinates @ np.linalg.lstsq(coordinates[paper], grey[paper])[0]
    return height - np.median(height[paper])


def _above_threshold(grey: Grey) -> npt.NDArray[np.bool_]:
    """The lighter of the two parts that have the most variance between them (Otsu's method)."""
    counts, edges = np.histogram(grey, 256)
    below = counts.cumsum()[:-1]
    above = grey.size - below
    mass = (counts * edges[:-1]).cumsum()
    between = below * above * (mass[:-1] / below - (mass[-1] - mass[:-1]) / above) ** 2
    lighter: npt.NDArray[np.bool_] = grey >= edges[1 + between.argmax()]
    return lighter


def _fitted(ink: Image.Image, box: int) -> Grey:
    """Scaled, antialiased, so that the longer side is `box` pixels and the darkest pixel is 1.

    The strokes of a thin pen are made as thick as MNIST's are.
    """
    fine = ImageOps.contain(ink, (4 * box, 4 * box), BOX)
    inside = np.pad(np.asarray(fine) > 0.5, 1)
    edge = np.count_nonzero(np.diff(inside, axis=0)) + np.count_nonzero(np.diff(inside, axis=1))
    # A long stroke has two edges; counted along rows and columns they are 4 / pi too long.
    width = 2 * np.count_nonzero(inside) / max(1, edge * np.pi / 4)
    if width < 4 * THIN:
        more = round((4 * USUAL - width) / 2)  # on either side
        fine = ImageOps.expand(fine, more).filter(ImageFilter.MaxFilter(1 + 2 * more))
    fitted: Grey = np.asarray(ImageOps.contain(fine, (box, box), BOX), np.float64)
    return fitted / np.max(fitted)


def _placed(ink: Grey, field: int, by_mass: bool) -> Bytes:
    """On a field of field x field pixels, its centre of mass (or itself) at the centre."""
    placed = np.zeros((field, field), np.uint8)
    placed[: ink.shape[0], : ink.shape[1]] = np.rint(ink * 255)
    weights = ink if by_mass else np.ones(ink.shape)
    centre = (np.indices(ink.shape) * weights).sum((1, 2)) / weights.sum()
    # MNIST's centre of 28 pixels is pixel 14.
    corner = np.rint(field / 2 - centre).clip(0, field - np.array(ink.shape))
    return np.roll(placed, corner.astype(int), (0, 1))
