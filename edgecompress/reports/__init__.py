"""How results are presented to users: text, HTML, plots."""
