"""Runs attacks on models: oracle, pool, lanes, cascade, intake, verify."""
