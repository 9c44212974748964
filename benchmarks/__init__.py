"""Measurements that anyone can repeat: `make bench` (minutes) and `make evidence` (an hour)."""
