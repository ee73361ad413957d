"""Logs to tables: rules, filters, windows and point-in-time histories."""
