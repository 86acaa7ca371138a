"""What features fire on and what they do: from one pass over a store, kept as Parquet."""
