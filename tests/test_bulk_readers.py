"""A run's folder, read as it is by others' programs."""

from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bulk_runs import photos, rows, run
from facenet_bulk import vectors


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A run of nine faces and a broken image, in three parts."""
    folder = photos(tmp_path / "photos", 9)
    (folder / "zzz.jpg").write_bytes(b"no photo")
    run(folder, tmp_path / "out")
    return tmp_path / "out"


def test_pandas_reads_it(out: Path) -> None:
    frame = pd.read_parquet(out)
    assert len(frame) == 10
    assert frame["source"].tolist() == [row["source"] for row in rows(out)]
    faces = frame.dropna(subset="face_index")
    assert np.stack(faces["embedding"].to_list()).tolist() == [row["embedding"] for row in rows(out)[:9]]
    assert faces["score"].dtype == np.float32


def test_duckdb_reads_it(out: Path) -> None:
    with duckdb.connect() as connection:
        found = connection.sql(f"SELECT source, embedding, box[1] AS x1, reason FROM '{out}/*.parquet' ORDER BY ALL")
        table = found.fetchall()
        reasons = connection.sql(f"SELECT reason, count(*) FROM '{out}/*.parquet' WHERE reason IS NOT NULL GROUP BY 1")
        assert reasons.fetchall() == [("UNSUPPORTED_FORMAT", 1)]
    assert [row[0] for row in table] == [row["source"] for row in rows(out)]
    assert [list(row[1]) for row in table[:9]] == [row["embedding"] for row in rows(out)[:9]]
    assert table[9][1:] == (None, None, "UNSUPPORTED_FORMAT")


def test_polars_reads_it(out: Path) -> None:
    frame = pl.scan_parquet(f"{out}/*.parquet").filter(pl.col("face_index").is_not_null()).collect()
    assert frame["source"].to_list() == [row["source"] for row in rows(out)[:9]]
    assert frame["embedding"].to_numpy().tolist() == [row["embedding"] for row in rows(out)[:9]]


def test_spark_reads_it(out: Path) -> None:
    sql = pytest.importorskip("pyspark.sql", reason="pyspark is not installed")
    session = sql.SparkSession.builder.master("local[1]").getOrCreate()
    try:
        found = session.read.parquet(str(out)).orderBy("source").collect()
    finally:
        session.stop()
    assert [row["source"] for row in found] == [row["source"] for row in rows(out)]
    assert [list(row["embedding"]) for row in found[:9]] == [row["embedding"] for row in rows(out)[:9]]


def test_vectors_become_an_array_in_the_tables_own_memory(out: Path) -> None:
    table = pq.read_table(out / "part-000000.parquet")
    array = vectors(table["embedding"])
    assert array.shape == (4, 4)
    assert array.dtype == np.float32
    assert array.tolist() == [row["embedding"] for row in rows(out)[:4]]
    buffer = table["embedding"].chunk(0).values.buffers()[1]
    assert buffer.address <= array.ctypes.data < buffer.address + buffer.size
    with pytest.raises(ValueError, match="no vector"):
        vectors(pq.read_table(out)["embedding"])


def test_vectors_of_a_run_without_those_that_have_none(out: Path) -> None:
    faces = pq.read_table(out, filters=[("face_index", ">=", 0)])
    assert isinstance(faces["embedding"], pa.ChunkedArray)
    assert vectors(faces["embedding"]).tolist() == [row["embedding"] for row in rows(out)[:9]]
