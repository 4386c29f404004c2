"""What is told of a run while it works and afterwards: metrics, structured logs, the audit log, alerts."""
