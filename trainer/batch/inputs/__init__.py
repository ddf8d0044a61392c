"""What a batch reads: each kind of input becomes Parquet files, pinned."""
