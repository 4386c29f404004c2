"""Where files are kept: a local folder, or a prefix of a bucket in S3."""
