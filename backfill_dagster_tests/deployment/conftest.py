import pytest

# What it checks is told of as in a test.
pytest.register_assert_rewrite("backfill_dagster_tests.deployment.shared_out")
