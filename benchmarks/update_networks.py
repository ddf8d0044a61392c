"""The fine-tunes that the updates' bytes are measured on: small digits networks and one of 25 million weights.

Each case is two real trainings, one from the other's weights, exported as a release is: fp32 with the weights in a file
of their own, fp16 weights in such a file, and the static int8 form with its weights in the graph. All follow from
seeds; what has been trained lies under build/bench/update-networks and is used again while this file and the libraries
stay as they are.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edge_agent.contract.signature import Signature, TensorSpec
from edge_agent.contract.stored_tensors import StoredFile
from edge_agent.contract.tensors import Datatype
from trainer.recipe import Recipe
from trainer.release.export import MODEL_FILE, WEIGHTS_FILE, export
from trainer.release.package import lock_digest
from trainer.release.quantise import calibration_rows, quantise
from trainer.release.stored import stored_tensors

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / "build" / "bench" / "update-networks"
FORMS = ("fp32", "fp16", "int8")
_SEED = 7
_DIGITS_BATCH, _WIDE_BATCH = 64, 256
_WIDE_ROWS, _WIDE_INPUTS, _WIDE_CLASSES, _WIDE_HIDDEN = 16_384, 1024, 16, 3072
_JUDGED_BATCH = 256


@dataclass(frozen=True)
class Rows:
    """Labelled rows: inputs float32[N, ...], targets int64[N]."""

    inputs: NDArray[np.float32]
    targets: NDArray[np.int64]


@dataclass(frozen=True)
class FineTune:
    """How a network is trained further.

    Args:
        optimiser: As the tables call it.
        make: The optimiser of the weights that are trained.
        trained: Beginning of the names of the weights that are trained; all unless given.
    """

    optimiser: str
    make: Callable[[Iterable[Any]], Any]
    epochs: int
    trained: str = ""


@dataclass(frozen=True)
class Case:
    """One update: a file of weights before and after, in one form.

    Args:
        base, new: The files; of ``fp32`` and ``fp16`` the weights alone, of ``int8`` the graph with its weights.
        base_layout, layout: Where the tensors lie in them.
        graph: The new version's ONNX file, whose weights ``new`` is.
        fp32_bytes: Size of the new version's full weights in fp32, which shares are of.
        heldout: Rows that no version was trained on.
    """

    network: str
    optimiser: str
    dtype: str
    base: Path
    new: Path
    base_layout: StoredFile
    layout: StoredFile
    graph: Path
    base_graph: Path
    fp32_bytes: int
    heldout: Rows

    @cached_property
    def _right_new(self) -> NDArray[np.bool_]:
        return self.right(self.new)

    def right(self, weights: Path) -> NDArray[np.bool_]:
        """Which held-out rows the network answers rightly with the weights of a file; bool[N]."""
        return np.asarray(self.answers(weights).argmax(axis=1) == self.heldout.targets)

    def accuracy(self, weights: Path) -> float:
        """Share of the held-out rows that the network answers rightly with the weights of a file."""
        return float(self.right(weights).mean())

    def lost(self, weights: Path) -> tuple[float, float, float]:
        """What other weights lose against the case's new ones on the same rows: difference and its 95 % interval."""
        gained = self.right(weights).astype(np.float64) - self._right_new
        reach = 1.96 * float(gained.std()) / np.sqrt(len(gained))
        return float(gained.mean()), float(gained.mean() - reach), float(gained.mean() + reach)

    def answers(self, weights: Path) -> NDArray[np.float32]:
        """Probabilities of the held-out rows with the weights of a file, float32[N, classes]."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / MODEL_FILE
            if self.new == self.graph:
                shutil.copyfile(weights, path)
            else:
                shutil.copyfile(self.base_graph if weights == self.base else self.graph, path)
                shutil.copyfile(weights, path.with_name(WEIGHTS_FILE))
            return _answers(path, self.heldout.inputs)


def cases(networks: Iterable[str] = ("digits", "wide-25m"), folder: Path = CACHE) -> Iterator[Case]:
    """Every fine-tune in every form; trains what has not been trained yet (digits half a minute, wide-25m minutes)."""
    for name in networks:
        network = NETWORKS[name]()
        for tune in network.tunes:
            yield from _cases(network, tune, folder)


def _cases(network: Network, tune: FineTune, folder: Path) -> Iterator[Case]:
    place = prepare(network, folder)
    for form in FORMS:
        base, new = place / "base" / form, place / tune.optimiser / form
        if not (new / MODEL_FILE).is_file():  # int8 of a network that it cannot be made of
            continue
        name = MODEL_FILE if form == "int8" else WEIGHTS_FILE
        yield Case(
            network=network.name,
            optimiser=tune.optimiser,
            dtype=form,
            base=base / name,
            new=new / name,
            base_layout=stored_tensors(base / MODEL_FILE).files[name],
            layout=stored_tensors(new / MODEL_FILE).files[name],
            graph=new / MODEL_FILE,
            base_graph=base / MODEL_FILE,
            fp32_bytes=(place / tune.optimiser / "fp32" / WEIGHTS_FILE).stat().st_size,
            heldout=network.heldout,
        )


class Network:
    """A network, its rows, and the fine-tunes that are made of it."""

    name: str
    tunes: tuple[FineTune, ...]
    base_epochs: int
    batch: int
    signature: Signature
    base_rows: Rows
    new_rows: Rows
    heldout: Rows

    def make(self) -> LightningModule:
        """A new one, untrained; its ``logits`` takes the input and gives float[N, classes]."""
        raise NotImplementedError

    def start(self, weights: Iterable[Any]) -> Any:
        """The optimiser of the first version."""
        import torch

        return torch.optim.AdamW(weights, lr=2e-3, weight_decay=1e-3)


class Digits(Network):
    """The recipe ``digits``: first on clear pictures, then on what drifted cameras see."""

    name, base_epochs, batch = "digits", 25, _DIGITS_BATCH

    def __init__(self) -> None:
        import torch

        self._recipe = Recipe.load(ROOT / "models" / "digits")
        self.signature = self._recipe.signature
        data, world = self._recipe.module("data"), self._recipe.module("world")
        rng = np.random.default_rng(_SEED)

        def seen(part: str) -> Rows:
            rows = data.load(part)
            shown = [camera.show(rows.images, rng) for camera in world.DRIFTED.values()]
            return Rows(np.concatenate(shown), np.tile(rows.labels, len(shown)))

        base = data.load("base")
        self.base_rows, self.new_rows = Rows(base.images, base.labels), seen("stream")
        self.heldout = seen("heldout")
        self.tunes = (
            FineTune("sgd", lambda weights: torch.optim.SGD(weights, lr=0.01, momentum=0.9), epochs=20),
            FineTune("adamw-1e-5", lambda weights: torch.optim.AdamW(weights, lr=1e-5), epochs=20),
            FineTune("adamw-1e-4", lambda weights: torch.optim.AdamW(weights, lr=1e-4), epochs=20),
            FineTune(
                "frozen-backbone",
                lambda weights: torch.optim.AdamW(weights, lr=1e-3),
                epochs=20,
                trained="classifier.3.",
            ),
        )

    def make(self) -> LightningModule:
        """The recipe's own."""
        return self._recipe.network(learning_rate=1e-3, epochs=1)


class Wide(Network):
    """25 million weights in six layers, taught by another network; then that one's inputs shift."""

    name, base_epochs, batch = "wide-25m", 4, _WIDE_BATCH

    def __init__(self) -> None:
        import torch

        image = TensorSpec(name="x", datatype=Datatype.FP32, shape=(None, _WIDE_INPUTS))
        answer = TensorSpec(name="probabilities", datatype=Datatype.FP32, shape=(None, _WIDE_CLASSES))
        self.signature = Signature(inputs=(image,), outputs=(answer,))
        self.base_rows = _taught(_WIDE_ROWS, shift=0.0, seed=_SEED)
        self.new_rows = _taught(_WIDE_ROWS // 2, shift=1.0, seed=_SEED + 1)
        self.heldout = _taught(4096, shift=1.0, seed=_SEED + 2)
        self.tunes = (
            FineTune("adam-1e-4", lambda weights: torch.optim.Adam(weights, lr=1e-4), epochs=2),
            FineTune("sgd", lambda weights: torch.optim.SGD(weights, lr=0.02, momentum=0.9), epochs=2),
        )

    def make(self) -> LightningModule:
        """Untrained."""
        import pytorch_lightning as pl
        import torch
        from torch import nn

        sizes = (_WIDE_INPUTS, _WIDE_HIDDEN, _WIDE_HIDDEN, _WIDE_HIDDEN, _WIDE_INPUTS, _WIDE_CLASSES)

        class Layers(pl.LightningModule):
            def __init__(self) -> None:
                super().__init__()
                layers: list[nn.Module] = []
                for rows, columns in itertools.pairwise(sizes):
                    layers += [nn.Linear(rows, columns), nn.ReLU()]
                self.layers = nn.Sequential(*layers[:-1])

            def logits(self, x: torch.Tensor) -> torch.Tensor:
                return self.layers(x)  # type: ignore[no-any-return]

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return torch.softmax(self.logits(x), dim=-1)

        return Layers()

    def start(self, weights: Iterable[Any]) -> Any:
        """A rate that a network of this width bears."""
        import torch

        return torch.optim.Adam(weights, lr=2e-4)


NETWORKS: dict[str, Callable[[], Network]] = {"digits": Digits, "wide-25m": Wide}


def _taught(rows: int, *, shift: float, seed: int) -> Rows:
    """Rows of 32 hidden numbers, seen through 1,024 noisy ones; a fixed network of these says the class."""
    fixed, rng = np.random.default_rng(1), np.random.default_rng(seed)
    mix = fixed.normal(size=(32, _WIDE_INPUTS)) / np.sqrt(32)
    first, second = fixed.normal(size=(32, 64)) / np.sqrt(32), fixed.normal(size=(64, _WIDE_CLASSES)) / 8
    moved = fixed.normal(size=32)
    hidden = rng.normal(size=(rows, 32)) + shift * moved
    classes = (np.tanh(2 * hidden @ first) @ second).argmax(axis=1)
    seen = np.tanh(hidden @ mix) + 0.3 * rng.normal(size=(rows, _WIDE_INPUTS))
    return Rows(seen.astype(np.float32), classes.astype(np.int64))


def prepare(network: Network, folder: Path) -> Path:
    """The folder of a network's trainings in all forms; what is not there yet is made."""
    content = hashlib.sha256(Path(__file__).read_bytes() + lock_digest().encode()).hexdigest()[:12]
    place = folder / f"{network.name}-{content}"
    if (place / "done").is_file():
        return place
    shutil.rmtree(place, ignore_errors=True)
    _say(f"{network.name}: training the first version")
    first = _train(network, None, network.base_rows, network.start, epochs=network.base_epochs)
    _write(network, first, place / "base")
    for tune in network.tunes:
        _say(f"{network.name}: training on with {tune.optimiser}")
        later = _train(network, first, network.new_rows, tune.make, epochs=tune.epochs, trained=tune.trained)
        _write(network, later, place / tune.optimiser)
    (place / "done").write_text("")
    return place


def _train(  # noqa: PLR0917 - what a training is
    network: Network,
    start: LightningModule | None,
    rows: Rows,
    optimiser: Callable[[Iterable[Any]], Any],
    epochs: int,
    trained: str = "",
) -> LightningModule:
    import torch
    from torch.nn import functional

    torch.manual_seed(_SEED)
    found: Any = network.make()
    if start is not None:
        found.load_state_dict(start.state_dict())
    for name, weight in found.named_parameters():
        weight.requires_grad_(name.startswith(trained))
    stepping = optimiser([weight for weight in found.parameters() if weight.requires_grad])
    inputs, targets = torch.from_numpy(rows.inputs), torch.from_numpy(rows.targets)
    found.train()
    for _ in range(epochs):
        order = torch.randperm(len(targets))
        for at in (order[first : first + network.batch] for first in range(0, len(order), network.batch)):
            stepping.zero_grad()
            loss: Any = functional.cross_entropy(found.logits(inputs[at]), targets[at])
            loss.backward()
            stepping.step()
    return found.eval()  # type: ignore[no-any-return]


def _write(network: Network, trained: LightningModule, place: Path) -> None:
    export(trained, network.signature, place / "fp32")
    _halve(place / "fp32" / MODEL_FILE, place / "fp16" / MODEL_FILE)
    rows = network.base_rows
    few = {network.signature.inputs[0].name: rows.inputs[calibration_rows(rows.targets)]}
    quantise(place / "fp32" / MODEL_FILE, place / "int8" / MODEL_FILE, network.signature, few)
    right = (
        _answers(place / "fp32" / MODEL_FILE, network.heldout.inputs).argmax(axis=1) == network.heldout.targets
    ).mean()
    _say(f"{network.name}: {place.name} is right on {right:.1%} of the held-out rows")


def _halve(source: Path, target: Path) -> None:
    """The same model with its large weights in fp16, which the graph widens when it is loaded."""
    target.parent.mkdir(parents=True, exist_ok=True)
    model = onnx.load(str(source))
    graph, casts = model.graph, []
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and len(tensor.dims) > 1:
            half = numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), f"{tensor.name}.half")
            casts.append(helper.make_node("Cast", [half.name], [tensor.name], to=TensorProto.FLOAT))
            tensor.CopyFrom(half)
    nodes = list(graph.node)
    del graph.node[:]
    graph.node.extend([*casts, *nodes])
    onnx.save(
        model,
        str(target),
        save_as_external_data=True,
        location=WEIGHTS_FILE,
        size_threshold=512,
        convert_attribute=False,
    )


def _answers(model: Path, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    parts = [
        session.run(None, {name: inputs[at : at + _JUDGED_BATCH]})[0] for at in range(0, len(inputs), _JUDGED_BATCH)
    ]
    return np.concatenate(parts)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> None:
    """Train what is missing, and say how good each case is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", default=list(NETWORKS), help=f"of {', '.join(NETWORKS)}")
    for case in cases(parser.parse_args().networks):
        before, after = case.accuracy(case.base), case.accuracy(case.new)
        size = case.new.stat().st_size
        print(f"{case.network:10} {case.optimiser:16} {case.dtype:5} {size:>11,} bytes  {before:.1%} -> {after:.1%}")


if __name__ == "__main__":
    main()
