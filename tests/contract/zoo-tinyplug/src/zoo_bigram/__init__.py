"""Bigram models for zoo."""
