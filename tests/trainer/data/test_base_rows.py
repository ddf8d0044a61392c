"""What a recipe's author may get wrong in data.py, and how a lake that took it is mended."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from edge_agent.contract.lake import LABELS, SAMPLES
from edge_agent.runtime.package import Package
from tests.trainer.conftest import NOW, field_rows
from trainer.data.base_rows import base_rows
from trainer.data.dataset import read_dataset
from trainer.data.lake import append, import_base
from trainer.data.rows import encode_row
from trainer.errors import DatasetError, RecipeError
from trainer.recipe import Recipe

_GOOD = """
import numpy as np

def rows():
    images = np.zeros((40, 1, 8, 8), np.float32) + np.arange(40, dtype=np.float32)[:, None, None, None] / 4
    return [f"g{n}" for n in range(40)], {"image": images}, [str(n % 10) for n in range(40)]
"""


@pytest.fixture
def recipe_with(recipes: Path, tmp_path: Path) -> Callable[[str], Recipe]:
    """A recipe with other code in data.py."""

    def make(code: str) -> Recipe:
        folder = tmp_path / "digits"
        if not folder.exists():
            shutil.copytree(recipes / "digits", folder)
        (folder / "data.py").write_text(_GOOD + code)
        return Recipe.load(folder)

    return make


def gives(change: str) -> str:
    return f"\ndef base_rows():\n    groups, inputs, labels = rows()\n    {change}\n    return groups, inputs, labels\n"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("inputs['image'][7] += 16", r"input 'image', row 7: range: value 17.* is above the maximum 16"),
        ("inputs['image'] = inputs['image'][:, 0]", r"shape: expected \[-1, 1, 8, 8\], got \[40, 8, 8\]"),
        ("inputs = {'picture': inputs['image']}", "'picture'.*no such input; it has: image"),
        ("inputs['image'] = inputs['image'].astype(float)", "datatype: expected FP32, got FP64"),
        ("inputs['image'] = inputs['image'].tolist()", "input 'image' is list, not a numpy array"),
        ("labels[3] = 'ten'", "row 3: label 'ten' is no class; model.toml has: 0, 1"),
        ("labels = [int(label) for label in labels]", r"row 0: label 0 is int, not text; give str\(label\)"),
        ("labels.pop()", "the lengths differ: groups 40, labels 39, input 'image' 40"),
        ("groups[2] = 2", "row 2: group 2 is no text"),
        ("1 / 0", r"base_rows\(\) failed: ZeroDivisionError"),
        ("return groups", r"gave list, not three things; write: def base_rows\(\)"),
    ],
)
def test_base_rows_that_are_wrong_are_refused_by_row_and_nothing_is_written(
    recipe_with: Callable[[str], Recipe], tmp_path: Path, change: str, message: str
) -> None:
    with pytest.raises(RecipeError, match=rf"data\.py: .*{message}"):
        import_base(recipe_with(gives(change)), str(tmp_path / "lake"), now=NOW)
    assert not (tmp_path / "lake").exists()


def test_a_recipe_without_base_rows_is_told_what_to_write(recipe_with: Callable[[str], Recipe]) -> None:
    recipe = recipe_with("")
    with pytest.raises(RecipeError, match=r"has no function base_rows; write: def base_rows\(\)"):
        base_rows(recipe)
    (recipe.folder / "data.py").unlink()
    with pytest.raises(RecipeError, match=r"data\.py: not found; .* def base_rows\(\)"):
        base_rows(recipe)


def test_rows_of_one_group_are_all_imported(recipe_with: Callable[[str], Recipe], tmp_path: Path) -> None:
    recipe = recipe_with(gives("groups = [f'g{n % 20}' for n in range(40)]"))
    assert import_base(recipe, str(tmp_path / "lake"), now=NOW).new == 40
    assert len(read_dataset(recipe, str(tmp_path / "lake")).rows) == 40


def test_a_bad_import_is_taken_out_by_a_good_one(recipe_with: Callable[[str], Recipe], tmp_path: Path) -> None:
    lake = str(tmp_path / "lake")
    import_base(recipe_with(gives("labels = ['0'] * 40; groups[39] = 'not-any-more'")), lake, now=NOW)
    mended = recipe_with(gives(""))
    with pytest.raises(DatasetError, match=r"36 imported rows .* not what the recipe has now .*--replace"):
        import_base(mended, lake, now=NOW)
    done = import_base(mended, lake, now=NOW, replace=True)
    assert (done.new, done.replaced) == (36, 36)
    rows = read_dataset(mended, lake).rows
    assert sorted(rows.targets.tolist()) == sorted(n % 10 for n in range(40))
    assert "not-any-more" not in rows.groups
    assert import_base(mended, lake, now=NOW).new == 0


def test_a_lake_with_imported_rows_that_break_the_signature_says_how_to_mend_it_and_is_mended(
    recipe: Recipe, champion: Package, lake_with: Callable[..., Path]
) -> None:
    samples, labels = field_rows(recipe, champion, per_device=10, drifted=False)
    lake = lake_with(samples, labels)
    inputs = {"image": recipe.module("data").load("base").images[:1] * 3}
    bad = samples[0] | {"device": "import", "request_id": "digits-base-bad", "inputs": encode_row(inputs, 0)}
    append(str(lake), SAMPLES, [bad])
    append(str(lake), LABELS, [labels[0] | {"device": "import", "request_id": "digits-base-bad"}])
    with pytest.raises(DatasetError, match=r"1 rows; .* is above the maximum 16.*import digits .*--replace"):
        read_dataset(recipe, str(lake))
    assert import_base(recipe, str(lake), now=NOW, replace=True).replaced == 1
    dataset = read_dataset(recipe, str(lake))
    assert (len(dataset.rows), int(dataset.field.sum())) == (731, 30), "what devices sent is left alone"


def test_samples_of_devices_that_break_the_signature_are_set_aside_and_counted(
    recipe: Recipe, champion: Package, lake_with: Callable[..., Path]
) -> None:
    samples, labels = field_rows(recipe, champion, per_device=10, drifted=False)
    image = recipe.module("data").load("base").images[:1]
    samples[4]["inputs"] = encode_row({"image": image[:, 0, 0]}, 0)
    samples[5]["inputs"] = encode_row({"picture": image}, 0)
    dataset = read_dataset(recipe, str(lake_with(samples, labels)))
    assert int(dataset.field.sum()) == 28
    assert (dataset.unmatched, dataset.summary()["set_aside"]) == (0, 2)
    assert "shape" in dataset.complaint


def test_a_lake_that_cannot_be_written_is_named(recipe_with: Callable[[str], Recipe], tmp_path: Path) -> None:
    (tmp_path / "lake").write_text("a file")
    with pytest.raises(DatasetError, match="lake/samples: cannot be"):
        import_base(recipe_with(gives("")), str(tmp_path / "lake"), now=NOW)
