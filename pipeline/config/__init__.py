"""What a person may set, from Python, a file or the command line; torch-free."""
