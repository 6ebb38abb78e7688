"""The sum of a data set in memory, which is what checkpoints remember of it."""

import numpy as np

from mnist_cli.data.formats import Arrays

IMAGES = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 1, 3, 4)


def test_the_sum_is_of_everything() -> None:
    labels = np.arange(2, dtype=np.uint8)
    whole = Arrays(IMAGES, labels, IMAGES, labels)
    assert Arrays(IMAGES.copy(), labels, IMAGES.copy(order="F"), labels).sha256 == whole.sha256
    changed = IMAGES ^ np.uint8(1)
    others = [
        Arrays(changed, labels, IMAGES, labels),
        Arrays(IMAGES, labels, changed, labels),
        Arrays(IMAGES, labels[::-1], IMAGES, labels),
        Arrays(IMAGES.reshape(2, 1, 4, 3), labels, IMAGES, labels),
        Arrays(IMAGES, labels, IMAGES[:1], labels),
    ]
    assert len({arrays.sha256 for arrays in [whole, *others]}) == 6
