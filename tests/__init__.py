"""Tests against real sockets, real files and real processes; faults come from origin.py."""
