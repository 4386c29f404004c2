"""Driving backfills from a program: a thin façade over the GraphQL of a running Dagster webserver, and HTTP around it.

Nothing here schedules, runs or stores a backfill: that is Dagster's. Nothing here imports Dagster either, so that the
façade fits into a small container or an AWS Lambda function.
"""
