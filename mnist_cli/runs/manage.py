"""What is done to runs that have ended: notes, tags, removal. A run that trains is left alone."""

import shutil
from collections.abc import Sequence

from mnist_cli.errors import UsageError, printable
from mnist_cli.runs.documents import Meta
from mnist_cli.runs.store import RunDirectory, held, refuse_link

MAX_NOTE = 1000


def annotate(folder: RunDirectory, note: str) -> None:
    """Puts a note into a run's `meta.json`, in place of the one there; an empty one removes it.

    Raises:
        UsageError: it has characters that a terminal obeys, or is too long.
        RunError: the run is being trained.
    """
    if printable(note, keep="") != note or len(note) > MAX_NOTE:
        raise UsageError(
            f"note: must be one line of printable text, at most {MAX_NOTE} characters", "shorten it"
        )
    _change(folder, {"note": note})


def tag(folder: RunDirectory, words: Sequence[str], *, remove: bool = False) -> None:
    """Adds tags to a run, or removes them.

    Raises:
        UsageError: one is not a word.
        RunError: the run is being trained.
    """
    for word in words:
        if printable(word, keep="") != word or not word or any(map(str.isspace, word)):
            raise UsageError(f"tag: {word!r} is not a word", "tags have no spaces in them")
    before = folder.meta().get("tags", [])
    kept = [word for word in before if not (remove and word in words)]
    _change(folder, {"tags": kept if remove else list(dict.fromkeys([*before, *words]))})


def check_removable(folder: RunDirectory) -> None:
    """Whether a folder is a run's or a sweep's of its own, and no link.

    Raises:
        UsageError: it is not. A `config.yaml` alone makes none: that may be anyone's folder.
    """
    refuse_link(folder.path)
    if folder.is_trial:
        raise UsageError(f"{folder.name} is part of a sweep", f"remove all of {folder.owner.name}")
    if not {"schema", "status"} <= folder.meta().keys():
        raise UsageError(
            f"{folder.path} has no meta.json of a run, and is not removed", "remove it by hand"
        )


def remove(folder: RunDirectory) -> None:
    """Removes a run or a sweep with all that is in its folder; of links there, the links alone.

    Raises:
        UsageError: it is not one (see `check_removable`).
        RunError: it is being trained.
    """
    check_removable(folder)
    with held(folder):
        shutil.rmtree(folder.path)


def _change(folder: RunDirectory, changes: Meta) -> None:
    with held(folder.owner):
        if not (meta := folder.meta()):
            raise UsageError(f"{folder.name} has no meta.json that can be read")
        folder.write_meta({**meta, **changes})
