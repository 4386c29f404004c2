"""Stage 2: what each DID's document says: the account's handle, its PDS and its signing key."""
