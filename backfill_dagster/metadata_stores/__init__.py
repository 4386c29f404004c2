"""Which accounts a study has collected, and what its runs came to: as tables, and in a store that others can ask."""
