"""Stage 3: repositories, fetched politely, proven whole and authentic, and kept in packs."""
