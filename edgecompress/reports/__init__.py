"""What users read of a result: text, HTML, plots."""
