"""A batch job: a model answers a whole dataset, and a table of its answers grows by one batch a logical time.

The same structure is a TOML file (``shoal trainer batch JOB.toml``) and the ``job`` among the options of a run of kind
``batch``. A misspelt key is an error.
"""

from __future__ import annotations

import enum
from typing import Annotated, Any, Union

import msgspec

from edge_agent.contract.errors import ConfigurationError
from edge_agent.contract.quantities import Name, Share

# The run file's option that holds the job.
JOB_OPTION = "job"
# Columns of the table of answers that are there for every job; its other columns are the job's own.
KEY = "key"
PREDICTION = "prediction"
CONFIDENCE = "confidence"
MODEL = "model"
VERSION = "version"
PACKAGE = "package"
LOGICAL_TIME = "logical_time"
# Those of the table of rows that were set aside.
REASON = "reason"
SOURCE = "source"
ROW = "row"
REJECTED_SUFFIX = "_rejected"
# Between the values of a key of several columns.
KEY_SEPARATOR = "/"
# Beside a table's data: the record of each batch, by its number, and what is staged for the next one.
LEDGER_FOLDER = "_shoal"
# Prefix of the Delta application that a job is: its transaction version is the number of the newest batch.
APPLICATION = "shoal-batch/"

Text = Annotated[str, msgspec.Meta(min_length=1)]
Positive = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
Seconds = Annotated[float, msgspec.Meta(gt=0.0, le=1e9)]


class RowChoice(str, enum.Enum):
    """Which of the input's rows a run answers.

    ``new``: those that came since the job's last batch. ``all``: every one. ``window``: those whose time column lies in
    the ``window_s`` seconds before the logical time, so that a backfill answers each date's own rows.
    """

    NEW = "new"
    ALL = "all"
    WINDOW = "window"


class _Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A table in which a misspelt key is an error."""


class _Input(_Table, frozen=True, kw_only=True, tag_field="kind"):
    """What every input has.

    Args:
        rows: Which of them.
        time: Column of points in time, for ``window``.
        window_s: Length of the window that ends at the logical time.
    """

    rows: RowChoice = RowChoice.NEW
    time: Text | None = None
    window_s: Seconds | None = None

    def __post_init__(self) -> None:
        if self.rows is RowChoice.WINDOW and (self.time is None or self.window_s is None):
            raise ValueError("rows = 'window' needs `time`, a column, and `window_s`, its length in seconds")


class LakeInput(_Input, frozen=True, kw_only=True, tag="lake"):
    """Samples that devices sent, inputs as the model takes them; the key is device and request.

    Args:
        path: URI of the lake; None: the run's own.
        version: Delta version of its table of samples; None: the newest.
    """

    path: Text | None = None
    version: int | None = None


class DeltaInput(_Input, frozen=True, kw_only=True, tag="delta"):
    """A Delta table.

    Args:
        path: Folder or URI.
        version: None: the newest.
        as_of: Take the version that was the newest at the logical time: a backfill sees what was known then.
    """

    path: Text
    version: int | None = None
    as_of: bool = False


class ParquetInput(_Input, frozen=True, kw_only=True, tag="parquet"):
    """Parquet files.

    Args:
        path: File, folder or glob (``scans/*.parquet``), or a URI. ``{date}`` and ``{logical_time}`` stand for those of
            the run.
    """

    path: Text


class CsvInput(_Input, frozen=True, kw_only=True, tag="csv"):
    """CSV files with a header line.

    Args:
        path: As of :class:`ParquetInput`.
        delimiter: Between the columns.
        encoding: Of the text.
        missing: What stands for a missing value.
    """

    path: Text
    delimiter: Annotated[str, msgspec.Meta(min_length=1, max_length=1)] = ","
    encoding: Text = "utf-8"
    missing: tuple[str, ...] = ("", "NA", "N/A", "NULL", "null", "nan", "NaN")


class SqlInput(_Input, frozen=True, kw_only=True, tag="sql"):
    """The rows of an SQL query.

    Args:
        url: As SQLAlchemy writes it; ``env:NAME`` takes it from the environment, so that no secret stands in the job.
        query: May hold the parameters ``:logical_time``, ``:window_start`` (text, RFC 3339) and ``:since``.
        watermark: Column that grows with every new row (a number or a time): ``new`` rows are those above the largest
            one of the last batch.
        timeout_s: Of the query.
    """

    url: Text
    query: Text
    watermark: Text | None = None
    timeout_s: Seconds = 600.0

    def __post_init__(self) -> None:
        _Input.__post_init__(self)
        if self.rows is RowChoice.NEW and self.watermark is None:
            raise ValueError("rows = 'new' of an SQL query needs `watermark`, a column that grows; or set rows = 'all'")


class DeltaOutput(_Table, frozen=True, kw_only=True, tag_field="kind", tag="delta"):
    """A Delta table, partitioned by logical time; the rows set aside are in ``PATH_rejected``."""

    path: Text


class ParquetOutput(_Table, frozen=True, kw_only=True, tag_field="kind", tag="parquet"):
    """A folder with a folder of Parquet files a batch; the rows set aside are in ``PATH_rejected``."""

    path: Text


class SqlOutput(_Table, frozen=True, kw_only=True, tag_field="kind", tag="sql"):
    """An SQL table, made where it is not there; the rows set aside are in ``TABLE_rejected``.

    Args:
        url: As of :class:`SqlInput`.
        timeout_s: Of the connection, and of a statement where the database has such a limit.
    """

    url: Text
    table: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,50}(\.[A-Za-z_][A-Za-z0-9_]{0,50})?\Z")]
    timeout_s: Seconds = 600.0


Input = Union[LakeInput, DeltaInput, ParquetInput, CsvInput, SqlInput]  # noqa: UP007 - msgspec on Python 3.10
Output = Union[DeltaOutput, ParquetOutput, SqlOutput]  # noqa: UP007


class ModelChoice(_Table, frozen=True, kw_only=True):
    """Which model answers.

    Args:
        name: Of a model that the fleet server knows.
        version: A version, a digest, or ``champion``: what the whole fleet runs, else the newest published.
        package: A package folder, in place of the two.
        variant: Which of its forms.
    """

    name: Name | None = None
    version: Text = "champion"
    package: Text | None = None
    variant: Text = "fp32"

    def __post_init__(self) -> None:
        if (self.name is None) == (self.package is None):
            raise ValueError("model: give either `name`, of a model of the fleet server, or `package`, a folder")


class Engine(str, enum.Enum):
    """Who does the work: this machine, or a Ray cluster."""

    LOCAL = "local"
    RAY = "ray"


class Resources(_Table, frozen=True, kw_only=True):
    """What a run may use.

    Args:
        workers: Parts of the input that are answered at once; None: one a processor (of the cluster, with Ray).
        batch_rows: Rows of one inference; None: as many as about 1 MiB of input, and at most 1,024.
        address: Of the Ray cluster; None: the one that the environment names, else one on this machine.
    """

    engine: Engine = Engine.LOCAL
    workers: Positive | None = None
    batch_rows: Positive | None = None
    address: Text | None = None


class BatchJob(_Table, frozen=True, kw_only=True):
    """What is to be answered, by whom, and where the answers go.

    Args:
        name: The job's; a table of answers belongs to one job.
        key: Columns of the input that tell its rows apart; of several their values are joined by ``/``. Not for the
            lake, whose key is device and request.
        columns: For each input of the model the column that holds it, or several that make up its last axis; where
            nothing is said, the column of its own name.
        outputs: Outputs of the model that are kept too, each a column ``output_NAME``.
        keep: Columns of the input that are carried along.
        max_rejected: Share of the rows that may be set aside before the whole run fails and commits nothing.
        replace: Answer a logical time anew that has its batch already, in place of that batch.
    """

    name: Name
    model: ModelChoice
    input: Input
    output: Output
    key: tuple[Text, ...] = ()
    columns: dict[str, str | tuple[str, ...]] = {}
    outputs: tuple[Text, ...] = ()
    keep: tuple[Text, ...] = ()
    max_rejected: Share = 0.5
    replace: bool = False
    resources: Resources = Resources()

    def __post_init__(self) -> None:
        if isinstance(self.input, LakeInput):
            if self.key or self.columns:
                raise ValueError("an input of kind 'lake' has its key and its columns; leave out `key` and `columns`")
        elif not self.key:
            raise ValueError("`key` is missing: name the columns that tell the input's rows apart")
        taken = {KEY, PREDICTION, CONFIDENCE, MODEL, VERSION, PACKAGE, LOGICAL_TIME}
        if clash := sorted(taken & set(self.keep)):
            raise ValueError(f"keep: the table of answers has columns {clash} of its own; leave them out")


class BatchRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What the ledger beside a table of answers says of one batch.

    Args:
        number: 1 for the job's first. Of a key that several batches answer, the one of the newest logical time holds.
        logical_time: RFC 3339 UTC, ``2026-11-23T00:00:00Z``.
        package: Digest of what answered.
        watermark: What the next run of ``new`` rows begins after; its form is the input's.
        finished_at: RFC 3339 UTC.
    """

    job: str
    number: int
    logical_time: str
    run: str
    model: str
    version: str
    package: str
    rows: int
    rejected: int
    finished_at: str
    watermark: dict[str, Any] = msgspec.field(default_factory=dict)
    replaces: int | None = None


def decode_job(value: Any) -> BatchJob:
    """The job in a TOML file's content or a run's options.

    Raises:
        ConfigurationError: It is none; the text says where.
    """
    try:
        return msgspec.convert(value, BatchJob)
    except msgspec.ValidationError as error:
        # Of a table within the job the error names the place; of the job itself it has none to name.
        known = "" if " - at " in str(error) else f"; a job has {', '.join(BatchJob.__struct_fields__)}"
        raise ConfigurationError(f"batch job: {error}{known}") from error
