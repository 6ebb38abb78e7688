"""An experiment runner for small image classifiers.

From Python: `import mnist_cli as mnist`, then `mnist.train`, `mnist.sweep`, `mnist.search` and
`mnist.load`, which `mnist_cli.api` describes; errors are those of `mnist_cli.errors`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mnist_cli.api import Run, load, search, sweep, train

__version__ = "0.1.0"
__all__ = ["Run", "__version__", "load", "search", "sweep", "train"]


def __getattr__(name: str) -> Any:
    """The Python API, imported at its first use: whoever wants a module of it waits for no other.

    Raises:
        AttributeError: there is no such name.
    """
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from mnist_cli import api  # noqa: PLC0415

    return getattr(api, name)
