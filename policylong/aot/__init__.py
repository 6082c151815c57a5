"""Programs compiled for TPUs that are not there, and what they say of themselves."""
