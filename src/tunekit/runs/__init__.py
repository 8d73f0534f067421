"""The run folder, its record and metrics, and what shows them: screens, tables, the console summary, the report."""
