"""A HATS catalogue of predictions holds every galaxy once where it belongs, and LSDB opens and searches it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow
import pytest
from helpers.tiers import skip_or_fail
from pyarrow import parquet

from galaxyhpc.data.survey.hats import list_partitions
from galaxyhpc.prediction.hats_catalogue import HatsError, choose_orders, compute_pixels, write_hats_catalogue
from galaxyhpc.storage.files import OutputExistsError, sha256

MAX_ROWS = 500  # of a partition
CLUSTER = (150.0, 2.0)  # ra, dec in degrees
# warnings of what LSDB uses, and of a cross-match without margins
ignore_warnings = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::RuntimeWarning"
)


def require_lsdb() -> None:
    if importlib.util.find_spec("lsdb") is None:
        skip_or_fail("no LSDB: pip install '.[hats]'")


def make_part(path: Path, number: int, n: int = 1000) -> Path:
    """Write predictions of galaxies all over the sky, or of part 1 in a cluster, of which five have no position."""
    rng = np.random.default_rng(number)
    ra, dec = rng.uniform(0, 360, n), np.degrees(np.arcsin(rng.uniform(-1, 1, n)))
    if number == 1:
        ra, dec = (center + rng.normal(0, 0.3, n) for center in CLUSTER)
        ra[:5] = np.nan
    features = pyarrow.array(rng.random(n * 4).astype(np.float16))
    columns = {
        "id": [f"part {number}, galaxy {row}" for row in range(n)],
        "ra": pyarrow.array(ra, from_pandas=True),
        "dec": dec,
        "class": rng.integers(0, 3, n, np.int16),
        "p_Merging": rng.random(n, np.float32),
        "error": pyarrow.nulls(n, pyarrow.string()),
        "embedding": pyarrow.FixedSizeListArray.from_arrays(features, 4),
    }
    parquet.write_table(pyarrow.table(columns, metadata={"galaxyhpc.input": str(number)}), path)
    return path


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    directory = tmp_path_factory.mktemp("parts")
    return [make_part(directory / f"{number}.parquet", number) for number in range(3)]


@pytest.fixture(scope="module")
def rows(parts: list[Path]) -> pd.DataFrame:
    """The galaxies that have a position, by id."""
    table = pd.concat([parquet.read_table(part).to_pandas() for part in parts])
    return table[table["ra"].notna()].set_index("id")


@pytest.fixture(scope="module")
def catalogue(parts: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("output") / "catalogue"
    assert write_hats_catalogue(parts, path, "predictions", max_rows=MAX_ROWS, spill_bytes=50_000) == 5
    return path


def test_every_galaxy_is_once_in_the_largest_pixel_that_is_not_too_full(catalogue: Path, rows: pd.DataFrame) -> None:
    ids, orders = [], set()
    for path in list_partitions(catalogue):
        table = parquet.read_table(path, partitioning=None).to_pandas()
        order, pixel = (int(path.parts[-3].partition("=")[2]), int(path.stem.partition("=")[2]))
        numbers = table["_healpix_29"].to_numpy()
        assert np.array_equal(numbers, compute_pixels(table["ra"].to_numpy(), table["dec"].to_numpy()))
        assert set(numbers >> 2 * (29 - order)) == {pixel}
        assert (np.diff(numbers) >= 0).all()
        assert len(table) <= MAX_ROWS
        orders.add(order)
        ids += table["id"].tolist()
        expected = rows.loc[table["id"]]
        for name in ("ra", "dec", "class", "p_Merging"):
            assert np.array_equal(table[name], expected[name]), name
        assert np.array_equal(np.stack(table["embedding"]), np.stack(expected["embedding"]))
    assert sorted(ids) == sorted(rows.index)
    assert len(orders) > 1


def test_properties_and_summaries_say_what_is_there(catalogue: Path, rows: pd.DataFrame) -> None:
    lines = (catalogue / "hats.properties").read_text().splitlines()
    properties = dict(line.split("=", 1) for line in lines if not line.startswith("#"))
    assert properties["obs_collection"] == "predictions"
    assert properties["hats_nrows"] == str(len(rows))
    assert properties["hats_cols_default"] == "_healpix_29 id ra dec class p_Merging error"
    metadata = parquet.read_metadata(catalogue / "dataset" / "_metadata")
    assert metadata.num_rows == len(rows)
    assert (
        metadata.num_row_groups
        == len(list_partitions(catalogue))
        == len((catalogue / "partition_info.csv").read_text().splitlines()[1:])
    )
    assert "galaxyhpc.input" not in (parquet.read_schema(catalogue / "dataset" / "_common_metadata").metadata or {})


def test_columns_whose_names_have_spaces_are_not_listed_as_they_cannot_be(tmp_path: Path) -> None:
    parquet.write_table(pyarrow.table({"ra": [1.0], "dec": [2.0], "p_Edge on": [0.5]}), tmp_path / "a.parquet")
    write_hats_catalogue([tmp_path / "a.parquet"], tmp_path / "catalogue", "x")
    assert "hats_cols_default" not in (tmp_path / "catalogue" / "hats.properties").read_text()


def test_the_files_do_not_depend_on_how_many_rows_are_held(catalogue: Path, parts: list[Path], tmp_path: Path) -> None:
    write_hats_catalogue(parts, tmp_path / "catalogue", "predictions", max_rows=MAX_ROWS)
    names = [path.relative_to(catalogue) for path in list_partitions(catalogue)]
    assert [sha256(catalogue / name) for name in names] == [sha256(tmp_path / "catalogue" / name) for name in names]
    assert [path.name for path in tmp_path.iterdir()] == ["catalogue"]


def test_a_partition_is_as_large_as_its_rows_allow() -> None:
    counts = np.zeros(12 * 4**2, np.int64)
    counts[:4], counts[4], counts[16:32] = 10, 25, 1
    orders = choose_orders(counts, 24)
    assert orders[:5].tolist() == [2, 2, 2, 2, 2]  # 40 in their pixel of order 1; 25 are too many even for order 2
    assert orders[5:8].tolist() == [2, 2, 2]  # share a pixel of order 1 with those 25
    assert orders[8:16].tolist() == [1] * 8
    assert orders[16:32].tolist() == [0] * 16
    assert choose_orders(counts, 1000).tolist() == [0] * 192


def test_predictions_without_any_position_are_refused_and_nothing_is_left(tmp_path: Path) -> None:
    table = pyarrow.table({"ra": pyarrow.nulls(3, pyarrow.float64()), "dec": pyarrow.nulls(3, pyarrow.float64())})
    parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(HatsError, match="got 3 galaxies without a position; expected ra and dec in the input"):
        write_hats_catalogue([tmp_path / "a.parquet"], tmp_path / "catalogue", "x")
    assert [path.name for path in tmp_path.iterdir()] == ["a.parquet"]


def test_an_existing_catalogue_and_a_failed_one_leave_all_as_it_was(
    catalogue: Path, parts: list[Path], tmp_path: Path
) -> None:
    with pytest.raises(OutputExistsError):
        write_hats_catalogue(parts, catalogue, "x")
    damaged = bytearray(parts[0].read_bytes())
    damaged[4:2000] = bytes(1996)  # the ids: found when they are divided
    (tmp_path / "0.parquet").write_bytes(damaged)
    with pytest.raises((OSError, pyarrow.ArrowException)):
        write_hats_catalogue([*parts[1:], tmp_path / "0.parquet"], tmp_path / "catalogue", "x")
    assert [path.name for path in tmp_path.iterdir()] == ["0.parquet"]


@pytest.mark.slow  # LSDB takes seconds to import
@ignore_warnings
def test_hats_itself_finds_the_catalogue_valid_and_numbers_pixels_alike(catalogue: Path, rows: pd.DataFrame) -> None:
    require_lsdb()
    import hats
    from hats.io.skymap import read_skymap
    from hats.io.validation import is_valid_catalog
    from hats.pixel_math.spatial_index import compute_spatial_index

    assert is_valid_catalog(catalogue, strict=True)
    skymap = read_skymap(hats.read_hats(catalogue), 8)
    ra, dec = rows["ra"].to_numpy(), rows["dec"].to_numpy()
    numbers = compute_spatial_index(ra, dec)
    assert np.array_equal(skymap, np.bincount(numbers >> 2 * (29 - 8), minlength=12 * 4**8))
    assert (np.abs(compute_pixels(ra, dec) - numbers) <= 1).mean() > 0.99  # 0.4 milliarcsec: rounding at their edges


@pytest.mark.slow  # LSDB takes seconds to import
@ignore_warnings
def test_lsdb_searches_and_cross_matches_the_catalogue(catalogue: Path, rows: pd.DataFrame, tmp_path: Path) -> None:
    require_lsdb()
    import lsdb
    from astropy.coordinates import SkyCoord

    opened = lsdb.open_catalog(catalogue)
    assert list(opened.columns) == ["id", "ra", "dec", "class", "p_Merging", "error"]
    found = opened.cone_search(*CLUSTER, radius_arcsec=900).compute()
    distance = SkyCoord(rows["ra"], rows["dec"], unit="deg").separation(SkyCoord(*CLUSTER, unit="deg")).arcsec
    assert sorted(found["id"]) == sorted(rows.index[distance <= 900])
    assert 0 < len(found) < len(rows)

    targets = rows.iloc[::40].reset_index()[["id", "ra", "dec"]]
    targets["dec"] += 0.2 / 3600
    targets.to_parquet(tmp_path / "targets.parquet")
    write_hats_catalogue([tmp_path / "targets.parquet"], tmp_path / "targets", "targets")
    other = lsdb.open_catalog(tmp_path / "targets")
    pairs = opened.crossmatch(other, radius_arcsec=1, suffixes=("", "_other")).compute()
    assert pairs["id"].tolist() == pairs["id_other"].tolist()
    assert sorted(pairs["id"]) == sorted(targets["id"])
    features = (
        lsdb.open_catalog(catalogue, columns=["id", "embedding"]).cone_search(*CLUSTER, radius_arcsec=900).compute()
    )
    assert np.array_equal(np.stack(features["embedding"].tolist()), np.stack(rows.loc[features["id"], "embedding"]))
