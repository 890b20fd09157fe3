"""One module for each layout of measured files."""
