"""The command line: parse, call one library function, print, return the exit code.

Results go to standard output, everything else (progress, notes, errors) to standard error. Each
command is a module of this package; its options come from the dataclasses of their owners.
"""

from edgecompress.cli.app import main as main
