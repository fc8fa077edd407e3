"""Files of a run and its user: rows, records, artifacts, the manifest; written atomically, read with bounds."""
