"""Reports: their schema, their tables, their files."""
