"""Callbacks for `model.fit`, one file each."""
