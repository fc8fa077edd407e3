"""Files of a run and of its user: rows, records, artifacts, the manifest; each written whole, read with bounds."""
