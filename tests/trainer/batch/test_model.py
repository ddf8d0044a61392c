from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from edge_agent.contract.errors import ConfigurationError, PackageError
from edge_agent.runtime.package import Package
from tests.fakes.graph_packages import make_dependent_package, make_mixed_package, mixed_inputs, mixed_outputs
from tests.fakes.packages import LABELS, answer, make_package, model_weights
from tests.fakes.text_package import make_text_package
from tests.trainer.batch.jobs import changed, delta_rows, expected, images, job, run, table, write
from trainer.batch.errors import InputUnreadable
from trainer.batch.model import BatchModel


def test_rows_on_which_the_model_fails_are_set_aside_and_their_company_is_answered(tmp_path: Path) -> None:
    package = make_package(tmp_path / "digits", fails_above=0.95)
    pixels = images(200)
    pixels[[7, 8, 150], 3] = 0.99
    write(tmp_path / "in", "a.parquet", table([f"{at:03d}" for at in range(200)], pixels))
    outcome = run(job(package, tmp_path))
    assert outcome.record is not None
    assert (outcome.record.rows, outcome.record.rejected) == (197, 3)
    aside = {row["key"]: row["reason"] for row in delta_rows(tmp_path / "out_rejected")}
    assert sorted(aside) == ["007", "008", "150"]
    assert aside["007"].startswith("model: it fails on this row: ")


def test_a_chunk_of_bad_rows_alone_is_told_row_by_row(package: Package) -> None:
    model = BatchModel(package)
    pixels = images(300)
    pixels[100:] = 2.0
    answered = model.answer({"image": pixels})
    assert answered.rows.tolist() == list(range(100))
    assert sorted(answered.faults) == list(range(100, 300))
    assert [model.task.labels[at] for at in answered.outputs["probabilities"].argmax(axis=1)] == expected(pixels[:100])
    model.close()


def test_text_goes_in_and_comes_out(tmp_path: Path) -> None:
    package = make_text_package(tmp_path / "echo")
    rows = pa.table({"id": ["a", "b", "c"], "words": ["eins", None, "drei"]})
    write(tmp_path / "in", "a.parquet", rows)
    outcome = run(job(package, tmp_path, columns={"text": "words"}, outputs=["echo"]))
    assert outcome.record is not None
    assert outcome.record.rows == 3
    assert [row["output_echo"] for row in delta_rows(tmp_path / "out")] == ["eins", "", "drei"]


def test_an_output_that_the_model_lacks_is_named(package: Package, tmp_path: Path) -> None:
    write(tmp_path / "in", "a.parquet", table(["a"], images(1)))
    with pytest.raises(InputUnreadable, match=r"has no \['score'\]; it has: probabilities"):
        run(job(package, tmp_path, outputs=["score"]))
    with pytest.raises(InputUnreadable, match=r"has no input \['picture'\]; it has: image"):
        run(job(package, tmp_path, columns={"picture": "image"}))


def test_a_job_says_what_is_wrong_with_it(package: Package, tmp_path: Path) -> None:
    some = job(package, tmp_path)
    for wrong, why in (
        ({"key": []}, "`key` is missing"),
        ({"model": {}}, "give either `name`"),
        ({"keep": ["prediction"]}, r"columns \['prediction'\] of its own"),
        ({"input": {"kind": "sql", "url": "sqlite://", "query": "SELECT 1"}}, "needs `watermark`"),
        ({"otput": {}}, "unknown field `otput`"),
    ):
        with pytest.raises(ConfigurationError, match=why):
            changed(some, **wrong)


def test_values_that_are_no_numbers_of_the_model_are_set_aside(package: Package, tmp_path: Path) -> None:
    rows = [list(row) for row in images(3).astype(float)]
    rows[1][5] = None
    found = pa.table({"id": [1, 2, 3], "image": pa.array(rows, pa.list_(pa.float64()))})
    write(tmp_path / "in", "a.parquet", found)
    outcome = run(job(package, tmp_path))
    assert outcome.record is not None
    assert outcome.record.rejected == 1
    assert np.isfinite([row["confidence"] for row in delta_rows(tmp_path / "out")]).all()


def test_every_datatype_goes_in_and_comes_out_and_lengths_may_differ(tmp_path: Path) -> None:
    package = make_mixed_package(tmp_path / "mixed")
    rows, inputs = 40, [mixed_inputs(1, length=1 + at % 4, seed=at) for at in range(40)]
    columns = {name: pa.array([one[name][0].tolist() for one in inputs]) for name in ("x", "precise", "count")}
    levels = {f"level{axis}": pa.array([int(one["level"][0][axis]) for one in inputs]) for axis in range(3)}
    armed = pa.array([bool(one["armed"][0][0]) for one in inputs])
    columns["x"] = pa.array([*columns["x"].to_pylist()[:-1], [0.0] * 17])  # longer than the contract lets it be
    found = pa.table({"id": [f"{at:02d}" for at in range(rows)], **columns, **levels, "armed": armed})
    write(tmp_path / "in", "a.parquet", found)
    wanted = ["halved", "more", "next", "disarmed", "raised"]
    some = job(package, tmp_path, columns={"level": list(levels)}, outputs=wanted)
    outcome = run(some)
    assert outcome.record is not None
    assert (outcome.record.rows, outcome.record.rejected) == (39, 1)
    for at, row in enumerate(delta_rows(tmp_path / "out")):
        right = mixed_outputs(inputs[at])
        assert row["key"] == f"{at:02d}"
        np.testing.assert_allclose(row["output_halved"], right["halved"][0], rtol=1e-6)
        assert row["output_next"] == right["next"][0].tolist()
        assert row["output_disarmed"] == bool(right["disarmed"][0][0])
        assert row["output_raised"] == right["raised"][0].tolist()


def test_a_model_whose_rows_depend_on_each_other_is_asked_row_by_row(tmp_path: Path) -> None:
    model = BatchModel(make_dependent_package(tmp_path / "centred"), outputs=("centred",))
    assert "depends on the other rows" in model.dependent
    rows = np.random.default_rng(3).normal(size=(5, 4)).astype(np.float32)
    answered = model.answer({"x": rows})
    np.testing.assert_allclose(answered.outputs["centred"], np.zeros((5, 4)), atol=1e-6)
    model.close()


def test_full_precision_answers_unless_the_job_asks_for_the_int8_form(tmp_path: Path) -> None:
    both = make_package(tmp_path / "both", int8_seed=5)
    write(tmp_path / "in", "a.parquet", table(list(range(50)), images(50)))
    some = job(both, tmp_path)
    run(some)
    full = [row["prediction"] for row in sorted(delta_rows(tmp_path / "out"), key=lambda row: int(row["key"]))]
    assert full == expected(images(50))

    small = changed(some, model={"package": str(both.folder), "variant": "int8"}, replace=True)
    run(small, run="run-2")
    found = [row["prediction"] for row in sorted(delta_rows(tmp_path / "out"), key=lambda row: int(row["key"]))]
    assert found == [LABELS[at] for at in answer(*model_weights(5), images(50)).argmax(axis=1)]
    with pytest.raises(PackageError, match="no variant 'int4'"):
        run(changed(some, model={"package": str(both.folder), "variant": "int4"}))
