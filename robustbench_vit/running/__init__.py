"""Runs boards: entries prepared, worked on by processes, journalled, recorded."""
