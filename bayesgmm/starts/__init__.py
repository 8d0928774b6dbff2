"""Where engines start: by name, or given."""
