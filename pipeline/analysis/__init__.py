"""From records to tables, figures and a report. Reads records and Parquet files only; imports no engine."""
