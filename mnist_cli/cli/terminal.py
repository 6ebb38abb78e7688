"""rich's console as it is used here, apart because rich takes a while to import."""

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mnist_cli.errors import printable


class Terminal(Console):
    """A console that leaves lines and tables whole (a cut figure is a wrong one), and is safe."""

    def render_str(self, text: str, **options: Any) -> Text:
        """Text, made printable."""
        return super().render_str(printable(text), **options)

    def print(self, *objects: Any, **options: Any) -> None:
        """Prints objects as rich does, but for the width of lines and tables."""
        width = self.width
        if any(isinstance(each, Table) for each in objects):
            self.width = max(width, 1000)  # as a bound: a table takes what it needs
        lines = all(isinstance(each, str) for each in objects)
        super().print(*objects, **{"soft_wrap": lines, **options})
        self.width = width
