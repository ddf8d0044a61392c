"""A recipe: the folder in which a data scientist says what a model is and how it learns.

It is loaded by its path, so that recipes need not be installed; ``docs/recipes.md`` tells how to write one.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import msgspec

from edge_agent.contract.manifest import Classification
from edge_agent.contract.names import is_name
from edge_agent.contract.signature import Signature
from trainer.errors import RecipeError
from trainer.front_end import FrontEnd
from trainer.recipe_file import RecipeFile, with_choices

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule

    from trainer.transform import Transformation

_FILE = "model.toml"
# A local variable, and the argument of sys.getrefcount.
_OWN_REFERENCES = 2
_CODE_SUFFIXES = frozenset({".py", ".toml"})


@dataclass(frozen=True)
class Recipe:
    """A loaded recipe.

    Args:
        digest: SHA-256 over its Python and TOML files: what the manifest's lineage calls its code.
    """

    folder: Path
    file: RecipeFile
    digest: str

    @classmethod
    def load(cls, folder: Path) -> Recipe:
        """The recipe in ``folder``; its Python code is not run yet.

        Raises:
            RecipeError: The folder or its ``model.toml`` is missing or wrong.
        """
        path = folder / _FILE
        if not path.is_file():
            raise RecipeError(
                f"{path}: not found; a recipe is a folder with {_FILE} and model.py (see docs/recipes.md)"
            )
        if not (folder / "model.py").is_file():
            raise RecipeError(f"{folder / 'model.py'}: not found; it holds the LightningModule called Model")
        try:
            file = msgspec.convert(tomllib.loads(path.read_text()), RecipeFile)
        except (tomllib.TOMLDecodeError, msgspec.ValidationError, UnicodeDecodeError) as error:
            raise RecipeError(f"{path}: {with_choices(str(error))}") from error
        if file.name != folder.resolve().name or not is_name(file.name):
            raise RecipeError(
                f"{path}: name {file.name!r} must be that of its folder, {folder.resolve().name!r}, "
                "of a-z, 0-9, '-' and '_'"
            )
        return cls(folder=folder.resolve(), file=file, digest=_digest(folder))

    @property
    def name(self) -> str:
        """Name of the model."""
        return self.file.name

    @property
    def signature(self) -> Signature:
        """The model's inputs and outputs."""
        return self.file.signature()

    @cached_property
    def front_end(self) -> FrontEnd:
        """What makes numbers of its text inputs before ``forward``; it changes nothing where there are none."""
        return FrontEnd(self.signature)

    @property
    def task(self) -> Classification:
        """The model's task."""
        return Classification(output=self.file.task.output, labels=self.file.labels)

    def module(self, name: str) -> ModuleType:
        """The recipe's own Python module ``NAME.py``; see :func:`load_module`.

        Raises:
            RecipeError: There is none, or it fails to import.
        """
        return load_module(self.folder / f"{name}.py")

    def network(self, *, learning_rate: float, epochs: int) -> LightningModule:
        """A new, untrained network of the recipe.

        Raises:
            RecipeError: ``model.py`` has no LightningModule called Model, or it cannot be made.
        """
        from pytorch_lightning import LightningModule

        kind: Any = getattr(self.module("model"), "Model", None)
        if not (isinstance(kind, type) and issubclass(kind, LightningModule)):
            raise RecipeError(f"{self.folder / 'model.py'}: needs a class Model derived from LightningModule")
        options, classes = self.file.training.options, len(self.file.labels)
        given = _Options(options)
        before = self._transform(given)  # what it reads of the options is known, too
        more: dict[str, Any] = {}
        asked = inspect.signature(kind.__init__).parameters
        if "categories" in asked:
            more["categories"] = self.front_end.categories
        if "signature" in asked:
            more["signature"] = self.signature
        try:
            network = kind(options=given, classes=classes, learning_rate=learning_rate, epochs=epochs, **more)
        except Exception as error:
            # Whatever the recipe's author wrote may fail in whatever way.
            if isinstance(error, KeyError) and given.missing:
                raise RecipeError(
                    f"{self.folder / 'model.py'}: Model asks for the option '{given.missing}'; [training.options] of "
                    f"{_FILE} has: {', '.join(options) or 'none'}"
                ) from error
            raise RecipeError(
                f"{self.folder / 'model.py'}: Model(options=, classes=, learning_rate=, epochs=) failed: "
                f"{type(error).__name__}: {error}"
            ) from error
        kept = sys.getrefcount(given) > _OWN_REFERENCES  # by one of them: it may read more later
        del before
        if not kept and (unknown := sorted(options.keys() - given.read)):
            known = ", ".join(sorted(given.read)) or "none"
            raise RecipeError(f"{self.folder / _FILE}: unknown option {', '.join(unknown)}; Model reads: {known}")
        return network

    def transform(self) -> Transformation | None:
        """What the recipe does to inputs before its network, or None.

        Raises:
            RecipeError: ``Transform`` cannot be made, or is not what it should be.
        """
        return self._transform(self.file.training.options)

    def released(self, network: LightningModule) -> LightningModule:
        """The network as devices get it: with the recipe's transform, if there is one, before ``forward``."""
        before = self.transform()
        return network if before is None else before.before(network, tuple(spec.name for spec in self.signature.inputs))

    def _transform(self, options: dict[str, Any]) -> Transformation | None:
        kind = getattr(self.module("model"), "Transform", None)
        if kind is None:
            return None
        from trainer.transform import Transformation

        path = self.folder / "model.py"
        try:
            return Transformation.of(kind, options, str(path))
        except RecipeError:
            raise
        except Exception as error:
            # Whatever the recipe's author wrote may fail in whatever way.
            raise RecipeError(f"{path}: Transform(options=) failed: {type(error).__name__}: {error}") from error


class _Options(dict[str, Any]):
    """The options that Model is given; knows which were asked for, so that a misspelt one is found."""

    def __init__(self, options: dict[str, Any]) -> None:
        super().__init__(options)
        self.read: set[str] = set()
        self.missing = ""

    def __getitem__(self, name: str) -> Any:
        self.read.add(name)
        if name not in self:
            self.missing = name
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        """As a dict's; the option counts as read."""
        self.read.add(name)
        return super().get(name, default)

    def pop(self, name: str, *default: Any) -> Any:
        """As a dict's; the option counts as read."""
        self.read.add(name)
        return super().pop(name, *default)

    def __iter__(self) -> Iterator[str]:
        self.read.update(super().keys())
        return super().__iter__()

    def keys(self) -> Any:
        """As a dict's; who asks for all has read all: ``Layers(**options)``."""
        self.read.update(super().keys())
        return super().keys()

    def items(self) -> Any:
        """As :meth:`keys`."""
        self.read.update(super().keys())
        return super().items()


def find_recipes(folder: Path) -> list[Recipe]:
    """All recipes below ``folder``, by name.

    Raises:
        RecipeError: There is none, or one of them is wrong.
    """
    found = [Recipe.load(path.parent) for path in sorted(folder.glob(f"*/{_FILE}"))]
    if not found:
        raise RecipeError(f"{folder}: no recipe here; a recipe is a folder with {_FILE} and model.py")
    return found


def load_module(path: Path) -> ModuleType:
    """The Python module in a file, which need not be installed; the same bytes are run once per process.

    Raises:
        RecipeError: There is no such file, or it fails to import.
    """
    if not path.is_file():
        raise RecipeError(f"{path}: not found, but something asks for it")
    # The digest in the name keeps two states of one file apart within one process.
    content = hashlib.sha256(f"{path.resolve()}\n".encode() + path.read_bytes()).hexdigest()
    qualified = f"shoal_recipe_{path.stem}_{content[:16]}"
    if qualified in sys.modules:
        return sys.modules[qualified]
    spec = importlib.util.spec_from_file_location(qualified, path)
    if spec is None or spec.loader is None:
        raise RecipeError(f"{path}: cannot be loaded as a Python module")
    module = importlib.util.module_from_spec(spec)
    sys.modules[qualified] = module  # dataclasses look their module up while it is being run
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        # Whatever the recipe's author wrote may fail in whatever way.
        del sys.modules[qualified]
        raise RecipeError(f"{path}: does not import: {type(error).__name__}: {error}") from error
    return module


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix in _CODE_SUFFIXES and "__pycache__" not in path.parts:
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            digest.update(f"{path.relative_to(folder).as_posix()} {content}\n".encode())
    return digest.hexdigest()


def recipes_folder(given: Path | None) -> Path:
    """The folder of recipes: given, beside the checkout, or installed with the trainer.

    Raises:
        RecipeError: There is none.
    """
    if given is not None:
        return given
    here = Path(__file__).resolve().parent
    for folder in (here / "recipes", here.parent / "models"):
        if folder.is_dir():
            return folder
    raise RecipeError(f"no recipes in {here}; give their folder with --recipes")
