"""Where a study's manifest lies, and what its last verification has left."""

MANIFEST_FOLDER = "manifest"
MANIFEST_KEY = "manifest.json"
FILES_KEY = f"{MANIFEST_FOLDER}/files.parquet"
SNAPSHOTS_KEY = f"{MANIFEST_FOLDER}/accounts.parquet"

PROOF_FOLDER = "proof"
VERDICTS_KEY = f"{PROOF_FOLDER}/verdicts.parquet"
PROBLEMS_KEY = f"{PROOF_FOLDER}/problems.parquet"
CERTIFICATE_KEY = f"{PROOF_FOLDER}/certificate.json"
