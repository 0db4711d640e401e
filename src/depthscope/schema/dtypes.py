"""The dtypes that the rounding of a run is measured against."""

FINER = {"float16": "float32", "bfloat16": "float32", "float32": "float64"}
"""The dtype that a dtype is compared with to see what its rounding does."""
