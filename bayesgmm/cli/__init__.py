"""The command line, its settings, tables, report and output folder."""
