"""Errors, files, seeds, shapes, statistics, progress: what every room stands on. Imports no other room."""
