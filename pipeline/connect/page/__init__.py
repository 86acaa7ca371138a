"""The part of a page about connectors, with its template and its script."""
