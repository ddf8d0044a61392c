"""Tables of the sample lake: the server appends to them, the trainer reads them at a version.

Labels are never merged into samples (that would rewrite them): they are a table of their own, joined on
``(device, request_id)``; of several labels of one row the one with the latest ``labelled_at_ms`` holds.
"""

from __future__ import annotations

SAMPLES = "samples"
LABELS = "labels"
# The device name under which rows that no device sent are imported.
IMPORTED = "import"

# Of the tables' logs: a version whose log is gone cannot be read, though its files be there. Delta's own default is 30
# days; what a model was trained on is to be found for as long as the model may be asked about.
LOG_RETENTION = "interval 3650 days"
# Random reads of a table with larger row groups take many times as long.
ROW_GROUP_ROWS = 1024

# Column name -> type, in the words of Arrow.
SAMPLE_COLUMNS: dict[str, str] = {
    "request_id": "string",
    "device": "string",
    "model": "string",
    "package": "string",
    "at_ms": "int64",
    "day": "string",  # UTC day of at_ms, YYYY-MM-DD; the partition
    "reason": "string",
    "inclusion_probability": "float64",
    "prediction": "string",
    "confidence": "float64",
    "margin": "float64",
    "group": "string",
    "inputs": "binary",  # msgpack of dict[str, Tensor]
    "outputs": "binary",
}
LABEL_COLUMNS: dict[str, str] = {
    "request_id": "string",
    "device": "string",
    "model": "string",
    "package": "string",
    "label": "string",
    "prediction": "string",
    "inclusion_probability": "float64",
    "source": "string",
    "at_ms": "int64",
    "labelled_at_ms": "int64",
}
