"""SAEs as other libraries write them: read, recognised and written; tensors and settings alone."""
