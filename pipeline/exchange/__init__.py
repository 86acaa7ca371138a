"""SAEs of other libraries made runs, and runs made SAEs of other libraries."""
