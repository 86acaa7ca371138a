"""What the command line shows people: words for numbers, the progress bar, tables.

Nothing in the pipeline knows of it: only `cli.py` does, inside its commands.
"""
