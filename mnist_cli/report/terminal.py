"""rich's console as it is used here, apart because rich takes a while to import."""

import os
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mnist_cli.errors import printable
from mnist_cli.report.fit import FittedTable


class Terminal(Console):
    """A console that cuts neither lines nor figures, and is safe."""

    def render_str(self, text: str, **options: Any) -> Text:
        """Text, made printable."""
        return super().render_str(printable(text), **options)

    def print(self, *objects: Any, **options: Any) -> None:
        """Prints objects as rich does, but for the width of lines and tables."""
        width = self.width
        # Else a program reads it, or a file keeps it, and gets all of it.
        if self.is_terminal or "COLUMNS" in os.environ:
            objects = tuple(o.fit(width) if isinstance(o, FittedTable) else o for o in objects)
        if any(isinstance(each, Table) for each in objects):
            self.width = max(width, 1000)  # as a bound: a table takes what it needs
        lines = all(isinstance(each, str) for each in objects)
        super().print(*objects, **{"soft_wrap": lines, **options})
        self.width = width
