"""`leuko score`: classify archives of any size into Parquet, on one machine or on a Ray cluster."""
