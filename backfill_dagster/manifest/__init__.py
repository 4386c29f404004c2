"""The manifest: what a study's folder held when its tables were built, and what that was made of."""
