"""Models of a user's own, whose files run here for the first time.

torch is imported inside the functions: most configs name no file.
"""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from mnist_cli.config import Config, FileModel
from mnist_cli.config.schema import ModelConfig
from mnist_cli.errors import UsageError

if TYPE_CHECKING:
    from mnist_cli.runs.datasets import Datasets


def prepare(
    configs: Iterable[Config],
    show: Callable[[str], None],
    datasets: "Datasets | None" = None,
    *,
    named: bool = True,
) -> None:
    """Builds each model that is from a file, and says what the engine has no rule for.

    Args:
        configs: whose models.
        show: takes a sentence for people.
        datasets: where the data comes from that they are for.
        named: whether the user has named their files, with this very command.

    Raises:
        UsageError: a file may not be run, or it makes no model that can be trained.
    """
    own = {(c.model, c.data.name): c for c in configs if isinstance(c.model, FileModel)}
    if not own:
        return
    from mnist_cli.runs.datasets import Datasets

    datasets = datasets or Datasets(show)
    for sentence in sorted({_prepared(config, datasets, named) for config in own.values()}):
        show(sentence)


def _prepared(config: Config, datasets: "Datasets", named: bool) -> str:
    from mnist_cli.engine.stack import without_rule
    from mnist_cli.models.modules import build
    from mnist_cli.models.own import allow

    model = config.model
    assert isinstance(model, FileModel)
    if named:
        allow(model)
    data = datasets.get(config)
    module = build(model, data.shape, len(data.classes), config.train.seed)
    left = without_rule(module, data.shape)
    how = f"left to torch.func, without a rule: {', '.join(left)}" if left else "by rules alone"
    if left == ["module"]:
        how = "left to torch.func as a whole, since its code cannot be taken apart"
    return f"model: {model.factory} of {model.path}, {how}"


def use(
    trained: ModelConfig, chosen: ModelConfig, named: bool, show: Callable[[str], None]
) -> None:
    """Runs the file that the model of a checkpoint is from, and says which it is.

    Args:
        trained: the model as the checkpoint has it.
        chosen: that model; or with what `--model` says, if the user has named a file.
        named: whether that is so.
        show: takes a sentence for people.

    Raises:
        UsageError: the model is from no file, or the file may not be run or cannot.
    """
    if not isinstance(trained, FileModel) or not isinstance(chosen, FileModel):
        if named:
            raise UsageError(f"--model: the model is {trained.name}, which is from no file")
        return
    from mnist_cli.models.own import allow, load

    if named:
        allow(chosen)
    load(chosen)
    same = "unchanged" if chosen.sha256 == trained.sha256 else "not as it was in training"
    show(f"model: {chosen.factory} of {chosen.path}, {same}")
