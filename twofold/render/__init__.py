"""Rendering shared by reports, cards and maps: numbers, HTML pages and their style."""
