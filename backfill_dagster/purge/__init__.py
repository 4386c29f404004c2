"""Withdrawal: removes accounts and records from everything that is stored, and keeps them from coming back."""
