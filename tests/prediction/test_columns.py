"""The columns of predictions: probabilities and what is computed of them, flags, and nulls where nothing is known."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest
from helpers.predictions import CLASSES, make_batch, make_classifier
from pyarrow import parquet
from scipy.stats import entropy

from galaxyhpc.evaluation.calibration import softmax
from galaxyhpc.prediction.columns import RunsDifferError, check_same_classes, compute_disagreement, make_table

FROM_IMAGE = ["class", "name", "probability", "p_E", "p_S0_or_Sa", "p_Irr/Pec", "entropy", "margin"]
FLAGS = ["blank", "empty_band", "saturated", "upsampled", "num_filled"]


def test_the_probabilities_are_those_of_the_calibrated_network_and_decide_the_rest() -> None:
    batch = make_batch()
    table = make_table(batch, [make_classifier(temperature=2.0)])
    assert table.column_names == [
        *["id", "ra", "dec", "source", "row"],
        *[*FROM_IMAGE, "typicality", *FLAGS, "run_id", "trained_on", "error"],
    ]
    expected = softmax(batch.logits[0, :-1], 2.0)
    frame = table.to_pandas()[:-1]
    np.testing.assert_allclose(frame[["p_E", "p_S0_or_Sa", "p_Irr/Pec"]], expected, atol=1e-7)
    assert frame["class"].tolist() == expected.argmax(1).tolist()
    assert frame["name"].tolist() == [CLASSES[label] for label in expected.argmax(1)]
    np.testing.assert_allclose(frame["probability"], expected.max(1), atol=1e-7)
    np.testing.assert_allclose(frame["entropy"], entropy(expected, axis=1), atol=1e-6)
    np.testing.assert_allclose(frame["margin"], [b - a for *_, a, b in np.sort(expected, 1)], atol=1e-6)
    assert table.schema.field("p_E").type == pa.float32() and table.schema.field("ra").metadata == {b"unit": b"deg"}


def test_what_is_not_known_is_null() -> None:
    table = make_table(make_batch(), [make_classifier()])
    last, first = table.slice(7).to_pylist()[0], table.to_pylist()[0]
    assert {name for name, value in last.items() if value is None} == {*FROM_IMAGE, "typicality", *FLAGS}
    assert last["error"] == "x.png: got 3 bytes; expected an image"
    assert [first[name] for name in ("id", "ra", "dec", "error")] == [None] * 4


def test_flags_say_what_is_wrong_with_an_image() -> None:
    table = make_table(make_batch(), [make_classifier()]).to_pandas()
    assert table.index[table["blank"] == True].tolist() == [6]  # noqa: E712
    assert table.index[table["empty_band"] == True].tolist() == [0]  # noqa: E712
    assert table.index[table["saturated"] == True].tolist() == [0, 4]  # noqa: E712
    assert table["num_filled"].tolist()[:7] == [0, 1, 2, 0, 1, 2, 0]


def test_without_a_temperature_probabilities_are_called_raw() -> None:
    names = make_table(make_batch(), [make_classifier(temperature=None)]).column_names
    assert {"raw_probability", "raw_p_E"} < set(names) and not {"probability", "p_E"} & set(names)


def test_several_runs_are_averaged_each_with_its_own_temperature() -> None:
    batch, runs = make_batch(num_runs=2), [make_classifier("a", 2.0), make_classifier("b", 0.5, generated=True)]
    frame = make_table(batch, runs).to_pandas()[:-1]
    by_run = np.stack([softmax(batch.logits[0, :-1], 2.0), softmax(batch.logits[1, :-1], 0.5)])
    np.testing.assert_allclose(frame[["p_E", "p_S0_or_Sa", "p_Irr/Pec"]], by_run.mean(0), atol=1e-7)
    kl = entropy(by_run, by_run.mean(0)[None], axis=2).mean(0)  # the mutual information as a divergence
    np.testing.assert_allclose(frame["disagreement"], kl, atol=1e-6)
    assert set(frame["run_id"]) == {"a b"} and set(frame["trained_on"]) == {"GENERATED galaxies"}


def test_disagreement_is_nothing_for_equal_runs_and_log_k_for_sure_ones_of_all_classes() -> None:
    probabilities = softmax(np.random.default_rng(0).normal(0, 2, (50, 4)))
    equal = compute_disagreement(np.stack([probabilities] * 3))
    assert (equal >= 0).all() and equal.max() < 1e-12
    assert compute_disagreement(np.eye(4)[:, None])[0] == pytest.approx(math.log(4))


def test_runs_with_other_classes_are_refused_by_name() -> None:
    check_same_classes([make_classifier("a"), make_classifier("b")])
    with pytest.raises(RunsDifferError, match="sweep/b: got 3 classes, such as 'Sb', not 'S0 or Sa'; expected the 3"):
        check_same_classes([make_classifier("a"), make_classifier("b", classes=("E", "Sb", "Irr/Pec"))])
    with pytest.raises(RunsDifferError, match="sweep/b: got 2 classes; expected the 3 of sweep/a"):
        check_same_classes([make_classifier("a"), make_classifier("b", classes=CLASSES[:2])])


def test_embeddings_are_the_features_and_survive_a_file(tmp_path) -> None:
    batch = make_batch()
    parquet.write_table(make_table(batch, [make_classifier()], with_embeddings=True), tmp_path / "part.parquet")
    column = parquet.read_table(tmp_path / "part.parquet").column("embedding")
    assert column.type == pa.list_(pa.float16(), 5)
    rows = column.to_pylist()
    assert rows[-1] is None
    np.testing.assert_array_equal(np.array(rows[:-1], np.float16), batch.features[:-1])


def test_a_batch_of_nothing_but_errors_is_a_table_of_the_same_columns() -> None:
    batch, classifiers = make_batch(), [make_classifier()]
    broken = batch._replace(errors=["broken"] * 8, logits=np.full_like(batch.logits, np.nan))
    table = make_table(broken, classifiers, with_embeddings=True)
    assert table.schema == make_table(batch, classifiers, with_embeddings=True).schema
    assert table.column("p_E").null_count == table.column("embedding").null_count == 8


def test_a_network_that_gives_no_numbers_gives_no_class() -> None:
    batch = make_batch()
    batch.logits[0, 2, 1] = np.inf
    row = make_table(batch, [make_classifier()]).slice(2, 1).to_pylist()[0]
    assert row["class"] is None and row["error"].startswith("got logits that are not finite")
