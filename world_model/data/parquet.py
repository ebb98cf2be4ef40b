"""Parquet files of a LeRobot dataset, read within limits of memory and written. Needs the extra `data`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from rewards.errors import UserError
from world_model.data.columns import Columns
from world_model.extras import import_extra
from world_model.files import TENSOR_BYTES, open_file

FREE_BYTES, EXPANSION = 64_000_000, 30
"""Memory that a parquet file may take: FREE_BYTES plus EXPANSION times its size on disk.

Robot data hardly compresses. A file that grows a thousandfold was made to exhaust the memory.
"""

BATCH = 8
"""Number of images whose bytes are read at once."""


def import_pyarrow() -> tuple[Any, Any]:
    """Return the modules `pyarrow` and `pyarrow.parquet`.

    Raises:
        UserError: pyarrow is missing.
    """
    needs = "LeRobot datasets need pyarrow"
    return import_extra("pyarrow", "data", needs), import_extra("pyarrow.parquet", "data", needs)


def parquet_files(root: Path, part: str) -> list[Path]:
    """Return the files of `data` or `meta/episodes` in order; `UserError` if there are none."""
    paths = sorted((root / part).glob("*/*.parquet"))
    if not paths:
        raise UserError(f"{root / part}: no parquet files in it; download the dataset again")
    return paths


def read_parquet(root: Path, part: str) -> Columns:
    """Read the columns of `data` or `meta/episodes`, without statistics and images.

    Raises:
        UserError: there is no file, or one is damaged or would take too much memory for its size.
    """
    pa, _ = import_pyarrow()
    paths = parquet_files(root, part)
    try:
        table = pa.concat_tables([_read_table(path) for path in paths])
        return {name: _to_numpy(table[name].combine_chunks()) for name in table.column_names}
    except (pa.ArrowException, ValueError, TypeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{root / part}: its files have different columns; download the dataset again") from error


def read_bytes(path: Path, column: str) -> Iterator[Any]:
    """Yield the values of a column of bytes, or of {bytes, path} as LeRobot stores images, row by row.

    A value that is not bytes is yielded as it is: the caller knows the row and reports it.

    Raises:
        UserError: there is no such column, or the file is damaged or would take too much memory for its size.
    """
    pa, pq = import_pyarrow()
    try:
        with open_file(path, TENSOR_BYTES) as file:
            parquet = pq.ParquetFile(file)
            if column not in parquet.schema_arrow.names:
                raise UserError(f"{path}: it has no column {column}; download the dataset again")
            _check_memory(path, parquet.metadata, lambda name: name == column or name.startswith(f"{column}."))
            # A few rows at a time: a value that a small file repeats a million times is then never unfolded at once.
            for batch in parquet.iter_batches(batch_size=BATCH, columns=[column]):
                values = batch.column(0)
                yield from (values.field("bytes") if pa.types.is_struct(values.type) else values).to_pylist()
    except UserError:
        raise
    except Exception as error:  # a damaged file can raise any exception
        raise UserError(f"{path}: the file is damaged; download the dataset again") from error


def to_parquet(columns: dict[str, Any], metadata: dict[str, str] | None = None) -> bytes:
    """Return the bytes of a parquet file.

    Args:
        columns: name -> numbers (rows,) or (rows, size), a list of other values, or an object array (rows,) of the
            bytes of images, which is stored as LeRobot does: a struct of `bytes` and an empty `path`.
        metadata: of the file.
    """
    pa, pq = import_pyarrow()
    arrays = {}
    for name, column in columns.items():
        if not isinstance(column, np.ndarray):
            arrays[name] = pa.array(column)
        elif column.dtype == object:
            images = pa.array(column.tolist(), pa.binary())
            arrays[name] = pa.StructArray.from_arrays([images, pa.nulls(len(images), pa.string())], ["bytes", "path"])
        elif column.ndim == 2 and column.shape[1] == 0:  # a list of fixed size has at least one element
            arrays[name] = pa.array([[]] * len(column), pa.list_(pa.from_numpy_dtype(column.dtype)))
        elif column.ndim == 2 and column.shape[1] > 1:
            arrays[name] = pa.FixedSizeListArray.from_arrays(pa.array(column.reshape(-1)), column.shape[1])
        else:  # LeRobot stores shape (1,) as plain numbers
            arrays[name] = pa.array(column.reshape(-1))
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(arrays).replace_schema_metadata(metadata), sink)
    return bytes(sink.getvalue())


def _read_table(path: Path) -> Any:
    pa, pq = import_pyarrow()
    try:
        with open_file(path, TENSOR_BYTES) as file:
            # Read texts as dictionaries: equal texts are then stored once in memory.
            texts = [c.path for c in pq.ParquetFile(file).schema if c.physical_type == "BYTE_ARRAY"]
            parquet = pq.ParquetFile(file, read_dictionary=texts)
            names = [name for name in parquet.schema_arrow.names if _is_read(name)]
            _check_memory(path, parquet.metadata, _is_read)
            # One row group at a time: arrow cannot join lists of dictionaries of several groups while it reads them.
            groups = [parquet.read_row_group(i, columns=names) for i in range(parquet.num_row_groups)]
            return pa.concat_tables(groups) if groups else parquet.read(columns=names)
    except UserError:
        raise
    except Exception as error:  # a damaged file can raise any exception
        raise UserError(f"{path}: the file is damaged; download the dataset again") from error


def _is_read(name: str) -> bool:
    return not name.startswith(("stats/", "observation.image", "final.observation.image"))


def _check_memory(path: Path, metadata: Any, is_read: Callable[[str], bool]) -> None:
    """Raise `UserError` if the columns that are read would take too much memory for a file of its size."""
    size, limit = _memory(metadata, is_read), FREE_BYTES + EXPANSION * path.stat().st_size
    if size > limit:
        raise UserError(f"{path}: it takes {size:,} bytes of memory, at most {limit:,} for a file of its size")


def _memory(metadata: Any, is_read: Callable[[str], bool]) -> int:
    """Estimate from its metadata how many bytes the columns of a parquet file take in memory."""
    size = 0
    for i in range(metadata.num_row_groups):
        group = metadata.row_group(i)
        chunks = [group.column(j) for j in range(group.num_columns)]
        # Parquet stores equal values once, so its uncompressed size can be too small. Count at least 8 bytes per value.
        size += sum(max(c.total_uncompressed_size, 8 * c.num_values) for c in chunks if is_read(c.path_in_schema))
    return max(size, 8 * metadata.num_rows)


def _to_numpy(column: Any) -> np.ndarray:
    """Convert an arrow column to (rows,), or to (rows, size) if it holds lists of equal length.

    Lists of different lengths become an object array (rows,) of arrays.
    """
    if not hasattr(column.type, "value_type") or hasattr(column, "dictionary"):
        return _flat(column)
    import pyarrow.compute as pc

    sizes, values = pc.list_value_length(column).to_numpy(zero_copy_only=False), _flat(column.flatten())
    if len(sizes) and (sizes == sizes[0]).all():
        return values.reshape(len(column), int(sizes[0]))
    ends = np.nan_to_num(sizes).astype(int).cumsum()
    rows = np.empty(len(column), dtype=object)
    rows[:] = [values[start:end] for start, end in zip((0, *ends), ends, strict=False)]
    return rows


def _flat(column: Any) -> np.ndarray:
    """Convert an arrow column without lists to (rows,); equal texts share one object."""
    if not hasattr(column, "dictionary"):
        return np.asarray(column.to_numpy(zero_copy_only=False))
    texts = np.array([*column.dictionary.to_pylist(), None], dtype=object)
    return np.asarray(texts[column.indices.fill_null(len(texts) - 1).to_numpy(zero_copy_only=False)])
